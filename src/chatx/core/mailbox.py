"""What one consumer has not read yet: bounded in events and in bytes, with a policy at the bound.

Events arrive in batches that every mailbox of a room shares: what a room publishes within one turn of the event loop
is one tuple, and putting it costs the same whatever it holds.

Rules:
1. A consumer is judged slow only after it has had a turn: what arrives within one turn is taken whole where nothing
   older is unread, and the bound is applied from the next turn on. So a mailbox holds at most its bound and what one
   turn published.
2. At the bound `disconnect` closes the mailbox: what it holds can be read, then `SlowConsumer` is raised.
   `drop_oldest` drops the oldest and puts a `Gap` before what is left.
3. Nothing is dropped without a trace: an entry of the stream leaves a `Gap`, a presence event its room in
   `lost_presence`, and the end of a subscription is not dropped at all. Nothing is put into a closed mailbox.
4. Signals are what is let go of first, before a policy applies and without a trace: the next one makes up for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from msgspec import Struct

from chatx.core.message import (
    ENTRIES,
    Event,
    Gap,
    PresenceDiff,
    PresenceState,
    Signal,
    SubscriptionEnded,
    weigh,
)
from chatx.errors import ChatError, SlowConsumer

OverflowPolicy: TypeAlias = Literal["disconnect", "drop_oldest"]


class Batch(Struct, frozen=True):
    """Events in order, shared by all the mailboxes they are put into.

    Attributes:
        events: The events.
        size: What they weigh, in bytes.
        signals: Whether there are signals among them.
    """

    events: tuple[Event, ...]
    size: int
    signals: bool

    @classmethod
    def of(cls, events: Iterable[Event]) -> Batch:
        """Return the events as a batch, weighed."""
        kept = tuple(events)
        return cls(kept, sum(map(weigh, kept)), any(isinstance(each, Signal) for each in kept))


class Mailbox:
    """The unread events of one consumer.

    Attributes:
        wake: Called once, and forgotten, when there is something to read or the mailbox is closed.
        error: Why the mailbox is closed, or None while it is open.
        lost_presence: Rooms whose presence events were dropped; they are owed a fresh `PresenceState`.
        first: What is read before the unread events: a gap by its room, and what may not be dropped.
        unread: How many events wait.
        size: Bytes of the unread events, counted by whole batches.
    """

    __slots__ = (
        "_batches",
        "_limit_bytes",
        "_limit_events",
        "_next",
        "_policy",
        "_turn",
        "error",
        "first",
        "lost_presence",
        "size",
        "unread",
        "wake",
    )

    def __init__(self, limit_events: int, limit_bytes: int, policy: OverflowPolicy) -> None:
        self._limit_events = limit_events
        self._limit_bytes = limit_bytes
        self._policy = policy
        self._batches: deque[Batch] = deque()
        self._next = 0  # the place of the next unread event in the first batch
        self.first: dict[str | Event, Event] = {}
        self._turn = -1
        self.wake: Callable[[], None] | None = None
        self.error: ChatError | None = None
        self.lost_presence: set[str] = set()
        self.unread: int = 0
        self.size: int = 0

    def put(self, batch: Batch, turn: int) -> bool:
        """Take a batch that was published in the given turn. Return False where the mailbox is closed now."""
        if self.error is not None:
            return False
        stale = 0
        if turn != self._turn:
            self._turn = turn
            stale = self.unread
        self._batches.append(batch)
        self.unread += len(batch.events)
        self.size += batch.size
        if stale and (self.unread > self._limit_events or self.size > self._limit_bytes):
            if self._shed_signals():
                batch = Batch.of(event for event in batch.events if not isinstance(event, Signal))
                stale = self.unread - len(batch.events)
            if self._over and batch.events and not self._is_within_policy(batch, stale):
                return False
        wake = self.wake
        if wake is not None:
            self.wake = None
            wake()
        return True

    def take(self) -> tuple[Event, ...]:
        """Take the next unread batch, or what is left of it; empty where there is nothing.

        While a room's reader is owed a `PresenceState`, each `PresenceDiff` of that room is left out: it changes a
        state that the reader does not have.
        """
        if self.first:
            first, self.first = self.first, {}
            return tuple(first.values())
        while self.unread:
            batch = self._batches.popleft()
            events = batch.events[self._next :]
            self._next = 0
            self.unread -= len(events)
            self.size -= batch.size
            if self.lost_presence:
                events = tuple(filter(self._told, events))
            if events:
                return events
        return ()

    def purge(self, room_id: str) -> None:
        """Drop the unread events of a room that the reader has left."""
        self.first = {key: event for key, event in self.first.items() if event.room_id != room_id}
        self.lost_presence.discard(room_id)
        self._keep(lambda event: event.room_id != room_id)

    def _keep(self, wanted: Callable[[Event], bool]) -> None:
        """Leave out of the unread batches what is not wanted."""
        batches, self._batches = self._batches, deque()
        skip, self._next = self._next, 0
        self.unread = self.size = 0
        for batch in batches:
            kept = Batch.of(filter(wanted, batch.events[skip:]))
            skip = 0
            if kept.events:
                self._batches.append(kept)
                self.unread += len(kept.events)
                self.size += kept.size

    def close(self, error: ChatError) -> None:
        """Close the mailbox with a reason; the first reason stands. The events in it can still be read."""
        if self.error is None:
            self.error = error
            wake, self.wake = self.wake, None
            if wake is not None:
                wake()

    def _is_within_policy(self, batch: Batch, stale: int) -> bool:
        """Apply the policy where the batch just put is too much; return whether the mailbox is open still."""
        if self._policy == "drop_oldest":
            self._drop_oldest(stale)
            return True
        # Never partial: the batch that does not fit is not put.
        self._batches.pop()
        self.unread -= len(batch.events)
        self.size -= batch.size
        self.close(
            SlowConsumer(
                f"{self.unread} events ({self.size} bytes) were left unread, and the mailbox holds "
                f"{self._limit_events} events and {self._limit_bytes} bytes; "
                "subscribe again after the last position read."
            )
        )
        return False

    @property
    def _over(self) -> bool:
        return self.unread > self._limit_events or self.size > self._limit_bytes

    def _shed_signals(self) -> bool:
        """Let go of the unread signals; return whether there were any."""
        if not any(batch.signals for batch in self._batches):
            return False
        self._keep(lambda event: not isinstance(event, Signal))
        return True

    def _drop_oldest(self, at_most: int) -> None:
        """Drop unread events, oldest first, until the rest is within the bounds or `at_most` are gone."""
        first = self.first
        while at_most and self._over:
            event = self._drop()
            at_most -= 1
            if isinstance(event, ENTRIES):
                before = first.get(event.room_id)
                missed = before.missed + 1 if isinstance(before, Gap) and before.missed is not None else 1
                first[event.room_id] = Gap(event.room_id, "slow_consumer", event.epoch, event.offset, missed)
            elif isinstance(event, SubscriptionEnded):
                # A gap before it belongs to what ended, and no longer grows.
                gap = first.pop(event.room_id, None)
                first.update((each, each) for each in (gap, event) if each is not None)
            else:
                self.lost_presence.add(event.room_id)

    def _drop(self) -> Event:
        """Take the oldest unread event out of its batch."""
        batch = self._batches[0]
        event = batch.events[self._next]
        self._next += 1
        self.unread -= 1
        if self._next == len(batch.events):
            self._batches.popleft()
            self._next = 0
            self.size -= batch.size
        return event

    def _told(self, event: Event) -> bool:
        return event.room_id not in self.lost_presence or not isinstance(event, (PresenceState, PresenceDiff))
