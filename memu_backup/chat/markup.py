"""Matrix's HTML: a head in bold, and below a status, folded away, what only some want to read."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo

from memu_backup import sources, words
from memu_backup.chat.session import Reply
from memu_backup.model import StatusReport


def headed(text: str) -> Reply:
    """The first line in bold, so that a long answer has a head."""
    return Reply(text, _with_head(text) if "\n" in text else "")


def status(reports: Mapping[str, StatusReport], now: datetime, zone: tzinfo) -> Reply:
    """Of each job, by name, how it stands. The details are for those who unfold them: the text has none."""
    texts, parts = [], []
    for job, report in reports.items():
        text = words.status_message(report, now, zone)
        texts.append(text if len(reports) == 1 else f"{job}:\n{text}")
        parts.append(_with_head(texts[-1]) + _folded(words.details(report, sources.told, now, zone)))
    return Reply("\n\n".join(texts), "<br><br>".join(parts))


def _with_head(text: str) -> str:
    head, *rest = map(_escaped, text.split("\n"))
    return "<br>".join([f"<b>{head}</b>", *rest])


def _folded(lines: Sequence[str]) -> str:
    return f"<details><summary>Details</summary>{'<br>'.join(map(_escaped, lines))}</details>" if lines else ""


def _escaped(line: str) -> str:
    return html.escape(line, quote=False)
