"""What a message asks for. Pure, and silent about everything that is not meant for the bot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

WORDS = ("status", "list", "help", "now", "verify", "snooze", "yes", "accept", "trust", "page")
"""What may be asked for."""

_LONGEST = 200
_ASKED = re.compile(
    r"(?P<mark>//|/|!|)backup(?:(?P<gap>-|\s+|[_:.,]?\s*)(?P<word>\S+)(?:\s+(?P<more>\S.*))?)?",
    re.DOTALL | re.IGNORECASE,
)
_FORMS = {("/", "-"), ("//", "-"), ("/", " "), ("!", "-"), ("!", " "), ("", " ")}
"""Mark and gap. Element Web sends ``//backup-status`` as ``/backup-status``; other clients send it as it is."""

_OF_ONE_WORD, _OF_A_DRIVE = ("now", "accept"), ("trust",)


@dataclass(frozen=True, slots=True)
class Command:
    """One of ``WORDS``, and what it is ``about``, a job, a backup or a drive, as it was written. Where it is not
    ``marked``, the name of nothing means that it was no command at all but a sentence.
    """

    word: str
    about: str = ""
    marked: bool = True


@dataclass(frozen=True, slots=True)
class Slip:
    """Meant for the bot, for it began with its mark, and not understood. ``meant`` is the nearest word, if any is."""

    meant: str | None


def parse(text: str) -> Command | Slip | None:
    """What a message asks for, and None where it is no business of the bot's: everything that does not begin with
    ``!backup`` or ``/backup`` (``!backupstatus`` does, ``!backups`` does not), but for a plain ``backup WORD`` and
    nothing else.
    """
    found = _ASKED.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if found is None:
        return None
    mark, gap, word, more = found["mark"], found["gap"] or "", (found["word"] or "").casefold(), found["more"] or ""
    fits = not more or word in _OF_A_DRIVE or (word in _OF_ONE_WORD and len(more.split()) == 1)
    apart = " " if gap.isspace() else gap
    if (mark, apart) in _FORMS and word in WORDS and fits:
        return Command(word, more, bool(mark))
    near = get_close_matches(word, WORDS, 1, cutoff=0.65)
    if mark == "" or (word and apart not in ("-", " ") and not near):  # as !backups is: another word
        return None
    return Slip(near[0] if near else None)
