"""A room's messages by their places, for whoever asks: from memory, and from the store what memory no longer has.

Rules:
1. What memory has comes from memory, what the log does not have yet included. So there is no seam between the two.
2. The limit counts messages: an entry of another kind is passed over, and ends no page.
3. Whoever goes on from a place gets everything behind it that is kept, or an error: never the rest of another stream,
   nor what comes behind entries that are gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from chatx.core.message import Entry, Message, Position
from chatx.errors import EpochChanged, InvalidMessage, TooOld
from chatx.runtime.catchup import position_of
from chatx.runtime.process import RoomProcess
from chatx.runtime.storage import Storage

Find = Callable[[], RoomProcess | None]
"""Returns the room as it is in memory now, or None where it is not."""

HISTORY_AT_ONCE = 10_000
"""The most messages that one call of `Chat.history` returns."""


def checked_places(before: object, after: object, limit: object) -> tuple[Position | None, Position | None]:
    """Return the places that history is asked for ahead of and behind, one of them at most.

    Raises:
        InvalidMessage: A place or the limit is not valid, or both places are given.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= HISTORY_AT_ONCE:
        raise InvalidMessage(f"limit is {limit!r}; give a whole number of messages from 1 to {HISTORY_AT_ONCE}.")
    ahead, behind = position_of(before, "before"), position_of(after, "after")
    if ahead is not None and behind is not None:
        raise InvalidMessage("before and after are both given; give one of them.")
    return ahead, behind


async def messages_before(
    find: Find, storage: Storage, room_id: str, place: Position | None, limit: int
) -> list[Message]:
    """Return the newest messages ahead of a place, or of all where it is None, oldest first, at most `limit`.

    Raises:
        AdapterError: The store cannot be read now.
    """
    messages: deque[Message] = deque()
    process = find()
    if process is not None and storage.is_log:
        # Where nothing is in memory, what the log has behind the head was told to nobody yet.
        end = Position(process.head.epoch, process.head.offset + 1)
        if place is None or (place.epoch == end.epoch and place.offset > end.offset):
            place = end
    while (wanted := limit - len(messages)) > 0:
        found = _ahead_in_memory(process, place, wanted)
        stored = not found
        if stored and storage.serves_history:
            found = await storage.load(room_id, before=place, limit=wanted)
        messages.extendleft(each for each in reversed(found) if isinstance(each, Message))
        if not found or (stored and len(found) < wanted):
            break
        place = _place_of(found[0])
    return list(messages)


async def messages_after(find: Find, storage: Storage, room_id: str, place: Position, limit: int) -> list[Message]:
    """Return the oldest messages behind a place, oldest first, at most `limit`.

    Raises:
        EpochChanged: The place is in no stream of the room, or not in its newest.
        TooOld: What follows the place is no longer kept.
        AdapterError: The store cannot be read now.
    """
    messages: list[Message] = []
    checked = False
    while (wanted := limit - len(messages)) > 0:
        process = find()
        found: list[Entry] | None = None
        if process is not None:
            page = process.page(place, wanted)
            if isinstance(page, list):
                found = page
            elif page != "too_old":
                raise _epoch_changed(place, process.head)
            elif not storage.serves_history:
                raise _too_old(place, Position(process.head.epoch, process.oldest))
        elif not checked:
            await _check_newest(storage, room_id, place)
            checked = True
            continue
        if found is not None:
            more = len(found) == wanted
        else:
            found = await _stored_behind(storage, room_id, place, wanted)
            process = find()
            more = process is not None or len(found) == wanted
            if process is not None and process.head.epoch == place.epoch:
                start = process.oldest
                found = [each for each in found if each.offset < start]
                if not found and place.offset < start - 1:
                    # The store has been asked and has nothing: a hole, behind which memory goes on.
                    place = Position(place.epoch, start - 1)
        messages += [each for each in found if isinstance(each, Message)]
        if found:
            place = _place_of(found[-1])
        if not more:
            break
    return messages


def _ahead_in_memory(process: RoomProcess | None, place: Position | None, limit: int) -> list[Entry]:
    if process is None:
        return []
    return process.newest(limit) if place is None else process.before(place, limit)


async def _stored_behind(storage: Storage, room_id: str, place: Position, limit: int) -> list[Entry]:
    """Return what the store has behind a place, oldest first; errors as `messages_after`."""
    found = await storage.read(room_id, after=place, limit=limit)
    oldest = found.oldest
    if not storage.is_log and found.entries and found.entries[0].offset > place.offset + 1:
        # Either its beginning is gone, or this is a hole.
        first = await storage.load(room_id, after=Position(place.epoch, 0), limit=1)
        oldest = _place_of(first[0]) if first else None
    if oldest is not None and oldest.offset > place.offset + 1:
        raise _too_old(place, oldest)
    return list(found.entries)


async def _check_newest(storage: Storage, room_id: str, place: Position) -> None:
    """Raise `EpochChanged` where a place is not in the newest stream of a room that is not in memory."""
    if not storage.serves_history:
        raise _epoch_changed(place, None)
    found = await storage.read(room_id, limit=1)
    head = _place_of(found.entries[-1]) if found.entries else None
    if found.oldest is not None and (head is None or head.epoch != found.oldest.epoch):
        head = Position(found.oldest.epoch, found.oldest.offset - 1)  # nothing of the newest stream is kept
    if head is None or head.epoch != place.epoch or head.offset < place.offset:
        raise _epoch_changed(place, head)


def _place_of(entry: Entry) -> Position:
    return Position(entry.epoch, entry.offset)


def _epoch_changed(place: Position, head: Position | None) -> EpochChanged:
    where = "nothing is kept of it" if head is None else f"its newest message is {head.epoch}:{head.offset}"
    return EpochChanged(
        f"The place {place.epoch}:{place.offset} is not in the room's stream; {where}. Load the newest history, and go "
        "on from there."
    )


def _too_old(place: Position, oldest: Position) -> TooOld:
    return TooOld(
        f"What follows {place.epoch}:{place.offset} is no longer kept; the oldest that is kept is "
        f"{oldest.epoch}:{oldest.offset}. Go on from the place ahead of that."
    )
