"""Who may use the API and the page: tokens for programs, links that sign a person in once, and what a page is then
known by. Kept in one folder; the command line writes there while the service reads, and each sees it at once.

A token is a JWT (RFC 7519), signed by a key that only this machine has, and good only as long as it stands in a list
beside that: so it can be revoked, and its role is that of the list. Of links and sessions only hashes are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from memu_backup import files, lock
from memu_backup.clock import Clock
from memu_backup.errors import AccessError, NotAllowed, NotThere, UsageError
from memu_backup.mistakes import did_you_mean

log = logging.getLogger(__name__)

_ALGORITHM = "HS256"
_ISSUER = "memu-backup"
_KEY_BYTES = 32

_LINK_GOOD = timedelta(minutes=10)
_SESSION_IDLE = timedelta(days=7)
_SESSION_LONGEST = timedelta(days=30)
_NOTED_EACH = timedelta(hours=12)
"""Use is noted no more often than that: not each request is worth a write."""

_LONGEST_NAME = 100

_MOST = 200
"""Links and sessions at most, the oldest go."""


class Role(StrEnum):
    """What somebody may do: look; have backups made, and read what is in them; put back, remove and approve."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks, by the ``name`` that the audit tells; ``via`` is ``api`` or ``page``."""

    name: str
    role: Role
    via: str


@dataclass(frozen=True, slots=True)
class Token:
    """A program's. Times are aware; ``used_at`` is right to half a day."""

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Link:
    hash: str
    name: str
    role: Role
    until: datetime


@dataclass(frozen=True, slots=True)
class _Session:
    hash: str
    name: str
    role: Role
    until: datetime
    used_at: datetime


@dataclass(slots=True)
class _Book:
    tokens: list[Token] = field(default_factory=list)
    links: list[_Link] = field(default_factory=list)
    sessions: list[_Session] = field(default_factory=list)


class Access:
    """Of the machine that has ``folder``."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._read: tuple[tuple[int, int, int], _Book] | None = None

    # --- tokens ------------------------------------------------------------------------------------------------------

    def create_token(self, name: str, role: Role, days: int) -> tuple[Token, str]:
        """The token, and what the program sends: that is kept nowhere. Raises UsageError for a name that is in use,
        AccessError. Blocks, as all of these do.
        """
        import jwt  # here, and not for whoever asks for the status

        if not (name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME):
            raise UsageError(f"A token's name has to be of letters and signs, {_LONGEST_NAME} at most; none was made.")

        key = self._key()
        with self._changing() as book:
            if any(t.name == name and self._is_good(t) for t in book.tokens):
                raise UsageError(f"There is a token called {name} already. Choose another name, or revoke it first.")
            at = self._clock()
            token = Token(secrets.token_hex(8), name, role, at, at + timedelta(days=days))
            book.tokens.append(token)
            claims = {"iss": _ISSUER, "sub": name, "jti": token.id, "iat": at, "exp": token.expires_at}
            return token, jwt.encode(claims, key, _ALGORITHM)

    def tokens(self) -> list[Token]:
        """All that were ever made and not forgotten, the newest first. Raises AccessError."""
        return sorted(self._book().tokens, key=lambda token: token.created_at, reverse=True)

    def revoke(self, name_or_id: str) -> Token:
        """Good for nothing from now on; again is no error. Raises UsageError where there is none, AccessError."""
        with self._changing() as book:
            found = [t for t in book.tokens if name_or_id in (t.id, t.name)]
            if not found:
                hint = did_you_mean(name_or_id, [t.name for t in book.tokens]) or "; see: memu-backup token list"
                raise NotThere(f"There is no token called {name_or_id}{hint}")
            mine = next((t for t in found if self._is_good(t)), found[-1])
            revoked = mine if mine.revoked_at else replace(mine, revoked_at=self._clock())
            book.tokens[book.tokens.index(mine)] = revoked
            return revoked

    def by_token(self, sent: str) -> Who:
        """Who sends it. Raises NotAllowed."""
        import jwt

        try:
            claims = jwt.decode(
                sent,
                self._key(),
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["jti", "exp", "iat", "iss"], "verify_exp": False, "verify_iat": False},
            )
        except (jwt.InvalidTokenError, ValueError) as error:
            raise NotAllowed("This token is none of ours. Make one: memu-backup token create NAME") from error
        token = next((t for t in self._book().tokens if t.id == claims["jti"]), None)
        if token is None or token.revoked_at:
            raise NotAllowed("This token is not good any more. Make a new one: memu-backup token create NAME")
        if self._clock() >= token.expires_at:
            raise NotAllowed("This token has expired. Make a new one: memu-backup token create NAME")
        if token.used_at is None or self._clock() - token.used_at > _NOTED_EACH:
            self._note(lambda book: _used(book.tokens, token, self._clock()))
        return Who(token.name, token.role, "api")

    def _is_good(self, token: Token) -> bool:
        return token.revoked_at is None and self._clock() < token.expires_at

    # --- links and sessions ------------------------------------------------------------------------------------------

    def new_link(self, name: str, role: Role) -> str:
        """What a link carries that signs ``name`` in: good for ten minutes, and once. Raises AccessError."""
        code = secrets.token_urlsafe(24)
        with self._changing() as book:
            book.links.append(_Link(_hash(code), name, role, self._clock() + _LINK_GOOD))
        return code

    def redeem(self, code: str) -> str:
        """What the browser is known by from now on. Raises NotAllowed, AccessError."""
        with self._changing() as book:
            link = next((one for one in book.links if hmac.compare_digest(one.hash, _hash(code))), None)
            if link is None or self._clock() >= link.until:
                raise NotAllowed(
                    "This link was used already, or is older than ten minutes. Ask for a new one: !backup page in the "
                    "room, or memu-backup page on the server."
                )
            book.links.remove(link)
            cookie, at = secrets.token_urlsafe(32), self._clock()
            book.sessions.append(_Session(_hash(cookie), link.name, link.role, at + _SESSION_LONGEST, at))
            return cookie

    def by_session(self, cookie: str) -> Who:
        """Who signed in there. Raises NotAllowed."""
        at, wanted = self._clock(), _hash(cookie)
        session = next((one for one in self._book().sessions if hmac.compare_digest(one.hash, wanted)), None)
        if session is None or at >= session.until or at - session.used_at >= _SESSION_IDLE:
            raise NotAllowed(
                "You are not signed in here any more. Ask for a link: !backup page in the room, or memu-backup page on "
                "the server."
            )
        if at - session.used_at > _NOTED_EACH:
            self._note(lambda book: _used(book.sessions, session, at))
        return Who(session.name, session.role, "page")

    def end_session(self, cookie: str) -> None:
        """Signed out; again is no error. Raises AccessError."""
        with self._changing() as book:
            book.sessions = [one for one in book.sessions if one.hash != _hash(cookie)]

    # --- the book ----------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self._folder / "access.json"

    def _book(self) -> _Book:
        """As it is now; read anew where somebody has changed it."""
        try:
            status = self._file.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read is None or self._read[0] != seen:
                self._read = (seen, _told(json.loads(self._file.read_bytes())))
            return self._read[1]
        except FileNotFoundError:
            return _Book()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccessError(
                f"{self._file} cannot be read, so nobody is let in; backups are made all the same. Remove it, and make "
                "tokens and links anew."
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[_Book]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with lock.briefly(self._folder / "lock"):
                book = self._book()
                book = _Book(list(book.tokens), list(book.links), list(book.sessions))
                yield book
                at = self._clock()
                book.links = [one for one in book.links if at < one.until][-_MOST:]
                book.sessions = [one for one in book.sessions if at < one.until][-_MOST:]
                files.write_atomically(self._file, json.dumps(_as_json(book), indent=1).encode())
        except OSError as error:
            raise AccessError(f"Tokens and links cannot be written down in {self._folder} ({error}).") from error

    def _note(self, change: Callable[[_Book], None]) -> None:
        """What is of no consequence must not keep anybody out."""
        try:
            with self._changing() as book:
                change(book)
        except AccessError as error:
            log.warning("%s", error)

    def _key(self) -> bytes:
        file = self._folder / "key"
        try:
            key = file.read_bytes()
        except FileNotFoundError:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with lock.briefly(self._folder / "lock"):
                    if not file.exists():
                        files.write_atomically(file, secrets.token_bytes(_KEY_BYTES))
                    key = file.read_bytes()
            except OSError as error:
                raise AccessError(f"The key for tokens cannot be kept in {self._folder} ({error}).") from error
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise AccessError(f"{file} cannot be read ({why}), so no token is good.") from error
        if len(key) != _KEY_BYTES:
            raise AccessError(f"{file} is damaged, so no token is good. Remove it, and make tokens anew.")
        return key


def _hash(secret: str) -> str:
    """These hold 192 random bits and more, so that a plain hash is as good as a slow one."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _used(among: list[Any], one: Any, at: datetime) -> None:
    key = "id" if isinstance(one, Token) else "hash"
    for number, there in enumerate(among):
        if getattr(there, key) == getattr(one, key):
            among[number] = replace(there, used_at=at)


def _as_json(book: _Book) -> dict[str, Any]:
    return {name: [_plain(one) for one in getattr(book, name)] for name in ("tokens", "links", "sessions")}


def _plain(one: Any) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(one).items()}


def _told(said: Mapping[str, Any]) -> _Book:
    return _Book(
        [Token(**_values(one)) for one in said["tokens"]],
        [_Link(**_values(one)) for one in said["links"]],
        [_Session(**_values(one)) for one in said["sessions"]],
    )


def _values(said: Mapping[str, Any]) -> dict[str, Any]:
    times = {k: datetime.fromisoformat(v) for k, v in said.items() if v and k in _TIMES}
    return {**said, "role": Role(said["role"]), **times}


_TIMES = frozenset({"created_at", "expires_at", "revoked_at", "used_at", "until"})
