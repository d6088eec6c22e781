"""How a batch ended of which the log did not say: the room is taken over anew, and what is behind its head is read.

The take-over fences the call that may still be under way. So the batch is there as a whole, or nothing of it ever is.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from chatx.adapters.room_log import Found, Opened
from chatx.core.sequencer import Flight
from chatx.errors import AdapterError
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.process import RoomProcess
from chatx.runtime.store_state import StoreState

SETTLING = 16
"""Rooms that are being settled at a time, at most."""


class Ends(Protocol):
    """Who is told how a room's batch ended, and how the log is."""

    def committed(self, process: RoomProcess) -> None:
        """Let everybody have what is in flight, which the log has."""
        ...

    def failed(self, process: RoomProcess) -> None:
        """Take back what is in flight, of which the log has nothing."""
        ...

    def fenced(self, process: RoomProcess) -> None:
        """Close a room that somebody else has taken over."""
        ...

    def went_wrong(self, reason: str) -> None:
        """Take note that the log could not be used."""
        ...

    def came_back(self) -> None:
        """Take note that the log could be used."""
        ...


class Settling:
    """The batches of one chat of which it is not known how they ended: one a room, `SETTLING` asked about at a time."""

    def __init__(self, storage: LogStorage, store: StoreState, ends: Ends) -> None:
        self._storage = storage
        self._store = store
        self._ends = ends
        self._at_a_time = asyncio.Semaphore(SETTLING)

    async def settle(self, process: RoomProcess, flight: Flight, running: asyncio.Future[Any] | None) -> None:
        """Say how a batch ended of which that is not known, as soon as the log can be asked.

        Args:
            process: The room.
            flight: Its batch.
            running: The call that may still write it, in a thread; None where none does.
        """
        if running is not None and not running.done():
            # It may still write: it is not asked about before it has ended.
            await asyncio.wait((running,))
        tail = None
        while tail is None:
            tail = await self._tail(process.room_id, flight)
            if tail is None:
                await self._store.until_next_try()
        opened, found = tail
        # That it can be read says nothing of writing: where nothing was written the next append waits for its backoff.
        sequencer = process.sequencer
        if sequencer is None or sequencer.flight is not flight:
            return
        mine = [entry.id for entry, _ in flight.entries]
        theirs = [entry.id for entry in found.entries]
        # Somebody had the room meanwhile: they wrote more, or withdrew its proof, and then what comes behind the head
        # may have been seen there.
        elsewhere = len(theirs) > len(mine) or (process.proven and not opened.proven)
        if theirs[: len(mine)] == mine:
            self._ends.came_back()
            self._ends.committed(process)
            if elsewhere:
                self._ends.fenced(process)
        elif elsewhere:
            self._ends.fenced(process)
        elif not theirs and self._storage.unwritten(process.room_id, flight.after, opened):
            self._ends.failed(process)
        else:
            self._ends.fenced(process)

    async def _tail(self, room_id: str, flight: Flight) -> tuple[Opened, Found] | None:
        """Fence whatever is under way for a room, and read what is behind its batch's place; None where that fails."""
        try:
            async with self._at_a_time:
                opened = await self._storage.take_over(room_id)
                found = await self._storage.read(room_id, after=flight.after, limit=len(flight.entries) + 1)
        except AdapterError:
            self._ends.went_wrong("raised")
            return None
        return opened, found
