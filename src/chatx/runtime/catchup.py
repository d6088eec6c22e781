"""What a returning reader missed: from the history in memory, from persistence before that, or an explicit gap.

Rules:
1. When `catch_up` returns, its answer is complete up to the head of the stream at that moment. The caller subscribes
   before it awaits anything, so that nothing is missed and nothing is doubled.
2. Nothing is skipped silently: a hole in what is stored is a `Gap` in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from chatx.core.message import Entry, Event, Gap, Message, Position, Unrecovered
from chatx.errors import InvalidMessage
from chatx.runtime.process import RoomProcess
from chatx.runtime.storage import Storage

PAGE = 500
"""Messages loaded from persistence at a time."""


class CatchUp(Struct):
    """Where a reader stands before the first live message.

    Attributes:
        head: The place after which live messages follow.
        events: What was missed, oldest first; one `Gap` where it cannot be had.
        reason: Why it cannot be had, or None where `events` is complete.
    """

    head: Position
    events: list[Event]
    reason: Unrecovered | None = None


def position_of(after: object, name: str = "after") -> Position | None:
    """Return where a reader says it stands: a `Message`, a `Gap` or (epoch, offset); None for a new reader.

    Raises:
        InvalidMessage: It is none of these; the argument's `name` is in the text.
    """
    match after:
        case None:
            return None
        case Message() | Gap():
            return Position(after.epoch, after.offset)
        case (str() as epoch, int() as offset) if offset >= 0 and not isinstance(offset, bool):
            return Position(epoch, offset)
    raise InvalidMessage(
        f"{name} is {after!r:.200}; give a Message, a Gap, or (epoch, offset) with an offset of 0 or more."
    )


async def catch_up(
    process: RoomProcess, storage: Storage, after: Position | None, limit: int, *, settle: bool = True
) -> CatchUp:
    """Return what a reader who has seen up to `after` missed, at most `limit` messages.

    With `settle`, the caller may attach a subscriber of its own to the room, before it awaits anything.

    Raises:
        RoomUnavailable: The room has crashed too often.
        AdapterError: What was missed is in persistence, which cannot be read now.
    """
    events: list[Event] = []
    reached = after
    while True:
        # Settled first, or what a callback publishes then is missed: it comes after the head taken here, and before
        # the reader is a subscriber.
        if settle:
            process.settle()
        process.check()
        head = process.head
        if reached is None or after is None:
            return CatchUp(head, [])
        if head.epoch == after.epoch and head.offset - after.offset > limit:
            return _refused(process, after, "too_many")
        found = process.after(reached, limit)
        if isinstance(found, list):
            return CatchUp(head, [*events, *found], _hole_in(events))
        if found != "too_old" or not storage.serves_history:
            return _refused(process, after, found)
        page = await storage.load(process.room_id, after=reached, limit=PAGE)
        # What memory has comes from memory: the newest may not be stored yet.
        start = process.oldest
        page = [each for each in page if each.offset < start]
        if not page:
            # The store has been asked and answered: what is missing here is neither there nor in memory any more.
            last = start - 1
            if last <= reached.offset:
                continue
            events.append(_missing(process.room_id, reached, last))
            reached = Position(reached.epoch, last)
        for message in page:
            if message.offset > reached.offset + 1:
                events.append(_missing(process.room_id, reached, message.offset - 1))
            events.append(message)
            reached = Position(message.epoch, message.offset)


class Page(Struct):
    """Some of what a reader missed.

    Attributes:
        entries: What follows its place without a hole, oldest first; empty only where nothing does.
        last: Whether they end at the head of the stream as it is now, before the caller awaits anything.
    """

    entries: Sequence[Entry]
    last: bool


def page_in_memory(process: RoomProcess, storage: Storage, after: Position, most: int) -> Page | Unrecovered | None:
    """Return what `next_page` does where memory can tell; None where persistence has to be asked.

    Raises:
        RoomUnavailable: The room has crashed too often.
    """
    process.check()
    found = process.page(after, most)
    if isinstance(found, list):
        return Page(found, last=after.offset + len(found) == process.offset)
    return None if found == "too_old" and storage.serves_history else found


async def next_page(process: RoomProcess, storage: Storage, after: Position, most: int) -> Page | Unrecovered:
    """Return what follows a reader's place, at most `most` messages, or the reason why it cannot be had whole.

    For a reader who takes what it missed bit by bit, so that no more of it is in memory.

    Raises:
        RoomUnavailable: The room has crashed too often.
        AdapterError: What was missed is in persistence, which cannot be read now.
    """
    while True:
        page = page_in_memory(process, storage, after, most)
        if page is not None:
            return page
        stored = await storage.load(process.room_id, after=after, limit=most)
        whole = [each for place, each in enumerate(stored, after.offset + 1) if each.offset == place]
        if whole:
            return Page(whole, last=False)
        if stored or process.oldest - 1 > after.offset:
            return "too_old"  # what follows is neither stored nor in memory any more


def _refused(process: RoomProcess, after: Position, reason: Unrecovered) -> CatchUp:
    head = process.head
    missed = head.offset - after.offset if reason != "epoch_changed" else None
    return CatchUp(head, [Gap(process.room_id, reason, head.epoch, head.offset, missed)], reason)


def _missing(room_id: str, reached: Position, last: int) -> Gap:
    return Gap(room_id, "missing", reached.epoch, last, last - reached.offset)


def _hole_in(events: list[Event]) -> Unrecovered | None:
    return "too_old" if any(isinstance(event, Gap) for event in events) else None
