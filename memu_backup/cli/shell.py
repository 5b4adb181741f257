"""What all commands share: options, the way to the manager, and how an ending becomes an exit status and a sentence."""

from __future__ import annotations

import asyncio
import functools
import logging
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.errors import MemuError, SettingsError, UsageError

if TYPE_CHECKING:
    from memu_backup.config import Config
    from memu_backup.manager import Manager
    from memu_backup.model import Backup
    from memu_backup.stores import Store

log = logging.getLogger(__name__)

app = typer.Typer(
    name="memu-backup",
    help="Archives your family's server each night, proves what it wrote, and gives it back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # in boxes, Typer 0.29 shows a switch as if it took a value: --json <bool>
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_FAILED = 1
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130

_WHICH_JOB = "Which job; may be left out where there is only one."

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
BackupName = Annotated[str, typer.Argument(help="A name, the beginning of one, latest, or a file.", metavar="BACKUP")]
JobName = Annotated[str | None, typer.Argument(help=_WHICH_JOB, metavar="JOB")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(slots=True)
class _Options:
    config: Path | None = None
    debug: bool = False


_options = _Options()


def _say_version(asked: bool) -> None:
    if asked:
        from memu_backup import __version__

        sys.stdout.write(f"memu-backup {__version__}\n")
        raise typer.Exit


@app.callback()
def _take_options(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Where the settings are.", readable=False)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show technical details.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    from memu_backup import logs

    del version  # said already
    _options.config, _options.debug = config, debug
    logs.configure_for_people(debug=debug)


# --- from work to exit status ----------------------------------------------------------------------------------------


def command(work: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., None]:
    """Run an async command. Its result is the exit status; whatever it raises becomes one sentence and a status."""

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            status = asyncio.run(_until_told_to_stop(work(*args, **kwargs))) or 0
            from memu_backup import console

            with console.saying():
                sys.stdout.flush()
        except BrokenPipeError:
            from memu_backup import console

            # Whoever read our output (head, less) has seen enough. Python would complain once more at its end.
            console.say_no_more()
            status = 0
        except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
            status = _explain(error, as_json=bool(kwargs.get("json")))
        raise typer.Exit(status) from None

    return run


async def _until_told_to_stop(work: Coroutine[Any, Any, int | None]) -> int | None:
    """SIGTERM, or the end of the terminal, ends it as Ctrl-C does: children and half-written files go with it."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def _explain(error: BaseException, *, as_json: bool) -> int:
    from memu_backup import console, logs

    match error:
        case MemuError():
            code, text, status = error.code, str(error), error.exit_status
            console.complain(text)
        case KeyboardInterrupt() | asyncio.CancelledError():
            code, status = "interrupted", EXIT_INTERRUPTED
            text = "Interrupted; what was finished stays, nothing half-written does."
            console.complain(f"\n{text}" if sys.stderr.isatty() else text)  # after the ^C
        case _:
            file = logs.file_in_use()
            look = f"The details are in {file}." if file else "To see the details, type: memu-backup --debug …"
            code, status = "unexpected", EXIT_FAILED
            text = f"Something unexpected happened ({type(error).__name__}), so this ended early. {look}"
            log.error("%s", text, exc_info=error)
    if as_json:
        console.print_json({"error": {"code": code, "message": text}})
    return status


# --- to the manager --------------------------------------------------------------------------------------------------


def load() -> Config:
    """The settings. Raises SettingsError."""
    from memu_backup import config

    return config.load(_options.config)


@asynccontextmanager
async def the_manager() -> AsyncIterator[Manager]:
    """Raises SettingsError."""
    from memu_backup import logs
    from memu_backup.manager import Manager, history_of

    settings = load()
    history = history_of(settings)
    logs.configure_for_people(settings.log_file, debug=_options.debug)
    async with history:
        yield Manager(settings, history)


@asynccontextmanager
async def manager_unless_file(backup: str) -> AsyncIterator[Manager | None]:
    """On the worst day there are no settings, or broken ones: a backup given as a file is dealt with all the same."""
    from memu_backup import console

    if is_file(backup):
        try:
            load().history_url()
        except SettingsError:
            console.complain("There are no usable settings, so nothing but the file itself is looked at.")
            yield None
            return
    async with the_manager() as manager:
        yield manager


async def find(manager: Manager | None, backup: str) -> tuple[Store, Backup]:
    """The backup that was meant. Raises UnknownBackup, NotAnArchive, UsageError."""
    from memu_backup.anywhere import look

    if manager is None or is_file(backup):
        return look(Path(backup))
    return await manager.find(backup)


def is_file(backup: str) -> bool:
    from memu_backup.formats import parts

    return backup != "latest" and ("/" in backup or parts.is_there(Path(backup)))


def job_or_only(config: Config, job: str | None, verb: str) -> str:
    """Raises UsageError where several jobs could be meant, or there is none."""
    if job is not None:
        return job
    config.must_have_jobs()
    first = next(iter(config.jobs))
    if len(config.jobs) > 1:
        raise UsageError(f"Which job? There are {', '.join(config.jobs)}. Type for example: memu-backup {verb} {first}")
    return first


async def agreed(question: str, *, refusal: str, json: bool) -> None:
    """Ask whoever sits there. Raises Declined; UsageError with ``refusal`` where nobody does, or JSON is wanted."""
    from memu_backup import console

    if json or not console.interactive():
        raise UsageError(refusal)
    await console.confirmed(question)


def as_typed(*argv: str) -> str:
    """A command of ours, to be copied: of the same settings as this one."""
    return shlex.join(["memu-backup", *(("--config", str(_options.config)) if _options.config else ()), *argv])


def took(seconds: float) -> str:
    """in 2 min 5 s, in less than a second."""
    from memu_backup import words

    return f"in {words.duration(seconds)}" if round(seconds) else "in less than a second"
