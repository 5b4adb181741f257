"""Settings: a TOML file, systemd's credentials over it, the environment over both, and every mistake told at once.

    [sources.photos]                        what is backed up
    kind = "directory"
    path = "./photos"

    [jobs.nightly]                          when
    at = "02:00"

Each variable ``MEMU_BACKUP_<SETTING>`` stands for a setting of the file, with ``__`` between the parts of a path
(``MEMU_BACKUP_SOURCES__PHOTOS__PATH``); a list is written as JSON; an empty variable counts as not set. It changes
tables that the file has, it does not add any: else a mistyped name would make a new one in silence. A file of such a
name in ``$CREDENTIALS_DIRECTORY`` counts like the variable. Memu's own ``BACKUP_DIR``, ``BACKUP_RETENTION_COUNT`` and
``BACKUP_NOTIFICATION_ROOM`` set the settings of these names. No ``.env`` file is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from memu_backup import config_file, cron, environment, mistakes
from memu_backup.errors import SettingsError, UsageError
from memu_backup.mistakes import PREFIX, Loc, Mistake, Origins, did_you_mean, tables
from memu_backup.paths import LocalPath, absolute, relative_to
from memu_backup.retention import Policy
from memu_backup.retention_settings import RetentionSettings
from memu_backup.sources import Source, SourceSettings
from memu_backup.sources import kinds as source_kinds
from memu_backup.stores import StoreSettings
from memu_backup.stores import kinds as store_kinds

MASK = "********"

_USER = re.compile(r"@[^:\s]+:\S+")
_ROOM = re.compile(r"![^:\s]+:\S+|![A-Za-z0-9_-]{43}")
_URL = re.compile(r"(postgres(?:ql)?://)(?:([^:/@?#\s]*)(:[^@/?#\s]*)?@)?([\w.-]*(?::\d+)?)(/[\w.%-]*)?(\?[^@#\s]*)?")


def _any_of(kinds: Mapping[str, Any]) -> Any:
    """One table of any of these kinds. pydantic tells kinds apart only where there are two or more."""
    models = tuple(kind.Settings for kind in kinds.values())
    return models[0] if len(models) == 1 else Annotated[Union[models], Field(discriminator="kind")]  # noqa: UP007


if TYPE_CHECKING:
    AnySource = SourceSettings
    AnyStore = StoreSettings
else:
    AnySource = _any_of(source_kinds())
    AnyStore = _any_of(store_kinds())


def _checked_cron(line: str) -> str:
    cron.normal(line)
    return line


def _checked_time(at: str) -> str:
    cron.daily(at)
    return at


def _checked_room(room: str) -> str:
    if _ROOM.fullmatch(room) is None:
        raise ValueError("is not the id of a room, such as !abcdef:example.org (Element: room settings, Advanced)")
    return room


def _checked_user(user: str) -> str:
    if _USER.fullmatch(user) is None:
        raise ValueError("is not a Matrix user, such as @anna:example.org")
    return user


def _checked_url(url: SecretStr) -> SecretStr:
    _must_be_an_address(url.get_secret_value())
    return url


def _must_be_an_address(url: str) -> None:
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    if not url.partition("://")[2].strip("/?"):
        raise ValueError("says of no database where it is; write postgresql://USER@HOST:5432/DATABASE")


def _checked_channel(url: SecretStr) -> SecretStr:
    _must_be_a_channel(url.get_secret_value())
    return url


def _must_be_a_channel(url: str) -> None:
    """What service it is, and whether it is written as that service wants it, only Apprise can tell: see ``check``."""
    scheme, sign, rest = url.partition("://")
    if not (scheme and sign and rest):
        raise ValueError("is no URL; write it as in ntfys://ntfy.example.org/family or mailtos://USER:PASSWORD@HOST")


def _checked_heartbeat(url: SecretStr) -> SecretStr:
    _must_be_a_heartbeat(url.get_secret_value())
    return url


def _must_be_a_heartbeat(url: str) -> None:
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


class UsbSettings(_Table):
    overdue_days: int = Field(default=7, ge=0, description="days until a copy is overdue; 0: no drive is expected")


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


class JobSettings(_Table):
    at: Annotated[str, AfterValidator(_checked_time)] | None = Field(default=None, description="each day at this time")
    cron: Annotated[str, AfterValidator(_checked_cron)] | None = Field(default=None, description="a crontab line")
    sources: tuple[str, ...] | None = Field(default=None, min_length=1, description="all of them unless given")
    store: str | None = Field(default=None, description="the only one unless given")
    retention: RetentionSettings = Field(
        default=RetentionSettings(), description="the last backup_retention_count unless given"
    )
    heartbeat: Annotated[SecretStr, AfterValidator(_checked_heartbeat)] | None = Field(
        default=None, description="where a dead-man's switch waits for a sign of life"
    )
    heartbeat_file: LocalPath | None = Field(default=None, description="a file that holds that URL")


@dataclass(frozen=True, slots=True)
class Job:
    """A job with all that follows from the rest of the settings.

    ``cron`` is a crontab line in household time (``Config.zone``) in the form of ``cron.normal``, which APScheduler
    reads as cron does; None for a job that runs only by hand.
    """

    name: str
    cron: str | None
    sources: tuple[str, ...]
    store: str
    retention: Policy


class Config(BaseSettings):
    """All settings, valid and complete. Made by ``load``. Paths are absolute; nothing was looked for on disk."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix=PREFIX, env_nested_delimiter="__",
        env_ignore_empty=True, enable_decoding=False,
    )  # fmt: skip

    backup_dir: LocalPath = Field(description="where backups are kept")
    backup_retention_count: int = Field(default=7, ge=1, description="how many backups of a job stay")
    backup_notification_room: Annotated[str, AfterValidator(_checked_room)] | None = Field(
        default=None, description="the Matrix room of the family"
    )
    timezone: Annotated[str, AfterValidator(environment.checked_zone)] = Field(description="the household's time zone")
    host: str = Field(min_length=1, description="what backups call this machine")
    state_dir: LocalPath = Field(description="where memu-backup keeps its own state")
    log_file: LocalPath | None = Field(default=None, description="also write the log here, in files that rotate")
    history: HistorySettings = HistorySettings()
    usb: UsbSettings = UsbSettings()
    chat: ChatSettings = ChatSettings()
    alerts: AlertSettings = AlertSettings()
    sources: dict[str, AnySource]
    stores: dict[str, AnyStore]
    jobs: dict[str, JobSettings]

    _path: Path = PrivateAttr(default=Path())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """``load`` lays the environment over the file itself: it must know of each setting where it came from."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @property
    def path(self) -> Path:
        """The file that this came from."""
        return self._path

    @property
    def zone(self) -> ZoneInfo:
        """The household's time zone."""
        return ZoneInfo(self.timezone)

    def job(self, name: str) -> Job:
        """Raises UsageError when there is no such job."""
        _must_be_among(name, self.jobs, "job")
        s = self.jobs[name]
        return Job(
            name=name,
            cron=cron.daily(s.at) if s.at else cron.normal(s.cron) if s.cron else None,
            sources=s.sources or tuple(self.sources),
            store=s.store or next(iter(self.stores)),
            retention=s.retention.in_effect(self.backup_retention_count).policy(),
        )

    def source(self, name: str) -> Source:
        """The source of that name, ready to be checked and captured. Raises UsageError when there is none."""
        _must_be_among(name, self.sources, "source")
        settings = self.sources[name]
        return next(kind for kind in source_kinds().values() if kind.Settings is type(settings))(name, settings)

    def store_of(self, job: Job) -> StoreSettings:
        """The settings of the job's store, its ``dir`` filled in."""
        settings = self.stores[job.store]
        return settings.model_copy(update={"dir": settings.dir or self.backup_dir})

    def history_url(self) -> str | None:
        """The URL with its password, a secret; None for the embedded server.

        Reads ``url_file`` and ``password_file`` now. Raises SettingsError.
        """
        h = self.history
        url = (
            h.url.get_secret_value()
            if h.url
            else self._secret("history.url_file", h.url_file).strip()
            if h.url_file
            else None
        )
        if url is None:
            return None
        try:
            _must_be_an_address(url)
        except ValueError as error:
            raise SettingsError([f"history.url_file: what it holds {error}"], str(self.path)) from None
        if h.password_file:
            password = quote(self._secret("history.password_file", h.password_file), safe="")
            return f"{url}{'&' if '?' in url else '?'}password={password}"
        return url

    def fallback_urls(self) -> tuple[str, ...]:
        """The ways to tell somebody where the chat cannot, secrets all of them; empty where none is set.

        Reads ``fallback_file`` now. Raises SettingsError.
        """
        file = self.alerts.fallback_file
        if file is None:
            return tuple(url.get_secret_value() for url in self.alerts.fallback)
        key, urls, wrong = "alerts.fallback_file", [], []
        for number, line in enumerate(map(str.strip, self._content(key, file).splitlines()), 1):
            if line and not line.startswith("#"):
                try:
                    _must_be_a_channel(line)
                    urls.append(line)
                except ValueError as error:
                    wrong.append(f"{key}: line {number} of {file} {error}")
        if not urls and not wrong:
            wrong.append(f"{key}: {file} holds no URL")
        if wrong:
            raise SettingsError(wrong, str(self.path))
        return tuple(urls)

    def heartbeat_of(self, job: str) -> str | None:
        """Where a sign of life of that job is waited for, a secret; None where nowhere.

        Reads ``heartbeat_file`` now. Raises SettingsError, and UsageError when there is no such job.
        """
        _must_be_among(job, self.jobs, "job")
        s = self.jobs[job]
        if s.heartbeat:
            return s.heartbeat.get_secret_value()
        if s.heartbeat_file is None:
            return None
        key = f"jobs.{job}.heartbeat_file"
        url = self._secret(key, s.heartbeat_file)
        try:
            _must_be_a_heartbeat(url)
        except ValueError as error:
            raise SettingsError([f"{key}: what it holds {error}"], str(self.path)) from None
        return url

    def _secret(self, key: str, file: Path) -> str:
        secret = self._content(key, file).strip()
        if not secret:
            raise SettingsError([f"{key}: {file} is empty"], str(self.path))
        return secret

    def _content(self, key: str, file: Path) -> str:
        try:
            return file.read_text("utf-8")
        except FileNotFoundError as error:
            raise SettingsError([f"{key}: {file} is not there"], str(self.path)) from error
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise SettingsError([f"{key}: {file} cannot be read ({reason})"], str(self.path)) from error


def _must_be_among(name: str, names: Iterable[str], what: str) -> None:
    if name not in names:
        hint = did_you_mean(name, names) or f"; there are: {', '.join(names)}."
        raise UsageError(f"There is no {what} called {name}{hint}")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings from ``path``, else $MEMU_BACKUP_CONFIG, ./config.toml or /etc/memu-backup/config.toml.

    Relative paths are taken from the folder of that file. Raises SettingsError with every mistake there is. No path
    that the settings name is looked at, so that a disk which is away keeps nobody from asking for the status.
    """
    file = absolute(config_file.find(path, environ))
    raw = environment.defaults(environ) | config_file.parse(file)
    variables = environment.gather(environ, Config)
    found = [*variables.problems, *environment.unknown_tables(variables, raw)]
    raw = _laid_over(raw, environment.overlay(variables, Config, raw))
    with relative_to(file.parent):
        config, wrong = _validated(raw, variables.origins)
    found += [variables.origins.sentence(mistake) for mistake in wrong]
    if found or config is None:
        raise SettingsError(list(dict.fromkeys(found)), str(file))
    config._path = file
    return config


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        k: _laid_over(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)
    }
    return {**below, **above, **both}


def _validated(raw: dict[str, Any], origins: Origins) -> tuple[Config | None, list[Mistake]]:
    config = None
    # BaseSettings would take these for options of its own.
    private = [key for key in raw if key.startswith("_")]
    wrong: list[Mistake] = [((key,), "is not a setting") for key in private]
    try:
        config = Config(**{key: value for key, value in raw.items() if key not in private})
    except ValidationError as error:
        wrong += mistakes.of_shape(error, raw, lambda loc: _known(loc, raw), origins)
    return config, [*wrong, *mistakes.between(raw), *_of_history(raw), *_of_alerts(raw), *_without_effect(raw, origins)]


def _known(loc: Loc, raw: Mapping[str, Any]) -> Iterable[str]:
    """The settings that there are at a place."""
    match loc:
        case ():
            return Config.model_fields
        case ("history",):
            return HistorySettings.model_fields
        case ("usb",):
            return UsbSettings.model_fields
        case ("chat",):
            return ChatSettings.model_fields
        case ("alerts",):
            return AlertSettings.model_fields
        case ("jobs", _):
            return JobSettings.model_fields
        case ("jobs", _, "retention"):
            return RetentionSettings.model_fields
        case ("sources" | "stores" as section, name):
            kinds: Mapping[str, Any] = source_kinds() if section == "sources" else store_kinds()
            kind = str(tables(raw, section).get(str(name), {}).get("kind"))
            return [
                field for k in ([kinds[kind]] if kind in kinds else kinds.values()) for field in k.Settings.model_fields
            ]
        case _:
            return ()


def _without_effect(raw: Mapping[str, Any], origins: Origins) -> list[Mistake]:
    stores = tables(raw, "stores").values()
    if origins.variable(("backup_dir",)) and stores and all("dir" in store for store in stores):
        return [(("backup_dir",), "has no effect, for every store in the file names a dir of its own")]
    return []


def _of_history(raw: Mapping[str, Any]) -> list[Mistake]:
    table = raw.get("history")
    given = set(table) if isinstance(table, dict) else set()
    if {"url", "url_file"} <= given:
        return [(("history",), "has both url and url_file; keep one of them")]
    if "password_file" in given and not given & {"url", "url_file"}:
        return [(("history", "password_file"), "has no effect without url or url_file")]
    return []


def _of_alerts(raw: Mapping[str, Any]) -> list[Mistake]:
    table = raw.get("alerts")
    if isinstance(table, dict) and {"fallback", "fallback_file"} <= set(table):
        return [(("alerts",), "has both fallback and fallback_file; keep one of them")]
    return []


def show(config: Config) -> dict[str, Any]:
    """Every setting in effect, fit for JSON, secrets masked; a URL keeps what is no secret in it."""
    shown: dict[str, Any] = _plain(config.model_dump())
    for name, source in config.sources.items():
        shown["sources"][name] = _plain(source.in_effect(name))
    if config.history.url is None and config.history.url_file is None:
        shown["history"]["where"] = f"embedded in {config.state_dir}/postgres"
    for name in config.jobs:
        job = config.job(name)
        kept = config.jobs[name].retention.in_effect(config.backup_retention_count).model_dump(exclude_none=True)
        shown["jobs"][name] |= {"sources": list(job.sources), "store": job.store, "retention": kept}
        shown["stores"][job.store]["dir"] = str(config.store_of(job).dir)
    return {"file": str(config.path), **shown}


def _plain(value: Any) -> Any:
    match value:
        case SecretStr():
            return _masked(value.get_secret_value())
        case str():
            return _masked(value) if "://" in value else value
        case Path():
            return str(value)
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return value


def _masked(secret: str) -> str:
    """Only a URL that is understood to its last character is shown in part: a stray @ or / may hide a password."""
    found = _URL.fullmatch(secret)
    if found is None:
        return MASK
    scheme, user, password, host, database, query = found.groups()
    who = "" if user is None else f"{user}{f':{MASK}' if password else ''}@"
    return f"{scheme}{who}{host}{database or ''}{f'?{MASK}' if query else ''}"
