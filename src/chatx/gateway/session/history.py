"""One page of a room's history for a client: as many messages as it asked for, within the bytes of a page."""

from __future__ import annotations

from chatx.core.message import Message
from chatx.gateway.session.hub import message_payload
from chatx.gateway.session.reading import Reading, size_of
from chatx.gateway.wire.payloads import History, HistoryPage
from chatx.runtime.engine import Engine


async def page_of(engine: Engine, reading: Reading, user_id: str | None, room_id: str, wanted: History) -> HistoryPage:
    """Return the page that is asked for, read while it is the user's turn; None is the application, and has no budget.

    Raises:
        RateLimited: The user has had as much read as they may.
        ChatError: As `Chat.history`.
    """
    onwards = wanted.after is not None
    found = await _messages_of(engine, reading, user_id, room_id, wanted)
    shown = found[: wanted.limit] if onwards else found[-wanted.limit :]
    shown = _within(shown, reading.page_bytes, newest=not onwards)
    return HistoryPage([message_payload(message) for message in shown], len(shown) < len(found))


async def _messages_of(
    engine: Engine, reading: Reading, user_id: str | None, room_id: str, wanted: History
) -> list[Message]:
    """Return the messages that are asked for and one more, or as many of them as pass the bytes of a page."""
    if user_id is not None:
        reading.check(user_id)  # again, since what went before it has been charged meanwhile
    place = wanted.after or wanted.before
    position = None if place is None else (place.epoch, place.offset)
    found: list[Message] = []
    size = 0
    while len(found) <= wanted.limit and size <= reading.page_bytes:
        most = min(reading.at_once, wanted.limit + 1 - len(found))
        if wanted.after is not None:
            messages = await engine.history(room_id, None, position, most)
            found += messages
        else:
            messages = await engine.history(room_id, position, None, most)
            found[:0] = messages
        if user_id is not None:
            reading.charge(user_id, messages)
        size += sum(map(size_of, messages))
        if len(messages) < most:
            break
        edge = messages[-1] if wanted.after is not None else messages[0]
        position = (edge.epoch, edge.offset)
    return found


def _within(messages: list[Message], most: int, *, newest: bool) -> list[Message]:
    """Return those of the messages whose contents have at most so many bytes together, the newest or the oldest.

    One at the least.
    """
    size = 0
    for number, message in enumerate(reversed(messages) if newest else messages):
        size += size_of(message)
        if size > most and number:
            return messages[-number:] if newest else messages[:number]
    return messages
