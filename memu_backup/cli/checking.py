"""The doctor: is everything there that a backup will need, does the service run, and is somebody told?"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup.cli import chat
from memu_backup.cli.settings import config_app
from memu_backup.cli.shell import EXIT_FAILED, Json, app, command, the_manager
from memu_backup.errors import MemuError

if TYPE_CHECKING:
    from memu_backup.checks import Finding
    from memu_backup.config import Config
    from memu_backup.manager import Manager

_ANSWER_S = 10.0
_UNIT = "memu-backup"
_SYSTEMD = Path("/run/systemd/system")
"""There where systemd is at work, see sd_booted(3)."""


@app.command()
@command
async def check(json: Json = False) -> int:
    """Is all well? Looks at everything that a backup needs, and changes nothing. Exit status 1 when it is not."""
    from memu_backup import console

    findings = []
    async with the_manager() as manager:
        async for finding in _all(manager):
            findings.append(finding)
            if not json:
                console.say(f"{'ok' if finding.good else 'NO':>3}  {finding.what}: {finding.says}")
    bad = sum(not f.good for f in findings)
    summary = (
        f"{bad} of {len(findings)} things are not as they should be. Mend what says NO, then type the same again."
        if bad
        else f"All is well: {len(findings)} things were looked at."
    )
    if json:
        told = [{"what": f.what, "good": f.good, "says": f.says} for f in findings]
        console.print_json({"good": not bad, "says": summary, "findings": told})
    elif bad:
        console.complain(summary)
    else:
        console.say(summary)
    return EXIT_FAILED if bad else 0


config_app.command("check", hidden=True)(check)  # as it was called before


async def _all(manager: Manager) -> AsyncIterator[Finding]:
    from memu_backup.checks import Finding

    config = manager.config
    async for finding in manager.check():
        yield finding
    yield await service(config)
    of_chat = chat.check(config)
    for finding in of_chat:
        yield finding
    beats = any(job.heartbeat or job.heartbeat_file for job in config.jobs.values())
    if not (of_chat or config.alerts.fallback or config.alerts.fallback_file or beats):
        says = (
            "nobody hears of it when a backup fails; type: memu-backup chat login, or set fallback below [alerts] or "
            "heartbeat below a job"
        )
        yield Finding("alerts", False, says)


async def service(config: Config) -> Finding:
    """Whether the service runs, and whether it will after the next start of the machine."""
    from memu_backup import bell, lock
    from memu_backup.checks import Finding
    from memu_backup.daemon import service_folder

    what, folder = "the service", service_folder(config.state_dir)
    if os.path.lexists(folder.parent) and not os.access(folder.parent, os.X_OK):
        return Finding(what, False, "this user may not see whether it runs; type the same with sudo")
    try:
        runs = lock.taken(folder)
        answers = await bell.ask(folder, "hello", _ANSWER_S) is not None
    except MemuError as error:
        return Finding(what, False, str(error))
    if not runs:
        needed = any(config.job(name).cron for name in config.jobs)
        by_hand = "does not run, and need not: no job has a time"
        start = "does not run, so no backup is made by itself; type: systemctl enable --now memu-backup"
        return Finding(what, not needed, start if needed else by_hand)
    if not answers:
        return Finding(what, False, "runs, and does not answer; start it anew: systemctl restart memu-backup")
    if await _enabled() == "disabled":
        says = "runs, but will not after the next start of the machine; type: systemctl enable memu-backup"
        return Finding(what, False, says)
    return Finding(what, True, "runs")


async def _enabled() -> str:
    """What systemd says of our unit; empty where there is no systemd."""
    import shutil

    from memu_backup import process

    systemctl = shutil.which("systemctl")
    if systemctl is None or not _SYSTEMD.is_dir():
        return ""
    try:
        done = await process.run([systemctl, "is-enabled", _UNIT], timeout_s=_ANSWER_S)
    except (OSError, TimeoutError):
        return ""
    return done.stdout.decode(errors="replace").strip()
