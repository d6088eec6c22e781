"""How many sends of this node are under way to another one at a time: its share of what that one takes at once.

Without it a node that is slower than those that send to it would answer most of them that it is busy, and they would
ask again and again, each time at the end of the line.

Rules:
1. Of what a node takes at once each other node has an equal share, at least one. A room has half of that at most: one
   that is slow does not keep the others of its owner.
2. Of one user in one room one is under way, so that their messages keep their order whatever is asked again.
3. What is beyond that waits here. Rooms take turns, and within one it goes in the order in which it came. Where the
   node goes, what waits for it goes to whoever has its rooms then.
4. At most `WAITING` sends wait, with `WAITING_BYTES` of content, each for `HELD_S`; beyond any of these one is refused
   with `room_overloaded`, and was surely not sent. How many of one room there may be `room_queue_limit` says.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

from chatx.core.message import Draft
from chatx.errors import RoomOverloaded
from chatx.runtime.lanes import Lanes
from chatx.runtime.nodes.at_once import AT_ONCE
from chatx.runtime.nodes.peers import AGAIN_S, HELD_S

WAITING: Final = 16_384
"""Sends that wait, at most."""

WAITING_BYTES: Final = 16_777_216
"""Bytes of content and data that they have together, at most."""

_Turn: TypeAlias = "asyncio.Future[bool]"
# Whose result is whether it goes; where it does not, the node has gone.


class _Way:
    """The sends to one node."""

    def __init__(self) -> None:
        self.under_way = 0
        self.of_room: Counter[str] = Counter()
        self.waiting: OrderedDict[str, deque[_Turn]] = OrderedDict()  # by room; whose turn it is first


class Credits:
    """What this node may send to the others.

    Args:
        owner: Returns the boot id of the node that has a room.
        others: Returns how many other nodes there are.

    Attributes:
        waiting: Sends that wait.
        waiting_bytes: What they have together, in bytes.
    """

    def __init__(self, owner: Callable[[str], str], others: Callable[[], int]) -> None:
        self._owner = owner
        self._others = others
        self._ways: dict[str, _Way] = {}
        self._lanes = Lanes()  # by room and user
        self._took_s = AGAIN_S  # about how long a send is under way
        self.waiting: int = 0
        self.waiting_bytes: int = 0

    @asynccontextmanager
    async def one(self, draft: Draft) -> AsyncIterator[None]:
        """Have a send under way within the block, when it is its turn.

        Raises:
            RoomOverloaded: Too much waits, or it has waited for too long.
        """
        lane = f"{draft.room_id}\n{draft.user_id}"
        way = self._at_once(lane, draft.room_id) or await self._wait(lane, draft)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            self._took_s += (loop.time() - began - self._took_s) / 16
            self._ended(way, draft.room_id)
            self._lanes.leave(lane)

    def gone(self, boot: str) -> None:
        """Take note that a node is gone, and let what waits for it go to others."""
        way = self._ways.pop(boot, None)
        if way is not None:
            for line in way.waiting.values():
                for turn in line:
                    if not turn.done():
                        turn.set_result(False)
            way.waiting.clear()

    def _at_once(self, lane: str, room_id: str) -> _Way | None:
        """Return the way that one goes which need not wait."""
        if lane in self._lanes:
            return None
        way = self._goes_now(room_id)
        if way is not None:
            self._lanes[lane] = deque()
        return way

    def _goes_now(self, room_id: str) -> _Way | None:
        way = self._way(room_id)
        if room_id in way.waiting or not self._may_go(way, room_id):
            return None
        self._goes(way, room_id)
        return way

    def _way(self, room_id: str) -> _Way:
        boot = self._owner(room_id)
        way = self._ways.get(boot)
        if way is None:
            for each in [each for each, idle in self._ways.items() if not idle.under_way and not idle.waiting]:
                del self._ways[each]
            way = self._ways[boot] = _Way()
        return way

    def _share(self) -> int:
        return max(1, AT_ONCE // max(1, self._others()))

    def _may_go(self, way: _Way, room_id: str) -> bool:
        if not way.under_way:
            return True
        share = self._share()
        return way.under_way < share and way.of_room[room_id] < max(1, share // 2)

    def _goes(self, way: _Way, room_id: str) -> None:
        way.under_way += 1
        way.of_room[room_id] += 1

    def _ended(self, way: _Way, room_id: str) -> None:
        way.under_way -= 1
        way.of_room[room_id] -= 1
        if not way.of_room[room_id]:
            del way.of_room[room_id]
        self._next(way)

    def _next(self, way: _Way) -> None:
        """Let go whose turn it is, as many as may."""
        while (room_id := next((each for each in way.waiting if self._may_go(way, each)), None)) is not None:
            line = way.waiting[room_id]
            turn = line.popleft()
            if line:
                way.waiting.move_to_end(room_id)
            else:
                del way.waiting[room_id]
            if not turn.done():
                self._goes(way, room_id)
                turn.set_result(True)

    async def _wait(self, lane: str, draft: Draft) -> _Way:
        size = len(draft.content.encode()) + (0 if draft.data is None else len(draft.data.text.encode()))
        if self.waiting >= WAITING or self.waiting_bytes + size > WAITING_BYTES:
            raise self._overloaded(f"{self.waiting} messages wait for other nodes already")
        self.waiting += 1
        self.waiting_bytes += size
        entered = False
        try:
            async with asyncio.timeout(HELD_S):
                await self._lanes.enter(lane)
                entered = True
                return await self._turn(draft.room_id)
        except BaseException as error:
            if entered:
                self._lanes.leave(lane)
            if isinstance(error, TimeoutError):
                raise self._overloaded(f"It has waited for {HELD_S:g} s for the node that has the room") from None
            raise
        finally:
            self.waiting -= 1
            self.waiting_bytes -= size

    async def _turn(self, room_id: str) -> _Way:
        while (way := self._goes_now(room_id)) is None:
            way = self._way(room_id)
            turn: _Turn = asyncio.get_running_loop().create_future()
            line = way.waiting.setdefault(room_id, deque())
            line.append(turn)
            try:
                if await turn:
                    return way
            except asyncio.CancelledError:
                if turn.cancelled():
                    if turn in line:
                        line.remove(turn)
                    if not line and way.waiting.get(room_id) is line:
                        del way.waiting[room_id]
                elif turn.result():
                    self._ended(way, room_id)
                raise
        return way

    def retry_after(self, ahead: int) -> float:
        """Return in how many seconds, about, so many sends of one room that wait or are under way are through."""
        wait_s = self._took_s * ahead / max(1, self._share() // 2)
        return min(HELD_S, max(AGAIN_S, wait_s))

    def _overloaded(self, why: str) -> RoomOverloaded:
        reason = f"{why}, and this one was not sent; send again later."
        return RoomOverloaded(reason, retry_after=self.retry_after(self.waiting))
