"""The rooms of other nodes, as the engine of this one reaches them: `Elsewhere`, over the `Peers`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from chatx.cluster.rpc import (
    ROOMS_AT_ONCE,
    Detach,
    Differ,
    Follow,
    Join,
    Leave,
    Presence,
    Present,
    Refused,
    Sent,
    Submit,
)
from chatx.core.idempotency import IdempotencyWindow
from chatx.core.message import Draft, Message, Position, PresenceMeta, Presences
from chatx.errors import ChatError, RoomOverloaded, RoomUnavailable
from chatx.runtime.elsewhere import OwnedHere
from chatx.runtime.nodes.asking_owners import answer_of_owner, ask_owner, have_owner, wrong
from chatx.runtime.nodes.credits import Credits
from chatx.runtime.nodes.handing_over import HandingOver
from chatx.runtime.nodes.moving_members import MovingMembers
from chatx.runtime.nodes.owned import Owned
from chatx.runtime.nodes.peers import AGAIN_S, HELD_S, Peers, Unreachable
from chatx.runtime.nodes.polling import Polling
from chatx.runtime.nodes.reading import OwnersStorage
from chatx.runtime.nodes.refusals import error_of
from chatx.runtime.nodes.replica import OwnerRefuses, Replica
from chatx.runtime.nodes.revoking import Revoking
from chatx.runtime.nodes.tasks import Tasks
from chatx.runtime.process import RoomProcess
from chatx.runtime.storage import Storage


class Abroad:
    """The other nodes of one chat, and what they follow of this one.

    Args:
        peers: The other nodes.
        history_size: Entries that a room keeps.
        queue_limit: Sends under way to one room of another node, at most.
        loop: The chat's loop.

    Attributes:
        owned: The rooms of this node that others follow; set by `begin`.
        handing_over: The rooms that go from one owner to the next.
        revoking: What tells the others who was revoked.
        credits: What may be sent to the others at a time.
        polls: The long-polling sessions of all nodes.
    """

    def __init__(self, peers: Peers, *, history_size: int, queue_limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._peers = peers
        self._history_size = history_size
        self._queue_limit = queue_limit
        self._loop = loop
        self.owned: Owned | None = None
        self._close_room: Callable[[RoomProcess], object] | None = None
        self._storage = OwnersStorage(peers, self._open)
        self._replicas: dict[str, Replica] = {}
        self._under_way: dict[str, int] = {}  # room id -> sends to its owner
        self.credits: Credits = Credits(peers.owner, lambda: len(peers.everybody()))
        self._behind: dict[str, float] = {}  # replicas that were behind at the last look, since when
        self._following: set[str] = set()  # nodes that are being told what is followed
        self._refs = 0
        self._tasks = Tasks(loop)
        self.revoking: Revoking = Revoking(peers, self._tasks)
        self._moving = MovingMembers(peers, self._tasks)
        self.polls: Polling = Polling(peers, self._tasks, loop)
        self.handing_over: HandingOver = HandingOver(
            peers, history_size=history_size, loop=loop, tasks=self._tasks, moves_plain=self._moving.move
        )

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
        self.owned = owned
        self._close_room = close_room
        self.handing_over.begin(close_room, window, settle)

    def __len__(self) -> int:
        """Return how many replicas are here."""
        return len(self._replicas)

    @property
    def left_behind(self) -> int:
        """How many rooms have moved that nobody has asked for yet, or that are being moved still."""
        return self.handing_over.untaken + len(self._moving)

    @property
    def lag(self) -> tuple[int, float]:
        """How many replicas were behind at the last look, and for how long the first of them has been, in seconds."""
        behind = list(self._behind.values())
        return len(behind), max(0.0, self._loop.time() - min(behind)) if behind else 0.0

    # What the engine asks

    @property
    def serving(self) -> bool:
        """Whether this node is one of the others now, and has the rooms that are its own."""
        return self._peers.serving

    def owns(self, room_id: str) -> bool:
        """Return whether the room is this node's."""
        return self.handing_over.owns(room_id)

    def storage_of(self, room_id: str) -> Storage | None:
        """Return what a room that another node owns is read from, or None where it is this node's."""
        return None if self.owns(room_id) else self._storage

    async def send(self, draft: Draft, key: str | None, trusted: bool, stored: bool) -> Message | ChatError:
        """Have the owner of its room send a draft, and return the message, or its refusal; see `Elsewhere.send`."""
        room_id = draft.room_id
        under_way = self._under_way.get(room_id, 0)
        if under_way >= self._queue_limit:
            raise RoomOverloaded(
                f"{under_way} messages wait for the node that has this room already; send again later.",
                retry_after=self.credits.retry_after(under_way),
            )
        self._under_way[room_id] = under_way + 1
        data = None if draft.data is None else draft.data.text
        submit = Submit(room_id, draft.user_id, draft.content, data, key, trusted, stored, draft.epoch)
        try:
            async with self.credits.one(draft):
                answer = await answer_of_owner(self._peers, room_id, submit)
        finally:
            self._under_way[room_id] -= 1
            if not self._under_way[room_id]:
                del self._under_way[room_id]
        if isinstance(answer, Refused):
            return error_of(answer)
        if isinstance(answer, Sent):
            message = answer.placed.entry(room_id)
            if isinstance(message, Message):
                return replace(message, duplicate=True) if answer.duplicate else message
        raise wrong(answer)

    async def join(self, room_id: str, user_id: str) -> None:
        """Have the owner begin a user's plain membership, unless there is one; errors as `ask_owner`."""
        await have_owner(self._peers, room_id, Join(room_id, user_id))

    async def leave(self, room_id: str, user_id: str) -> None:
        """Have the owner end a user's plain membership, if there is one; errors as `ask_owner`."""
        await have_owner(self._peers, room_id, Leave(room_id, user_id))

    async def presences(self, room_id: str) -> Presences:
        """Return who is in a room that another node owns; errors as `ask_owner`."""
        found: Presences = {}
        behind, more = "", True
        while more:
            answer = await ask_owner(self._peers, room_id, Present(room_id, behind))
            if not isinstance(answer, Presence):
                raise wrong(answer)
            for each in answer.present:
                found.setdefault(each.user_id, []).append(each.meta)
                behind = each.ref
            more = answer.more and bool(answer.present)
        return found

    def revoked(self, user_id: str) -> None:
        """Tell all other nodes that a user was revoked; one that is away hears it when it is back."""
        self.revoking.revoked(user_id)

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
        return await self.handing_over.inherit(room_id)

    def began(self, process: RoomProcess) -> None:
        """Take note that a room has begun here, owned or as a replica."""
        if not process.replica:
            self.handing_over.began(process)
            return
        replica = self._replicas.get(process.room_id)
        if replica is not None and replica.owner == self._peers.owner(process.room_id):
            replica.begin(process)
        else:
            self._closed(process)  # it has moved while it was opened, and is opened anew

    def unwanted(self, room_id: str) -> None:
        """Take note that a room has not begun here after all."""
        self.handing_over.unwanted(room_id)
        self._end(room_id)

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
            if process.over:
                continue  # whoever owns it now has asked for it since these were looked up
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
        self.handing_over.leave(leaving)

    def missed(self) -> None:
        """Attach anew to everything: the way between the nodes was broken, or words were dropped."""
        for replica in list(self._replicas.values()):
            replica.fall_behind()

    async def follow(self) -> None:
        """Tell each owner which of its rooms are followed, and attach anew where a word was missed; once a second.

        Who has not answered the last time yet is passed over.
        """
        now = self._loop.time()
        self.handing_over.look(now)
        by_owner: dict[str, dict[str, int]] = {}
        before, self._behind = self._behind, {}
        for room_id, replica in self._replicas.items():
            if not replica.current:
                self._behind[room_id] = before.get(room_id, now)
            else:
                by_owner.setdefault(replica.owner, {})[room_id] = replica.number
        asked = [boot for boot in by_owner if boot not in self._following]
        await asyncio.gather(*(self._follow(boot, list(by_owner[boot].items())) for boot in asked))

    async def _follow(self, boot: str, numbers: list[tuple[str, int]]) -> None:
        self._following.add(boot)
        try:
            for first in range(0, len(numbers), ROOMS_AT_ONCE):
                await self._follow_some(boot, dict(numbers[first : first + ROOMS_AT_ONCE]))
        except Unreachable:
            pass  # it is told again
        finally:
            self._following.discard(boot)

    async def _follow_some(self, boot: str, numbers: dict[str, int]) -> None:
        answer = await self._peers.ask(boot, Follow(self._peers.boot, numbers))
        if isinstance(answer, Differ):
            for room_id in answer.room_ids:
                found = self._replicas.get(room_id)
                if found is not None and found.owner == boot:
                    found.missed()

    async def close(self) -> None:
        """Follow nothing any more."""
        for room_id in list(self._replicas):
            self._end(room_id, tell=False)
        self.polls.close()
        await self._tasks.close()

    async def _open(self, room_id: str) -> Position:
        """Begin the replica of a room, and return where it begins; for `HELD_S` its owner is asked again.

        Raises:
            RoomUnavailable: The owner cannot be reached, or refuses.
            OwnedHere: The room is this node's by now.
        """
        until = self._loop.time() + HELD_S
        while True:
            self._end(room_id)
            replica = self._replicas[room_id] = Replica(room_id, self._peers, self._history_size, self._closed)
            try:
                return await replica.open()
            except OwnerRefuses as error:
                self._end(room_id, tell=False)
                raise RoomUnavailable(
                    f"The node that has the room: {error}. Try again later.", retry_after=error.retry_after or 1.0
                ) from error
            except Unreachable as error:
                self._end(room_id, tell=False)
                if self._loop.time() >= until:
                    raise RoomUnavailable(
                        f"The node that has the room could not be reached for {HELD_S:g} s: {error}. Try again later.",
                        retry_after=1.0,
                    ) from error
            except BaseException:
                self._end(room_id, tell=False)
                raise
            await asyncio.sleep(AGAIN_S)
            if self.owns(room_id):
                raise OwnedHere

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
            _ = self._tasks.begin(self._detach(replica.owner, room_id))

    async def _detach(self, boot: str, room_id: str) -> None:
        try:
            await self._peers.ask(boot, Detach(room_id, self._peers.boot))
        except Unreachable:
            pass  # it lets go of who does not say that it follows
