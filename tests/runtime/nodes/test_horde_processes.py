"""What `horde` promises, with real nodes on real brokers: three processes, twelve clients who talk, and faults.

`LONG=1` draws faults for ten minutes, or `LONG_S=` seconds; `SEED=` says which.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from chatx import Message
from chatx.adapters.postgres_log import PostgresLog
from chatx.cli.cluster import heard
from chatx.cluster.backplane import BackplaneAway
from chatx.cluster.placement import Placement, Seat, View
from chatx.config import ChatConfig
from tests import process
from tests.nats import NatsServer, Proxy, server
from tests.postgres import Postgres
from tests.process import Served, freeze
from tests.runtime.nodes.talkers import Talker, check

pytestmark = [pytest.mark.process, pytest.mark.timeout(900 if os.environ.get("LONG") else 180)]

NAMES = ("node-a", "node-b", "node-c")
ROOMS = ("r1", "r2", "r3", "r4")

LONG_S = float(os.environ.get("LONG_S", "600"))
"""How long faults are drawn with `LONG=1`, in seconds."""


class Horde:
    """Three nodes on one broker, the last of them behind a proxy, and twelve who talk on them."""

    def __init__(self, broker: NatsServer, proxy: Proxy, variables: dict[str, Any]) -> None:
        self.broker = broker
        self.proxy = proxy
        self._variables = variables
        self.nodes: dict[str, Served] = {}
        self.talkers: list[Talker] = []
        self.reading: list[threading.Thread] = []
        self._turns = itertools.count()

    def url(self, port: int) -> str:
        return f"nats://{self.broker.user}:{self.broker.password}@127.0.0.1:{port}"

    def start(self, name: str) -> Served:
        """Begin a node."""
        served = process.Served(
            "serve",
            process.free_port(),
            "--insecure-user-param",
            CHATX_CLUSTER_STRATEGY="horde",
            CHATX_CLUSTER_URL=self.url(self.proxy.port if name == NAMES[-1] else self.broker.port),
            CHATX_CLUSTER_NAME="test",
            CHATX_NODE_NAME=name,
            **self._variables,
        )
        self.read_on(served)
        return served

    def read_on(self, node: Served) -> None:
        """Have what a node writes read: one whose pipe is full stands still."""
        output = node.process.stdout
        assert output is not None

        def read() -> None:
            with output:
                for line in output:
                    print(f"{node.port}: {line}", end="", file=sys.stderr)

        reading = threading.Thread(target=read)
        reading.start()
        self.reading.append(reading)

    def port(self) -> int:
        """Return the port of one node after the other."""
        return self.nodes[NAMES[next(self._turns) % len(NAMES)]].port

    def owner(self, room: str) -> Served:
        seat = Placement(View.of(Seat(name, name) for name in NAMES)).owner(room)
        assert seat is not None
        return self.nodes[seat.node]

    async def view(self) -> set[tuple[str, str]]:
        """Return the names of the nodes that are up, and the view that each has."""
        config = ChatConfig(cluster_strategy="pg", cluster_url=self.url(self.broker.port), cluster_name="test")
        with suppress(BackplaneAway):
            up = [each for each in await heard(config) if each.state == "up"]
            assert {each.strategy for each in up} <= {"horde"}
            return {(each.node, each.view) for each in up}
        return set()

    async def agree(self, count: int = len(NAMES)) -> None:
        """Wait until so many nodes are up and see each other, and nobody else."""
        async with asyncio.timeout(60):
            while len(view := await self.view()) != count or len({each for _, each in view}) != 1:
                pass

    async def talk(self) -> None:
        """Wait until everybody has been answered twice more."""
        counts = [len(each.acked) for each in self.talkers]
        async with asyncio.timeout(60):
            while any(  # noqa: ASYNC110  # there is no event for it
                len(each.acked) <= count + 1 for each, count in zip(self.talkers, counts, strict=True)
            ):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def horde(which: str, folder: Path, **variables: str) -> AsyncIterator[Horde]:
    """Run one; what was said is checked at the end of the block."""
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(server(which, folder, jetstream=True))
        running = Horde(broker, await stack.enter_async_context(Proxy(broker.port).running()), variables)
        try:
            running.nodes = {name: running.start(name) for name in NAMES}
            for node in running.nodes.values():
                await asyncio.to_thread(node.wait_until_it_answers)
            await running.agree()
            running.talkers = [
                Talker(room, f"{room}-user-{number}", running.port) for room in ROOMS for number in range(3)
            ]
            await running.talk()
            yield running
            await asyncio.gather(*(each.be_quiet() for each in running.talkers))
            count = await check(running.talkers)
            stall_s = max(each.stall_s for each in running.talkers)
            print(f"{count} messages, the longest stall {stall_s:.1f} s")
        finally:
            for each in running.talkers:
                await each.end()
            for node in running.nodes.values():
                if node.process.poll() is None:
                    node.kill()
                    node.process.wait()
            for reading in running.reading:
                reading.join(10)


async def kill_the_owner(running: Horde) -> None:
    """End it as the kernel would, and begin it anew once it is missed."""
    node = running.owner(ROOMS[0])
    node.kill()
    assert node.process.wait(timeout=20) == -signal.SIGKILL
    await running.agree(2)
    await running.talk()
    await begin_again(running, node)


async def freeze_the_owner(running: Horde) -> None:
    """Have it stand still until the others have its rooms."""
    node = running.owner(ROOMS[1])
    freeze(node.process.pid)
    try:
        await running.agree(2)
    finally:
        node.process.send_signal(signal.SIGCONT)
    await running.agree()


async def drain_the_owner(running: Horde) -> None:
    """Have it stop as its operator would, and begin it anew."""
    node = running.owner(ROOMS[2])
    node.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(node.process.wait, 20) == 0
    await running.talk()
    await begin_again(running, node)


async def kill_the_broker(running: Horde) -> None:
    """End it as the kernel would, and begin it anew on its data."""
    running.broker.kill()
    await asyncio.sleep(2)
    assert not await running.view()
    running.broker.start()
    await running.agree()


async def cut_one_off(running: Horde) -> None:
    """Have nothing come through between a node and the broker, until the others have its rooms."""
    running.proxy.swallows = True
    try:
        await running.agree(2)
    finally:
        running.proxy.swallows = False
        running.proxy.cut()
    await running.agree()


async def begin_again(running: Horde, node: Served) -> None:
    node.begin_again()
    running.read_on(node)
    await asyncio.to_thread(node.wait_until_it_answers)
    await running.agree()


Fault: TypeAlias = Callable[[Horde], Coroutine[Any, Any, None]]

FAULTS: tuple[Fault, ...] = (kill_the_owner, freeze_the_owner, drain_the_owner, kill_the_broker, cut_one_off)


async def test_nothing_acknowledged_is_lost_whatever_happens(tmp_path: Path) -> None:
    async with horde("current", tmp_path) as running:
        for fault in FAULTS:
            await fault(running)
            await running.talk()


async def test_a_store_behind_the_log_of_an_old_server_gets_all_of_it(tmp_path: Path, postgres: Postgres) -> None:
    store = postgres.new_database()
    async with horde("debian", tmp_path, CHATX_STORE=store) as running:
        await kill_the_owner(running)
        await kill_the_broker(running)
        await running.talk()
        await asyncio.gather(*(each.be_quiet() for each in running.talkers))
        kept = PostgresLog(store)
        for room in ROOMS:
            said = {content: each["id"] for talker in running.talkers for content, each in talker.acked.items()}
            said = {content: each for content, each in said.items() if content.startswith(f"{room}-")}
            async with asyncio.timeout(30):
                while len(found := (await kept.read(room, limit=10_000)).entries) < len(said):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert {each.content: each.id for each in found if isinstance(each, Message)} == said
            assert [each.offset for each in found] == list(range(1, len(found) + 1))
        await kept.close()


@pytest.mark.skipif(not os.environ.get("LONG"), reason="it takes ten minutes; LONG=1 runs it")
async def test_nothing_acknowledged_is_lost_in_a_long_time(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    async with horde("current", tmp_path) as running:
        until = asyncio.get_running_loop().time() + LONG_S
        while asyncio.get_running_loop().time() < until:
            fault = chance.choice(FAULTS)
            print(fault.__name__, flush=True)
            await fault(running)
            await running.talk()
            await asyncio.sleep(chance.random() * 2)
