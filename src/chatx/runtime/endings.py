"""The ends of rooms' streams on their way to the store: batch by batch, those that somebody waits for first.

Rules:
1. One batch is under way at a time, so that a sweep or a stop of thousands of rooms does not ask the store thousands
   of things at once.
2. A stream that is not saved whole has no end to be recorded.
3. What waits here is an id and a place, no longer a room; `Rooms` bounds how many wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chatx.core.message import Position
from chatx.runtime.storage import CLOSED_AT_ONCE, Storage

Done = Callable[[], object]


class Endings:
    """The queue of ends, and the one task that empties it; there is no task while it is empty."""

    def __init__(self, storage: Storage, loop: asyncio.AbstractEventLoop) -> None:
        self._storage = storage
        self._loop = loop
        self._waiting: dict[str, tuple[Position, Done]] = {}  # by room id
        self._hurried: dict[str, tuple[Position, Done]] = {}  # the same, of rooms that are wanted again
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Return how many ends wait."""
        return len(self._waiting) + len(self._hurried)

    def add(self, room_id: str, position: Position, done: Done) -> None:
        """Have the store record the end of a room's stream; `done` is called when the try is over, failed or not."""
        self._waiting[room_id] = (position, done)
        if self._task is None:
            self._task = self._loop.create_task(self._record(), name="chatx ends of rooms")

    def hurry(self, room_id: str) -> None:
        """Put the end of a room that is wanted again ahead of those that nobody waits for."""
        found = self._waiting.pop(room_id, None)
        if found is not None:
            self._hurried[room_id] = found

    async def finish(self) -> None:
        """Wait until every end is recorded."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """End the queue; ends that are not recorded by now stay so."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _record(self) -> None:
        try:
            while self._hurried or self._waiting:
                batch: dict[str, tuple[Position, Done]] = {}
                for queue in (self._hurried, self._waiting):
                    while queue and len(batch) < CLOSED_AT_ONCE:
                        room_id = next(iter(queue))
                        batch[room_id] = queue.pop(room_id)
                await self._storage.mark_closed([(room_id, position) for room_id, (position, _) in batch.items()])
                for _, done in batch.values():
                    done()
        finally:
            self._task = None
