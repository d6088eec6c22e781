"""One room: its stream, its members, its subscribers. The unit of order.

An entry comes into the room in two steps. `place` says where in the stream it is, and is done where the room is owned,
once. `apply` lets everybody have it; whoever owns the room, that is the same.

Rules:
1. `apply` takes the entry behind the head and no other, so the stream has no hole and nothing twice.
2. An entry is in the history before anybody sees it, so whoever saw it can be caught up from there.
3. Whoever comes or goes first flushes what is pending, so a joiner gets nothing twice and a leaver misses nothing.
4. Admission counts messages admitted and not yet sequenced; at the bound the caller refuses, nothing is dropped.
5. `rebuilt` makes a fresh room from what is durable in this one: members, history and subscribers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from msgspec import Struct

from chatx.core.fanout import Fanout, Subscriber
from chatx.core.history import History
from chatx.core.message import Draft, Entry, Message, Position, PresenceDiff, PresenceMeta, PresenceState, Signal
from chatx.core.presence import Presence


class Effects(Struct):
    """What a step of the room wants its shell to know.

    Attributes:
        raised: Callbacks that raised, and what; they are no longer subscribers.
        full: Mailboxes that overflowed and were closed; they are no longer subscribers.
    """

    raised: Sequence[tuple[Subscriber, BaseException]]
    full: Sequence[Subscriber]


class Room:
    """The state of one room.

    Attributes:
        room_id: Its id.
        admitted: Messages admitted and not yet sequenced or refused.
        plain: User id to the ref of its plain membership, for each user that has one.
    """

    __slots__ = ("admitted", "fanout", "history", "plain", "presence", "room_id")

    def __init__(self, room_id: str, position: Position, history_size: int) -> None:
        self.room_id: str = room_id
        self.history: History = History(history_size, position)
        self.presence: Presence = Presence()
        self.fanout: Fanout = Fanout()
        self.plain: dict[str, str] = {}
        self.admitted: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing holds the room: no member, no subscriber, nothing admitted."""
        return not (self.presence or self.fanout.subscribers or self.admitted)

    def place(self, draft: Draft, message_id: str, now_ms: int) -> Message:
        """Return a draft as the message behind the head. Nobody has it before it is applied."""
        history = self.history
        return Message(
            message_id,
            draft.room_id,
            draft.user_id,
            draft.content,
            now_ms,
            history.epoch,
            history.offset + 1,
            False,
            False,
            draft.data,
        )

    def apply(self, entry: Entry) -> Sequence[tuple[Subscriber, BaseException]]:
        """Keep the entry behind the head and send it to the subscribers; return who raised.

        The caller flushes when the turn ends.

        Raises:
            ValueError: It is not the one behind the head.
        """
        self.history.append(entry)
        return self.fanout.publish(entry)

    def signal(self, signal: Signal) -> Sequence[tuple[Subscriber, BaseException]]:
        """Send the subscribers what has no place in the stream; return who raised. The caller flushes."""
        return self.fanout.publish(signal)

    def flush(self, turn: int) -> Effects:
        """Tell untold changes of presence, and put what is pending into the mailboxes."""
        raised: Sequence[tuple[Subscriber, BaseException]] = ()
        if self.presence.changed:
            joins, leaves = self.presence.take_diff()
            raised = self.fanout.publish(PresenceDiff(self.room_id, joins, leaves))
        return Effects(raised, self.fanout.flush(turn))

    @property
    def unflushed(self) -> bool:
        """Whether a flush has anything to tell."""
        return self.fanout.pending or self.presence.changed

    def join(self, user_id: str, meta: PresenceMeta) -> bool:
        """Begin a membership; return whether the user was not a member before. The caller flushes at the turn's end."""
        first = user_id not in self.presence
        self.presence.add(user_id, meta)
        return first

    def leave(self, user_id: str, ref: str) -> bool:
        """End a membership; return whether there was one. The caller flushes at the turn's end."""
        return self.presence.remove(user_id, ref)

    def state(self) -> PresenceState:
        """Return who is here. The caller flushes first."""
        return PresenceState(self.room_id, self.presence.snapshot())

    def rebuilt(self) -> tuple[Self, Effects]:
        """Return a fresh room with this one's members, history and subscribers, its fan-out brought to an end."""
        fresh = type(self)(self.room_id, self.history.position, self.history.size)
        fresh.history = self.history.rebuilt()
        fresh.presence = self.presence.rebuilt()
        fresh.fanout = self.fanout.rebuilt()
        fresh.plain = dict(self.plain)
        fresh.admitted = self.admitted
        raised, full = fresh.fanout.finish()
        for newest in fresh.history.newest(1):
            # Interrupted between the history and the fan-out: who is here now is told, who comes later is caught up.
            if newest is not fresh.fanout.newest:
                raised = [*raised, *fresh.fanout.publish(newest)]
        return fresh, Effects(raised, full)
