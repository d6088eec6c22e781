"""Rooms that go from one owner to the next: what is given up here, and what is taken over here.

Rules:
1. What is here of a room that has moved is kept for its new owner, in `LeftRooms`, and with a log it is there first.
2. An owner that is asked for a room which it believes to be its own gives it up: who asks knows more. For `GIVEN_UP_S`
   the room is not this node's.
3. Where two nodes open one room at once, and each asks the other, the later boot goes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from chatx.cluster.fields import Place
from chatx.cluster.live import Placed
from chatx.cluster.rpc import Answer, Found, HandedOff, HandOff, Moved, Read
from chatx.core.idempotency import IdempotencyWindow, scope_of
from chatx.core.message import Message, Position
from chatx.errors import RoomUnavailable
from chatx.runtime.nodes.fitting import placed_that_fit
from chatx.runtime.nodes.left_rooms import Left, LeftRooms
from chatx.runtime.nodes.peers import AGAIN_S, HELD_S, Peers, Unreachable
from chatx.runtime.nodes.tasks import Tasks
from chatx.runtime.process import RoomProcess

logger: logging.Logger = logging.getLogger("chatx")

GIVEN_UP_S = 3.0
"""Seconds for which a room is not this node's that another has asked for: by then it knows of the other."""

OFFERED_AT_ONCE = 50
"""Rooms that have moved of which their new owners are told at a time."""


class HandingOver:
    """What goes from one owner of a room to the next, on this node.

    Args:
        peers: The other nodes.
        history_size: Entries that a room keeps.
        loop: The chat's loop.
        tasks: What goes on in the background.
        moves_plain: Called with a room that has moved, and the users who have plain memberships there.
    """

    def __init__(
        self,
        peers: Peers,
        *,
        history_size: int,
        loop: asyncio.AbstractEventLoop,
        tasks: Tasks,
        moves_plain: Callable[[str, list[str]], object],
    ) -> None:
        self._peers = peers
        self._history_size = history_size
        self._loop = loop
        self._tasks = tasks
        self._moves_plain = moves_plain
        self._close_room: Callable[[RoomProcess], object] | None = None
        self._window: IdempotencyWindow | None = None
        self._settle: Callable[[RoomProcess], Coroutine[Any, Any, None]] | None = None
        self._settling: dict[str, asyncio.Task[None]] = {}  # rooms that have moved, and are brought to the log
        self._left = LeftRooms()
        self._inherited: dict[str, Left] = {}
        self._opening: dict[str, asyncio.Event] = {}  # owned rooms that are being opened; set when that is over
        self._offering: asyncio.Task[None] | None = None
        self._given_up: OrderedDict[str, float] = OrderedDict()  # rooms that another node asked for, until when
        self._takes = 0

    def begin(
        self,
        close_room: Callable[[RoomProcess], object],
        window: IdempotencyWindow,
        settle: Callable[[RoomProcess], Coroutine[Any, Any, None]] | None,
    ) -> None:
        """Begin to hand over; the arguments are those of `Abroad.begin`."""
        self._close_room = close_room
        self._window = window
        self._settle = settle

    @property
    def untaken(self) -> int:
        """How many rooms have moved that nobody has asked for yet."""
        return self._left.untaken

    def owns(self, room_id: str) -> bool:
        """Return whether the room is this node's."""
        if self._given_up and self._given_up.get(room_id, 0.0) > self._loop.time():
            return False
        return self._peers.owner(room_id) == self._peers.boot

    # What is taken over

    async def inherit(self, room_id: str) -> Position | None:
        """Return the place at which a room of this node goes on that another had a moment ago, or None."""
        self._opening[room_id] = asyncio.Event()
        until = self._loop.time() + HELD_S
        asked: set[str] = set()
        self._takes += 1
        take = f"{self._peers.boot}.{self._takes:x}"
        found = None
        while found is None and (left := [boot for boot in self._peers.before(room_id) if boot not in asked]):
            try:
                found = await self._take(left[0], room_id, take)
            except Unreachable:
                # It may be what has the room: where it is gone, the nodes' view changes soon.
                if self._loop.time() >= until or room_id in self._given_up:
                    break
                await asyncio.sleep(AGAIN_S)
            else:
                asked.add(left[0])
        found = found or self._left.take_back(room_id)
        if found is None:
            return None
        self._inherited[room_id] = found
        return Position(found.head.epoch, found.head.offset - len(found.entries))

    async def _take(self, boot: str, room_id: str, take: str) -> Left | None:
        """Return what a node had of a room, part by part from the newest on; None where that is nothing.

        Raises:
            Unreachable: It cannot be asked, or is opening the room itself.
        """
        head: Place | None = None
        entries: list[Placed] = []
        while True:
            before = entries[0].place.offset if entries else None
            try:
                answer = await self._peers.ask(boot, HandOff(room_id, self._peers.boot, take, before))
            except Unreachable:
                if head is None:
                    raise
                break  # the newest are here, and older ones are too old
            if isinstance(answer, Moved) and head is None:
                raise Unreachable("it is opening the room", surely=True)
            if not isinstance(answer, HandedOff) or answer.head is None:
                break
            head = head or answer.head
            end = head.offset + 1 if before is None else before
            places = [each.place for each in answer.entries]
            if places != [Place(head.epoch, offset) for offset in range(end - len(places), end)]:
                break  # what does not lead up to the rest is none of it
            entries[:0] = answer.entries
            if not answer.more or not places or len(entries) >= self._history_size:
                break
        return None if head is None else Left(head, entries, 0.0)

    def began(self, process: RoomProcess) -> None:
        """Take note that a room of this node has begun here, and fill it with what it inherits."""
        room_id = process.room_id
        inherited = self._inherited.pop(room_id, None)
        if inherited is not None:
            self._take_over(process, inherited)
        if not self.owns(room_id):
            self._leave_behind([process])
            self._closed(process)
        self._opened(room_id)

    def unwanted(self, room_id: str) -> None:
        """Take note that a room has not begun here after all."""
        inherited = self._inherited.pop(room_id, None)
        if inherited is not None:
            self._left.keep(room_id, inherited.head, inherited.entries, self._loop.time())
        self._opened(room_id)

    def _opened(self, room_id: str) -> None:
        opening = self._opening.pop(room_id, None)
        if opening is not None:
            opening.set()

    def _take_over(self, process: RoomProcess, inherited: Left) -> None:
        head = inherited.head
        if process.head != (head.epoch, head.offset - len(inherited.entries)):
            return  # a log has all of it, and says where it goes on
        try:
            for each in inherited.entries:
                entry = each.entry(process.room_id)
                process.commit(entry)
                if each.row.key is not None and isinstance(entry, Message) and self._window is not None:
                    scope = scope_of(process.room_id, entry.user_id, each.row.key)
                    self._window.record(scope, entry, self._loop.time())
        except RoomUnavailable as error:
            text = "What another node had of room %r could not be taken over: %s"
            logger.error(text, process.room_id, error, extra={"room": process.room_id, "code": error.code})

    # What is given up

    def leave(self, processes: list[RoomProcess]) -> None:
        """Close rooms that other nodes own now, and keep for them what is here."""
        self._leave_behind(processes)
        for process in processes:
            self._closed(process)

    async def hand_off(self, ask: HandOff, process: RoomProcess | None) -> Answer:
        """Return what was here of a room that has moved, of which this node may not know yet."""
        room_id = ask.room_id
        if process is not None and not process.replica:
            self._leave_behind([process])
            self._give_up(room_id)
            self._closed(process)
        opening = self._opening.get(room_id)
        if opening is not None:
            # Each may be asking the other: the later one goes first.
            if ask.boot < self._peers.boot:
                return Moved()
            self._give_up(room_id)
            await opening.wait()
        settling = self._settling.get(room_id)
        if settling is not None:
            await asyncio.wait((settling,))
        left = self._left.take(room_id, ask.take)
        if left is None:
            return HandedOff(None, ())
        entries = left.entries
        if ask.before is not None:
            entries = [each for each in entries if each.place.offset < ask.before]
        part = placed_that_fit(entries)
        return HandedOff(left.head, part, len(part) < len(entries))

    def _give_up(self, room_id: str) -> None:
        self._given_up[room_id] = self._loop.time() + GIVEN_UP_S
        self._given_up.move_to_end(room_id)

    def _leave_behind(self, processes: list[RoomProcess]) -> None:
        """Keep what is here of rooms for the nodes that own them now."""
        now = self._loop.time()
        keys = {} if self._window is None else self._window.keys_of({each.room_id for each in processes})
        for process in processes:
            if process.room.plain:
                self._moves_plain(process.room_id, list(process.room.plain))
            head = process.head
            if head.offset:
                if self._settle is not None:
                    self._begin_to_settle(process)
                of_room = keys.get(process.room_id, {})
                entries = [Placed.of(each, of_room.get(each.offset)) for each in process.newest(self._history_size)]
                self._left.keep(process.room_id, Place(*head), entries, now)

    def _begin_to_settle(self, process: RoomProcess) -> None:
        if self._settle is None or process.room_id in self._settling:
            return
        room_id = process.room_id
        task = self._settling[room_id] = self._tasks.begin(self._settle(process), f"chatx room {room_id}")
        task.add_done_callback(lambda _: self._settling.pop(room_id))

    def _closed(self, process: RoomProcess) -> None:
        if self._close_room is not None:
            self._close_room(process)

    def look(self, now: float) -> None:
        """Forget what was kept for long enough, and tell new owners of what they have not asked for; once a second."""
        self._left.look(now, away=not self._peers.serving)
        while self._given_up and next(iter(self._given_up.values())) <= now:
            self._given_up.popitem(last=False)
        self.offer()

    def offer(self) -> None:
        """Begin to tell the new owners of rooms that have moved: who is told opens the room, and asks for it."""
        if self._left.untaken and (self._offering is None or self._offering.done()):
            self._offering = self._tasks.begin(self._offer_all())

    async def _offer_all(self) -> None:
        missed: list[str] = []
        while room_ids := self._left.to_offer(OFFERED_AT_ONCE):
            told = await asyncio.gather(*(self._offer(room_id) for room_id in room_ids))
            missed += [room_id for room_id, heard in zip(room_ids, told, strict=True) if not heard]
        for room_id in missed:
            self._left.offer_again(room_id)

    async def _offer(self, room_id: str) -> bool:
        owner = self._peers.owner(room_id)
        if not owner or owner == self._peers.boot:
            return False
        try:
            return isinstance(await self._peers.ask(owner, Read(room_id, None, False, 1)), Found)
        except Unreachable:
            return False
