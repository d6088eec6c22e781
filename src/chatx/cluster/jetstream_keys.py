"""Which of a room's records has an idempotency key first, where nobody but the log may know it.

A room that was taken over knows its newest keys, and asks the log for every other one: in a busy room for each that is
sent. So that each does not read back by itself as far as keys have to answer, what was read is remembered.

Rules:
1. A room is read by one task, for all who ask meanwhile. It goes on where they wait no longer, so that it comes to an
   end also where that takes longer than a caller may.
2. What is remembered is only ever added to, from the newest record back to where it ended; and forgotten where the link
   was lost, for a server that comes back with less than it had gives numbers out anew.
3. Keys of all rooms are bounded. Beyond it the rooms that were asked for longest ago are read anew, and of a single one
   that has more the oldest keys are unknown.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from datetime import datetime
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from chatx.adapters.room_log import KEYS_KEPT_MS
from chatx.cluster.backplane import NoReply
from chatx.cluster.jetstream import JetStream
from chatx.cluster.jetstream_rooms import RoomReader
from chatx.cluster.log_record import Logged, RoomState
from chatx.core.idempotency import WINDOW_S
from chatx.core.message import Position

READ_BACK_S: Final = 2 * WINDOW_S
"""How far back keys are looked for, in seconds of the servers' clocks: they have to answer for half as long."""

KEYS: Final = 200_000
"""Keys of all rooms that are remembered, at most, of about 200 bytes each."""

ROOMS_AT_ONCE: Final = 2
"""Rooms that are read at a time, at most; others wait. What else is asked of the server comes through between them."""


class _Known(Struct):
    """The keys of a room.

    Attributes:
        numbers: The record that has each key first, by the key's digest.
        up_to: The newest record with keys that was read; 0 where there is none.
        losses: How often the link had been lost.
        asked_at: When it was last asked for, in seconds of the loop's clock.
    """

    numbers: dict[bytes, int]
    up_to: int
    losses: int
    asked_at: float


class KeyIndex:
    """Finds the record of a key.

    Args:
        stream: Where the records are.
        rooms: Reads them.
    """

    def __init__(self, stream: JetStream, rooms: RoomReader) -> None:
        self._stream = stream
        self._rooms = rooms
        self._known: OrderedDict[str, _Known] = OrderedDict()  # the one asked for longest ago first
        self._reading: dict[str, asyncio.Task[_Known]] = {}
        self._turns = asyncio.Semaphore(ROOMS_AT_ONCE)

    async def first(self, room_id: str, state: RoomState, user_id: str, key: str) -> Logged | None:
        """Return the first record that has a user's key, or None; errors as those of a read.

        Args:
            room_id: The room.
            state: What its newest record says.
            user_id: Whose key it is.
            key: The key.
        """
        known = await self._up_to(room_id, state)
        number = known.numbers.get(_digest(user_id, key))
        return None if number is None else await self._rooms.numbered(room_id, number)

    async def _up_to(self, room_id: str, state: RoomState) -> _Known:
        wanted = state.keyed[0] if state.keyed else 0
        while (known := self._recalled(room_id)) is None or known.up_to < wanted:
            reading = self._reading.get(room_id)
            if reading is None:
                reading = self._reading[room_id] = asyncio.create_task(self._read(room_id, state))
                reading.add_done_callback(lambda task: self._is_read(room_id, task))
            known = await asyncio.shield(reading)
            if known.up_to >= wanted:
                break
        return known

    def _recalled(self, room_id: str) -> _Known | None:
        known = self._known.get(room_id)
        if known is None or known.losses != self._stream.losses:
            return None
        known.asked_at = asyncio.get_running_loop().time()
        self._known.move_to_end(room_id)
        return known

    async def _read(self, room_id: str, state: RoomState) -> _Known:
        async with self._turns:
            known, losses = self._recalled(room_id), self._stream.losses
            read_to = 0 if known is None else known.up_to
            numbers: dict[bytes, int] = {}
            newest: float | None = None
            kept_since_ms = time.time_ns() // 1_000_000 - KEYS_KEPT_MS
            async for record, number, at in self._rooms.keyed(room_id, state):
                if number <= read_to or len(numbers) >= KEYS:
                    break
                for digest in reversed(_digests(record, state)):
                    numbers[digest] = number  # the first is the one that counts
                seconds = _seconds(at)
                newest = seconds if newest is None else newest
                if newest is not None and seconds is not None and seconds < newest - READ_BACK_S:
                    break
                if record.entries[-1].inserted_at < kept_since_ms:
                    break
            if losses != self._stream.losses:
                raise NoReply("The link was lost while a room's keys were read.")
            if known is not None:
                numbers |= known.numbers
            if len(numbers) > KEYS:
                numbers = dict(sorted(numbers.items(), key=lambda each: each[1])[-KEYS:])
            now = asyncio.get_running_loop().time()
            return _Known(numbers, state.keyed[0] if state.keyed else 0, losses, now)

    def _is_read(self, room_id: str, task: asyncio.Task[_Known]) -> None:
        del self._reading[room_id]
        if task.cancelled() or task.exception() is not None:  # who waited has got it
            return
        known = task.result()
        self._known[room_id] = known
        self._known.move_to_end(room_id)
        held = sum(len(each.numbers) for each in self._known.values())
        while len(self._known) > 1:
            oldest = next(iter(self._known.values()))
            if held <= KEYS and oldest.asked_at > known.asked_at - READ_BACK_S:
                break
            held -= len(oldest.numbers)
            self._known.popitem(last=False)


def _digests(record: Logged, state: RoomState) -> list[bytes]:
    """Return the digests of the keys that a record has and that are kept, oldest first."""
    if record.after is None:
        return []
    epoch, rows = record.after.epoch, enumerate(record.entries, record.after.offset + 1)
    return [
        _digest(row.user_id, row.key)
        for offset, row in rows
        if row.key is not None and state.keeps(Position(epoch, offset))
    ]


def _digest(user_id: str, key: str) -> bytes:
    return blake2b(f"{len(user_id)}:{user_id}{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _seconds(at: str) -> float | None:
    """Return when a server has stored a record, or None where that cannot be read."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return None
