"""The bot's login as it lies on this machine: who it is, its token, and the folder with its keys. All of it 0600."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup.errors import ChatError
from memu_backup.files import write_atomically

if TYPE_CHECKING:
    from memu_backup.chat.identity import Identity

_ACCOUNT = "account.json"
_IDENTITY = "identity.json"
_KEYS = "keys"
_LEFT_OVER_S = 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """A login. Its device is only of use with the key store that was made for it, which ``pickle_key`` opens."""

    homeserver: str
    user_id: str
    device_id: str
    token: str = field(repr=False)
    pickle_key: str = field(repr=False)


class Safe:
    """The folder with all that makes the bot who it is; part of what a new machine needs to become the old one."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "chat"

    def account(self) -> Account | None:
        """The login, None before the first. Raises ChatError where it cannot be read."""
        content = self._read(_ACCOUNT)
        try:
            return None if content is None else Account(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise self._broken(_ACCOUNT) from error

    def identity(self) -> Identity | None:
        """The keys that vouch for its devices, None before the first login. Raises ChatError where they cannot be read:
        new ones must not take their place.
        """
        from memu_backup.chat.identity import Identity  # cryptography, which the service needs only with a chat

        content = self._read(_IDENTITY)
        try:
            return None if content is None else Identity.from_json(content)
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(_IDENTITY) from error

    def keep_identity(self, identity: Identity) -> None:
        self._write(_IDENTITY, identity.to_json())

    def keep_account(self, account: Account) -> None:
        """From here on this is the login."""
        self._write(_ACCOUNT, json.dumps(asdict(account)).encode())

    def tidy(self, account: Account) -> None:
        """Remove the keys of logins before this one. Not those of the last hour: they may be of a login that is just
        being made, or that a service is just leaving.
        """
        try:
            for folder in (self.folder / _KEYS).iterdir():
                if folder.name != account.device_id and time.time() - folder.stat().st_mtime > _LEFT_OVER_S:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            log.debug("The keys of earlier logins stay: %s.", error.strerror)

    def keys(self, device_id: str) -> Path:
        """The folder for a device's keys, made where it is missing. Raises ChatError."""
        folder = self.folder / _KEYS / device_id
        try:
            for made in (self.folder.parent, self.folder, folder.parent, folder):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            why = f"{folder} cannot be made ({error.strerror}), so the bot has no place for its keys."
            raise ChatError(why) from error
        return folder

    def kept_keys(self, device_id: str) -> Path:
        """The folder with a device's keys. Raises ChatError where they are gone: under the same name others would be
        taken for a stranger's.
        """
        folder = self.keys(device_id)
        if not any(folder.iterdir()):
            raise ChatError(
                f"The keys of the bot's login are gone from {folder}, so it cannot go on with that login; backups are "
                "made all the same. Sign it in anew: memu-backup chat login"
            )
        return folder

    def forget_keys(self, device_id: str) -> None:
        """Of a device that never came to be."""
        shutil.rmtree(self.folder / _KEYS / device_id, ignore_errors=True)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ChatError(
                f"{self.folder / name} cannot be read ({error.strerror}), so the chat does not work."
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise ChatError(
                f"{self.folder / name} cannot be written ({error.strerror}); nothing was changed."
            ) from error

    def _broken(self, name: str) -> ChatError:
        return ChatError(
            f"{self.folder / name} is damaged, so the chat does not work; backups are made all the same. Bring it back "
            "from a backup of this machine's state, or remove it and sign in again: memu-backup chat login"
        )


def new_pickle_key() -> str:
    return secrets.token_urlsafe(32)
