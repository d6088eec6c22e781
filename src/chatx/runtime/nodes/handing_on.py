"""What the nodes' log has on its way to the store behind it, room by room, in order, by whoever owns the room.

Nothing is kept here but where each room stands: what is handed on is read from the log, which keeps it until the store
has it.

Rules:
1. A room is handed on from where the store says that it stands: a new owner goes on where the one before it ended.
2. A store that is away is tried again after a backoff of at most `LONGEST_S`, for ever; no send is held up by it.
3. The log lets go of what the store has, but for the newest `KEPT` entries of a room and what is younger than
   `SPARED_MS`, or, with an idempotency key, than `KEYS_SPARED_MS`.
4. Of at most `ROOMS` rooms it is known where they stand. The oldest is forgotten; one that is not handed on then is so
   when it is opened, or written to, the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from itertools import islice
from typing import Any

from chatx.adapters.retention import TRIMMED_AT_ONCE, Retention, trims
from chatx.adapters.room_log import RoomLog
from chatx.core.message import Position
from chatx.runtime.nodes.stores_behind import StoreBehind

logger: logging.Logger = logging.getLogger("chatx")

ROOMS = 100_000
"""Rooms of which it is known where they stand, at most."""

ROOMS_AT_ONCE = 16
"""Rooms that are handed on at a time, at most."""

HANDED_AT_ONCE = 64
"""Entries of one room that the store is given at a time, at most."""

SHORTEST_S = 0.1
"""The backoff after the first round in which the store took nothing, in seconds; it doubles."""

LONGEST_S = 5.0
"""The longest backoff, in seconds."""

TRIM_S = 60.0
"""Between two rounds in which the log lets go of what the store has, in seconds."""

KEPT = 256
"""Entries of a room that the log keeps though the store has them: whoever comes back reads these."""

SPARED_MS = 5 * 60 * 1000
"""For how long the log keeps each entry, in ms."""

KEYS_SPARED_MS = 60 * 60 * 1000
"""For how long the log keeps an entry with an idempotency key, in ms; the key answers from there."""


class _Room:
    """How far a room was handed on."""

    __slots__ = ("fresh", "head", "old_at", "saved")

    def __init__(self, head: Position) -> None:
        self.head = head
        self.saved: Position | None = None  # not asked yet
        self.fresh = False  # something was saved since the log was trimmed
        self.old_at = math.inf  # when nothing of it is spared any more


class HandingOn:
    """The worker of one node that brings its rooms to the store behind the nodes' log.

    Args:
        log: The nodes' log.
        store: The store behind it.
    """

    def __init__(self, log: RoomLog, store: StoreBehind) -> None:
        self._log: Any = log
        self._store = store
        self._rooms: OrderedDict[str, _Room] = OrderedDict()
        self._behind: dict[str, None] = {}  # rooms of which the store lacks something, those that waited longest first
        self._wanted = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()
        self._away_since: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._now = asyncio.get_running_loop().time

    def __len__(self) -> int:
        """Return of how many rooms the store lacks something."""
        return len(self._behind)

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._work(), name="chatx store behind the log")]
        if trims(self._log):
            self._tasks.append(loop.create_task(self._trim(), name="chatx log, behind the store"))

    async def close(self, within_s: float) -> None:
        """Hand on what is left within so many seconds, and end; the rest is the next owner's."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._done.wait()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._behind:
            logger.warning(
                "The store %s lacks the end of %d rooms, which the nodes' log keeps; their next owners hand it on.",
                self._store.name,
                len(self._behind),
                extra={"adapter": self._store.name},
            )

    def stands(self, room_id: str, head: Position) -> None:
        """Take note that a room of this node stands there in the log."""
        room = self._rooms.get(room_id)
        if room is None or room.head.epoch != head.epoch:
            room = self._rooms[room_id] = _Room(head)
            while len(self._rooms) > ROOMS:
                self.forget(next(iter(self._rooms)))
        elif room.head == head and room.saved == head:
            return
        room.head = head
        self._rooms.move_to_end(room_id)
        self._behind[room_id] = None
        self._done.clear()
        self._wanted.set()

    def forget(self, room_id: str) -> None:
        """Take note that a room is another node's: that one hands it on."""
        self._rooms.pop(room_id, None)
        self._store.forget(room_id)
        self._caught_up(room_id)

    def _caught_up(self, room_id: str) -> None:
        self._behind.pop(room_id, None)
        if not self._behind:
            self._wanted.clear()
            self._done.set()

    async def _work(self) -> None:
        pause_s = SHORTEST_S
        while True:
            await self._wanted.wait()
            room_ids = list(islice(self._behind, ROOMS_AT_ONCE))
            taken = await asyncio.gather(*(self._hand_on(each) for each in room_ids))
            for room_id, took in zip(room_ids, taken, strict=True):
                if not took and room_id in self._behind:  # behind those that have not been tried
                    del self._behind[room_id]
                    self._behind[room_id] = None
            if any(taken):
                pause_s = SHORTEST_S
                self._came_back()
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_S, 2 * pause_s)

    async def _hand_on(self, room_id: str) -> bool:
        """Hand on the next part of a room, and return whether the store could be used."""
        room = self._rooms.get(room_id)
        if room is None:  # it is another node's since
            return True
        try:
            saved = room.saved
            if saved is None:
                offset = await self._store.stands(room_id, room.head.epoch)
                saved = room.saved = Position(room.head.epoch, offset)
            if saved.offset < room.head.offset:
                found = await self._log.read(room_id, after=saved, limit=HANDED_AT_ONCE)
                if not found.entries or found.entries[0].offset != saved.offset + 1:
                    self._cannot(room_id, saved)
                    return True
                if not await self._store.save(room_id, saved, found.entries):
                    room.saved = None  # somebody else hands it on, or has: it is asked anew
                    return False
                saved = room.saved = Position(saved.epoch, found.entries[-1].offset)
                room.fresh, room.old_at = True, self._now() + KEYS_SPARED_MS / 1000
        except Exception as error:  # of two adapters, and one that fails must not end the work of the others
            self._went_away(room_id, error)
            room.saved = None
            return False
        if saved.offset >= room.head.offset and self._rooms.get(room_id) is room:
            self._caught_up(room_id)
        return True

    def _cannot(self, room_id: str, saved: Position) -> None:
        logger.error(
            "The store %s has room %r up to %d, and the nodes' log has nothing right behind that: what is between is "
            "lost, and the room is not handed on. Was the store exchanged, or emptied?",
            self._store.name,
            room_id,
            saved.offset,
            extra={"room": room_id, "adapter": self._store.name, "code": "behind"},
        )
        self._caught_up(room_id)

    def _went_away(self, room_id: str, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = self._now()
            logger.error(
                "What the nodes' log has of room %r could not be handed on to the store %s, and is tried again: %s",
                room_id,
                self._store.name,
                error,
                extra={"room": room_id, "adapter": self._store.name, "code": "away"},
            )

    def _came_back(self) -> None:
        if self._away_since is not None:
            away_s, self._away_since = self._now() - self._away_since, None
            text = "The store %s is handed on to again after %.1f s; it lacks something of %d rooms."
            logger.warning(text, self._store.name, away_s, len(self._behind), extra={"adapter": self._store.name})

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(TRIM_S)
            for room_id, room in list(self._rooms.items()):
                if room.saved is None or not (room.fresh or self._now() >= room.old_at):
                    continue
                if self._now() >= room.old_at:
                    room.old_at = math.inf
                room.fresh = False
                await self._trim_one(room_id, room.head.offset - room.saved.offset)

    async def _trim_one(self, room_id: str, unsaved: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        retention = Retention(None, KEPT + unsaved, now_ms - SPARED_MS, now_ms - KEYS_SPARED_MS)
        try:
            gone = TRIMMED_AT_ONCE
            while gone >= TRIMMED_AT_ONCE:
                gone = await self._log.trim([room_id], retention, TRIMMED_AT_ONCE)
        except Exception as error:  # tried again in the next round
            text = "The nodes' log could not let go of what the store %s has of room %r: %s"
            logger.warning(text, self._store.name, room_id, error, extra={"room": room_id})
