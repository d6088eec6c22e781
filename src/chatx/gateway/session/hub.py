"""One room's fan-out to sockets: encoded once for each version, written once a turn.

A hub is one subscriber of its room. What the room publishes within a turn of the event loop goes to each member as one
bundle when the turn ends.

Rules:
1. A member gets what is published after it was added, in order, and nothing twice: adding and removing first flush
   what is pending.
2. A newcomer gets a `presence_state`, and each `presence_diff` after that.
3. Presence is told at the end of the turn in which it changed. In a room of more than `SMALL` members it is told every
   `PAUSE_MS` at most: were each of n who come within a moment told to all at once, that would be n² writes.
4. While the server drains nobody is told of presence, for the same reason: all go, and come back to a new state.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msgspec import UNSET

from chatx.core.fanout import Subscriber
from chatx.core.log_limit import LogLimit
from chatx.core.message import Entry, Event, Message, PresenceDiff, Signal
from chatx.core.presence import Changes
from chatx.errors import ChatError
from chatx.gateway.session.socket import Audience, Bundle, Flow, Socket
from chatx.gateway.wire.frames import Version, encode_broadcast
from chatx.gateway.wire.payloads import Published, presence_diff, presence_state
from chatx.gateway.wire.topics import room_topic
from chatx.runtime.process import RoomProcess
from chatx.runtime.turn import Turn

logger: logging.Logger = logging.getLogger("chatx")

FRAMELESS_LOGGED_PER_MINUTE = 10
"""Lines of the log in a minute that say that something has no frame, at most."""

_frameless = LogLimit(FRAMELESS_LOGGED_PER_MINUTE)

SMALL = 16
"""Members up to which every change of presence is told at once."""

PAUSE_MS = 500
"""Milliseconds between two tellings of presence in a larger room, at least; after a longer quiet it is told at once."""


class Member(Protocol):
    """A connection's part in one room."""

    @property
    def version(self) -> Version:
        """The protocol version of the frames that it gets."""
        ...

    @property
    def socket(self) -> Socket:
        """The socket that its frames go to."""
        ...

    def end(self, error: ChatError) -> None:
        """Take note that the room has ended the membership."""
        ...


class Hub:
    """The members of one room on this gateway."""

    def __init__(self, process: RoomProcess, turn: Turn, flow: Flow, on_empty: Callable[[Hub], None]) -> None:
        self.process = process
        self.topic: str = room_topic(process.room_id)
        self.quiet: bool = False  # set where the server drains
        self._turn = turn
        self._flow = flow
        self._on_empty = on_empty
        self._members: dict[Member, None] = {}
        self._newcomers: dict[Member, None] = {}
        # All members; None when it must be made anew, as where the flow has changed since it was.
        self._audiences: dict[Version, Audience] | None = None
        self._flow_seen = 0
        self._pending: list[Entry | Signal] = []
        self._changes = Changes()
        self._told_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None  # set while presence waits to be told
        self._subscriber = Subscriber(True, callback=self._collect, on_closed=self._ended)
        process.attach(self._subscriber)

    def __len__(self) -> int:
        """Return how many members there are."""
        return len(self._members)

    def add(self, member: Member) -> None:
        """Add a member, who gets what comes from now on."""
        self._send_pending()
        self._members[member] = None
        self._newcomers[member] = None
        self._audiences = None
        self._turn.touch(self)

    def remove(self, member: Member) -> None:
        """Remove a member, after what is pending for it."""
        if member not in self._members:
            return
        self._send_pending()
        del self._members[member]
        self._newcomers.pop(member, None)
        self._audiences = None
        if not self._members:
            self._end_pause()
            self.process.detach(self._subscriber)
            self._end()

    def _end(self) -> None:
        # The subscriber has this hub: they would wait together for the garbage collector.
        self._subscriber.on_closed = None
        self._on_empty(self)

    def flush(self) -> None:
        """Write the events that this turn has left pending."""
        if (self._newcomers or self._changes) and not self._pauses():
            self._tell_presence()
        else:
            self._send_pending()

    def _collect(self, event: Event) -> None:
        if isinstance(event, (Message, Entry, Signal)):  # the exact type first, which is told apart quickly
            self._pending.append(event)
        elif isinstance(event, PresenceDiff):
            self._changes.add(event.joins, event.leaves)
        else:
            # The room logs it and ends the hub: its members join again, where they would have missed something.
            raise TypeError(f"{type(event).__name__} is not for sockets; only entries, signals and presence diffs are.")
        self._turn.touch(self)

    def _pauses(self) -> bool:
        """Return whether presence is to be told later, by the timer, or not at all."""
        if self.quiet:
            return True
        if len(self._members) <= SMALL:
            return False
        left = self._told_at + PAUSE_MS / 1000 - self._turn.loop.time()
        if left <= 0:
            return False
        if self._timer is None:
            self._timer = self._turn.loop.call_later(left, self._paused)
        return True

    def _paused(self) -> None:
        self._timer = None
        self._turn.touch(self)

    def _tell_presence(self) -> None:
        self._end_pause()
        if self._newcomers:
            # The changes of this turn go to the others; a newcomer is told of them by the state.
            self.process.flush()
        self._send_pending()
        self._told_at = self._turn.loop.time()
        joins, leaves = self._changes.take()
        if joins or leaves:
            diff = PresenceDiff(self.process.room_id, joins, leaves)
            others = (member for member in self._members if member not in self._newcomers)
            for version, audience in _by_version(others).items():
                audience.send(self._bundle(version, [diff]))
        newcomers, self._newcomers = self._newcomers, {}
        if newcomers:
            payload = presence_state(self.process.presences())
            for version, audience in _by_version(newcomers).items():
                audience.send(Bundle([encode_broadcast(version, self.topic, "presence_state", payload)]))

    def _end_pause(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_pending(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        audiences = self._audiences
        if audiences is None or self._flow_seen != self._flow.changes:
            self._flow_seen = self._flow.changes
            audiences = self._audiences = _by_version(self._members)
        for version, audience in audiences.items():
            audience.send(self._bundle(version, pending))

    def _bundle(self, version: Version, events: Sequence[Entry | Signal | PresenceDiff]) -> Bundle:
        return Bundle(encode_events(version, self.topic, events))

    def _ended(self, error: ChatError) -> None:
        self._end_pause()
        self._send_pending()
        members, self._members, self._newcomers = self._members, {}, {}
        self._audiences = None
        self._end()
        for member in members:
            member.end(error)


def _by_version(members: Iterable[Member]) -> dict[Version, Audience]:
    sockets: dict[Version, list[Socket]] = {}
    for member in members:
        sockets.setdefault(member.version, []).append(member.socket)
    return {version: Audience(each) for version, each in sockets.items()}


def encode_events(version: Version, topic: str, events: Iterable[Entry | Signal | PresenceDiff]) -> list[str]:
    """Return the frames of events, the same for every connection of this version.

    What has no frame, as an entry of a kind that only a newer version knows, is left out, and the log says so.
    """
    frames: list[str] = []
    for event in events:
        if isinstance(event, Message):
            frames.append(encode_broadcast(version, topic, "new_message", message_payload(event)))
        elif isinstance(event, PresenceDiff):
            frames.append(encode_broadcast(version, topic, "presence_diff", presence_diff(event.joins, event.leaves)))
        else:
            _tell_frameless(event)
    return frames


def _tell_frameless(event: Entry | Signal) -> None:
    left_out = _frameless.due(time.monotonic())
    if left_out is not None:
        logger.warning(
            "Kind %r of room %r has no frame in this version, so no socket was told of it; the stream goes on behind "
            "it.%s",
            event.kind,
            event.room_id,
            f" {left_out} lines like this were left out." if left_out else "",
            extra={"room": event.room_id, "code": event.kind},
        )


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
        UNSET if message.data is None else message.data,
    )
