"""What a returning reader missed: from the history in memory, from persistence before that, or an explicit gap.

Rules:
1. A catch-up is read page by page, behind what the reader takes. So it costs one page, however much was missed.
2. The last page ends at the head of the stream as it is when the page is returned. The caller subscribes before it
   awaits anything, so that nothing is missed and nothing is doubled.
3. Nothing is skipped silently: a hole in what is stored is a `Gap` in its place, and so is what a log no longer keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from chatx.core.fanout import Subscriber
from chatx.core.message import Entry, Event, Gap, Message, Position, PresenceDiff, Presences, Unrecovered
from chatx.core.presence import Changes
from chatx.errors import InvalidMessage
from chatx.runtime.process import RoomProcess
from chatx.runtime.storage import Storage

PAGE_MESSAGES = 500
"""Messages in a page, at most; fewer where `mailbox_bytes` is not enough for so many of the largest."""


class Missed(Struct):
    """A page of what a reader missed.

    Attributes:
        events: The messages after its place, oldest first, with a `Gap` where some cannot be had.
        reached: The place that they lead up to.
        last: Whether that place is the head of the stream, before the caller awaits anything.
    """

    events: list[Event]
    reached: Position
    last: bool


class Behind(Struct, eq=False):
    """A subscriber that is in its room, and is given nothing there until its reader has what it missed.

    Attributes:
        process: The room.
        subscriber: The subscriber, which has neither a mailbox nor a callback yet.
        reached: What its reader has been given up to.
        present: Who its reader was told to be there; None where it does not read presence.
    """

    process: RoomProcess
    subscriber: Subscriber
    reached: Position
    present: Presences | None

    def presence_changed(self) -> list[Event]:
        """Return the one event that tells the reader how presence has changed meanwhile; no event where it has not."""
        if self.present is None:
            return []
        changes = Changes()
        changes.add(joins=self.process.presences(), leaves=self.present)
        return [PresenceDiff(self.process.room_id, *changes.take())] if changes else []


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


def missed_in_memory(
    process: RoomProcess, storage: Storage, after: Position | None, most: int, limit: int
) -> Missed | None:
    """Return the page that `missed` returns, from memory; None where persistence has to be asked for it.

    Raises:
        RoomUnavailable: The room has crashed too often.
    """
    # Settled first, or what a callback publishes then is missed: it comes after the head taken here, and before the
    # reader is given what is live.
    process.settle()
    process.check()
    head = process.head
    if after is None:
        return Missed([], head, last=True)
    if head.epoch == after.epoch and head.offset - after.offset > limit:
        return _refused(process, after, "too_many")
    found = process.page(after, most)
    if isinstance(found, list):
        reached = Position(head.epoch, found[-1].offset) if found else after
        return Missed([*found], reached, last=reached == head)
    if found == "too_old" and storage.serves_history:
        return None
    return _refused(process, after, found)


async def missed(process: RoomProcess, storage: Storage, after: Position | None, most: int, limit: int) -> Missed:
    """Return the next page of what a reader missed, holes in it included.

    Args:
        process: The room.
        storage: Where what memory no longer has is read.
        after: What the reader has been given up to; None for a new one, who has missed nothing.
        most: Messages in the page, at most.
        limit: Messages that a reader may be behind; beyond it one gap stands for all of them.

    Raises:
        RoomUnavailable: The room has crashed too often.
        AdapterError: The page is in persistence, which cannot be read now.
    """
    while True:
        page = missed_in_memory(process, storage, after, most, limit)
        if page is not None or after is None:
            return page or Missed([], process.head, last=True)
        found = await storage.read(process.room_id, after=after, limit=most)
        # What memory has comes from memory: the newest may not be stored yet.
        start = process.oldest
        events: list[Event] = []
        reached = after
        kept = start if found.oldest is None else min(start, found.oldest.offset)
        if found.oldest is not None and kept > reached.offset + 1:
            events.append(_gap(process.room_id, "too_old", reached, kept - 1))
            reached = Position(reached.epoch, kept - 1)
        for entry in found.entries:
            if entry.offset >= start:
                break
            if entry.offset > reached.offset + 1:
                events.append(_gap(process.room_id, "missing", reached, entry.offset - 1))
            events.append(entry)
            reached = Position(entry.epoch, entry.offset)
        if not events and start - 1 > reached.offset:
            # The store has been asked and answered: what is missing here is neither there nor in memory any more.
            events.append(_gap(process.room_id, "missing", reached, start - 1))
            reached = Position(reached.epoch, start - 1)
        if events:
            return Missed(events, reached, last=False)


class Page(Struct):
    """A part of what a reader missed, without holes.

    Attributes:
        entries: What follows its place without a hole, oldest first; empty only where nothing does.
        last: Whether the entries end at the head of the stream as it is now, before the caller awaits anything.
    """

    entries: Sequence[Entry]
    last: bool


def page_in_memory(process: RoomProcess, storage: Storage, after: Position, most: int) -> Page | Unrecovered | None:
    """Return the page that `next_page` returns, from memory; None where persistence has to be asked for it.

    Raises:
        RoomUnavailable: The room has crashed too often.
    """
    process.check()
    found = process.page(after, most)
    if isinstance(found, list):
        return Page(found, last=after.offset + len(found) == process.offset)
    return None if found == "too_old" and storage.serves_history else found


async def next_page(process: RoomProcess, storage: Storage, after: Position, most: int) -> Page | Unrecovered:
    """Return the entries behind a reader's place, at most `most`, or the reason why they cannot be had whole.

    For a reader who takes page after page, so that no more than one page is in memory.

    Raises:
        RoomUnavailable: The room has crashed too often.
        AdapterError: What was missed is in persistence, which cannot be read now.
    """
    while True:
        page = page_in_memory(process, storage, after, most)
        if page is not None:
            return page
        stored = await storage.load(process.room_id, after=after, limit=most)
        # What memory has comes from memory: what a log has behind the head was told to nobody yet.
        start = process.oldest
        whole = [each for place, each in enumerate(stored, after.offset + 1) if each.offset == place < start]
        if whole:
            return Page(whole, last=False)
        if start - 1 > after.offset:
            return "too_old"  # what follows is neither stored nor in memory any more


def _refused(process: RoomProcess, after: Position, reason: Unrecovered) -> Missed:
    head = process.head
    count = head.offset - after.offset if reason != "epoch_changed" else None
    return Missed([Gap(process.room_id, reason, head.epoch, head.offset, count)], head, last=True)


def _gap(room_id: str, reason: Literal["missing", "too_old"], reached: Position, last: int) -> Gap:
    return Gap(room_id, reason, reached.epoch, last, last - reached.offset)
