"""What of all that comes in from the family's room is said to the bot, in the sender's own words."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nio import Event, MegolmEvent, ReactionEvent, RoomMessageNotice, RoomMessageText

from memu_backup.chat.keys import Keys, passed_over

log = logging.getLogger(__name__)

_NOTHING = {"not_types": ["*"]}
_HEARD = ["m.room.message", "m.room.encrypted", "m.reaction", "m.room.tombstone"]
_MEMBER = "m.room.member"  # else it is not told that the bot was put out
FILTER = {
    "presence": _NOTHING,
    "account_data": _NOTHING,
    "room": {
        # As many as a talkative family writes while the bot starts; a homeserver gives ten to who does not ask.
        "timeline": {"limit": 100, "types": [*_HEARD, _MEMBER]},
        "state": _NOTHING,
        "ephemeral": _NOTHING,
        "account_data": _NOTHING,
    },
}
"""What the homeserver is asked for; all else it need not send."""

_STALE_S = 5 * 60.0
_MOST_UNREAD = 200
_QUOTE = re.compile(r"\A(?:>[^\n]*(?:\n|\Z))+\n?")


@dataclass(frozen=True, slots=True)
class Message:
    """A text that somebody wrote in the family's room, just now and readable by its members alone; or, with ``under``,
    a sign such as 👍 that they set under the message with that event id.
    """

    event_id: str
    sender: str
    text: str
    under: str | None = None


class Hearing:
    """Listens in ``room`` to all but ``own_id``."""

    def __init__(self, room: str, own_id: str) -> None:
        self._room = room
        self._own_id = own_id
        self._unread: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def of(self, events: Iterable[Mapping[str, Any]], keys: Keys, *, encrypted: bool) -> list[Message]:
        """What was said in ``events``, and in earlier ones whose key came only now."""
        now = time.monotonic()
        new, messages = {}, []
        for event in events:
            with passed_over("A message"):
                if self._is_of_now(event):
                    new[str(event["event_id"])] = now + _STALE_S - _age_s(event), event
        earlier, self._unread = self._unread, {}
        for name, (until, event) in [*earlier.items(), *new.items()][-_MOST_UNREAD:]:
            with passed_over("A message"):
                told = Event.parse_event(event)
                sealed = isinstance(told, MegolmEvent)
                if isinstance(told, MegolmEvent) and (told := keys.read(self._room, told)) is None:
                    if name not in earlier:
                        log.warning("A message of %s cannot be read: its key did not come.", event["sender"])
                    if now < until:
                        self._unread[name] = until, event
                elif message := _message(told, secret=sealed or not encrypted):
                    messages.append(message)
        return messages

    def _is_of_now(self, event: Mapping[str, Any]) -> bool:
        if "state_key" in event:
            if event["type"] == "m.room.tombstone":
                log.warning(
                    "The family's room was replaced by %s. Invite the bot there, and set backup_notification_room.",
                    event["content"].get("replacement_room"),
                )
            return False
        if event["sender"] == self._own_id:
            log.debug("The bot's own message is passed over.")
            return False
        if _age_s(event) > _STALE_S:
            log.info("A message of %s is too old to be answered.", event["sender"])
            return False
        return True


def _age_s(event: Mapping[str, Any]) -> float:
    """As the homeserver counts it, whose clock is the only one that counts."""
    return float(event.get("unsigned", {}).get("age", 0)) / 1000


def _message(event: object, *, secret: bool) -> Message | None:
    if isinstance(event, ReactionEvent):  # no client encrypts these; what they say yes to was encrypted
        return Message(event.event_id, event.sender, event.key, under=event.reacts_to)
    if isinstance(event, RoomMessageNotice):  # by custom what bots say, who must not talk with each other
        log.info("A notice of %s is passed over.", event.sender)
    if not isinstance(event, RoomMessageText):
        return None
    if not secret:
        log.warning("A message of %s came without encryption and is passed over.", event.sender)
        return None
    relation = event.source["content"].get("m.relates_to")
    relation = relation if isinstance(relation, dict) else {}  # whatever its sender put there
    if relation.get("rel_type") == "m.replace":
        log.info("An edit by %s is passed over.", event.sender)
        return None
    return Message(event.event_id, event.sender, _own_words(event.body) if "m.in_reply_to" in relation else event.body)


def _own_words(text: str) -> str:
    """Of a reply, without what it replies to: many clients quote that first.

    https://spec.matrix.org/v1.11/client-server-api/#fallbacks-for-rich-replies
    """
    return _QUOTE.sub("", text, count=1)
