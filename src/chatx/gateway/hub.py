"""One room's fan-out to sockets: encoded once for each version, written once a turn.

A hub is one subscriber of its room. What the room publishes within a turn of the event loop goes to each member as one
batch when the turn ends.

Rules:
1. A member gets what is published after it was added, in order, and nothing twice: adding and removing first flush
   what is pending.
2. A newcomer gets a `presence_state` at the end of the turn it came in, and each `presence_diff` after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from chatx.core.fanout import Subscriber
from chatx.core.message import Event, Message, PresenceDiff
from chatx.errors import ChatError
from chatx.gateway.frames import Version, encode_broadcast
from chatx.gateway.payloads import Published, presence_diff, presence_state
from chatx.gateway.phoenix import room_topic
from chatx.gateway.socket import Batch, Socket, fan_out
from chatx.runtime.process import RoomProcess
from chatx.runtime.turn import Turn


class Member(Protocol):
    """A connection's part in one room."""

    @property
    def version(self) -> Version:
        """The version its frames are in."""
        ...

    @property
    def socket(self) -> Socket:
        """Where its frames go."""
        ...

    def end(self, error: ChatError) -> None:
        """The room ended its membership."""
        ...


class Hub:
    """The members of one room on this gateway."""

    def __init__(self, process: RoomProcess, turn: Turn, on_empty: Callable[[Hub], None]) -> None:
        self.process = process
        self.topic: str = room_topic(process.room_id)
        self._turn = turn
        self._on_empty = on_empty
        self._members: dict[Member, None] = {}
        self._newcomers: dict[Member, None] = {}
        # The sockets of those who are no newcomers; None when it must be made anew.
        self._sockets: dict[Version, list[Socket]] | None = None
        self._pending: list[Event] = []
        self._subscriber = Subscriber(True, callback=self._take, on_closed=self._ended)
        process.attach(self._subscriber)

    def __len__(self) -> int:
        """Return how many members there are."""
        return len(self._members)

    def add(self, member: Member) -> None:
        """Add a member, who gets what comes from now on."""
        self._send_pending()
        self._members[member] = None
        self._newcomers[member] = None
        self._sockets = None
        self._turn.touch(self)

    def remove(self, member: Member) -> None:
        """Remove a member, after what is pending for it."""
        if member not in self._members:
            return
        self._send_pending()
        del self._members[member]
        self._newcomers.pop(member, None)
        self._sockets = None
        if not self._members:
            self.process.detach(self._subscriber)
            self._on_empty(self)

    def flush(self) -> None:
        """Write what this turn has left pending."""
        if self._newcomers:
            # The changes of this turn go to the others; a newcomer is told of them by the state.
            self.process.flush()
        self._send_pending()
        newcomers, self._newcomers = self._newcomers, {}
        if newcomers:
            self._sockets = None
            payload = presence_state(self.process.room.presence.snapshot())
            for version, sockets in _by_version(newcomers).items():
                fan_out(sockets, Batch([encode_broadcast(version, self.topic, "presence_state", payload)]))

    def _take(self, event: Event) -> None:
        self._pending.append(event)
        self._turn.touch(self)

    def _send_pending(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        if self._sockets is None:
            self._sockets = _by_version(member for member in self._members if member not in self._newcomers)
        for version, sockets in self._sockets.items():
            fan_out(sockets, self._batch(version, pending))
        if self._newcomers:
            messages: list[Event] = [event for event in pending if isinstance(event, Message)]
            if messages:
                for version, sockets in _by_version(self._newcomers).items():
                    fan_out(sockets, self._batch(version, messages))

    def _batch(self, version: Version, events: list[Event]) -> Batch:
        return Batch(
            [encode_event(version, self.topic, event) for event in events if isinstance(event, (Message, PresenceDiff))]
        )

    def _ended(self, error: ChatError) -> None:
        self._send_pending()
        members, self._members, self._newcomers = self._members, {}, {}
        self._sockets = None
        self._on_empty(self)
        for member in members:
            member.end(error)


def _by_version(members: Iterable[Member]) -> dict[Version, list[Socket]]:
    sockets: dict[Version, list[Socket]] = {}
    for member in members:
        sockets.setdefault(member.version, []).append(member.socket)
    return sockets


def encode_event(version: Version, topic: str, event: Event) -> str:
    """Return the frame of a message or a presence diff, the same for every connection of this version."""
    if isinstance(event, PresenceDiff):
        return encode_broadcast(version, topic, "presence_diff", presence_diff(event.joins, event.leaves))
    if isinstance(event, Message):
        return encode_broadcast(version, topic, "new_message", message_payload(event))
    raise TypeError(f"{type(event).__name__} has no frame; only messages and presence diffs go to sockets.")


def message_payload(message: Message) -> Published:
    """Return a message's fields as the wire has them."""
    return Published(
        message.id,
        message.room_id,
        message.user_id,
        message.content,
        message.inserted_at,
        message.epoch,
        message.offset,
    )
