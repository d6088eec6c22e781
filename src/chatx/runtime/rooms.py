"""The rooms by id: begun on first use, forgotten when idle.

What a room id can be, and what makes it another thing:

| state | here as | the store | becomes |
|---|---|---|---|
| absent | nothing | proves its head, or not | opening at its first use; open where the store serves no history |
| opening | a `Passage` | the same | proven, when it is known where the stream stood |
| proven | a `RoomProcess` | the same | open: its first message awaits `mark_open`; absent, when idle |
| open | a `RoomProcess` | proves nothing | ending, when idle and saved; absent after too many crashes |
| ending | a `Passage` | is asked for `mark_closed` | absent; opening, if somebody has come meanwhile |

Without marks a room is open as soon as it is there, and absent when it is idle and saved.

Rules:
1. A room is here from its first use until `room_idle_ms` after nothing held it.
2. Where persistence serves history, opening and ending await it; whoever comes meanwhile waits in order.
3. A room whose messages are not all saved is not forgotten.
4. Of a room that went without an end the store's terms, and holes, are kept until its messages are saved: they are let
   go of in a sweep, or with its next life. So they are bounded by what waits to be saved.
5. At most `limit` rooms are here that nobody is in. For the next one the oldest of them is let go of early, first of
   those in which nothing was said; where none can go, the next one is refused.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from chatx.core.message import Position
from chatx.core.room import Room
from chatx.core.sorted_ids import SortedIds
from chatx.errors import AdapterError, ChatError, Closed, RoomOverloaded, RoomUnavailable
from chatx.runtime.delivery import Delivery
from chatx.runtime.elsewhere import Elsewhere, OwnedHere
from chatx.runtime.endings import Endings
from chatx.runtime.ids import new_epoch
from chatx.runtime.passage import Passage
from chatx.runtime.process import RoomProcess
from chatx.runtime.storage import Lost, Storage
from chatx.runtime.totals import Totals
from chatx.runtime.turn import Turn
from chatx.telemetry import Telemetry

SWEPT_AT_ONCE = 10_000
"""Rooms forgotten in one sweep at most; the rest go in the next."""

PASSAGES = 10_000
"""Room ids that are opening or ending at a time, at most; the next room is refused."""

FENCED_S = 5.0
"""For how long a room that somebody else has taken over is not opened again, in seconds: two chats that take it from
each other would fence each other for ever."""

FENCED_BY_NODES_S = 0.5
"""The same on one of many nodes, which agree soon whose it is: whoever it is goes on in it."""

LOOKED_AT = 32
"""Rooms that cannot go yet which are passed over to find one that can be let go of early."""


class Rooms:
    """The registry of one node.

    Attributes:
        closed_by_crashes: How many rooms crashed too often and were let go of.
        totals: Sums over the rooms.
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
        limit: int,
        delivery: Delivery,
        room_class: type[Room] = Room,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._elsewhere = elsewhere
        self._loop = loop
        self._turn = turn
        self._telemetry = telemetry
        self._storage = storage
        self._history_size = history_size
        self._idle_s = idle_s
        self._limit = limit
        self._delivery = delivery
        self._room_class = room_class
        self._rooms: dict[str, RoomProcess] = {}
        self._ids = SortedIds()  # of the same rooms
        # Rooms and since when nothing holds them, oldest first. Those that something holds by now are passed over.
        self._blank: OrderedDict[RoomProcess, float] = OrderedDict()  # nothing was said in them
        self._idle: OrderedDict[RoomProcess, float] = OrderedDict()
        self._passages: dict[str, Passage] = {}
        self._endings = Endings(storage, loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self._withdrawals: dict[RoomProcess, asyncio.Task[bool]] = {}
        # Room id -> until when it is not opened, soonest first; those that were taken over within `FENCED_S`.
        self._fenced: dict[str, float] = {}
        self._left: set[str] = set()  # ids of rooms that went without an end, and of which something may be kept still
        self.closed_by_crashes: int = 0
        self.totals: Totals = Totals()

    def __len__(self) -> int:
        """Return how many rooms there are."""
        return len(self._rooms)

    def __iter__(self) -> Iterator[RoomProcess]:
        """Iterate over a copy of the rooms."""
        return iter(list(self._rooms.values()))

    def after(self, place: str, limit: int) -> list[RoomProcess]:
        """Return the first rooms whose ids come behind `place`, in order, at most `limit`; it looks at no others."""
        return [self._rooms[room_id] for room_id in self._ids.after(place, limit)]

    def find(self, room_id: str) -> RoomProcess | None:
        """Return the room if it is there."""
        return self._rooms.get(room_id)

    def at_once(self, room_id: str) -> RoomProcess | None:
        """Return the room, begun if need be, or None where only `opened`, which awaits, can tell.

        Raises:
            RoomOverloaded: There are as many rooms that nobody is in as there may be, and none can go.
        """
        if room_id in self._passages:
            return None
        process = self._rooms.get(room_id)
        if process is not None or self._storage.serves_history or self._elsewhere is not None:
            return process
        self._make_place()
        return self._begin(room_id, Position(new_epoch(), 0))

    async def opened(self, room_id: str, *, at_a_place: bool = False) -> RoomProcess:
        """Return the room, begun if need be.

        Args:
            room_id: The room.
            at_a_place: The caller stands at a place in the stream and has to know whether it is in this one. Where the
                store cannot say, it is refused; others begin a new stream.

        Raises:
            AdapterError: The store cannot say where the stream stood.
            RoomOverloaded: As `at_once`.
            Closed: The chat was stopped meanwhile.
        """
        while (process := self.at_once(room_id)) is None:
            passage = self._passages.get(room_id)
            if passage is None:
                if (until := self._fenced.get(room_id, 0.0)) > self._loop.time():
                    raise self._refused_to_open(until - self._loop.time())
                self._make_place()
                passage = self._passages[room_id] = Passage(self._loop)
                self._open(room_id, passage)
            elif passage.over:
                # Those who waited longer go on in this very turn: go behind them.
                await asyncio.sleep(0)
                continue
            else:
                self._endings.hurry(room_id)
            await passage.through(at_a_place=at_a_place)
            if (process := self._rooms.get(room_id)) is not None:
                return process
        return process

    async def withdraw_proof(self, process: RoomProcess) -> AdapterError | None:
        """Have the store withdraw the proof of the room's head, ahead of the first message of this life.

        Sends that come meanwhile wait for the same call. Return why nothing may be published, or None; where an append
        has proven the head meanwhile it is still proven then, and a message waits for the log like a stored one.

        Raises:
            RoomUnavailable: Somebody else has the room, which is closed now.
        """
        if process.proven:
            task = self._withdrawals.get(process)
            if task is None:
                task = self._withdrawals[process] = self._loop.create_task(
                    self._withdraw(process), name=f"chatx room {process.room_id}"
                )
            await asyncio.wait([task])
            if task.cancelled() or not task.result():
                process.check()
                return AdapterError(
                    "The persistence adapter could not be told that the room goes on; send again later."
                )
        return None

    def fell_idle(self, process: RoomProcess) -> None:
        """Note that nothing holds the room as of now."""
        if self._rooms.get(process.room_id) is not process:
            return  # it was closed: the room of that name, if there is one, is another
        queue = self._blank
        if not process.blank:
            self._blank.pop(process, None)
            queue = self._idle
        queue[process] = self._loop.time()
        queue.move_to_end(process)

    def fenced(self, process: RoomProcess) -> None:
        """Close a room that somebody else has taken over; it is not opened again for `FENCED_S`, or less on nodes."""
        now = self._loop.time()
        fenced_s = FENCED_S if self._elsewhere is None else FENCED_BY_NODES_S
        self._fenced.pop(process.room_id, None)
        while self._fenced and self._fenced[oldest := next(iter(self._fenced))] <= now:
            del self._fenced[oldest]
        self._fenced[process.room_id] = now + fenced_s
        process.shut(self._refused_to_open(fenced_s))
        self.closed_by_crashes -= 1

    def moved(self, process: RoomProcess) -> None:
        """Close a room that another node owns from now on, or that the owner has begun anew; it may be opened again."""
        process.shut(RoomUnavailable("The room goes on elsewhere; join it again.", retry_after=0.1))
        self.closed_by_crashes -= 1

    def _refused_to_open(self, wait_s: float) -> RoomUnavailable:
        if self._elsewhere is not None:
            return RoomUnavailable("The room was taken over by another node just now; come back.", retry_after=wait_s)
        return RoomUnavailable(
            "The room is somebody else's: another chat writes to the same store. Let one of them do so.",
            retry_after=wait_s,
        )

    def closed(self, process: RoomProcess) -> None:
        """Let go of a room that crashed too often."""
        self.closed_by_crashes += 1
        self._remove(process)
        self._left.add(process.room_id)

    def sweep(self) -> None:
        """Forget the rooms that have been idle for `room_idle_ms`."""
        now = self._loop.time()
        for queue in (self._blank, self._idle):
            for process in list(islice(queue, SWEPT_AT_ONCE)):
                # Half of the places are left to those who come.
                since = queue.get(process)
                if since is None:
                    continue  # whoever was told of another one has made it go
                if now - since < self._idle_s or len(self._passages) >= PASSAGES // 2:
                    break
                del queue[process]
                if process.idle and not self._let_go(process):
                    self.fell_idle(process)
        for room_id in list(self._left):
            if room_id in self._rooms or room_id in self._passages:
                self._left.discard(room_id)  # it goes with that life
            elif not self._delivery.waiting(room_id):
                self._left.discard(room_id)
                self._delivery.forget(room_id)
                self._storage.forget(room_id)
        self._keep(self._limit)

    async def conclude(self) -> None:
        """Record the end of each stream that is saved whole, also of rooms that were let go of before."""
        for process in self:
            position = self._end_of(process)
            if position is not None:
                self._endings.add(process.room_id, position, _nobody_waits)
        await self._endings.finish()

    async def close(self) -> None:
        """Refuse whoever waits for a room that is opening or ending, and let go of every room."""
        tasks = [*self._tasks, *self._withdrawals.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._endings.close()
        for passage in self._passages.values():
            passage.refuse(Closed("The chat was stopped while the room was being opened."))
        self._passages.clear()
        self._rooms.clear()
        self._ids = SortedIds()
        self._blank.clear()
        self._idle.clear()

    def _begin(self, room_id: str, position: Position, *, proven: bool = False, replica: bool = False) -> RoomProcess:
        process = RoomProcess(
            self._room_class(room_id, position, self._history_size),
            loop=self._loop,
            turn=self._turn,
            telemetry=self._telemetry,
            keeper=self,
            totals=self.totals,
            proven=proven,
            replica=replica,
            neighbours=self._elsewhere,
        )
        self._rooms[room_id] = process
        self._ids.add(room_id)
        self.fell_idle(process)
        return process

    def _make_place(self) -> None:
        """Make place for one more room that nobody is in."""
        if len(self._passages) >= PASSAGES:
            raise RoomOverloaded(
                f"{PASSAGES} rooms wait for persistence to open or to end; try again later.",
                retry_after=self._delivery.retry_after,
            )
        self._keep(self._limit - 1)
        if len(self._blank) + len(self._idle) >= self._limit:
            raise RoomOverloaded(
                f"{self._limit} rooms that nobody is in are kept already, and what was said there is not saved yet; "
                "try again later.",
                retry_after=self._delivery.retry_after,
            )

    def _keep(self, at_most: int) -> None:
        """Let go of the oldest rooms that nobody is in until `at_most` are left; a room that cannot go stays."""
        passed_over = 0
        for queue in (self._blank, self._idle):
            while queue and len(self._blank) + len(self._idle) > at_most and passed_over < LOOKED_AT:
                process = next(iter(queue))
                del queue[process]
                if process.idle and not self._let_go(process):
                    self.fell_idle(process)
                    passed_over += 1

    def _let_go(self, process: RoomProcess) -> bool:
        """Forget an idle room, or begin to; return False where a message of it is not saved: then the room stays."""
        # One that was begun in this turn has those who waited for it yet to come.
        if self._delivery.waiting(process.room_id) or process.room_id in self._passages:
            return False
        position = self._end_of(process)
        self._remove(process)
        if position is None:
            self._storage.forget(process.room_id)
        else:
            room_id = process.room_id
            passage = self._passages[room_id] = Passage(self._loop)
            self._endings.add(room_id, position, lambda: self._ended(room_id, passage))
        if self._telemetry.watched("room_forgotten"):
            self._telemetry.emit("room_forgotten", {}, {"room_id": process.room_id})
        return True

    def _end_of(self, process: RoomProcess) -> Position | None:
        """Return the end of a room's stream to be recorded; None where it has none, or is not saved whole."""
        saved = self._delivery.saved(process.room_id)
        self._delivery.forget(process.room_id)
        if process.replica:
            return None
        head = process.head
        unproven = not process.proven or process.doubted
        return head if saved and self._storage.marks and unproven and head.offset else None

    def _ended(self, room_id: str, passage: Passage) -> None:
        if passage.wanted:
            self._open(room_id, passage)
        else:
            del self._passages[room_id]

    def _open(self, room_id: str, passage: Passage) -> None:
        task = self._loop.create_task(self._opening(room_id, passage), name=f"chatx room {room_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _opening(self, room_id: str, passage: Passage) -> None:
        error: ChatError | None = Closed("The chat was stopped while the room was being opened.")
        abroad = None if self._elsewhere is None else self._elsewhere.storage_of(room_id)
        storage = abroad or self._storage
        begun = False
        try:
            try:
                inherited = None
                if abroad is None and self._elsewhere is not None:
                    # Also where a log is asked: whoever had the room brings it there what was said, before it answers.
                    inherited = await self._elsewhere.inherit(room_id)
                position = await storage.last_position(room_id) if storage.serves_history else inherited
            except AdapterError as unreadable:
                # Who stands at a place must not be told of another stream for a store that was away.
                passage.refuse(unreadable, only_at_a_place=True)
                position = None
            if passage.wanted:
                # A log has no proof of an epoch that it does not have yet; other stores are told of it ahead.
                proven = position is not None if storage.is_log else storage.marks
                process = self._begin(
                    room_id, position or Position(new_epoch(), 0), proven=proven, replica=abroad is not None
                )
                process.goes_on = position is not None
                begun = True
                if self._elsewhere is not None:
                    self._elsewhere.began(process)
            error = None
        except OwnedHere:
            error = None  # who waits opens it anew
        except ChatError as refused:  # by the room's owner
            error = refused
        finally:
            if self._elsewhere is not None and not begun:
                self._elsewhere.unwanted(room_id)
            passage.over = True
            passage.let_through() if error is None else passage.refuse(error)
            # Behind those who waited: they are resumed first.
            self._loop.call_soon(self._passages.pop, room_id, None)

    async def _withdraw(self, process: RoomProcess) -> bool:
        try:
            with process.held():
                proofs = process.proofs
                try:
                    done = await self._storage.mark_open(process.room_id, process.head)
                except Lost:
                    if self._delivery.committing is not None:
                        self._delivery.committing.fenced(process)
                    return False
                # An append that has proven the head meanwhile may have come to the log ahead of this, or behind it.
                raced = process.proofs != proofs
                process.doubted = raced or not done
                if not done and (process.goes_on or self._storage.is_log):
                    # The proof stands although the stream would go on; a log has one of what began here too, since that
                    # was stored. Only an epoch of its own is safe, and that
                    # cannot begin under the eyes of those who read this one, or once something was said in it.
                    if process.subscribers or not process.blank or process.sequencer is not None:
                        return False
                    process.begin_anew(Position(new_epoch(), 0))
                process.proven = raced
                return True
        finally:
            del self._withdrawals[process]
            if self._rooms.get(process.room_id) is not process:
                self._left.add(process.room_id)  # it may have been taken over when it was gone already

    def _remove(self, process: RoomProcess) -> None:
        if self._rooms.get(process.room_id) is process:
            del self._rooms[process.room_id]
            self._ids.remove(process.room_id)
            process.retire()
            if self._elsewhere is not None:
                self._elsewhere.gone(process)
        self._blank.pop(process, None)
        self._idle.pop(process, None)


def _nobody_waits() -> None:
    """Do nothing: at a stop nobody comes back for a room."""
