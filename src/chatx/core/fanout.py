"""One room's events to all its subscribers, each in the same order.

Two kinds of subscriber: a callback is called at once, a mailbox gets what a turn of the event loop published as one
batch when the turn ends.

Rules:
1. Every subscriber sees the events in the order of `publish`.
2. A subscriber that is added sees nothing published before: its audience is fixed when an event is published, and for
   mailboxes the caller flushes first.
3. A callback that raises is out, and is reported; the others do not notice.
4. An interrupted fan-out is finished by `finish`: nobody misses an event, nobody gets it twice.
5. What a callback publishes in turn goes out after the event it is called with, to everybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from msgspec import Struct

from chatx.core.interrupts import from_signal
from chatx.core.mailbox import Batch, Mailbox
from chatx.core.message import ENTRIES, Entry, Event, PresenceDiff, Signal
from chatx.errors import ChatError

Callback: TypeAlias = Callable[[Event], object]


class Subscriber(Struct, eq=False):
    """One subscriber of one room: either a callback or a mailbox.

    Attributes:
        presence: Whether it gets presence events too.
        callback: Called with each event; must neither block nor raise.
        mailbox: Where batches are put; it may serve several rooms.
        on_closed: Called once, with the reason, when the room ends the subscription.
    """

    presence: bool
    callback: Callback | None = None
    mailbox: Mailbox | None = None
    on_closed: Callable[[ChatError], object] | None = None


class Fanout:
    """The subscribers of one room and what this turn has published to them.

    Attributes:
        subscribers: In the order of their coming.
        newest: The last entry that `publish` took on.
    """

    __slots__ = ("_audience", "_called", "_flushing", "_pending", "_to_call", "newest", "subscribers")

    def __init__(self) -> None:
        self.newest: Entry | None = None
        self.subscribers: dict[Subscriber, None] = {}
        # (callbacks for all, callbacks for presence, mailbox subscribers); None when a subscriber came or went.
        self._audience: tuple[tuple[Subscriber, ...], tuple[Subscriber, ...], tuple[Subscriber, ...]] | None = None
        self._pending: list[Event] = []
        self._to_call: deque[tuple[Event, tuple[Subscriber, ...]]] = deque()  # whose callbacks are still to be called
        self._called: Iterator[Subscriber] | None = None  # who is still to be called with the first of them
        self._flushing: tuple[Batch, Batch, int, Iterator[Subscriber]] | None = None

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber. The caller flushes first, or the subscriber gets what was published before it came."""
        self.subscribers[subscriber] = None
        self._audience = None

    def remove(self, subscriber: Subscriber) -> bool:
        """Remove a subscriber; return whether it was there."""
        if subscriber not in self.subscribers:
            return False
        del self.subscribers[subscriber]
        self._audience = None
        if subscriber.callback is not None:
            # It may still be ahead in a fan-out under way, which does not look again who is a subscriber.
            subscriber.callback = _ignore
        return True

    @property
    def pending(self) -> bool:
        """Whether the mailboxes are still to get something of this turn."""
        return bool(self._pending)

    def publish(self, event: Event) -> Sequence[tuple[Subscriber, BaseException]]:
        """Call the callbacks with an event and keep it for the mailboxes.

        The caller sees to a flush when the turn ends. Returns the subscribers whose callbacks raised, each with what it
        raised; they are no subscribers any more.
        """
        everybody, presences, mailboxes = self._audience or self._audience_now()
        if mailboxes:
            self._pending.append(event)
        audience = everybody
        if isinstance(event, ENTRIES):
            self.newest = event
        elif not isinstance(event, Signal):
            audience = presences
        if not audience:
            return ()
        self._to_call.append((event, audience))
        return () if self._called is not None else self._call()

    def flush(self, turn: int) -> list[Subscriber]:
        """Put the events published in `turn` into every mailbox; return those that overflowed, now removed."""
        pending = self._pending
        if not pending:
            return []
        self._pending = []
        everything = Batch.of(pending)
        without_presence = everything
        if any(isinstance(event, PresenceDiff) for event in pending):
            without_presence = Batch.of(event for event in pending if not isinstance(event, PresenceDiff))
        mailboxes = (self._audience or self._audience_now())[2]
        self._flushing = (everything, without_presence, turn, iter(mailboxes))
        return self._put()

    def rebuilt(self) -> Fanout:
        """Return a fresh fan-out with the same subscribers, which goes on where this one was interrupted."""
        fresh = type(self)()
        fresh.subscribers = dict(self.subscribers)
        fresh.newest = self.newest
        fresh._pending = list(self._pending)
        fresh._to_call, fresh._called = self._to_call, self._called
        fresh._flushing = self._flushing
        return fresh

    def finish(self) -> tuple[list[tuple[Subscriber, BaseException]], list[Subscriber]]:
        """Go on with a fan-out that an exception interrupted; return what `publish` and `flush` would have returned."""
        return self._call(), self._put()

    def _audience_now(self) -> tuple[tuple[Subscriber, ...], tuple[Subscriber, ...], tuple[Subscriber, ...]]:
        callbacks = tuple(each for each in self.subscribers if each.callback is not None)
        self._audience = (
            callbacks,
            tuple(each for each in callbacks if each.presence),
            tuple(each for each in self.subscribers if each.mailbox is not None),
        )
        return self._audience

    def _call(self) -> list[tuple[Subscriber, BaseException]]:
        raised: list[tuple[Subscriber, BaseException]] = []
        while self._to_call:
            event, audience = self._to_call[0]
            if self._called is None:
                self._called = iter(audience)
            self._call_each(event, self._called, raised)
            self._to_call.popleft()
            self._called = None
        return raised

    def _call_each(
        self, event: Event, rest: Iterator[Subscriber], raised: list[tuple[Subscriber, BaseException]]
    ) -> None:
        # One try for the whole loop, not one a callback; the iterator remembers the place when one raises.
        while True:
            subscriber: Subscriber | None = None
            try:
                for subscriber in rest:
                    subscriber.callback(event)  # type: ignore[misc]  # the audience holds callbacks only
                return
            # Not only Exception: a callback that asks a cancelled future for its result raises CancelledError, and one
            # may raise SystemExit.
            except BaseException as error:
                if subscriber is None or from_signal(error):
                    raise
                if self.remove(subscriber):
                    raised.append((subscriber, error))

    def _put(self) -> list[Subscriber]:
        if self._flushing is None:
            return []
        everything, without_presence, turn, rest = self._flushing
        full = []
        for subscriber in rest:
            batch = everything if subscriber.presence else without_presence
            if batch.events and not subscriber.mailbox.put(batch, turn):  # type: ignore[union-attr]
                full.append(subscriber)
        self._flushing = None
        for subscriber in full:
            self.remove(subscriber)
        return full


def _ignore(event: Event) -> None:
    """Take the place of a callback whose subscriber is out."""
