"""The log in JetStream on three servers: it keeps its contract, and its leader may go while it is appended to."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import pytest
from msgspec import json

from chatx.adapters.room_log import LogUnavailable
from chatx.cluster import jetstream
from chatx.cluster.backplane import BackplaneError
from chatx.cluster.jetstream import JetStream
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.cluster.nats import NatsBackplane
from chatx.testing import check_room_log
from tests.cluster.links import WITHIN_S, new_boot, until
from tests.cluster.owners import Owner, check
from tests.nats import NatsServer, program
from tests.process import free_port

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

NAMES = ("n0", "n1", "n2")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, NatsServer]]:
    """Three servers that are one JetStream."""
    folder = tmp_path_factory.mktemp("three")
    ports = [free_port() for _ in NAMES]
    routes = ", ".join(f"'nats://127.0.0.1:{port}'" for port in ports)
    with ExitStack() as stack:
        started: dict[str, NatsServer] = {}
        for name, port in zip(NAMES, ports, strict=True):
            own = folder / name
            own.mkdir()
            one = started[name] = NatsServer(
                program("current"),
                own,
                f"server_name: {name}",
                f"jetstream {{ store_dir: '{own}' }}",
                f"cluster {{ name: test, listen: '127.0.0.1:{port}', routes: [{routes}] }}",
                user=started["n0"] if started else None,
            )
            stack.callback(one.end)
        yield started
    shutil.rmtree(folder, ignore_errors=True)


class Node:
    """A node that reaches all three."""

    def __init__(self, servers: dict[str, NatsServer]) -> None:
        first = next(iter(servers.values()))
        self.link = NatsBackplane(new_boot(), first.options(*(each.url for each in servers.values())))
        self.stream = JetStream(self.link, "test", replicas=3)

    async def begin(self) -> None:
        """Connect, and have the stream as soon as the three have agreed on who leads them."""
        await self.link.connect(WITHIN_S)
        async with asyncio.timeout(WITHIN_S):
            while True:
                with suppress(BackplaneError):
                    await self.stream.ensure()
                    return
                await asyncio.sleep(0.1)

    async def asked(self, api: str) -> dict[str, Any]:
        """Return what is answered, as soon as somebody leads them."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                with suppress(BackplaneError):
                    content = await self.link.ask_broker(f"$JS.API.STREAM.{api}.CHATX_test", b"", 1)
                    answer: dict[str, Any] = json.decode(content)
                    if "error" not in answer:
                        return answer
                await asyncio.sleep(0.1)


async def goes_on(*owners: Owner) -> None:
    before = [len(each.acked) for each in owners]
    await until(lambda: all(len(each.acked) > count + 10 for each, count in zip(owners, before, strict=True)))


async def check_soon(stream: JetStream, room: str, *owners: Owner) -> None:
    """Check a room as soon as it can be read: a server that has just come back answers that it is not ready."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(BackplaneError, LogUnavailable):
                await check(stream, room, *owners)
                return
            await asyncio.sleep(0.1)


async def test_it_keeps_its_contract_and_loses_nothing_with_its_leader(
    servers: dict[str, NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Node(servers), Node(servers)
    async with AsyncExitStack() as stack:
        for node in one, two:
            stack.push_async_callback(node.link.close)
            with monkeypatch.context() as hurried:  # what is asked before there is a leader is not answered
                hurried.setattr(jetstream, "WORKS_WITHIN_S", 0.5)
                await node.begin()
        assert (await one.asked("INFO"))["config"]["num_replicas"] == 3
        await check_room_log(lambda: JetStreamLog(one.stream))

        monkeypatch.setattr(jetstream, "ANSWERS_WITHIN_S", 0.5)  # more of what nobody knows of, and sooner
        duel = [Owner(JetStreamLog(node.stream), "duel", name) for node, name in ((one, "a"), (two, "b"))]
        rooms = {f"room {number}": Owner(JetStreamLog(one.stream), f"room {number}") for number in range(4)}
        owners = [*duel, *rooms.values()]
        tasks = [asyncio.ensure_future(each.run()) for each in owners]
        stack.callback(lambda: [each.cancel() for each in tasks])
        await goes_on(*rooms.values())
        for turn in range(3):
            await two.asked("LEADER.STEPDOWN")
            duel[turn % 2].restart()
            await goes_on(duel[turn % 2], *rooms.values())
        leader = (await two.asked("INFO"))["cluster"]["leader"]
        servers[leader].kill()
        await goes_on(*rooms.values())
        assert (await two.asked("INFO"))["cluster"]["leader"] != leader
        servers[leader].start()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        monkeypatch.undo()
        await check_soon(two.stream, "duel", *duel)
        for room, owner in rooms.items():
            await check_soon(two.stream, room, owner)
