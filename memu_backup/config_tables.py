"""The tables of the settings file, one model each, and what each value must look like."""

from __future__ import annotations

import re
import socket
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from memu_backup import cron
from memu_backup.paths import LocalPath
from memu_backup.retention_settings import RetentionSettings

_USER = re.compile(r"@[^:\s]+:\S+")
_ROOM = re.compile(r"![^:\s]+:\S+|![A-Za-z0-9_-]{43}")


def _checked_cron(line: str) -> str:
    cron.normal(line)
    return line


def _checked_time(at: str) -> str:
    cron.daily(at)
    return at


def checked_room(room: str) -> str:
    if _ROOM.fullmatch(room) is None:
        raise ValueError("is not the id of a room, such as !abcdef:example.org (Element: room settings, Advanced)")
    return room


def _checked_user(user: str) -> str:
    if _USER.fullmatch(user) is None:
        raise ValueError("is not a Matrix user, such as @anna:example.org")
    return user


def _checked_url(url: SecretStr) -> SecretStr:
    must_be_an_address(url.get_secret_value())
    return url


def must_be_an_address(url: str) -> None:
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    if not url.partition("://")[2].strip("/?"):
        raise ValueError("says of no database where it is; write postgresql://USER@HOST:5432/DATABASE")


def _checked_channel(url: SecretStr) -> SecretStr:
    must_be_a_channel(url.get_secret_value())
    return url


def must_be_a_channel(url: str) -> None:
    """What service it is, and whether it is written as that service wants it, only Apprise can tell: see ``check``."""
    scheme, sign, rest = url.partition("://")
    if not (scheme and sign and rest):
        raise ValueError("is no URL; write it as in ntfys://ntfy.example.org/family or mailtos://USER:PASSWORD@HOST")


def _checked_heartbeat(url: SecretStr) -> SecretStr:
    must_be_a_heartbeat(url.get_secret_value())
    return url


def must_be_a_heartbeat(url: str) -> None:
    if not url.startswith(("https://", "http://")):
        raise ValueError("must begin with https:// or http://")
    if not _has_a_host(url):
        raise ValueError("is not a whole URL; copy it once more from where the heartbeat is expected")


def _has_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname and parts.port != 0 and not re.search(r"\s", url))
    except ValueError:  # no port, a bracket that is not closed
        return False


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class HistorySettings(_Table):
    """Where ``backup_history`` is kept. With no URL: in a database of our own in the state folder."""

    url: Annotated[SecretStr, AfterValidator(_checked_url)] | None = Field(
        default=None, description="a Postgres of your own"
    )
    url_file: LocalPath | None = Field(default=None, description="a file that holds the URL")
    password_file: LocalPath | None = Field(default=None, description="a file that holds the password for the URL")


def _checked_uuid(text: str) -> str:
    """A label will not do: any stick can be given one."""
    if not re.fullmatch(r"[0-9A-Fa-f]{4,}(-[0-9A-Fa-f]{4,})*", text):
        raise ValueError(f"{text} is no UUID of a filesystem; memu-backup usb list shows it")
    return text


class UsbSettings(_Table):
    """Copies on drives that are plugged in."""

    overdue_days: int = Field(default=7, ge=0, description="days until a copy is overdue; 0: no drive is expected")
    approve: Literal["ask", "any", "listed"] = Field(
        default="ask",
        description="ask: an admin says yes to each new drive; any: all; listed: those of drives",
    )
    drives: tuple[Annotated[str, AfterValidator(_checked_uuid)], ...] = Field(
        default=(), description="UUIDs of filesystems, for approve = listed"
    )
    keep: int = Field(default=3, ge=1, description="how many copies of a job stay on a drive")


class VerificationSettings(_Table):
    """How often all that is stored is read back."""

    every_days: int = Field(
        default=30, ge=0, le=3650, description="within so many days every byte is re-read; 0: only when it is asked for"
    )


class ChatSettings(_Table):
    """Who may do what in the family's room (``backup_notification_room``). Its members may ask how things stand."""

    admins: tuple[Annotated[str, AfterValidator(_checked_user)], ...] = Field(
        default=(), description="who may invite the bot, and have things done"
    )


class AlertSettings(_Table):
    """Ways out of the house for what the chat could not deliver. Each URL holds secrets."""

    fallback: tuple[Annotated[SecretStr, AfterValidator(_checked_channel)], ...] = Field(
        default=(), description="URLs of Apprise"
    )
    fallback_file: LocalPath | None = Field(default=None, description="a file that holds them, one a line")
    completed: bool = Field(default=False, description="also tell of each backup that went well")
    reports: tuple[Literal["daily", "weekly", "monthly", "errors"], ...] = Field(
        default=(), description="which reports are sent"
    )
    reports_at: Annotated[str, AfterValidator(_checked_time)] = Field(
        default="08:00", description="each day, on Mondays (weekly, errors), on the 1st (monthly)"
    )


class DrillSettings(_Table):
    """The restore test: backups are brought back to a scratch place, and tried there."""

    enabled: bool = Field(default=True, description="false: nothing is tried by itself")
    cron: Annotated[str, AfterValidator(_checked_cron)] = Field(
        default="0 11 * * sun", description="a crontab line; Sundays at 11:00"
    )
    scratch: LocalPath | None = Field(
        default=None, description="the folder that is used for it: that of the backups unless given"
    )
    postgres_image: str | None = Field(
        default=None, min_length=1, description="an image for dumps that need extensions which our own Postgres lacks"
    )
    postgres_url: Annotated[SecretStr, AfterValidator(_checked_url)] | None = Field(
        default=None, description="or a server for them, where databases are made and removed"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> DrillSettings:
        if self.postgres_image and self.postgres_url:
            raise ValueError("has both postgres_image and postgres_url; keep one of them")
        return self


def _checked_page(url: str) -> str:
    parts = urlsplit(url) if _has_a_host(url) else None
    if parts is None or parts.scheme not in ("http", "https") or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError("is not where a page begins; write it as in https://backup.example.org")
    return url.rstrip("/")


class WebSettings(_Table):
    """The page in the browser, and the API behind it."""

    enabled: bool = Field(default=False, description="true: the service listens for browsers and programs")
    host: str = Field(default="127.0.0.1", min_length=1, description="the address to listen on; 0.0.0.0: all of them")
    port: int = Field(default=8470, ge=1, le=65535, description="the port to listen on")
    url: Annotated[str, AfterValidator(_checked_page)] | None = Field(
        default=None, description="how the family's browsers reach it, such as https://backup.example.org"
    )
    certificate_file: LocalPath | None = Field(default=None, description="a TLS certificate with its chain, PEM")
    key_file: LocalPath | None = Field(default=None, description="its private key, PEM")
    open_status: bool = Field(
        default=False, description="whoever is on this machine may ask for the brief status without a token"
    )
    upload_gb: int = Field(default=1000, ge=1, description="the largest backup that may be uploaded")

    @model_validator(mode="after")
    def _both_or_none(self) -> WebSettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("has one of certificate_file and key_file; TLS needs both")
        return self

    def address(self) -> str:
        """Where a browser finds it: as ``url`` says, or by the machine's name where it listens to the whole network."""
        if self.url:
            return self.url
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104  compared
        scheme = "https" if self.certificate_file else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


class JobSettings(_Table):
    enabled: bool = Field(default=True, description="false: it has no time, and nobody is told that none was made")
    at: Annotated[str, AfterValidator(_checked_time)] | None = Field(default=None, description="each day at this time")
    cron: Annotated[str, AfterValidator(_checked_cron)] | None = Field(default=None, description="a crontab line")
    sources: tuple[str, ...] | None = Field(default=None, min_length=1, description="all of them unless given")
    store: str | None = Field(default=None, description="the only one unless given")
    consistency: Literal["hot", "stop"] = Field(
        default="hot", description="stop: services stand still while the sources are read that need it"
    )
    services: tuple[str, ...] | None = Field(default=None, min_length=1, description="all of them unless given")
    full: bool = Field(default=False, description="share nothing with older backups: read and write everything anew")
    window: Literal["short", "all"] = Field(default="short", description="all: services stand still for every source")
    retention: RetentionSettings = Field(
        default=RetentionSettings(), description="the last backup_retention_count unless given"
    )
    to_drives: bool = Field(default=True, description="whether its newest backup goes to drives that are plugged in")
    heartbeat: Annotated[SecretStr, AfterValidator(_checked_heartbeat)] | None = Field(
        default=None, description="where a dead-man's switch waits for a sign of life"
    )
    heartbeat_file: LocalPath | None = Field(default=None, description="a file that holds that URL")
