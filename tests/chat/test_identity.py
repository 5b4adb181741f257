"""The bot's account vouches for its devices by the rules of the Matrix specification."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.chat.identity import Identity, Key, vouches

BOT = "@backup:family.test"
DEVICE = {"user_id": BOT, "device_id": "ATTIC", "algorithms": [], "keys": {"ed25519:ATTIC": "x"}, "signatures": {}}


def chain(identity: Identity) -> dict[str, object]:
    """As a homeserver tells it."""
    keys = identity.public_keys(BOT)
    return {
        "master_keys": {BOT: keys["master_key"]},
        "self_signing_keys": {BOT: keys["self_signing_key"]},
        "device_keys": {BOT: {"ATTIC": identity.signed_device(BOT, {**DEVICE, "unsigned": {"name": "memu-backup"}})}},
    }


@pytest.mark.parametrize(
    ("document", "signature"),
    [
        ({}, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            {"two": "Two", "one": 1},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_a_signature_is_the_one_that_the_specification_gives(document: dict[str, object], signature: str) -> None:
    """The test vectors of its appendix "Cryptographic Test Vectors"."""
    key = Key("master", b64decode("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1="))
    assert key.public == "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"
    assert key.sign(document) == signature


def test_who_is_kept_is_the_same_one() -> None:
    identity = Identity.new()
    assert Identity.from_json(identity.to_json()) == identity
    assert Identity.new() != identity
    assert set(json.loads(identity.to_json())) == {"master", "self_signing", "user_signing"}


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"master": "eA==", "self_signing": "", "x": 1}'])
def test_what_is_no_identity_is_refused(content: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Identity.from_json(content)


def test_the_chain_holds_and_breaks_with_each_of_its_links() -> None:
    identity = Identity.new()
    assert vouches(BOT, "ATTIC", chain(identity))
    assert not vouches(BOT, "CELLAR", chain(identity))
    assert not vouches("@mallory:family.test", "ATTIC", chain(identity))
    for link, other in (("master_keys", Identity.new()), ("self_signing_keys", Identity.new())):
        assert not vouches(BOT, "ATTIC", {**chain(identity), link: chain(other)[link]})
    unsigned = {**chain(identity), "device_keys": {BOT: {"ATTIC": DEVICE}}}
    assert not vouches(BOT, "ATTIC", unsigned)


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_any_change_of_a_device_ends_what_was_vouched_for(name: str, more: dict[str, str]) -> None:
    identity = Identity(
        *(Key(usage, bytes([n]) * 32) for n, usage in enumerate(("master", "self_signing", "user_signing")))
    )
    queried = chain(identity)
    device = queried["device_keys"][BOT]["ATTIC"]  # type: ignore[index]
    device["keys"] = {"ed25519:ATTIC": name, **more}
    assert vouches(BOT, "ATTIC", queried) is (device["keys"] == DEVICE["keys"])
