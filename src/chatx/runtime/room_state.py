"""What one room's process can be asked: who is in it, and what memory has of its stream.

Memory has the room's history, and what is owed to its log, which may be more than the history keeps.
"""

from __future__ import annotations

from chatx.core.fanout import Subscriber
from chatx.core.history import History
from chatx.core.message import Draft, Entry, Position, Presences, PresenceState, Unrecovered
from chatx.core.room import Effects, Room
from chatx.core.sequencer import Sequencer
from chatx.errors import EpochChanged


class RoomState:
    """The state of one room, for whoever reads it; `RoomProcess` is what changes it.

    Attributes:
        room: The state; another object after a crash.
        sequencer: What the room has for its log; None where it has none, or nothing yet.
    """

    def __init__(self, room: Room) -> None:
        self.room_id: str = room.room_id
        self.room: Room = room
        self.sequencer: Sequencer | None = None
        self._began: Position = room.history.position

    @property
    def head(self) -> Position:
        """The place of the newest message in the stream."""
        return self.room.history.position

    @property
    def stored_to(self) -> Position:
        """The place up to which the log has the stream, where the room has a log."""
        return self.head if self.sequencer is None else self.sequencer.stored_to

    @property
    def unstored_seen(self) -> bool:
        """Whether anything was seen in this life before the log had it."""
        return self.sequencer is not None and self.sequencer.unstored_seen

    @property
    def offset(self) -> int:
        """The offset of the newest message in the stream; 0 where there is none."""
        return self.room.history.offset

    @property
    def oldest(self) -> int:
        """The offset of the oldest entry in memory, what is owed to the log included; one past the head for none."""
        behind = 0 if self.sequencer is None else self.sequencer.behind
        return min(self.room.history.start, self.offset + 1 - behind)

    @property
    def blank(self) -> bool:
        """Whether nothing was published in this life of the room."""
        return self.room.history.offset == self._began.offset

    @property
    def members(self) -> tuple[str, ...]:
        """The users in the room, in the order of their coming."""
        return self.room.presence.users()

    @property
    def members_count(self) -> int:
        """How many users are in the room."""
        return len(self.room.presence)

    @property
    def subscribers(self) -> int:
        """How many subscribers the room has."""
        return len(self.room.fanout.subscribers)

    @property
    def admitted(self) -> int:
        """Messages admitted and not yet sequenced or refused."""
        return self.room.admitted

    def check_epoch(self, draft: Draft) -> None:
        """Raise `EpochChanged` where a draft that is for one epoch is for another one than the room's."""
        epoch = self.head.epoch
        if draft.epoch != epoch:
            raise EpochChanged(
                f"The room is in epoch {epoch!r:.130}, and this was to be published in {draft.epoch!r} only, so this "
                "attempt was not. One before it that had no answer may have been: look at what the room has, and where "
                "it is not there send it as a new message."
            )

    def presences(self) -> Presences:
        """Return who is in the room, as a copy."""
        return self.room.presence.snapshot()

    def first_presences(self, limit: int) -> Presences:
        """Return those who came first into the room, as a copy of at most so many memberships."""
        return self.room.presence.first(limit)

    def state(self) -> PresenceState:
        """Return who is in the room, as the event that a reader of presence gets first. The caller settles first."""
        return self.room.state()

    def newest(self, limit: int) -> list[Entry]:
        """Return the newest entries in memory, oldest first, at most `limit`."""
        head = self.head
        return self.before(Position(head.epoch, head.offset + 1), limit)

    def at(self, place: Position) -> Entry | None:
        """Return the entry at a place, or None where memory does not have it."""
        entry = self.room.history.at(place)
        if entry is None and self.sequencer is not None and place.epoch == self.head.epoch:
            # It may be owed to the log, beyond what the history keeps.
            entry = next(iter(self.sequencer.owed_from(place.offset, 1)), None)
        return entry if entry is not None and entry.offset == place.offset else None

    def before(self, place: Position, limit: int) -> list[Entry]:
        """Return the newest entries in memory ahead of a place, oldest first, at most `limit`."""
        if place.epoch != self.head.epoch:
            return []
        found = self.room.history.before(place.offset, limit)
        if len(found) < limit and self.sequencer is not None:
            # More may be owed to the log than the history keeps.
            end = found[0].offset if found else min(place.offset, self.offset + 1)
            first = max(self.oldest, end - limit + len(found))
            if first < end:
                return self.sequencer.owed_from(first, end - first) + found
        return found

    def after(self, place: Position, limit: int) -> list[Entry] | Unrecovered:
        """Return every entry after a place, as `History.after`."""
        return self.room.history.after(place, limit)

    def stands_at(self, place: Position | Entry) -> bool:
        """Return whether this place, or this entry's, is the head of the stream."""
        history = self.room.history
        return place.offset == history.offset and place.epoch == history.epoch

    def page(self, place: Position, most: int) -> list[Entry] | Unrecovered:
        """Return the oldest entries in memory after a place, as `History.page`."""
        found = self.room.history.page(place, most)
        if found == "too_old" and self.sequencer is not None and place.offset + 1 >= self.oldest:
            return self.sequencer.owed_from(place.offset + 1, most)
        return found

    def holds(self, subscriber: Subscriber) -> bool:
        """Return whether the room has the subscriber, live or not."""
        return subscriber in self.room.fanout.subscribers

    def _begin_stream(self, position: Position) -> None:
        self.room.history = History(self.room.history.size, position)
        self._began = position
        self.sequencer = None

    def _rebuild(self) -> Effects:
        """Put another room in the place of the one that crashed; errors and effects as `Room.rebuilt`."""
        self.room, effects = self.room.rebuilt()
        return effects
