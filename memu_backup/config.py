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
``BACKUP_NOTIFICATION_ROOM`` set the settings of these names, and ``[environment]`` may give any setting a name of the
owner's own. No ``.env`` file is read.

A job without a folder for its backups (``backup_dir = ""``) is off: it is none of ``Config.jobs``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union
from urllib.parse import quote
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from memu_backup import config_file, cron, environment, mistakes
from memu_backup.config_tables import (
    AlertSettings,
    ChatSettings,
    DrillSettings,
    HistorySettings,
    JobSettings,
    UsbSettings,
    VerificationSettings,
    WebSettings,
    checked_room,
    must_be_a_channel,
    must_be_a_heartbeat,
    must_be_an_address,
)
from memu_backup.environment import checked_zone
from memu_backup.errors import NotThere, SettingsError, UsageError
from memu_backup.mistakes import PREFIX, Loc, Mistake, Origins, did_you_mean, tables
from memu_backup.paths import LocalPath, PathOrNone, absolute, relative_to
from memu_backup.retention import Policy
from memu_backup.retention_settings import RetentionSettings
from memu_backup.services import Service, ServiceSettings
from memu_backup.services import kinds as service_kinds
from memu_backup.sources import House, Source, SourceSettings
from memu_backup.sources import kinds as source_kinds
from memu_backup.stores import StoreSettings
from memu_backup.stores import kinds as store_kinds


def _any_of(kinds: Mapping[str, Any]) -> Any:
    """One table of any of these kinds. pydantic tells kinds apart only where there are two or more."""
    models = tuple(kind.Settings for kind in kinds.values())
    return models[0] if len(models) == 1 else Annotated[Union[models], Field(discriminator="kind")]  # noqa: UP007


if TYPE_CHECKING:
    from memu_backup.history import History

    AnySource = SourceSettings
    AnyStore = StoreSettings
    AnyService = ServiceSettings
else:
    AnySource = _any_of(source_kinds())
    AnyStore = _any_of(store_kinds())
    AnyService = _any_of(service_kinds())


@dataclass(frozen=True, slots=True)
class Job:
    """A job with all that follows from the rest of the settings.

    ``cron`` is a crontab line in household time (``Config.zone``) in the form of ``cron.normal``, which APScheduler
    reads as cron does; None for a job that runs only by hand. ``services`` stand still while those of its sources are
    read that are in ``needs_stop``; none where the job is hot. ``guards`` say for each source which part of it has to
    be lost for its backup to be suspicious.
    """

    name: str
    cron: str | None
    sources: tuple[str, ...]
    store: str
    retention: Policy
    services: tuple[str, ...] = ()
    needs_stop: frozenset[str] = frozenset()
    to_drives: bool = True
    full: bool = False
    guards: Mapping[str, float] = field(default_factory=dict)


class Config(BaseSettings):
    """All settings, valid and complete. Made by ``load``. Paths are absolute; nothing was looked for on disk."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix=PREFIX, env_nested_delimiter="__",
        env_ignore_empty=True, enable_decoding=False,
    )  # fmt: skip

    backup_dir: PathOrNone = Field(description="where backups are kept; empty: nowhere, so that none are made")
    backup_retention_count: int = Field(default=7, ge=1, description="how many backups of a job stay")
    backup_notification_room: Annotated[str, AfterValidator(checked_room)] | None = Field(
        default=None, description="the Matrix room of the family"
    )
    timezone: Annotated[str, AfterValidator(checked_zone)] = Field(description="the household's time zone")
    host: str = Field(min_length=1, description="what backups call this machine")
    state_dir: LocalPath = Field(description="where memu-backup keeps its own state")
    log_file: LocalPath | None = Field(default=None, description="also write the log here, in files that rotate")
    history: HistorySettings = HistorySettings()
    usb: UsbSettings = UsbSettings()
    verification: VerificationSettings = VerificationSettings()
    chat: ChatSettings = ChatSettings()
    alerts: AlertSettings = AlertSettings()
    drill: DrillSettings = DrillSettings()
    web: WebSettings = WebSettings()
    sources: dict[str, AnySource]
    stores: dict[str, AnyStore]
    services: dict[str, AnyService] = {}
    environment: dict[str, str] = {}
    jobs: dict[str, JobSettings]

    _path: Path = PrivateAttr(default=Path())
    _off: dict[str, JobSettings] = PrivateAttr(default={})

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

    @property
    def off(self) -> str:
        """A sentence about jobs that have no place for their backups, and so are no ``jobs``; empty without any."""
        if not self._off:
            return ""
        which = (
            f"Job{'' if len(self._off) == 1 else 's'} {', '.join(self._off)} {'is' if len(self._off) == 1 else 'are'}"
        )
        return (
            f"{which} off, and no backup is made: backup_dir is empty. Name a folder there, in {self.path}, or in the "
            "variable BACKUP_DIR; then make the first backup: memu-backup start"
        )

    def must_have_jobs(self) -> None:
        """Raises UsageError where none is on."""
        if not self.jobs:
            raise UsageError(self.off or f"There is no job, so nothing is backed up. Add [jobs.NAME] to {self.path}.")

    def job(self, name: str) -> Job:
        """Raises UsageError when there is no such job, or it is off."""
        if name in self._off:
            raise UsageError(self.off)
        _must_be_among(name, self.jobs, "job")
        return self._job(name, self.jobs[name])

    def planned(self) -> list[Job]:
        """All jobs, those that are off too."""
        return [self._job(name, s) for name, s in (*self.jobs.items(), *self._off.items())]

    def _job(self, name: str, s: JobSettings) -> Job:
        sources = s.sources or tuple(self.sources)
        store = s.store or next(iter(self.stores))
        keep = s.retention.in_effect(self.backup_retention_count).policy()
        return Job(
            name=name,
            cron=None if not s.enabled else cron.daily(s.at) if s.at else cron.normal(s.cron) if s.cron else None,
            sources=sources,
            store=store,
            retention=replace(keep, max_in_place=self.stores[store].max_backups),
            services=(s.services or tuple(self.services)) if s.consistency == "stop" else (),
            needs_stop=frozenset(n for n in sources if self._needs_stop(n, s)),
            to_drives=s.to_drives,
            full=s.full,
            guards={n: self.sources[n].guard for n in sources},
        )

    def _needs_stop(self, source: str, job: JobSettings) -> bool:
        settings = self.sources[source]
        return settings.needs_stop or (job.window == "all" and not settings.asks_a_server)

    def source(self, name: str, history: History | None = None) -> Source:
        """The source of that name, ready to be checked and captured. Raises UsageError when there is none.

        ``history`` is what a source of our own state is to bring along, and to take back.
        """
        _must_be_among(name, self.sources, "source")
        settings = self.sources[name].at_home(House(self.path, self.state_dir, self.secret_files(), history))
        return next(kind for kind in source_kinds().values() if kind.Settings is type(settings))(name, settings)

    def service(self, name: str) -> Service:
        """The service of that name, ready to be checked and stopped. Raises UsageError when there is none."""
        _must_be_among(name, self.services, "service")
        settings = self.services[name]
        return next(kind for kind in service_kinds().values() if kind.Settings is type(settings))(name, settings)

    def store_of(self, job: Job) -> StoreSettings:
        """The settings of the job's store, its ``dir`` filled in, with its ``folder``."""
        return self.stores[job.store].model_copy(update={"dir": self._place(job.store), "folder": None})

    def _place(self, store: str) -> Path | None:
        above = self.stores[store].dir or self.backup_dir
        return above / (self.stores[store].folder or "") if above else None

    def secret_files(self) -> dict[str, Path]:
        """The files that hold secrets, by the setting that names each, such as ``history.url_file``. Reads none."""
        return dict(_named_files(self))

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
            must_be_an_address(url)
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
                    must_be_a_channel(line)
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
            must_be_a_heartbeat(url)
        except ValueError as error:
            raise SettingsError([f"{key}: what it holds {error}"], str(self.path)) from None
        return url

    def _without_those_off(self) -> Config:
        off = {n: j for n, j in self.jobs.items() if self._place(j.store or next(iter(self.stores))) is None}
        on = self.model_copy(update={"jobs": {n: j for n, j in self.jobs.items() if n not in off}})
        on._off = off
        return on

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


def _named_files(table: BaseModel, above: str = "") -> Iterator[tuple[str, Path]]:
    for name in type(table).model_fields:
        value, key = getattr(table, name), f"{above}{name}"
        if isinstance(value, Path) and name.endswith("_file") and name != "log_file":
            yield key, value
        inner = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        for where, one in inner.items():
            if isinstance(one, BaseModel):
                yield from _named_files(one, f"{where}.")


def _must_be_among(name: str, names: Iterable[str], what: str) -> None:
    if name not in names:
        hint = did_you_mean(name, names) or f"; there are: {', '.join(names)}."
        raise NotThere(f"There is no {what} called {name}{hint}")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings from ``path``, else $MEMU_BACKUP_CONFIG, ./config.toml or /etc/memu-backup/config.toml.

    Relative paths are taken from the folder of that file. Raises SettingsError with every mistake there is. No path
    that the settings name is looked at, so that a disk which is away keeps nobody from asking for the status.
    """
    file = absolute(config_file.find(path, environ))
    raw = environment.defaults(environ) | config_file.parse(file)
    variables = environment.gather(environ, Config, raw)
    found = [*variables.problems, *environment.unknown_tables(variables, raw)]
    raw = _laid_over(raw, environment.overlay(variables, Config, raw))
    with relative_to(file.parent):
        config, wrong = _validated(raw, variables.origins)
    found += [variables.origins.sentence(mistake) for mistake in wrong]
    if found or config is None:
        raise SettingsError(list(dict.fromkeys(found)), str(file))
    config._path = file
    return config._without_those_off()


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
    return config, [*wrong, *mistakes.between(raw), *_of_names(raw), *_without_effect(raw, origins)]


def _known(loc: Loc, raw: Mapping[str, Any]) -> Iterable[str]:
    """The settings that there are at a place."""
    match loc:
        case ():
            return Config.model_fields
        case (str(name),) if name in Config.model_fields:
            table = Config.model_fields[name].annotation
            return table.model_fields if isinstance(table, type) and issubclass(table, BaseModel) else ()
        case ("jobs", _):
            return JobSettings.model_fields
        case ("jobs", _, "retention"):
            return RetentionSettings.model_fields
        case ("sources" | "stores" | "services" as section, name):
            kinds: Mapping[str, Any] = mistakes.kinds_of(str(section))
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


def _of_names(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    """Of ``[environment]``: told although nobody has set the variable yet."""
    for name, path in environment.named(raw).items():
        loc, keys = ("environment", name), tuple(path.split("."))
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            yield loc, "is no name of a variable; it is made of letters, digits and _, and begins with no digit"
        elif name in environment.MEMU_NAMES or name.startswith(PREFIX):
            yield loc, "is a name that has its meaning already; choose another"
        elif keys[0] == "environment" or keys[-1] not in (among := list(_known(keys[:-1], raw))):
            yield loc, f"stands for {path}, which is not a setting{did_you_mean(keys[-1], among)}"
        elif keys[0] in mistakes.NAMED and len(keys) > 2 and keys[1] not in tables(raw, keys[0]):
            there = did_you_mean(keys[1], tables(raw, keys[0]))
            yield loc, f"stands for {path}, and the file has no {keys[0].removesuffix('s')} called {keys[1]}{there}"
