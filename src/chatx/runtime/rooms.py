"""The rooms by id: begun on first use, forgotten when idle.

Rules:
1. A room is in the registry from its first use until `room_idle_ms` after nothing held it.
2. Where persistence serves history, beginning and forgetting a room awaits it; whoever comes meanwhile waits in order.
3. A room whose messages are not all saved is not forgotten.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from chatx.core.message import Position
from chatx.core.room import Room
from chatx.errors import ChatError, Closed
from chatx.runtime.delivery import Delivery
from chatx.runtime.ids import new_epoch
from chatx.runtime.process import RoomProcess
from chatx.runtime.storage import Storage
from chatx.runtime.turn import Turn
from chatx.telemetry import Telemetry

SWEPT_AT_ONCE = 10_000
"""Rooms forgotten in one sweep at most; the rest go in the next."""


class Rooms:
    """The registry of one node.

    Attributes:
        closed_by_crashes: Rooms that crashed too often and were let go of.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        turn: Turn,
        telemetry: Telemetry,
        storage: Storage,
        history_size: int,
        idle_s: float,
        delivery: Delivery,
        room_class: type[Room] = Room,
    ) -> None:
        self._loop = loop
        self._turn = turn
        self._telemetry = telemetry
        self._storage = storage
        self._history_size = history_size
        self._idle_s = idle_s
        self._delivery = delivery
        self._room_class = room_class
        self._rooms: dict[str, RoomProcess] = {}
        self._idle: OrderedDict[RoomProcess, float] = OrderedDict()
        self._between: dict[str, _Between] = {}
        self.closed_by_crashes: int = 0

    def __len__(self) -> int:
        """Return how many rooms there are."""
        return len(self._rooms)

    def __iter__(self) -> Iterator[RoomProcess]:
        """Iterate over a copy of the rooms."""
        return iter(list(self._rooms.values()))

    def find(self, room_id: str) -> RoomProcess | None:
        """Return the room if it is there."""
        return self._rooms.get(room_id)

    def at_once(self, room_id: str) -> RoomProcess | None:
        """Return the room, begun if need be, or None where that must await: then `opened`."""
        if room_id in self._between:
            return None
        process = self._rooms.get(room_id)
        if process is not None or self._storage.serves_history:
            return process
        return self._begin(room_id, Position(new_epoch(), 0))

    async def opened(self, room_id: str) -> RoomProcess:
        """Return the room, begun if need be.

        Raises:
            Closed: The chat was stopped meanwhile.
        """
        while (process := self.at_once(room_id)) is None:
            waiting = self._between.get(room_id)
            if waiting is None:
                waiting = self._between_lives(room_id, None)
            elif waiting.over:
                # Those who waited longer go on in this very turn: go behind them.
                await asyncio.sleep(0)
                continue
            place = self._loop.create_future()
            waiting.places.append(place)
            await place
            if (process := self._rooms.get(room_id)) is not None:
                return process
        return process

    def idle(self, process: RoomProcess) -> None:
        """Note that nothing holds the room as of now."""
        if self._rooms.get(process.room_id) is not process:
            return  # it was closed: the room of that name, if there is one, is another
        self._idle[process] = self._loop.time()
        self._idle.move_to_end(process)

    def closed(self, process: RoomProcess) -> None:
        """Let go of a room that crashed too often."""
        self.closed_by_crashes += 1
        self._remove(process)

    def sweep(self) -> None:
        """Forget the rooms that have been idle for long enough."""
        now = self._loop.time()
        for process in list(self._idle)[:SWEPT_AT_ONCE] if self._idle else ():
            if now - self._idle[process] < self._idle_s:
                return
            del self._idle[process]
            if not process.idle:
                continue
            if self._delivery.waiting(process.room_id):
                self.idle(process)
                continue
            self._remove(process)
            if self._storage.serves_history:
                self._between_lives(process.room_id, process)
            else:
                self._delivery.forget(process.room_id)
            if self._telemetry.watched("room_forgotten"):
                self._telemetry.emit("room_forgotten", {}, {"room_id": process.room_id})

    async def conclude(self, process: RoomProcess) -> None:
        """Record where the stream ended, if everything in it is saved."""
        clean = self._delivery.saved(process.room_id)
        self._delivery.forget(process.room_id)
        if clean:
            await self._storage.close(process.room_id, process.room.history.position)

    async def close(self) -> None:
        """End what is between two lives, and let go of every room."""
        between = list(self._between.values())
        for each in between:
            each.task.cancel()
        if between:
            await asyncio.wait([each.task for each in between])
        self._rooms.clear()
        self._idle.clear()

    def _begin(self, room_id: str, position: Position) -> RoomProcess:
        process = RoomProcess(
            self._room_class(room_id, position, self._history_size),
            loop=self._loop,
            turn=self._turn,
            telemetry=self._telemetry,
            keeper=self,
        )
        self._rooms[room_id] = process
        self.idle(process)
        return process

    def _remove(self, process: RoomProcess) -> None:
        if self._rooms.get(process.room_id) is process:
            del self._rooms[process.room_id]
        self._idle.pop(process, None)

    def _between_lives(self, room_id: str, ending: RoomProcess | None) -> _Between:
        between = _Between(self._loop.create_task(self._change_lives(room_id, ending), name=f"chatx room {room_id}"))
        self._between[room_id] = between
        return between

    async def _change_lives(self, room_id: str, ending: RoomProcess | None) -> None:
        between = self._between[room_id]
        error: ChatError | None = Closed("The chat was stopped while the room was being opened.")
        try:
            if ending is not None:
                await self.conclude(ending)
            if ending is None or between.places:
                self._begin(room_id, await self._storage.open(room_id))
            error = None
        finally:
            between.over = True
            for place in between.places:
                if place.done():
                    continue
                if error is None:
                    place.set_result(None)
                else:
                    place.set_exception(error.again())
            # Behind those who waited: they are resumed first.
            self._loop.call_soon(self._between.pop, room_id, None)


class _Between:
    """A room between two lives, or before its first, and who waits for it, in order."""

    __slots__ = ("over", "places", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.places: list[asyncio.Future[None]] = []
        self.over = False
