"""Cross-signing: the account vouches for its devices, so that Element shows no red shield beside the bot's messages,
and sends it the keys to read with.

Source: Matrix client-server API, "Cross-signing" and "Signing JSON". matrix-nio cannot do it. Keys are Ed25519, and all
base64 is without padding.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

_SEED_BYTES = 32
USAGES = ("master", "self_signing", "user_signing")


@dataclass(frozen=True, slots=True)
class Key:
    """One of the three, from its seed of 32 bytes."""

    usage: str
    seed: bytes

    @property
    def public(self) -> str:
        return _unpadded(self._secret().public_key().export_key(format="raw"))

    @property
    def name(self) -> str:
        return f"ed25519:{self.public}"

    def sign(self, document: Mapping[str, Any]) -> str:
        return _unpadded(eddsa.new(self._secret(), "rfc8032").sign(_canonical(document)))

    def _secret(self) -> ECC.EccKey:
        return ECC.construct(curve="Ed25519", seed=self.seed)


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes an account the same one for everybody who talks with it: it is made once and kept. One that is
    replaced frightens people ("identity appears to have changed").
    """

    master: Key
    self_signing: Key
    user_signing: Key

    @classmethod
    def new(cls) -> Identity:
        return cls(*(Key(usage, os.urandom(_SEED_BYTES)) for usage in USAGES))

    @classmethod
    def from_json(cls, content: bytes) -> Identity:
        """Raises ValueError, KeyError or TypeError for what ``to_json`` never wrote."""
        found = json.loads(content)
        seeds = [b64decode(found[usage], validate=True) for usage in USAGES]
        if any(len(seed) != _SEED_BYTES for seed in seeds):
            raise ValueError
        return cls(*(Key(usage, seed) for usage, seed in zip(USAGES, seeds, strict=True)))

    def to_json(self) -> bytes:
        return json.dumps({key.usage: b64encode(key.seed).decode() for key in self._keys()}).encode()

    def _keys(self) -> tuple[Key, Key, Key]:
        return self.master, self.self_signing, self.user_signing

    def public_keys(self, user_id: str) -> dict[str, Any]:
        """The body of ``POST /keys/device_signing/upload``: the master key vouches for the other two."""
        return {f"{key.usage}_key": self._published(key, user_id) for key in self._keys()}

    def _published(self, key: Key, user_id: str) -> dict[str, Any]:
        told = {"user_id": user_id, "usage": [key.usage], "keys": {key.name: key.public}}
        if key is self.master:
            return told
        return {**told, "signatures": {user_id: {self.master.name: self.master.sign(told)}}}

    def signed_device(self, user_id: str, device: Mapping[str, Any]) -> dict[str, Any]:
        """A device's keys, as ``/keys/query`` tells them, with our signature: for ``POST /keys/signatures/upload``."""
        plain = {name: value for name, value in device.items() if name not in ("signatures", "unsigned")}
        return {**plain, "signatures": {user_id: {self.self_signing.name: self.self_signing.sign(plain)}}}


def vouches(user_id: str, device_id: str, queried: Mapping[str, Any]) -> bool:
    """Whether an answer of ``/keys/query`` holds the whole chain: master key, self-signing key, this device."""
    try:
        master = queried["master_keys"][user_id]
        signing = queried["self_signing_keys"][user_id]
        device = queried["device_keys"][user_id][device_id]
        return _is_signed(signing, user_id, master) and _is_signed(device, user_id, signing)
    except (KeyError, TypeError, ValueError):
        return False


def master_key(user_id: str, queried: Mapping[str, Any]) -> str | None:
    """The master key that the homeserver knows of an account, None where it has none."""
    keys = queried.get("master_keys", {}).get(user_id, {}).get("keys", {})
    return next(iter(keys.values()), None)


def _is_signed(document: Mapping[str, Any], user_id: str, by: Mapping[str, Any]) -> bool:
    ((name, public),) = by["keys"].items()
    signature = document["signatures"][user_id][name]
    plain = {key: value for key, value in document.items() if key not in ("signatures", "unsigned")}
    key = eddsa.import_public_key(_padded(public))
    eddsa.new(key, "rfc8032").verify(_canonical(plain), _padded(signature))  # raises ValueError
    return True


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _unpadded(content: bytes) -> str:
    return b64encode(content).decode().rstrip("=")


def _padded(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), validate=True)
