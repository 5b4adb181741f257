"""Answers the family: one word in the room, and how things stand comes back, or what an admin wants is done."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import Any
from uuid import uuid4

from memu_backup import messages
from memu_backup.access import Role
from memu_backup.alerts import Notice
from memu_backup.audit import Asker
from memu_backup.chat import markup
from memu_backup.chat.account import Account, Safe
from memu_backup.chat.asked import Asked
from memu_backup.chat.grammar import Command, Slip, parse
from memu_backup.chat.session import Message, Reply, Said, Session
from memu_backup.clock import Clock
from memu_backup.errors import ChatError, MemuError, UsageError
from memu_backup.manager import Manager
from memu_backup.model import Backup, Level, Progress, Trigger
from memu_backup.stores import Store
from memu_backup.teller import Teller

log = logging.getLogger(__name__)

Start = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""Lets something run on its own, under a name: a backup does not end because the chat does."""

_ACTS = frozenset({"now", "verify", "snooze", "yes", "accept", "trust"})
"""For admins only."""

_YES = "\N{THUMBS UP SIGN}"  # of whatever colour
_ANSWER_WITHIN = timedelta(minutes=10)
_PROGRESS_S = 20.0
"""Homeservers let an account say some ten things a minute."""

_STRANGERS_AGAIN = timedelta(hours=1)
_STRANGERS = 20


@dataclass(frozen=True, slots=True)
class Question:
    """What is done once an admin says yes, under the message ``event_id`` or in a word."""

    event_id: str
    asked_at: datetime
    job: str


class Bot:
    """What it is asked it asks the manager, as the command line does."""

    def __init__(self, manager: Manager, teller: Teller, start: Start, clock: Clock) -> None:
        self._manager = manager
        self._teller = teller
        self._start = start
        self._clock = clock
        self._admins = frozenset(manager.config.chat.admins)
        self._question: Question | None = None
        self.asked = Asked(Safe(manager.config.state_dir).folder / "asked.json")
        self._making_since: datetime | None = None
        self._strangers: dict[tuple[str, str], datetime] = {}

    async def answer(self, message: Message) -> Reply | None:
        """The reply to a message of the family's room; None for what was not meant for the bot."""
        if message.under:
            return await self._sign(message, message.under)
        match parse(message.text):
            case Command(word, about, marked=False) if about and not self._is_there(word, about):
                return None  # a sentence that begins so
            case Command(word) as command:
                if word in _ACTS and message.sender not in self._admins:
                    self.stranger(message.sender, word)
                    return None
                log.info("%s asks for %s.", message.sender, word)
                try:
                    return await self._said(command, message.sender)
                except MemuError as error:
                    return markup.headed(str(error))
            case Slip(meant):
                return markup.headed(messages.slip(meant))
        return None

    def stranger(self, who: str, what: str) -> None:
        """They get silence and an audit line, of each one an hour: the audit is not theirs to fill."""
        now = self._clock()
        self._strangers = {k: at for k, at in self._strangers.items() if timedelta() <= now - at < _STRANGERS_AGAIN}
        if (who, what) in self._strangers or len(self._strangers) >= _STRANGERS:
            return
        self._strangers[who, what] = now
        self._start(self._manager.note(Asker(who, "chat"), what, "", "refused"), "the audit")

    async def _said(self, command: Command, sender: str) -> Reply | None:
        match command.word:
            case "status":
                return await self._status()
            case "list":
                return markup.headed(await self._list())
            case "page":
                return await self._page(sender)
            case "now":
                return await self._now(command, sender)
            case "verify":
                return await self._verify(sender)
            case "snooze":
                return await self._snooze(sender)
            case "trust":
                return await self._trust(command.about, sender)
            case "accept":
                return await self._accept(command.about, sender)
            case "yes":
                return self._yes(sender, self._question)
        return markup.headed(messages.help())

    # --- for everybody -----------------------------------------------------------------------------------------------

    async def _status(self) -> Reply:
        self._manager.config.must_have_jobs()
        return markup.status(await self._manager.standing.reports_in_full(), self._clock(), self._manager.config.zone)

    async def _list(self) -> str:
        jobs, found = self._manager.config.jobs, []
        for listed in await self._manager.listing():
            backup = listed.backup
            job = backup.manifest.job if backup.manifest else ""
            named = f" ({job})" if job in jobs and len(jobs) > 1 else ""  # what a stranger's archive says is not told
            found.append((backup.created_at, backup.size_bytes, f"{listed.state}{named}"))
        if not found:
            return messages.no_list((await self._status()).text)
        return messages.listing(found, self._clock(), self._manager.config.zone)

    async def _page(self, sender: str) -> Reply:
        """To look, and no more, whoever asks: all in the room see the link, and it signs in whoever opens it first."""
        web = self._manager.config.web
        if not web.enabled:
            return markup.headed(messages.no_page())
        code = await asyncio.to_thread(self._manager.access.new_link, sender, Role.VIEWER)
        await self._manager.note(Asker(sender, "chat"), "page", f"a link for {Role.VIEWER}", "done")
        return markup.headed(messages.page(f"{web.address()}/enter?code={code}"))

    # --- for admins --------------------------------------------------------------------------------------------------

    async def _now(self, command: Command, sender: str) -> Reply:
        self._manager.config.must_have_jobs()
        jobs = tuple(self._manager.config.jobs)
        job = self._job(command.about) if command.about or len(jobs) > 1 else jobs[0]
        if job is None:
            return markup.headed(messages.which_job(jobs))
        now, zone = self._clock(), self._manager.config.zone
        reports = await self._manager.standing.reports()
        for report in reports.values():
            if report.in_progress:
                return markup.headed(messages.running(report.in_progress.created_at, now, zone))
        mine = reports.get(job)  # none of one that is switched off
        last = mine.last_good if mine else None
        if mine and last and last == mine.last and _same_day(last.created_at, now, zone):

            async def asked(said: Said) -> None:
                self._question = Question(said.event_id, now, job)

            return Reply(messages.another_one(last, now, zone), then=asked)
        return self._begun(job, sender)

    def _job(self, written: str) -> str | None:
        """The job that is meant, as telephones begin words with capitals."""
        jobs = self._manager.config.jobs
        return written if written in jobs else next((j for j in jobs if j.casefold() == written.casefold()), None)

    def _is_there(self, word: str, about: str) -> bool:
        if word != "trust":
            return word == "now" and self._job(about) is not None
        try:
            return bool(self._manager.passports.known.named(about))
        except UsageError:
            return False

    async def _trust(self, name: str, sender: str) -> Reply:
        """The one that was asked about, where there is no doubt which."""
        strangers = [drive for drive in self._manager.passports.known.drives() if drive.trusted_at is None]
        if not name and len(strangers) != 1:
            return markup.headed(messages.which_drive(strangers))
        drive = await self._manager.passports.trust(name or strangers[0].fs_uuid, Asker(sender, "chat"))
        return markup.headed(messages.drive_trusted(drive))

    async def _sign(self, message: Message, under: str) -> Reply | None:
        question, run_id = self._question, self.asked.about(under)
        mine = question is not None and question.event_id == under
        if not (mine or run_id) or not message.text.startswith(_YES):
            return None
        if message.sender not in self._admins:
            self.stranger(message.sender, "yes" if mine else "accept")
            return None
        if mine:
            return self._yes(message.sender, question)
        try:
            return await self._accepted(*await self._manager.of_run(run_id or ""), message.sender)
        except MemuError as error:
            return markup.headed(str(error))

    async def _accept(self, name: str, sender: str) -> Reply:
        """What is named, or the one that waits for an answer."""
        if name:
            return await self._accepted(*await self._manager.find(name), sender)
        waiting = list((await self._manager.standing.waiting()).values())
        if len(waiting) == 1:
            return await self._accepted(*await self._manager.of_run(waiting[0].run_id), sender)
        said = messages.which_backup([run.filename for run in waiting]) if waiting else messages.nothing_waits()
        return markup.headed(said)

    async def _accepted(self, store: Store, backup: Backup, sender: str) -> Reply:
        """Only as long as that is asked: what a newer backup has settled needs no answer."""
        job = backup.manifest.job if backup.manifest else ""
        if job not in await self._manager.standing.waiting():
            return markup.headed(messages.nothing_waits())
        accepted = await self._manager.accept(store, backup, Asker(sender, "chat"))
        if not accepted:
            return markup.headed(messages.nothing_waits())
        still = (await self._manager.standing.waiting()).get(job)
        times = [there.created_at for there in accepted]
        said = still.error or "" if still else ""
        return markup.headed(messages.accepted(times, said, self._clock(), self._manager.config.zone))

    def _yes(self, sender: str, question: Question | None) -> Reply:
        if question is None or self._clock() - question.asked_at > _ANSWER_WITHIN:
            return markup.headed(messages.nothing_asked())
        return self._begun(question.job, sender)

    def _begun(self, job: str, sender: str) -> Reply:
        return Reply(messages.begun(), then=partial(self._back_up, job, Asker(sender, "chat")))

    async def _back_up(self, job: str, asker: Asker, said: Said) -> None:
        now, zone = self._clock(), self._manager.config.zone
        self._question = None
        if self._making_since:  # two who asked, or said yes, at the same moment
            await said.finally_anew(markup.headed(messages.running(self._making_since, now, zone)))
            return
        self._making_since = now

        async def work(on_progress: Callable[[Progress], None]) -> str:
            try:
                run = await self._manager.back_up(job, Trigger.MANUAL, asker, on_progress)
            finally:
                self._making_since = None
            return messages.ended(run, self._clock(), zone)

        await self._shown(said, f"backup job {job}", work)

    async def _verify(self, sender: str) -> Reply:
        store, backup = await self._manager.find("latest")
        made_at, zone = backup.created_at, self._manager.config.zone

        async def work(on_progress: Callable[[Progress], None]) -> str:
            asker = Asker(sender, "chat")
            verdict = await self._manager.verify(store, backup, Level.FULL, asker, on_progress)
            return messages.checked(made_at, verdict.problems, verdict.unchecked, self._clock(), zone)

        text = messages.checking(made_at, self._clock(), zone)
        return Reply(text, then=partial(self._shown, name="the verification", work=work))

    async def _snooze(self, sender: str) -> Reply:
        until = self._teller.snooze()
        await self._manager.note(Asker(sender, "chat"), "snooze", until.isoformat(timespec="seconds"), "done")
        return markup.headed(messages.snoozed(until, self._clock(), self._manager.config.zone))

    async def _shown(self, said: Said, name: str, work: Callable[[Callable[[Progress], None]], Awaitable[str]]) -> None:
        """Do it, and keep what was said up to date: where it stands, and what it came to."""
        latest: Progress | None = None
        outcome = ""

        def note(moment: Progress) -> None:  # called in other threads
            nonlocal latest
            latest = moment

        async def do() -> None:
            nonlocal outcome
            try:
                outcome = await work(note)
            except MemuError as error:
                outcome = str(error)
            except Exception as error:
                outcome = messages.broke()
                log.error("What the chat asked for broke (%s).", type(error).__name__, exc_info=error)

        task = self._start(do(), name)
        shown = ""
        while not task.done():
            await asyncio.wait({task}, timeout=_PROGRESS_S)
            if not task.done() and latest and (text := messages.progress(latest)) != shown:
                shown = text
                try:
                    await said.anew(Reply(text))
                except ChatError as error:  # the next one tells it
                    log.debug("%s", error)
        if outcome:
            await said.finally_anew(markup.headed(outcome))


def _same_day(at: datetime, now: datetime, zone: tzinfo) -> bool:
    return at.astimezone(zone).date() == now.astimezone(zone).date()


class Room:
    """The family's room, as a way to tell people. What it asks is noted in ``asked``."""

    def __init__(self, session: Session, host: str, asked: Asked | None = None) -> None:
        self._session = session
        self._host = host
        self._asked = asked

    async def test(self) -> Mapping[str, Any]:
        """See ``teller.Room``."""
        begun = time.monotonic()
        text = messages.test(self._host)
        readers = await self._session.say_and_wait(markup.headed(text), str(uuid4()))
        counted = Counter(who for who, _ in readers or ())
        return {
            "room": self._session.room,
            "encrypted": readers is not None,
            "seconds": round(time.monotonic() - begun, 3),
            "readers": dict(sorted(counted.items())),
        }

    async def send(self, notice: Notice) -> None:
        """See ``Channel``."""
        said = await self._session.say(markup.headed(notice.text), notice.key)
        if notice.asks and self._asked:
            await asyncio.to_thread(self._asked.note, said.event_id, notice.asks)


async def run(manager: Manager, teller: Teller, start: Start, clock: Clock, account: Account) -> None:
    """Answer for ever in the room that is set, signed in as ``account``. Raises ChatError."""
    config = manager.config
    room = config.backup_notification_room
    assert room
    bot = Bot(manager, teller, start, clock)
    session = Session(
        Safe(config.state_dir),
        account,
        room,
        frozenset(config.chat.admins),
        bot.answer,
        lambda: teller.room_is_open(Room(session, config.host, bot.asked)),
        bot.stranger,
    )
    await session.run()
