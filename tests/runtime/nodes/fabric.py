"""Nodes of one chat within one process: each an engine of its own, with what goes between them delayed, lost or cut.

Whose a room is hangs on who a node thinks is there, which a test says for each node.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from chatx import Chat, RateLimit
from chatx.adapters.room_log import RoomLog
from chatx.cluster.polling import PollsAsk
from chatx.cluster.records import Records
from chatx.cluster.rpc import Answer, Ask, RoomsAsk, Told
from chatx.config import ChatConfig
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.abroad import Abroad
from chatx.runtime.nodes.answering import Answering
from chatx.runtime.nodes.horde import over_log
from chatx.runtime.nodes.owned import Owned
from chatx.runtime.nodes.peers import Unreachable
from chatx.telemetry import Telemetry

T = TypeVar("T")

RECORDS = Records()

ANSWERED_S = 2.0

UNLIMITED = RateLimit(messages_per_sec=1e6, burst=1_000_000)


class Fabric:
    """What is between the nodes.

    Attributes:
        cut: Pairs (from, to) between which nothing comes through.
        lossy: The share of words that are lost.
        words: How many words came to a replica.
    """

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.nodes: dict[str, Node] = {}
        self.cut: set[tuple[str, str]] = set()
        self.lossy = 0.0
        self.words = 0
        self.lost = 0

    def comes_through(self, sender: str, receiver: str) -> bool:
        return receiver in self.nodes and sender in self.nodes and (sender, receiver) not in self.cut

    def see(self, *boots: str) -> None:
        """Let every node see these nodes, and no others."""
        boots = tuple(each.ljust(16, "0") for each in boots)
        for node in self.nodes.values():
            node.see(*boots)


class Node:
    """One node; it is its own `Peers`."""

    def __init__(self, fabric: Fabric, boot: str, *, log: RoomLog | None = None, **options: Any) -> None:
        """`log` is the one that the nodes of a `horde` share."""
        config = ChatConfig(**options) if log is None else over_log(ChatConfig(**options), log)
        loop = asyncio.get_running_loop()
        boot = boot.ljust(16, "0")
        self.boot = boot
        self._fabric = fabric
        self._seen: tuple[str, ...] = (boot,)
        self._listeners: dict[str, list[Callable[[Told | None], object]]] = {}
        self._coming: deque[Told] = deque()
        self.abroad = Abroad(self, history_size=config.history_size, queue_limit=config.room_queue_limit, loop=loop)
        self.engine = Engine(config, Telemetry(), deque(maxlen=100), elsewhere=self.abroad)
        self.owned = Owned(self, self.engine.turn)
        settle = self.engine.settle if self.engine.storage.is_log else None
        self.abroad.begin(self.owned, self.engine.rooms.moved, self.engine.sending.window, settle)
        self.answering = Answering(self.engine, self.abroad, self.owned)
        self.chat = Chat(config=config)
        self.chat._engine = self.engine
        self._ticking = loop.create_task(self._tick())
        fabric.nodes[boot] = self

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.owned.look(self.engine.loop.time())
            await self.abroad.follow()

    def see(self, *boots: str) -> None:
        boots = tuple(each.ljust(16, "0") for each in boots)
        before, self._seen = self._seen, boots
        for gone in {*before} - {*boots}:
            self.owned.node_gone(gone)
            self.abroad.polls.node_gone(gone)
        self.abroad.nodes_changed(list(self.engine.rooms))

    async def crash(self) -> None:
        """Be gone, without a word to anybody."""
        del self._fabric.nodes[self.boot]
        await self.stop()

    async def stop(self) -> None:
        self._ticking.cancel()
        await self.abroad.close()
        await self.engine.stop(100)

    # Peers

    serving = True

    def owner(self, room_id: str) -> str:
        return _owner(room_id, self._seen)

    def before(self, room_id: str) -> list[str]:
        others = self.everybody()
        ranked: list[str] = []
        while others and len(ranked) < 3:
            ranked.append(_owner(room_id, others))
            others.remove(ranked[-1])
        return ranked

    async def ask(self, boot: str, ask: Ask) -> Answer:
        fabric = self._fabric
        await asyncio.sleep(fabric.random.random() / 1000)
        if not fabric.comes_through(self.boot, boot):
            raise Unreachable(f"nobody answers for {boot}", surely=True)
        answer = await fabric.nodes[boot].answer(_carried(ask))
        await asyncio.sleep(fabric.random.random() / 1000)
        if not fabric.comes_through(boot, self.boot):
            await asyncio.sleep(ANSWERED_S)
            raise Unreachable(f"{boot} has not answered", surely=False)
        return _carried(answer)

    async def answer(self, ask: Ask) -> Answer:
        if isinstance(ask, PollsAsk):
            return await self.abroad.polls.answer(ask)
        assert isinstance(ask, RoomsAsk)
        return await self.answering.answer(ask)

    def tell(self, told: Told) -> bool:
        for node in self._fabric.nodes.values():
            if node is self or told.room_id not in node._listeners:
                continue
            if (
                not self._fabric.comes_through(self.boot, node.boot)
                or self._fabric.random.random() < self._fabric.lossy
            ):
                self._fabric.lost += 1
                continue
            node._coming.append(_carried(told))
            asyncio.get_running_loop().call_later(0.001, node._hear)
        return True

    def _hear(self) -> None:
        told = self._coming.popleft()
        self._fabric.words += 1
        for heard in list(self._listeners.get(told.room_id, ())):
            heard(told)

    async def listen(self, room_id: str, heard: Callable[[Told | None], object]) -> Callable[[], object]:
        self._listeners.setdefault(room_id, []).append(heard)

        def end() -> None:
            self._listeners[room_id].remove(heard)
            if not self._listeners[room_id]:
                del self._listeners[room_id]

        return end

    def everybody(self) -> list[str]:
        return [each for each in self._seen if each != self.boot]


def _carried(record: T) -> T:
    """Return what comes out at the other end."""
    return RECORDS.decode(RECORDS.encode(record))  # type: ignore[arg-type, return-value]


def _owner(room_id: str, boots: Iterable[str]) -> str:
    return max(boots, key=lambda boot: hashlib.blake2b(f"{room_id} {boot}".encode()).digest())


def room_of(boot: str, *others: str, number: int = 0) -> str:
    """Return the id of a room that one of these nodes owns."""
    boots = [each.ljust(16, "0") for each in (boot, *others)]
    found = (f"room-{each}" for each in range(1000) if _owner(f"room-{each}", boots) == boots[0])
    return [next(found) for _ in range(number + 1)][-1]


@asynccontextmanager
async def nodes(
    *boots: str, seed: int = 0, options: Callable[[], dict[str, Any]] = dict, **alike: Any
) -> AsyncIterator[tuple[Fabric, list[Node]]]:
    """Run nodes that all see each other; `options` gives those of each, and `alike` are those of all."""
    alike.setdefault("rate_limit", UNLIMITED)
    fabric = Fabric(seed)
    found = [Node(fabric, boot, **(alike | options())) for boot in boots]
    fabric.see(*boots)
    try:
        yield fabric, found
    finally:
        for node in list(fabric.nodes.values()):
            await node.stop()
