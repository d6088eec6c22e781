"""One schedule of faults between nodes, drawn from a seed, and a checker of what everybody saw.

A room has one entry at each place of an epoch, all readers see the same order, and presence is the same everywhere in
the end. Nobody gets the same twice, also where its sender had no answer and sent again. Without a crash nothing that
was acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from chatx import ChatError, EpochChanged, Gap, Message
from chatx.adapters.memory_log import MemoryLog
from tests.runtime.nodes.fabric import UNLIMITED, Fabric, Node, nodes, room_of


class Reader:
    """Somebody who reads a room on whatever node, and comes back from where they stand."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.gaps: list[Gap] = []
        self.place: Message | Gap | None = None

    async def read(self, at: Callable[[], Node], room: str) -> None:
        while True:
            with contextlib.suppress(ChatError):
                async with at().chat.subscribe(room, after=self.place) as events:
                    async for event in events:
                        if isinstance(event, Message):
                            self.seen.append(event)
                            self.place = event
                        elif isinstance(event, Gap):
                            self.gaps.append(event)
                            self.place = event
            await asyncio.sleep(0.05)


class Play:
    """One schedule."""

    def __init__(self, seed: int, *, crashes: bool, durability: str | None = None) -> None:
        """`durability` is that of a log which all nodes share; None is no log."""
        self.random = random.Random(seed)
        self.seed = seed
        self.kinds = ["lose", "cut", "come", "crash" if crashes else "lose"]
        # What is stored outlives a crash, and so does the stream.
        self.loses = crashes and durability != "stored"
        self.options: dict[str, Any] = {"rate_limit": UNLIMITED}
        if durability is not None:
            self.options |= {"persistence": MemoryLog(), "durability": durability}
        self.settled = False
        self.acked: list[Message] = []
        self.unknown: set[str] = set()
        self.readers = [Reader() for _ in range(4)]
        self.room = room_of("a", "b", "c", number=seed % 3)

    def node_options(self) -> dict[str, Any]:
        """Return the options of one more node."""
        return self.options

    def somebody(self, fabric: Fabric) -> Node:
        return self.random.choice(list(fabric.nodes.values()))

    async def __call__(self) -> None:
        async with nodes("a", "b", "c", seed=self.seed, options=self.node_options) as (fabric, _):
            reading = [
                asyncio.create_task(each.read(lambda: self.somebody(fabric), self.room)) for each in self.readers
            ]
            members = [asyncio.create_task(self.be_there(fabric, f"user-{number}")) for number in range(3)]
            await asyncio.sleep(0.5)
            # From here on each reader stands at a place.
            self.acked.append(await self.somebody(fabric).chat.send_message(self.room, "first", "first"))
            await asyncio.sleep(0.5)
            sending = [asyncio.create_task(self.send(fabric, f"user-{number}")) for number in range(3)]
            await self.faults(fabric)
            await asyncio.gather(*sending)
            self.settled = True  # from here on whoever is there stays
            await asyncio.sleep(8)
            self.check_messages()
            await self.check_presence(fabric)
            for task in (*reading, *members):
                task.cancel()
            await asyncio.gather(*reading, *members, return_exceptions=True)

    async def send(self, fabric: Fabric, user: str) -> None:
        for number in range(12):
            key = f"{user} {number}"
            epoch = None
            for _ in range(40):
                known = self.acked[-1].epoch
                try:
                    chat = self.somebody(fabric).chat
                    sent = await chat.send_message(self.room, user, key, idempotency_key=key, epoch=epoch)
                    self.acked.append(sent)
                    break
                except EpochChanged:
                    self.unknown.add(key)
                    break
                except ChatError:
                    epoch = epoch or known  # it may be there
                await asyncio.sleep(0.2)
            await asyncio.sleep(self.random.random() / 5)

    async def be_there(self, fabric: Fabric, user: str) -> None:
        while True:
            with contextlib.suppress(ChatError, TimeoutError):
                async with (
                    asyncio.timeout(None if self.settled else self.random.random() * 2),
                    self.somebody(fabric).chat.connect(user) as connection,
                ):
                    await connection.join(self.room)
                    await connection.subscribe(self.room)
                    async for event in connection:
                        if not isinstance(event, Message):
                            break
            await asyncio.sleep(0.05)

    async def faults(self, fabric: Fabric) -> None:
        for _ in range(self.random.randrange(1, 5)):
            await asyncio.sleep(self.random.random() / 2)
            await self.fault(self.random.choice(self.kinds), fabric)

    async def fault(self, what: str, fabric: Fabric) -> None:
        if what == "lose":
            fabric.lossy = self.random.choice([0.1, 0.5, 1.0])
            await asyncio.sleep(self.random.random())
            fabric.lossy = 0.0
        elif what == "cut":
            one, other = self.random.sample(sorted(fabric.nodes), 2)
            fabric.cut.add((one, other))
            if self.random.random() < 0.5:
                fabric.cut.add((other, one))
            await asyncio.sleep(self.random.random())
            fabric.cut.clear()
        elif what == "come" and len(fabric.nodes) < 5:
            come = Node(fabric, f"n{self.random.randrange(10**6)}", **self.node_options())
            come.see(*sorted(fabric.nodes))  # it serves nobody before
            await self.see_each_other(fabric)
        elif what == "crash" and len(fabric.nodes) > 2:
            gone, other = self.random.sample(sorted(fabric.nodes), 2)
            if self.random.random() < 0.5:  # what it had to answer to another one goes with it
                fabric.cut.add((gone, other))
                await asyncio.sleep(self.random.random() / 2)
            await fabric.nodes[gone].crash()
            await self.see_each_other(fabric)

    async def see_each_other(self, fabric: Fabric) -> None:
        """Let each node learn of the others at a moment of its own."""
        for boot in self.random.sample(sorted(fabric.nodes), len(fabric.nodes)):
            if boot in fabric.nodes:
                fabric.nodes[boot].see(*sorted(fabric.nodes))
            await asyncio.sleep(self.random.random() / 20)
        fabric.see(*sorted(fabric.nodes))

    def check_messages(self) -> None:
        places: dict[tuple[str, int], str] = {}
        for reader in self.readers:
            last: Message | None = None
            assert len({each.id for each in reader.seen}) == len(reader.seen), "something came twice"
            assert len({each.content for each in reader.seen}) == len(reader.seen), "doubled"
            for each in reader.seen:
                assert places.setdefault((each.epoch, each.offset), each.id) == each.id, "two at one place"
                if last is not None and last.epoch == each.epoch:
                    assert each.offset == last.offset + 1, "a hole without a gap"
                last = each
        if self.loses:
            return
        wanted = {each.id for each in self.acked}
        assert len(self.acked) == 37, "a send that never came through"
        for reader in self.readers:
            assert not reader.gaps
            assert wanted <= {each.id for each in reader.seen}, "acknowledged and not seen"
        assert {each.content for each in self.acked} == {each.content for each in self.readers[0].seen}
        assert len(self.readers[0].seen) == 37, "doubled"

    async def check_presence(self, fabric: Fabric) -> None:
        wanted = {f"user-{number}" for number in range(3)}
        pictures = [await each.chat.presence(self.room) for each in fabric.nodes.values()]
        for picture in pictures:
            assert set(picture) == wanted
            assert all(len(metas) == 1 for metas in picture.values())
        as_sets = [{meta.ref for metas in each.values() for meta in metas} for each in pictures]
        assert all(each == as_sets[0] for each in as_sets)
