"""Where runs are written down, when the next is due, who hears of trouble outside the chat, and who sees the page."""

from __future__ import annotations

import asyncio

from memu_backup import schedule, words
from memu_backup.alerts import named
from memu_backup.alerts.apprise import AppriseChannel
from memu_backup.checks import Finding, found
from memu_backup.checks.places import writable
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.history import History


async def history(config: Config, history: History) -> Finding:
    return await found("history", _history(config, history))


async def _history(config: Config, history: History) -> str:
    if not await history.unmade():
        return await history.check()
    no = "so the history cannot be kept there"
    return f"embedded PostgreSQL; {await asyncio.to_thread(writable, config.state_dir, no)}"


def page(config: Config) -> list[Finding]:
    """Whether what the page shows can be read on its way, where there is one."""
    web = config.web
    if not web.enabled:
        return []
    own = web.host in ("127.0.0.1", "::1", "localhost")
    if own or web.certificate_file:
        return [Finding("page", True, f"{web.address()}{', for this machine alone' if own and not web.url else ''}")]
    says = (
        f"it listens on {web.host} without TLS, so that everybody in the network can read along, and sign in with what "
        'they read; set certificate_file and key_file below [web], or host = "127.0.0.1" with a proxy before it'
    )
    return [Finding("page", False, says)]


def timetable(config: Config, name: str, clock: Clock) -> Finding:
    job, now = config.job(name), clock()
    due = schedule.timetable(job.cron, config.zone).next_after(now) if job.cron else None
    if due is None:
        return Finding(f"job {name}", True, f"only by hand: memu-backup start {name}")
    return Finding(f"job {name}", True, f"due {words.moment(due, now, config.zone)} ({config.timezone})")


async def ways_out(config: Config) -> list[Finding]:
    """Each that is set; nothing is sent."""
    findings = []
    if config.alerts.fallback or config.alerts.fallback_file:
        findings.append(await found("fallback channels", _fallback(config)))
    for name, job in config.jobs.items():
        if job.heartbeat or job.heartbeat_file:
            findings.append(await found(f"heartbeat of {name}", _heartbeat(config, name)))
    return findings


async def _fallback(config: Config) -> str:
    urls = config.fallback_urls()
    await AppriseChannel(urls).check()
    return f"{', '.join(map(named, urls))}; nothing was sent, to try them: memu-backup alerts test"


async def _heartbeat(config: Config, job: str) -> str:
    return f"{named(config.heartbeat_of(job) or '')}; nothing was sent there"
