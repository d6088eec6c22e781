"""The messages of one chat that persistence does not have yet, and where each of them waits.

Rules:
1. A message waits in the order of publishing, or is set aside until a time of its own, or is being tried: one of these
   at a time.
2. One whose earlier call has not returned waits for that, and then in its old place: it is not given to another call.
3. How many may wait is for `Delivery` to say, which refuses sends; here nothing is dropped.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Any

from msgspec import Struct

from chatx.core.message import Message, weigh

OTHER_ROOMS = 2
"""Other rooms of which the oldest message is tried, where the oldest of all may fail by its own fault."""


class Parcel(Struct, eq=False):
    """A message that is not saved yet.

    Attributes:
        number: Its place in the order of publishing.
        weight: The bytes that it counts for.
        attempts: Failures that were its own fault.
        unjudged: Failures of which it is not known yet whose fault they were.
        failures: Failures in a row, whosever fault; what its backoff grows with.
        failed_at: When the message failed last, on the clock of the calls.
        suspect: Whether the message has failed by its own fault.
        says_away: Whether the last failure says that the store is away.
        reason: How the message failed last.
        trying: Whether a call with it is under way.
        turn: Its valid entry among those set aside, or -1.
        running: The call of an earlier attempt that has not returned yet.
    """

    message: Message
    number: int
    weight: int
    attempts: int = 0
    unjudged: int = 0
    failures: int = 0
    failed_at: int = 0
    suspect: bool = False
    says_away: bool = False
    reason: str = ""
    trying: bool = False
    turn: int = -1
    running: asyncio.Future[Any] | None = None

    @property
    def hangs(self) -> bool:
        """Whether an earlier call with this message has not returned yet."""
        return self.running is not None and not self.running.done()


class Unsaved:
    """The queue in front of persistence.

    Attributes:
        size: Messages that wait, or are being saved.
        bytes: What these messages weigh.
        drained: Set when no message is here.
        arrived: Set while messages wait in order.
        full_batch: Set while as many wait as go in one batch.
        rescheduled: Set when a message was set aside.
        no_more: Whether the chat stops: then a batch does not wait to be full.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, batch_size: int) -> None:
        self._loop = loop
        self._batch_size = batch_size
        self.size: int = 0
        self.bytes: int = 0
        self.drained: asyncio.Event = asyncio.Event()
        self.drained.set()
        self.arrived: asyncio.Event = asyncio.Event()
        self.full_batch: asyncio.Event = asyncio.Event()
        self.rescheduled: asyncio.Event = asyncio.Event()
        self.no_more: bool = False
        self._numbers = count()
        self._live: dict[Parcel, None] = {}
        self._rooms: dict[str, int] = {}  # room id -> its messages here
        self._holes: set[str] = set()  # rooms with a message that persistence never got
        self._in_order: deque[Parcel] = deque()
        self._hanging: dict[Parcel, None] = {}
        self._aside: list[tuple[float, int, Parcel]] = []  # a heap by time
        self._turns = count()

    def add(self, message: Message) -> None:
        """Take a message that was published."""
        room_id = message.room_id
        parcel = Parcel(message, next(self._numbers), weigh(message))
        self.size += 1
        self.bytes += parcel.weight
        self._live[parcel] = None
        self._rooms[room_id] = self._rooms.get(room_id, 0) + 1
        self._in_order.append(parcel)
        self.arrived.set()
        if len(self._in_order) >= self._batch_size:
            self.full_batch.set()
        self.drained.clear()

    def remove(self, parcel: Parcel, *, lost: bool = False) -> None:
        """Let go of a message that is saved, or `lost`: then its room's stored history has a hole."""
        room_id = parcel.message.room_id
        if lost:
            self._holes.add(room_id)
        del self._live[parcel]
        self._hanging.pop(parcel, None)
        parcel.turn = -1
        self.size -= 1
        self.bytes -= parcel.weight
        left = self._rooms[room_id] - 1
        if left:
            self._rooms[room_id] = left
        else:
            del self._rooms[room_id]
        if not self.size:
            self.drained.set()

    def has_all(self, room_id: str) -> bool:
        """Return whether persistence has every message of this room's life."""
        return room_id not in self._rooms and room_id not in self._holes

    def waits(self, room_id: str) -> bool:
        """Return whether a message of this room is not saved yet."""
        return room_id in self._rooms

    def forget(self, room_id: str) -> None:
        """Forget whether the room's stored history has holes, as its life ends."""
        self._holes.discard(room_id)

    def all(self) -> list[Parcel]:
        """Return every message that is not saved, in the order of publishing."""
        return sorted(self._live, key=_number)

    # In order

    def wait_no_more(self) -> None:
        """Let batches go out that are not full."""
        self.no_more = True
        self.full_batch.set()

    @property
    def hanging(self) -> bool:
        """Whether messages wait for an earlier call of theirs to return."""
        return bool(self._hanging)

    def take_batch(self) -> list[Parcel]:
        """Take the oldest messages, as many as go in one batch, or none."""
        batch = [self._in_order.popleft() for _ in range(min(self._batch_size, len(self._in_order)))]
        self._count()
        return batch

    def take_probes(self, chance: random.Random, most: int) -> list[Parcel]:
        """Take the oldest messages, at most `most`, and between them the oldest of some other rooms; or none.

        Nothing of a room is taken ahead of its older messages, so that first attempts keep each room's order.
        """
        waiting = list(self._in_order)
        oldest = waiting[:most]
        rooms = {parcel.message.room_id for parcel in oldest}
        heads: list[Parcel] = []
        for parcel in waiting[most:]:
            if parcel.message.room_id not in rooms:
                rooms.add(parcel.message.room_id)
                heads.append(parcel)
        probes = [*oldest[:1], *chance.sample(heads, min(len(heads), OTHER_ROOMS)), *oldest[1:]]
        taken = set(probes)
        self._in_order = deque(parcel for parcel in waiting if parcel not in taken)
        self._count()
        return probes

    def put_back(self, parcels: Iterable[Parcel]) -> None:
        """Let messages be tried as if for the first time, each in its old place."""
        back = []
        for parcel in sorted(parcels, key=_number):
            parcel.unjudged = parcel.failures = 0
            parcel.turn = -1
            if parcel.hangs and parcel.running is not None:
                self._hanging[parcel] = None
                parcel.running.add_done_callback(lambda _, parcel=parcel: self._returned(parcel))  # type: ignore[misc]
            else:
                back.append(parcel)
        self._in_order = deque(heapq.merge(back, self._in_order, key=_number))
        self._count()

    def put_all_back(self) -> None:
        """Let every message be tried again that waits nowhere and is not being tried."""
        waiting = {*self._in_order, *self._hanging}
        self.put_back(each for each in self._live if each.turn < 0 and not each.trying and each not in waiting)

    def _returned(self, parcel: Parcel) -> None:
        if parcel in self._hanging:
            del self._hanging[parcel]
            self.put_back((parcel,))

    def _count(self) -> None:
        for event, holds in (
            (self.arrived, bool(self._in_order)),
            (self.full_batch, self.no_more or len(self._in_order) >= self._batch_size),
        ):
            if holds:
                event.set()
            else:
                event.clear()

    # Set aside

    def set_aside(self, parcel: Parcel, wait_s: float) -> None:
        """Let a message be tried alone in so many seconds; where its earlier call hangs, not before that returns."""
        if parcel not in self._live:
            return
        parcel.turn = next(self._turns)
        heapq.heappush(self._aside, (self._loop.time() + wait_s, parcel.turn, parcel))
        self.rescheduled.set()

    def next_due(self) -> float | None:
        """Return in how many seconds the next message of those set aside is due, or None where none is set aside."""
        while self._aside and self._aside[0][1] != self._aside[0][2].turn:
            heapq.heappop(self._aside)  # it is elsewhere by now
        return self._aside[0][0] - self._loop.time() if self._aside else None

    def take_due(self) -> Parcel:
        """Take the message that is due next of those set aside; `next_due` has just said that there is one."""
        _, _, parcel = heapq.heappop(self._aside)
        parcel.turn = -1
        return parcel


def _number(parcel: Parcel) -> int:
    return parcel.number
