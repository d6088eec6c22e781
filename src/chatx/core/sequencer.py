"""Who places a room's entries where the room has a log: what is seen before it is stored, and what only after.

Two ways lead through it. A `sequenced` entry is placed and applied at once, and *owed* to the log. A draft that is to
be `stored` waits; it gets its place when a batch is formed, and is applied when the log has committed that batch.

| state | the batch | a `sequenced` send | a `stored` send |
|---|---|---|---|
| free | none, or only of owed entries | is applied at once | waits |
| waiting | none yet, or only of owed entries | waits behind it | waits |
| in flight | has drafts that nobody has seen | waits | waits |
| unsettled | perhaps it was written | waits, for its own time | the same |
| fenced | none any more | is refused | is refused |

Rules:
1. One batch is in flight at a time. What comes meanwhile is in the next one, in the order of its coming.
2. Owed entries come first in a batch: they have the lower places.
3. Nobody sees what could still fail. A batch that surely failed gives its places back; of its drafts those that need
   not be stored are applied at once, in their order, and the others are refused.
4. A batch of which it is not known whether it was written keeps its places until that is settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, islice
from typing import Any

from msgspec import Struct

from chatx.core.message import Draft, Entry, Message, Position, weigh

Place = Callable[[Draft, str, int, bool], Message]
"""`(draft, epoch, offset, stored)` -> the message at that place."""


class Owed(Struct, gc=False, eq=False):
    """An entry that everybody has and the log does not.

    Attributes:
        entry: The entry.
        scope: Its idempotency key, as `scope_of` writes it, or None.
        weight: The bytes that it counts for.
    """

    entry: Entry
    scope: bytes | None
    weight: int


class Waiting(Struct, eq=False):
    """A draft that is through its chain and has no place yet.

    Attributes:
        draft: The draft.
        scope: Its idempotency key, as `scope_of` writes it, or None.
        stored: Whether it must be stored before anybody sees it; else it only waits behind one that must.
        sender: Who is told what became of it; for the caller.
        weight: The bytes that it counts for.
        message: The message that it is, once a batch has it.
        over: Whether it is known what became of it.
    """

    draft: Draft
    scope: bytes | None
    stored: bool
    sender: Any
    weight: int
    message: Message | None = None
    over: bool = False


class Flight(Struct, eq=False):
    """A batch on its way to the log.

    Attributes:
        after: The place that it follows.
        owed: Entries that everybody has.
        drafts: What nobody has seen, each with its message.
        proves: Whether the log proves its head with it; for the caller.
        stood: Whether the head was proven when it was sent off; for the caller.
        told: How many of its entries the outbox is to have a row for; for the caller.
        untold: Whether the outbox was full when it was sent off; for the caller.
    """

    after: Position
    owed: list[Owed]
    drafts: list[Waiting]
    proves: bool = False
    stood: bool = False
    told: int = 0
    untold: bool = False

    @property
    def entries(self) -> list[tuple[Entry, bytes | None]]:
        """The entries with their keys, in the order of their places."""
        behind = [(each.message, each.scope) for each in self.drafts if each.message is not None]
        return [*((each.entry, each.scope) for each in self.owed), *behind]

    @property
    def last(self) -> Position:
        """The place of the last entry."""
        message = self.drafts[-1].message if self.drafts else None
        entry = self.owed[-1].entry if message is None else message
        return Position(entry.epoch, entry.offset)


class Sequencer:
    """The entries of one room that its log does not have, and the drafts that wait for it.

    Attributes:
        stored_to: The place up to which the log has the stream.
        flight: The batch on its way, or None.
        unsettled: Whether it is not known if the batch was written.
        fenced: Whether somebody else has the room.
        unstored_seen: Whether anything was ever seen before it was stored.
    """

    __slots__ = ("_owed", "_waiting", "fenced", "flight", "stored_to", "unsettled", "unstored_seen")

    def __init__(self, head: Position) -> None:
        self.stored_to: Position = head
        self._owed: deque[Owed] = deque()
        self._waiting: deque[Waiting] = deque()
        self.flight: Flight | None = None
        self.unsettled: bool = False
        self.fenced: bool = False
        self.unstored_seen: bool = False

    @property
    def blocked(self) -> bool:
        """Whether a `sequenced` draft has to wait: one that must be stored is ahead of it."""
        return bool(self._waiting) or (self.flight is not None and bool(self.flight.drafts)) or self.fenced

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the next batch, and it can be formed."""
        return bool(self._waiting) and self.flight is None and not self.fenced

    @property
    def ready(self) -> bool:
        """Whether a batch can be formed."""
        return bool(self._waiting or self._owed) and self.flight is None and not self.fenced

    @property
    def behind(self) -> int:
        """How many entries that everybody has are not in the log."""
        return len(self._owed) + (0 if self.flight is None else len(self.flight.owed))

    def owed_from(self, offset: int, most: int) -> list[Entry]:
        """Return the entries from a place on that everybody has and the log does not, at most `most`, in order."""
        flying = [] if self.flight is None else self.flight.owed
        owed = chain(flying, self._owed)
        first = next((each.entry.offset for each in chain(flying, self._owed)), offset)
        skipped = max(0, offset - first)
        return [each.entry for each in islice(owed, skipped, skipped + most)]

    def owe(self, entry: Entry, scope: bytes | None) -> Owed:
        """Take note of an entry that was placed and applied."""
        owed = Owed(entry, scope, weigh(entry))
        self._owed.append(owed)
        self.unstored_seen = True
        return owed

    def submit(self, waiting: Waiting) -> None:
        """Take a draft that waits for its place."""
        self._waiting.append(waiting)

    def withdraw(self, waiting: Waiting) -> bool:
        """Take a draft back; return False where it has its place already, so that it may still be stored."""
        if waiting.message is not None:
            return False
        try:
            self._waiting.remove(waiting)
        except ValueError:
            return False
        return True

    def form(self, most: int, most_bytes: int, place: Place) -> Flight:
        """Form the next batch, at most so many entries and bytes, but one at least; it is in flight then.

        Where `place` raises, what was taken so far is in flight too: the caller ends it with `failed`.
        """
        room, size = most, most_bytes
        owed: list[Owed] = []
        drafts: list[Waiting] = []
        self.flight = Flight(self.stored_to, owed, drafts)
        while self._owed and room and (self._owed[0].weight <= size or not owed):
            each = self._owed.popleft()
            owed.append(each)
            room, size = room - 1, size - each.weight
        epoch, offset = self.stored_to
        if owed:
            epoch, offset = owed[-1].entry.epoch, owed[-1].entry.offset
        if not self._owed:
            while self._waiting and room and (self._waiting[0].weight <= size or not (owed or drafts)):
                waiting = self._waiting[0]
                offset += 1
                waiting.message = place(waiting.draft, epoch, offset, waiting.stored)
                self._waiting.popleft()
                drafts.append(waiting)
                room, size = room - 1, size - waiting.weight
        return self.flight

    def committed(self) -> Flight:
        """End the flight: the log has it. The caller applies the drafts' messages, in their order."""
        flight = self._landed()
        self.stored_to = flight.last
        for waiting in flight.drafts:
            waiting.over = True
        return flight

    def failed(self) -> Flight:
        """End the flight: the log surely has nothing of it. What is owed stays so.

        Those of its drafts that need no storing are first in the queue again, behind nobody; the caller refuses the
        others.
        """
        flight = self._landed()
        self._owed.extendleft(reversed(flight.owed))
        for waiting in reversed(flight.drafts):
            waiting.message = None
            waiting.over = waiting.stored
            if not waiting.stored:
                self._waiting.appendleft(waiting)
        return flight

    def next_free(self) -> Waiting | None:
        """Take the first draft if it waits behind nothing that must be stored: the caller places and applies it."""
        if self.flight is not None and self.flight.drafts:
            return None
        if self._waiting and not self._waiting[0].stored and not self.fenced:
            waiting = self._waiting.popleft()
            waiting.over = True
            return waiting
        return None

    def fence(self) -> tuple[list[Owed], list[Waiting]]:
        """Give everything up: somebody else has the room, or the time is over.

        Return what the log never got, and who waited.
        """
        flight, self.flight = self.flight, None
        self.fenced = True
        self.unsettled = False
        owed, waiting = list(self._owed), list(self._waiting)
        if flight is not None:
            owed, waiting = [*flight.owed, *owed], [*flight.drafts, *waiting]
        for each in waiting:
            each.over = True
        self._owed.clear()
        self._waiting.clear()
        return owed, waiting

    def _landed(self) -> Flight:
        flight = self.flight
        if flight is None:
            raise RuntimeError("No batch is in flight.")
        self.flight = None
        self.unsettled = False
        return flight
