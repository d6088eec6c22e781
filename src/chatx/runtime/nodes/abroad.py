"""The rooms of other nodes, as the engine of this one reaches them: `Elsewhere`, over the `Peers`."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from chatx.cluster.fields import Place
from chatx.cluster.live import Placed
from chatx.cluster.rpc import (
    ROOMS_AT_ONCE,
    Answer,
    Ask,
    Detach,
    Differ,
    Done,
    Follow,
    Found,
    HandedOff,
    HandOff,
    Join,
    Leave,
    Moved,
    Presence,
    Present,
    Read,
    Refused,
    Revoke,
    Sent,
    Submit,
)
from chatx.core.idempotency import IdempotencyWindow, scope_of
from chatx.core.message import Draft, Message, Position, PresenceMeta, Presences
from chatx.errors import ChatError, RoomOverloaded, RoomUnavailable
from chatx.runtime.nodes.fitting import placed_that_fit
from chatx.runtime.nodes.left_rooms import Left, LeftRooms
from chatx.runtime.nodes.owned import Owned
from chatx.runtime.nodes.peers import Peers, Unreachable
from chatx.runtime.nodes.reading import OwnersStorage
from chatx.runtime.nodes.refusals import error_of
from chatx.runtime.nodes.replica import Replica
from chatx.runtime.process import RoomProcess
from chatx.runtime.revocations import REVOKED_KEPT
from chatx.runtime.storage import Storage

logger: logging.Logger = logging.getLogger("chatx")

HELD_S = 5.0
"""Seconds for which a send is held while the owner of its room cannot be reached."""

AGAIN_S = 0.1
"""Seconds between two tries to reach it."""

GIVEN_UP_S = 3.0
"""Seconds for which a room is not this node's that another has asked for: by then it knows of the other."""

OFFERED_AT_ONCE = 50
"""Rooms that have moved of which their new owners are told at a time."""


AWAY_NODES = 64
"""Lives of nodes that are away and may come back, at most; the one that went first is forgotten."""


class Abroad:
    """The other nodes of one chat, and what they follow of this one.

    Args:
        peers: The other nodes.
        history_size: Entries that a room keeps.
        queue_limit: Sends under way to one room of another node, at most.
        loop: The chat's loop.

    Attributes:
        owned: The rooms of this node that others follow; set by `begin`.
    """

    def __init__(self, peers: Peers, *, history_size: int, queue_limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._peers = peers
        self._history_size = history_size
        self._queue_limit = queue_limit
        self._loop = loop
        self.owned: Owned | None = None
        self._close_room: Callable[[RoomProcess], object] | None = None
        self._window: IdempotencyWindow | None = None
        self._settle: Callable[[RoomProcess], Coroutine[Any, Any, None]] | None = None
        self._settling: dict[str, asyncio.Task[None]] = {}  # rooms that have moved, and are brought to the log
        self._storage = OwnersStorage(peers, self._open)
        self._replicas: dict[str, Replica] = {}
        self._under_way: dict[str, int] = {}  # room id -> sends to its owner
        self._left = LeftRooms()
        self._inherited: dict[str, Left] = {}
        self._opening: dict[str, asyncio.Event] = {}  # owned rooms that are being opened; set when that is over
        self._offering: asyncio.Task[None] | None = None
        self._given_up: OrderedDict[str, float] = OrderedDict()  # rooms that another node asked for, until when
        self._moving = 0  # rooms whose plain memberships are being moved
        self._owed: dict[str, dict[str, None]] = {}  # nodes that are away, and who was revoked meanwhile
        self._refs = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self,
        owned: Owned,
        close_room: Callable[[RoomProcess], object],
        window: IdempotencyWindow,
        settle: Callable[[RoomProcess], Coroutine[Any, Any, None]] | None,
    ) -> None:
        """Begin to follow, and to be followed.

        Args:
            owned: The rooms of this node that others follow.
            close_room: Closes a room here that goes on elsewhere.
            window: The idempotency keys of this node.
            settle: Brings to the log what was said in such a room; None where there is no log.
        """
        self._settle = settle
        self.owned = owned
        self._window = window
        self._close_room = close_room

    def __len__(self) -> int:
        """Return how many replicas are here."""
        return len(self._replicas)

    @property
    def left_behind(self) -> int:
        """How many rooms have moved that nobody has asked for yet, or that are being moved still."""
        return self._left.untaken + self._moving

    # What the engine asks

    @property
    def serving(self) -> bool:
        """Whether this node is one of the others now, and has the rooms that are its own."""
        return self._peers.serving

    def owns(self, room_id: str) -> bool:
        """Return whether the room is this node's."""
        if self._given_up and self._given_up.get(room_id, 0.0) > self._loop.time():
            return False
        return self._peers.owner(room_id) == self._peers.boot

    def storage_of(self, room_id: str) -> Storage | None:
        """Return what a room that another node owns is read from, or None where it is this node's."""
        return None if self.owns(room_id) else self._storage

    async def send(self, draft: Draft, key: str | None, trusted: bool, stored: bool) -> Message:
        """Have the owner of its room send a draft; errors as `Chat.send_message`."""
        room_id = draft.room_id
        under_way = self._under_way.get(room_id, 0)
        if under_way >= self._queue_limit:
            raise RoomOverloaded(
                f"{under_way} messages wait for the node that has this room already; send again later.",
                retry_after=AGAIN_S,
            )
        self._under_way[room_id] = under_way + 1
        data = None if draft.data is None else draft.data.text
        try:
            answer = await self._asked(
                room_id, Submit(room_id, draft.user_id, draft.content, data, key, trusted, stored)
            )
        finally:
            self._under_way[room_id] -= 1
            if not self._under_way[room_id]:
                del self._under_way[room_id]
        if isinstance(answer, Sent):
            message = answer.placed.entry(room_id)
            if isinstance(message, Message):
                return replace(message, duplicate=True) if answer.duplicate else message
        raise self._wrong(answer)

    async def join(self, room_id: str, user_id: str) -> None:
        """Have the owner begin a user's plain membership, unless there is one; errors as `send`."""
        self._check_done(await self._asked(room_id, Join(room_id, user_id)))

    async def leave(self, room_id: str, user_id: str) -> None:
        """Have the owner end a user's plain membership, if there is one; errors as `send`."""
        self._check_done(await self._asked(room_id, Leave(room_id, user_id)))

    async def presences(self, room_id: str) -> Presences:
        """Return who is in a room that another node owns; errors as `send`."""
        found: Presences = {}
        behind, more = "", True
        while more:
            answer = await self._asked(room_id, Present(room_id, behind))
            if not isinstance(answer, Presence):
                raise self._wrong(answer)
            for each in answer.present:
                found.setdefault(each.user_id, []).append(each.meta)
                behind = each.ref
            more = answer.more and bool(answer.present)
        return found

    def revoked(self, user_id: str) -> None:
        """Tell all other nodes that a user was revoked; one that is away hears it when it is back."""
        there = self._peers.everybody()
        for boot in there:
            _ = self._spawn(self._tell_revoked(boot, user_id))
        for boot in self._owed:
            if boot not in there:
                self._owe(boot, user_id)

    def node_gone(self, boot: str) -> None:
        """Take note that a node is gone, or away: what it holds of users who are revoked meanwhile it holds still."""
        self._owed.setdefault(boot, {})
        while len(self._owed) > AWAY_NODES:
            del self._owed[next(iter(self._owed))]

    def node_came(self, boot: str) -> None:
        """Take note that a node is there: it is told who was revoked while it was away."""
        for user_id in self._owed.pop(boot, ()):
            _ = self._spawn(self._tell_revoked(boot, user_id))

    def _owe(self, boot: str, user_id: str) -> None:
        owed = self._owed.setdefault(boot, {})
        owed[user_id] = None
        if len(owed) > REVOKED_KEPT:
            text = "Node %s is away, and of the users revoked meanwhile it will not hear of %r: there are too many."
            first = next(iter(owed))
            del owed[first]
            logger.warning(text, boot, first, extra={"node": boot, "code": "revocation_lost"})

    def new_ref(self) -> str:
        """Return a ref for a membership of this node: no other membership of any node has it."""
        self._refs += 1
        return f"{self._peers.boot}.{self._refs:x}"

    def joined(self, process: RoomProcess, user_id: str, meta: PresenceMeta) -> None:
        """Take note that a membership has begun on this node."""
        replica = self._replica_of(process)
        if replica is not None:
            replica.joined(user_id, meta)

    def left(self, process: RoomProcess, user_id: str, ref: str) -> None:
        """Take note that a membership of this node has ended."""
        replica = self._replica_of(process)
        if replica is not None:
            replica.left(user_id, ref)

    async def reach(self, process: RoomProcess) -> None:
        """Bring a replica up to what its owner has placed by now.

        Raises:
            RoomUnavailable: The owner cannot be reached.
        """
        replica = self._replica_of(process)
        if replica is None:
            return
        try:
            async with asyncio.timeout(HELD_S):
                await replica.catch_up()
        except TimeoutError:
            raise RoomUnavailable(
                f"The node that has the room could not be reached for {HELD_S:g} s; try again later.", retry_after=1.0
            ) from None

    async def inherit(self, room_id: str) -> Position | None:
        """Return the place at which a room of this node goes on that another had a moment ago, or None."""
        self._opening[room_id] = asyncio.Event()
        until = self._loop.time() + HELD_S
        asked: set[str] = set()
        take = self.new_ref()
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
        """Take note that a room has begun here, owned or as a replica."""
        room_id = process.room_id
        inherited = self._inherited.pop(room_id, None)
        if process.replica:
            replica = self._replicas.get(room_id)
            if replica is not None and replica.owner == self._peers.owner(room_id):
                replica.begin(process)
            else:
                self._closed(process)  # it has moved while it was opened, and is opened anew
        else:
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
        self._end(room_id)

    def _opened(self, room_id: str) -> None:
        opening = self._opening.pop(room_id, None)
        if opening is not None:
            opening.set()

    def gone(self, process: RoomProcess) -> None:
        """Take note that a room is here no longer."""
        replica = self._replica_of(process)
        if replica is not None:
            self._end(process.room_id)
        elif not process.replica and self.owned is not None:
            self.owned.gone(process)

    # What the nodes tell

    def nodes_changed(self, processes: list[RoomProcess]) -> None:
        """Close the rooms that are owned elsewhere now than their replicas, or they themselves, think."""
        leaving: list[RoomProcess] = []
        for process in processes:
            owner = self._peers.owner(process.room_id)
            moved = False
            if process.replica:
                # Where nobody can know whose it is, who reads it here reads on, and is told when that is known.
                replica = self._replica_of(process)
                moved = replica is None or owner not in ("", replica.owner)
            elif owner != self._peers.boot:
                leaving.append(process)
            if moved and self._close_room is not None:
                self._close_room(process)
        self._leave_behind(leaving)
        for process in leaving:
            self._closed(process)

    def missed(self) -> None:
        """Attach anew to everything: the way between the nodes was broken, or words were dropped."""
        for replica in list(self._replicas.values()):
            replica.fall_behind()

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

    def offer(self) -> None:
        """Begin to tell the new owners of rooms that have moved: who is told opens the room, and asks for it."""
        if self._left.untaken and (self._offering is None or self._offering.done()):
            self._offering = self._spawn(self._offer_all())

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

    async def follow(self) -> None:
        """Tell each owner which of its rooms are followed, and attach anew where a word was missed; once a second."""
        now = self._loop.time()
        self._left.look(now, away=not self._peers.serving)
        while self._given_up and next(iter(self._given_up.values())) <= now:
            self._given_up.popitem(last=False)
        self.offer()
        by_owner: dict[str, dict[str, int]] = {}
        for room_id, replica in self._replicas.items():
            if replica.current:
                by_owner.setdefault(replica.owner, {})[room_id] = replica.number
        await asyncio.gather(*(self._follow(boot, list(rooms.items())) for boot, rooms in by_owner.items()))

    async def _follow(self, boot: str, numbers: list[tuple[str, int]]) -> None:
        for first in range(0, len(numbers), ROOMS_AT_ONCE):
            ask = Follow(self._peers.boot, dict(numbers[first : first + ROOMS_AT_ONCE]))
            try:
                answer = await self._peers.ask(boot, ask)
            except Unreachable:
                return
            if isinstance(answer, Differ):
                for room_id in answer.room_ids:
                    found = self._replicas.get(room_id)
                    if found is not None and found.owner == boot:
                        found.fall_behind()

    async def close(self) -> None:
        """Follow nothing any more."""
        for room_id in list(self._replicas):
            self._end(room_id, tell=False)
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _open(self, room_id: str) -> Position:
        self._end(room_id)
        replica = self._replicas[room_id] = Replica(room_id, self._peers, self._history_size, self._closed)
        try:
            return await replica.open()
        except BaseException:
            self._end(room_id, tell=False)
            raise

    async def _asked(self, room_id: str, ask: Ask) -> Answer:
        """Ask a room's owner, and again where it has surely done nothing, for `HELD_S`.

        Raises:
            RoomUnavailable: It cannot be reached.
            ChatError: It has refused.
        """
        until = self._loop.time() + HELD_S
        while True:
            try:
                answer = await self._peers.ask(self._peers.owner(room_id), ask)
            except Unreachable as error:
                if not error.surely:
                    raise RoomUnavailable(
                        "The node that has the room has not answered, so it is not known whether this was done; send "
                        "again with the same idempotency key.",
                        retry_after=1.0,
                    ) from error
            else:
                if isinstance(answer, Refused):
                    raise error_of(answer)
                if not isinstance(answer, Moved):
                    return answer
            if self._loop.time() >= until:
                raise RoomUnavailable(
                    f"The node that has the room could not be reached for {HELD_S:g} s, so nothing was done; try again "
                    "later.",
                    retry_after=1.0,
                )
            await asyncio.sleep(AGAIN_S)

    async def _tell_revoked(self, boot: str, user_id: str) -> None:
        while boot in self._peers.everybody():
            try:
                await self._peers.ask(boot, Revoke(user_id))
                return
            except Unreachable:
                await asyncio.sleep(AGAIN_S)
        self._owe(boot, user_id)

    def _leave_behind(self, processes: list[RoomProcess]) -> None:
        """Keep what is here of rooms for the nodes that own them now."""
        now = self._loop.time()
        keys = {} if self._window is None else self._window.keys_of({each.room_id for each in processes})
        for process in processes:
            if process.room.plain:
                self._moving += 1
                _ = self._spawn(self._move_plain(process.room_id, list(process.room.plain)))
            head = process.head
            if head.offset:
                if self._settle is not None:
                    self._begin_to_settle(process)
                of_room = keys.get(process.room_id, {})
                entries = [Placed.of(each, of_room.get(each.offset)) for each in process.newest(self._history_size)]
                self._left.keep(process.room_id, Place(*head), entries, now)

    async def _move_plain(self, room_id: str, user_ids: list[str]) -> None:
        """Have plain memberships begin with a room's new owner, since they live with the owner."""
        try:
            for user_id in user_ids:
                await self.join(room_id, user_id)
        except ChatError as error:
            text = "Memberships of room %r could not be moved to its new owner, and have ended: %s"
            logger.warning(text, room_id, error, extra={"room": room_id, "code": error.code})
        finally:
            self._moving -= 1

    def _begin_to_settle(self, process: RoomProcess) -> None:
        if self._settle is None or process.room_id in self._settling:
            return
        room_id = process.room_id
        task = self._settling[room_id] = self._loop.create_task(self._settle(process), name=f"chatx room {room_id}")
        self._tasks.add(task)

        def settled(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            del self._settling[room_id]

        task.add_done_callback(settled)

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

    def _closed(self, process: RoomProcess) -> None:
        if self._close_room is not None:
            self._close_room(process)

    def _replica_of(self, process: RoomProcess) -> Replica | None:
        replica = self._replicas.get(process.room_id)
        return replica if replica is not None and replica.process is process else None

    def _end(self, room_id: str, *, tell: bool = True) -> None:
        replica = self._replicas.pop(room_id, None)
        if replica is None:
            return
        replica.end()
        if tell:
            _ = self._spawn(self._detach(replica.owner, room_id))

    async def _detach(self, boot: str, room_id: str) -> None:
        try:
            await self._peers.ask(boot, Detach(room_id, self._peers.boot))
        except Unreachable:
            pass  # it lets go of who does not say that it follows

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine, name="chatx nodes")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_done(self, answer: Answer) -> None:
        if not isinstance(answer, Done):
            raise self._wrong(answer)

    def _wrong(self, answer: Answer) -> RoomUnavailable:
        return RoomUnavailable(f"The node that has the room answered with {type(answer).__name__}; try again later.")
