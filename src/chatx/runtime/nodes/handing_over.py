"""Rooms that go from one owner to the next: what is given up here, and what is taken over here.

Rules:
1. What is here of a room that has moved is kept for its new owner, in `LeftRooms`, and with a log it is there first.
2. An owner that is asked for a room which it believes to be its own gives it up: who asks knows more. For `GIVEN_UP_S`
   the room is not this node's.
3. Whoever begins a room asks all who may have had it, and goes on with the newest state. Where something was found, one
   that does not answer is waited for no longer than `OTHERS_S`, or `HELD_S` where there is a log.
4. Where two nodes open one room at once, and each asks the other, the later boot goes first.
5. At most `PASSAGES` rooms are opened at a time, since `Rooms` refuses the next. What they take over has at most
   `INHERITED_BYTES` together, but for the newest entry of each: beyond that a room goes on in its stream without older
   ones. At most `GIVEN_UP_ROOMS` are remembered as given up; beyond that the one that was given up first is this node's
   again, until it is asked for once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct

from chatx.cluster.entries import Placed
from chatx.cluster.fields import Place
from chatx.cluster.rpc import Answer, Found, HandedOff, HandOff, Moved, Read
from chatx.core.idempotency import IdempotencyWindow, scope_of
from chatx.core.message import Message, Position
from chatx.errors import RoomUnavailable
from chatx.runtime.nodes.fitting import placed_that_fit, size_of_all
from chatx.runtime.nodes.left_rooms import Left, LeftRooms
from chatx.runtime.nodes.peers import AGAIN_S, HELD_S, Peers, Unreachable
from chatx.runtime.nodes.tasks import Tasks
from chatx.runtime.process import RoomProcess

logger: logging.Logger = logging.getLogger("chatx")

GIVEN_UP_S = 3.0
"""Seconds for which a room is not this node's that another has asked for: by then it knows of the other."""

GIVEN_UP_ROOMS = 10_000
"""Rooms that are remembered as given up, at most."""

INHERITED_BYTES = 67_108_864
"""Bytes of the entries that are taken over at a time, at most but for one of each room."""

OFFERED_AT_ONCE = 50
"""Rooms that have moved of which their new owners are told at a time."""

OTHERS_S = 0.5
"""Seconds for which a room that one node had waits for what the others say, which may have had a newer one."""


class _Found(Struct):
    """What a node has answered that had the room."""

    boot: str
    head: Place
    newest: HandedOff


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
        self._sorted = False  # whether keys were asked for since the last look
        self._settle: Callable[[RoomProcess], Coroutine[Any, Any, None]] | None = None
        self._settling: dict[str, asyncio.Task[None]] = {}  # rooms that have moved, and are brought to the log
        self._left = LeftRooms()
        self._inherited: dict[str, Left] = {}
        self._inherited_bytes = 0
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
        self._left.has_log = settle is not None

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
        self._takes += 1
        take = f"{self._peers.boot}.{self._takes:x}"
        asked: set[str] = set()
        found: list[_Found] = []
        while boots := [boot for boot in self._peers.before(room_id) if boot not in asked]:
            answered, found = await self._ask_all(boots, room_id, take)
            asked |= answered
            # Who has not answered may be what has the room: where it is gone, the nodes' view changes soon.
            if found or self._loop.time() >= until or room_id in self._given_up:
                break
            if len(answered) < len(boots):
                await asyncio.sleep(AGAIN_S)
        left = await self._take(_newest(found), room_id, take) if found else None
        own = self._left.take_back(room_id)
        if own is not None and (left is None or _is_newer(own.head, own.entries, left.head, left.entries)):
            left = own
        if left is None:
            return None
        for head in (*(each.head for each in found), *(() if own is None else (own.head,))):
            if head.epoch != left.head.epoch:
                text = "Room %r went on in two streams, at nodes that did not hear each other; %s ends, at %d."
                logger.warning(text, room_id, head.epoch, head.offset, extra={"room": room_id, "code": "stream_ended"})
        if self._inherited_bytes + left.size > INHERITED_BYTES:
            left.shorten()
        self._inherited[room_id] = left
        self._inherited_bytes += left.size
        return Position(left.head.epoch, left.head.offset - len(left.entries))

    async def _ask_all(self, boots: list[str], room_id: str, take: str) -> tuple[set[str], list[_Found]]:
        """Return which nodes have answered, and what they had; where something was, the others have a while more."""
        asking = [self._loop.create_task(self._ask(boot, room_id, take)) for boot in boots]
        found: list[_Found] = []
        answered: set[str] = set()
        waiting = set(asking)
        # With a log the one that has the room may be bringing there what was said, and nobody goes on ahead of that.
        patience = OTHERS_S if self._settle is None else HELD_S
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=patience if found else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for boot, task in zip(boots, asking, strict=True):
                    answer = task.result() if task in done else None
                    if answer is not None:
                        answered.add(boot)
                        if answer.head is not None:
                            found.append(_Found(boot, answer.head, answer))
        finally:
            for task in waiting:
                task.cancel()
        return answered, found

    async def _ask(self, boot: str, room_id: str, take: str) -> HandedOff | None:
        """Return the newest of what a node had of a room; None where it cannot be asked, or is opening it itself."""
        try:
            answer = await self._peers.ask(boot, HandOff(room_id, self._peers.boot, take))
        except Unreachable:
            return None
        if isinstance(answer, Moved):
            return None
        return answer if isinstance(answer, HandedOff) else HandedOff(None, ())

    async def _take(self, found: _Found, room_id: str, take: str) -> Left:
        """Return all that a node had of a room, part by part from the newest on."""
        head, answer = found.head, found.newest
        entries: list[Placed] = []
        size = 0
        while True:
            end = entries[0].place.offset if entries else head.offset + 1
            places = [each.place for each in answer.entries]
            if places != [Place(head.epoch, offset) for offset in range(end - len(places), end)]:
                break  # what does not lead up to the rest is none of it
            entries[:0] = answer.entries
            size += size_of_all(answer.entries)
            full = len(entries) >= self._history_size or self._inherited_bytes + size > INHERITED_BYTES
            if full or not answer.more or not places:
                break
            try:
                ask = HandOff(room_id, self._peers.boot, take, entries[0].place.offset)
                more = await self._peers.ask(found.boot, ask)
            except Unreachable:
                break  # the newest are here, and older ones are too old
            if not isinstance(more, HandedOff) or more.head is None:
                break
            answer = more
        return Left(head, entries, size)

    def began(self, process: RoomProcess) -> None:
        """Take note that a room of this node has begun here, and fill it with what it inherits."""
        room_id = process.room_id
        inherited = self._no_longer_inherited(room_id)
        if inherited is not None:
            self._take_over(process, inherited)
        if not self.owns(room_id):
            self._leave_behind([process])
            self._closed(process)
        self._opened(room_id)

    def unwanted(self, room_id: str) -> None:
        """Take note that a room has not begun here after all."""
        inherited = self._no_longer_inherited(room_id)
        if inherited is not None:
            self._left.keep(room_id, inherited.head, inherited.entries, self._loop.time())
        self._opened(room_id)

    def _no_longer_inherited(self, room_id: str) -> Left | None:
        inherited = self._inherited.pop(room_id, None)
        if inherited is not None:
            self._inherited_bytes -= inherited.size
        return inherited

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
        if len(self._given_up) > GIVEN_UP_ROOMS:
            self._given_up.popitem(last=False)

    def _leave_behind(self, processes: list[RoomProcess]) -> None:
        """Keep what is here of rooms for the nodes that own them now."""
        now = self._loop.time()
        for process in processes:
            if process.room.plain:
                self._moves_plain(process.room_id, list(process.room.plain))
            head = process.head
            if head.offset:
                if self._settle is not None:
                    self._begin_to_settle(process)
                keys = {} if self._window is None else self._window.keys_of(process.room_id)
                self._sorted = True
                entries = [Placed.of(each, keys.get(each.offset)) for each in process.newest(self._history_size)]
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
        if self._window is not None and not self._sorted:
            self._window.forget_rooms()
        self._sorted = False
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
            # Shown what the room has here: one that has it open, and does not know of that, looks into the log.
            place = self._left.head(room_id)
            return isinstance(await self._peers.ask(owner, Read(room_id, place, place is not None, 1)), Found)
        except Unreachable:
            return False


def _newest(found: list[_Found]) -> _Found:
    newest = found[0]
    for each in found[1:]:
        if _is_newer(each.head, each.newest.entries, newest.head, newest.newest.entries):
            newest = each
    return newest


def _is_newer(head: Place, entries: Sequence[Placed], than: Place, its_entries: Sequence[Placed]) -> bool:
    """Return whether one state of a room is newer than another.

    Of two streams that is the one in which something was said last, by the clocks of who placed it: nodes that were cut
    off from each other have each begun one.
    """
    if head.epoch == than.epoch:
        return head.offset > than.offset
    return _said_last(entries) > _said_last(its_entries)


def _said_last(entries: Sequence[Placed]) -> int:
    return entries[-1].row.inserted_at if entries else 0
