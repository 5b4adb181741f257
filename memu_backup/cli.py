"""The commands. Thin: each asks the manager and puts the answer into words. Heavy imports stay inside them."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from memu_backup import __version__
from memu_backup.errors import MemuError, SettingsError, UsageError

if TYPE_CHECKING:
    from memu_backup.config import Config
    from memu_backup.manager import Manager
    from memu_backup.model import Level

app = typer.Typer(
    name="memu-backup",
    help="Archives your family's server each night, proves what it wrote, and gives it back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
BackupName = Annotated[str, typer.Argument(help="A name, the beginning of one, latest, or a file.", metavar="BACKUP")]
JobName = Annotated[str | None, typer.Argument(help="The only one unless given.", metavar="JOB")]

_config_file: Path | None = None


@app.callback()
def _options(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Where the settings are.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    global _config_file
    _config_file = config
    if version:
        sys.stdout.write(f"memu-backup {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point. What it writes is for its user alone."""
    os.umask(0o077)
    app()


def _command(work: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., None]:
    """Run an async command; its result is the exit status, and a MemuError its sentence and status."""

    @functools.wraps(work)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            raise typer.Exit(asyncio.run(_until_told_to_stop(work(*args, **kwargs))) or 0)
        except MemuError as error:
            _give_up(error)
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.stderr.write("\nInterrupted; nothing half-done was left behind.\n")
            raise typer.Exit(130) from None

    return command


async def _until_told_to_stop(work: Coroutine[Any, Any, int | None]) -> int | None:
    """SIGTERM ends it as Ctrl-C does, so that children and half-written files go with it."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _give_up(error: MemuError) -> NoReturn:
    sys.stderr.write(f"{error}\n")
    raise typer.Exit(error.exit_status) from None


def _load() -> Config:
    from memu_backup import config

    return config.load(_config_file)


@asynccontextmanager
async def _manager() -> AsyncIterator[Manager]:
    from memu_backup import logs
    from memu_backup.history import History
    from memu_backup.manager import Manager

    settings = _load()
    logs.configure(settings.log_file, level=30)
    async with History(settings.history_url(), settings.state_dir, settings.host) as history:
        yield Manager(settings, history)


# --- work ------------------------------------------------------------------------------------------------------------


@app.command()
def run() -> None:
    """Run the service: backups at their time, until it is told to stop."""
    from memu_backup import daemon, logs

    try:
        settings = _load()
        logs.configure(settings.log_file)
        asyncio.run(daemon.serve(settings))
    except MemuError as error:
        _give_up(error)


@app.command()
@_command
async def start(job: JobName = None, json: Json = False) -> int:
    """Make a backup now."""
    from memu_backup import console, words
    from memu_backup.manager import at_the_terminal
    from memu_backup.model import Status, Trigger
    from memu_backup.status import run_as_json

    async with _manager() as manager:
        name = job or _only_job(manager.config)
        with console.progress() as on_progress:
            row = await manager.back_up(name, Trigger.MANUAL, at_the_terminal(), on_progress)
    if json:
        console.print_json(run_as_json(row))
    elif row.status is Status.FAILED:
        console.complain(f"The backup failed. {row.error}")
    else:
        console.say(
            f"{row.filename}: {row.files:,} files, {words.size(row.content_bytes)} in {words.size(row.size_bytes)}, "
            f"written and checked in {words.duration(row.duration_seconds or 0)}."
        )
        for warning in row.warnings:
            console.complain(f"  {warning}")
        if row.status is Status.PARTIAL:
            console.complain("The backup is incomplete: what stands above is not in it. All the rest is.")
    return {Status.FAILED: EXIT_FAILED, Status.PARTIAL: EXIT_PARTIAL}.get(row.status, 0)


def _only_job(config: Config) -> str:
    if len(config.jobs) > 1:
        raise UsageError(f"Which job? There are {', '.join(config.jobs)}. Type for example: memu-backup start "
                         f"{next(iter(config.jobs))}")  # fmt: skip
    return next(iter(config.jobs))


@app.command()
@_command
async def status(json: Json = False) -> int:
    """Is everything safe? Exit status 1 when it is not."""
    from memu_backup import console, words
    from memu_backup.clock import now
    from memu_backup.model import Health
    from memu_backup.status import as_json

    async with _manager() as manager:
        reports = await manager.reports()
        zone = manager.config.zone
    if json:
        console.print_json({name: as_json(report) for name, report in reports.items()})
    for name, report in reports.items() if not json else ():
        if len(reports) > 1:
            console.say(f"{name}:")
        console.say(words.status_message(report, now(), zone))
    return 0 if all(r.health is Health.HEALTHY for r in reports.values()) else EXIT_FAILED


# --- what there is ---------------------------------------------------------------------------------------------------


@app.command("list")
@_command
async def list_backups(json: Json = False) -> None:
    """The backups that are stored, newest first."""
    from memu_backup import console, words
    from memu_backup.clock import now
    from memu_backup.errors import HistoryAway

    async with _manager() as manager:
        stored = [backup for _, backup in manager.backups()]
        try:
            rows = {r.filename: r for r in await manager.history.runs(host=manager.config.host)}
        except HistoryAway as error:
            console.complain(str(error))
            rows = {}
        zone, places = manager.config.zone, ", ".join(str(s.directory) for s in manager.stores())

    def state(name: str, partial: bool) -> str:
        row = rows.get(name)
        if row and row.error_code == "damaged":
            return "damaged"
        return "incomplete" if partial else "good"

    entries = [
        {
            "name": b.name,
            "path": str(b.path),
            "created_at": b.created_at.isoformat(),
            "size_bytes": b.size_bytes,
            "content_bytes": b.manifest.size_bytes if b.manifest else None,
            "files": b.manifest.files if b.manifest else None,
            "job": b.manifest.job if b.manifest else None,
            "state": state(b.name, b.manifest.partial) if b.manifest else "unknown",
            "verified_at": rows[b.name].verified_at if b.name in rows else None,
        }
        for b in stored
    ]
    if json:
        console.print_json(entries)
        return
    if not entries:
        console.say(f"There are no backups in {places} yet. Make one with: memu-backup start")
        return
    console.table(
        ("Backup", "Made", "Size", "Files", "State"),
        [
            (
                b.name,
                words.moment(b.created_at, now(), zone),
                words.size(b.size_bytes),
                f"{b.manifest.files:,}" if b.manifest else "?",
                str(e["state"]),
            )
            for b, e in zip(stored, entries, strict=True)
        ],
        right=(2, 3),
    )


@app.command()
@_command
async def show(
    backup: BackupName = "latest",
    files: Annotated[bool, typer.Option("--files", help="Also every file in it.")] = False,
    json: Json = False,
) -> None:
    """What a backup holds."""
    from memu_backup import console, words
    from memu_backup.clock import now
    from memu_backup.files import shown
    from memu_backup.formats import manifest as metadata
    from memu_backup.formats.reader import ArchiveReader

    async with _manager() as manager:
        path = _path_of(manager, backup)
        zone = manager.config.zone
    with ArchiveReader(path) as reader:
        made = reader.manifest()
        entries = list(reader.index()) if files or made is None else []
    if json:
        document: dict[str, Any] = {"path": str(path), "metadata": metadata.document(made) if made else None}
        if files or made is None:
            document["files"] = [
                {"path": e.path, "type": e.type, "size_bytes": e.size_bytes, "mtime_ns": e.mtime_ns, "sha256": e.sha256}
                for e in entries
            ]
        console.print_json(document)
        return
    if made:
        console.say(f"{path.name}, made {words.moment(made.created_at, now(), zone)} on {made.host} by job {made.job}")
        console.table(
            ("Source", "Place", "Files", "Size", "How"),
            [(s.name, s.place, f"{s.files:,}", words.size(s.size_bytes), s.consistency) for s in made.sources],
            right=(2, 3),
        )
        for source in made.sources:
            for sentence in (*source.missing, *source.warnings):
                console.say(f"  {sentence}")
    for entry in entries:
        console.say(f"{words.size(entry.size_bytes):>9}  {shown(entry.path)}")


@app.command()
@_command
async def log(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50, json: Json = False
) -> None:
    """Who did what, and when."""
    from dataclasses import asdict

    from memu_backup import console, words
    from memu_backup.clock import now

    async with _manager() as manager:
        events = await manager.history.audit_log(limit)
        zone = manager.config.zone
    if json:
        console.print_json([asdict(e) | {"created_at": e.created_at.isoformat()} for e in events])
        return
    console.table(
        ("When", "Who", "From", "What", "Outcome"),
        [
            (words.moment(e.created_at, now(), zone), e.actor, e.origin, f"{e.action} {e.subject}".strip(), e.outcome)
            for e in events
        ],
    )


# --- is it good, and the way back ------------------------------------------------------------------------------------


@app.command()
@_command
async def verify(
    backup: BackupName = "latest",
    level: Annotated[str, typer.Option("--level", help="quick (the index) or full (every byte).")] = "full",
    json: Json = False,
) -> int:
    """Re-read a backup and compare it with what it says of itself."""
    from memu_backup import console, words
    from memu_backup.manager import at_the_terminal

    depth = _level(level)
    async with _manager() as manager:
        store, stored = manager.look(Path(backup)) if _is_file(backup) else manager.find(backup)
        with console.progress() as on_progress:
            verdict = await manager.verify(store, stored, depth, at_the_terminal(), on_progress)
    if json:
        console.print_json(
            {
                "name": stored.name,
                "level": depth,
                "good": verdict.good,
                "problems": verdict.problems,
                "files": verdict.files,
                "content_bytes": verdict.content_bytes,
                "sha256": verdict.sha256,
            }
        )
    elif verdict.good:
        depth_words = "every byte was read and is as it was written" if level == "full" else "its index is whole"
        console.say(
            f"{stored.name} is good: {verdict.files:,} files, {words.size(verdict.content_bytes)}; {depth_words}."
        )
    else:
        console.complain(f"{stored.name} is damaged:")
        for problem in verdict.problems:
            console.complain(f"  {problem}")
        console.complain("Make a new backup with: memu-backup start. Then check the disk that holds this one.")
    return 0 if verdict.good else EXIT_FAILED


def _level(text: str) -> Level:
    from memu_backup.model import Level

    if text not in tuple(Level):
        raise UsageError(f"There is no level {text}; there are: {', '.join(Level)}.")
    return Level(text)


@app.command()
@_command
async def restore(
    backup: BackupName = "latest",
    source: Annotated[
        list[str] | None, typer.Option("--source", "-s", help="Only this source; may be repeated.")
    ] = None,
    path: Annotated[
        list[str] | None, typer.Option("--path", "-p", help="Only this file, folder or glob; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder to restore to; a new one here unless given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> int:
    """Give back a file, a source or everything, into a folder."""
    from memu_backup import console, words
    from memu_backup import restore as restoring
    from memu_backup.manager import at_the_terminal, restore_without_settings
    from memu_backup.work import Stop, in_thread

    async def work(manager: Manager | None) -> int:
        archive = _path_of(manager, backup) if manager else Path(backup)
        wanted = restoring.Wanted(tuple(source or ()), tuple(path or ()))
        target = (to or Path(f"restored_{archive.name.removesuffix('.tar.gz')}")).absolute()
        stop = Stop()
        planned = await in_thread(lambda: restoring.plan(archive, wanted, target, stop), stop)
        what = f"{planned.files:,} file{'' if planned.files == 1 else 's'} ({words.size(planned.size_bytes)})"
        if dry_run:
            console.print_json(restoring.as_json(planned)) if json else console.say(
                f"Would restore {what} from {archive.name} to {target}; {len(planned.in_the_way)} are there already. "
                f"{words.size(planned.free_bytes)} are free there. Nothing was changed."
            )
            return 0
        restoring.refuse(planned, overwrite=overwrite)
        if not yes:
            if not console.interactive():
                raise UsageError(f"This would restore {what} to {target}. Add --yes to do it, or --dry-run to look.")
            if not console.confirmed(f"Restore {what} from {archive.name} to {target}?"):
                console.say("Nothing was changed.")
                return EXIT_FAILED
        give_back = manager.restore if manager else restore_without_settings
        with console.progress() as on_progress:
            done = await give_back(planned, at_the_terminal(), overwrite=overwrite, on_progress=on_progress)
        if json:
            console.print_json(restoring.as_json(planned) | {"seconds": done.seconds, "warnings": done.warnings})
            return 0
        console.say(f"Restored {what} to {done.target} in {words.duration(done.seconds)}.")
        for warning in done.warnings:
            console.complain(f"  {warning}")
        return 0

    if _is_file(backup):
        # On the worst day there are no settings, or broken ones: a file is restored all the same.
        try:
            _load()
        except SettingsError:
            return await work(None)
    async with _manager() as manager:
        return await work(manager)


def _is_file(name: str) -> bool:
    return "/" in name or Path(name).is_file()


def _path_of(manager: Manager, name: str) -> Path:
    return Path(name) if _is_file(name) else manager.find(name)[1].path


@app.command()
@_command
async def clean(
    job: JobName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> int:
    """Remove the backups that retention lets go."""
    from memu_backup import console, words
    from memu_backup.manager import at_the_terminal

    async with _manager() as manager:
        name = job or _only_job(manager.config)
        decisions = await manager.clean(name, at_the_terminal(), dry_run=True)
        going = [d for d in decisions if not d.verdict.keep]
        if json:
            console.print_json(
                [{"name": d.backup.name, "keep": d.verdict.keep, "reason": d.verdict.reason} for d in decisions]
            )
        else:
            rows = [("stays" if d.verdict.keep else "goes", d.backup.name, d.verdict.reason) for d in decisions]
            console.table(("", "Backup", "Why"), rows)
        if dry_run or not going:
            if not json and not going:
                console.say("Nothing has to go.")
            return 0
        total = words.size(sum(d.backup.size_bytes for d in going))
        if not yes:
            if not console.interactive():
                raise UsageError(f"This would remove {len(going)} backups ({total}) for good. Add --yes to do it.")
            if not console.confirmed(f"Remove {len(going)} backups ({total}) for good?"):
                console.say("Nothing was removed.")
                return EXIT_FAILED
        await manager.clean(name, at_the_terminal(), dry_run=False)
    if not json:
        console.say(f"Removed {len(going)} backups ({total}).")
    return 0


# --- settings --------------------------------------------------------------------------------------------------------


@app.command()
def init(
    preset: Annotated[str, typer.Option("--preset", help="The system to protect.")] = "memu",
    to: Annotated[Path, typer.Option("--to", help="The file to write.")] = Path("config.toml"),
) -> None:
    """Write a first config.toml with comments."""
    from memu_backup import presets

    try:
        presets.write(preset, to)
    except MemuError as error:
        _give_up(error)
    sys.stdout.write(
        f"Wrote {to.absolute()}. Now look at each line of it that says CHECK, then type:\n"
        f"  memu-backup --config {to} config check\n"
    )


@config_app.command("show")
def config_show(json: Json = False) -> None:
    """Every setting in effect, secrets masked."""
    from memu_backup import config, console

    try:
        shown = config.show(_load())
    except MemuError as error:
        _give_up(error)
    if json:
        console.print_json(shown)
        return
    for line in _flat(shown):
        console.say(line)


def _flat(tree: dict[str, Any], above: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines += _flat(value, f"{above}{key}.")
        else:
            lines.append(f"{above}{key} = {value}")
    return lines


@config_app.command("check")
@_command
async def config_check(json: Json = False) -> int:
    """Are the settings right, and is everything there that they name? Changes nothing."""
    from memu_backup import console

    async with _manager() as manager:
        findings = await manager.check()
    if json:
        console.print_json([{"what": f.what, "good": f.good, "says": f.says} for f in findings])
    for found in findings if not json else ():
        console.say(f"{'ok' if found.good else 'NO':>3}  {found.what}: {found.says}")
    if all(f.good for f in findings):
        return 0
    if not json:
        console.complain("Mend what says NO, then type the same again.")
    return EXIT_FAILED
