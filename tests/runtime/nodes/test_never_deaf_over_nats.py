"""What happens to real servers and to the ways to them leaves no node deaf: it says so meanwhile, and catches up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import Chat, Gap, Message, RoomUnavailable
from chatx.cluster import nats_connection
from chatx.cluster.nats import NatsBackplane
from chatx.cluster.records import Records
from chatx.cluster.rpc import Refused
from chatx.cluster.tokens import room_token
from chatx.runtime.nodes import probe
from tests.cluster.links import WITHIN_S, until
from tests.forgetful import Forgetful
from tests.nats import NatsServer, server
from tests.runtime.nodes.test_never_deaf import readiness, room_of_another
from tests.runtime.nodes.test_nodes import boot_of

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with server("current", tmp_path_factory.mktemp("nats")) as running:
        yield running


class Pair:
    """Two nodes, and a room of the second that is read on the first, which reaches the broker by a proxy."""

    def __init__(self, chats: list[Chat], proxy: Forgetful) -> None:
        self.one, self.two = chats
        self.proxy = proxy
        self.room_id = room_of_another(chats, self.one)
        self.sent: list[Message] = []
        self.seen: list[Any] = []
        self.reads = asyncio.Event()

    async def read(self) -> None:
        """Read the room on the first node, and come back where it is told to."""
        while True:
            after = self.seen[-1] if self.seen else None
            with suppress(RoomUnavailable):
                async with self.one.subscribe(self.room_id, after=after) as reader:
                    self.reads.set()
                    async for event in reader:
                        self.seen.append(event)
            await asyncio.sleep(0.05)

    async def say(self, content: str) -> None:
        self.sent.append(await self.two.send_message(self.room_id, "ann", content))

    async def noticed(self) -> None:
        """Wait until the first node says that it is not ready; somebody talks meanwhile."""
        await self._while(lambda: readiness(self.one) == "ok")

    async def back(self, *, gaps: bool = False) -> None:
        """Wait until it is ready again and hears what is said, and all that was said is there, or a gap is told."""
        await self._while(lambda: readiness(self.one) != "ok")
        async with asyncio.timeout(60):
            while not self.seen or self.seen[-1] != self.sent[-1]:
                with suppress(RoomUnavailable):
                    await self.say("after")
                await asyncio.sleep(0.2)
        assert self.seen == self.sent or (gaps and any(isinstance(each, Gap) for each in self.seen))
        del self.seen[:-1], self.sent[:-1]

    async def _while(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while condition():
                with suppress(RoomUnavailable):  # where the broker is away from both
                    await self.say("meanwhile")
                await asyncio.sleep(0.05)


@asynccontextmanager
async def pair(broker: NatsServer) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Forgetful(broker.port).running())
        name = f"c{secrets.token_hex(4)}"
        chats = [
            Chat(
                cluster_strategy="pg",
                cluster_url=f"nats://{broker.user}:{broker.password}@127.0.0.1:{port}",
                cluster_name=name,
                node_name=node,
                middlewares=(),
            )
            for node, port in (("one", proxy.port), ("two", broker.port))
        ]
        await asyncio.gather(*(stack.enter_async_context(chat) for chat in chats))
        await until(lambda: all(chat.statistics().nodes["up"] == 2 for chat in chats))
        found = Pair(chats, proxy)
        reading = asyncio.ensure_future(found.read())
        try:
            await found.reads.wait()
            await found.say("before")
            yield found
        finally:
            reading.cancel()


async def test_whatever_happens_to_the_way_between_is_told_and_what_was_missed_is_caught_up(
    broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_connection, "WAITING_MESSAGES", 64)
    async with pair(broker) as nodes:
        stranger = NatsBackplane("0" * 16, replace(broker.options(), cluster=nodes.one.config.cluster_name))
        await stranger.connect()
        topic = f"live.{room_token(nodes.room_id)}"
        # Words that are none, and more of them than are taken in time.
        for count in (1, 20_000):
            for number in range(count):
                for each in (topic, "hb") if count == 1 else (topic,):
                    stranger.publish(each, b"nothing")
                if number % 1000 == 0:
                    await nodes.say("meanwhile")
            answer = Records().decode(await stranger.request(boot_of(nodes.one), b"nothing", WITHIN_S))
            assert isinstance(answer, Refused)
            await nodes.back()
        assert readiness(nodes.one) == "ok"
        await stranger.close()

        nodes.proxy.swallows = True
        await nodes.noticed()
        nodes.proxy.swallows = False
        await nodes.back()

        live = f"cx.{nodes.one.config.cluster_name}.live.>"
        configure(broker, f"subscribe: {{ deny: '{live}' }}")
        await nodes.noticed()
        configure(broker, "subscribe: '>'")
        await nodes.back(gaps=True)  # the room's owner was away from the others for so long that it may have moved

        broker.kill()
        await nodes.noticed()
        broker.start()
        await nodes.back(gaps=True)
        assert nodes.one.statistics().deafnesses == 0  # all of it was told


def configure(broker: NatsServer, permissions: str) -> None:
    """Have a running server let its user do this."""
    user = f"user: {broker.user}, password: {broker.password}, permissions: {{ {permissions} }}"
    broker.configure(f"authorization {{ users: [{{ {user} }}] }}")
    broker.reload()


async def test_a_subscription_that_the_server_has_forgotten_is_missed_and_made_again(
    broker: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.3)
    async with pair(broker) as nodes:
        ways: list[Callable[[str], bool]] = [
            lambda subject: subject.endswith(".hb"),
            lambda subject: subject.endswith(".rpc"),
            lambda subject: ".in." in subject,
            lambda subject: ".live." in subject,
        ]
        for way in ways:
            assert nodes.proxy.forget(way)
            await nodes.noticed()
            await nodes.back()
        # One room alone: what is said there is had nevertheless, and then it is heard again.
        topic = f".live.{room_token(nodes.room_id)}"
        assert nodes.proxy.forget(lambda subject: subject.endswith(topic)) == 1
        async with asyncio.timeout(60):
            while not any(subject.endswith(topic) for subject in nodes.proxy.subjects):
                await nodes.say("meanwhile")
                await asyncio.sleep(0.2)
        await nodes.back()
        assert nodes.one.statistics().deafnesses >= 2
        assert nodes.two.statistics().deafnesses == nodes.two.statistics().links_lost == 0
