"""What happens to real servers: nobody stays deaf, and the callbacks say what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from chatx.cluster import nats_connection
from chatx.cluster.backplane import BackplaneAway, BackplaneFull, NoReply
from chatx.cluster.nats import NatsBackplane
from chatx.cluster.nats_options import NatsOptions
from tests.cluster.links import WITHIN_S, Told, hears, linked, new_boot, until
from tests.nats import NatsServer, Proxy, no_such_server

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(120)]


class Node:
    """A link, what it was told, and what it has heard on the topic `t`."""

    def __init__(self, link: NatsBackplane) -> None:
        self.link = link
        self.told = Told(link)
        self.heard: list[bytes] = []

    async def gone_and_back(self, other: Node) -> None:
        """Wait until the link went and came back once, and hears the other again, by topic and by request."""
        await self.told.until(lambda: self.told.states[-1:] == ["connected"] and "away" in self.told.states)
        assert self.told.states == ["connected", "away", "connected"]
        await hears(other.link, "t", self.heard)
        await until(lambda: other.link.state == "connected")
        assert self.told.missed == [None]
        assert await other.link.request(self.link.boot, b"x", WITHIN_S) == b"x"


async def echo(payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def two_nodes(server: NatsServer, *servers: str) -> AsyncIterator[tuple[Node, Node]]:
    """Have two nodes, the first one by these URLs."""
    nodes: list[Node] = []

    def make(boot: str) -> NatsBackplane:
        nodes.append(Node(NatsBackplane(boot, server.options(*(() if nodes else servers)))))
        return nodes[-1].link

    async with linked(make, 2):
        for each in nodes:
            await each.link.subscribe("t", each.heard.append)
            await each.link.serve(echo)
        yield nodes[0], nodes[1]


@pytest.mark.parametrize("end", [NatsServer.stop, NatsServer.kill])
async def test_a_server_that_ends_and_starts_again(own_nats: NatsServer, end: Callable[[NatsServer], None]) -> None:
    async with two_nodes(own_nats) as (one, two):
        end(own_nats)
        await until(lambda: one.link.state == two.link.state == "away")
        with pytest.raises(BackplaneAway, match="NATS is away: nats://127"):
            one.link.publish("t", b"refused")
        with pytest.raises(BackplaneAway):
            await one.link.request(two.link.boot, b"", WITHIN_S)
        # What is subscribed now begins with the link, and what ends now does not.
        early: list[bytes] = []
        never: list[bytes] = []
        await one.link.subscribe("t", early.append)
        (await one.link.subscribe("t", never.append)).end()
        own_nats.start()
        await one.gone_and_back(two)
        await two.gone_and_back(one)
        await hears(two.link, "t", early)
        assert b"refused" not in two.heard
        assert not never


async def test_a_server_that_freezes_is_noticed_while_it_is_frozen(own_nats: NatsServer) -> None:
    async with two_nodes(own_nats) as (one, two):
        asking = asyncio.ensure_future(one.link.request(one.link.boot, b"x", WITHIN_S))
        assert await asking == b"x"
        with own_nats.frozen():
            waiting = asyncio.ensure_future(one.link.request(two.link.boot, b"", 3600))
            await asyncio.sleep(0)
            with pytest.raises(BackplaneFull):
                while True:
                    one.link.publish("t", b"x" * 100_000)
                    await asyncio.sleep(0)
            await until(lambda: one.link.state == two.link.state == "away")
            with pytest.raises(NoReply, match="lost"):
                await waiting
            with pytest.raises(BackplaneAway):
                one.link.publish("t", b"refused")
            # The kernel takes connections for it still, and that is no server.
            await asyncio.sleep(nats_connection.CONNECTS_WITHIN_S)
            assert one.link.state == "away"
        await one.gone_and_back(two)
        await two.gone_and_back(one)


async def test_a_node_that_is_cut_off_in_silence_notices_and_the_others_go_on(current_nats: NatsServer) -> None:
    async with Proxy(current_nats.port).running() as proxy, two_nodes(current_nats, proxy.url) as (one, two):
        proxy.swallows = True
        await until(lambda: one.link.state == "away")
        two.link.publish("t", b"missed")
        await until(lambda: b"missed" in two.heard)
        proxy.swallows = False
        await one.gone_and_back(two)
        assert two.told.states == ["connected"]
        assert b"missed" not in one.heard
        proxy.cut()
        await until(lambda: one.told.states[2:] == ["connected", "away", "connected"])
        await hears(two.link, "t", one.heard)
        assert one.told.missed == [None, None]


async def test_of_several_servers_one_is_enough(current_nats: NatsServer) -> None:
    async with two_nodes(current_nats, no_such_server(), current_nats.url) as (one, two):
        await hears(two.link, "t", one.heard)
        current_nats.kill()
        await until(lambda: one.link.state == "away")
        current_nats.start()
        await one.gone_and_back(two)


async def test_a_server_that_throws_a_node_out_is_asked_again(own_nats: NatsServer) -> None:
    async with two_nodes(own_nats) as (one, two):
        own_nats.configure("authorization { user: somebody, password: else }")
        own_nats.reload()
        await until(lambda: one.link.state == two.link.state == "away")
        own_nats.configure(f"authorization {{ user: {own_nats.user}, password: {own_nats.password} }}")
        own_nats.reload()
        await one.gone_and_back(two)
        await two.gone_and_back(one)


async def test_a_subscription_that_is_too_slow_is_told_and_goes_on(
    current_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_connection, "WAITING_MESSAGES", 8)
    async with two_nodes(current_nats) as (one, two):
        slow: list[bytes] = []
        await one.link.subscribe("slow", slow.append)
        for _ in range(20):
            for _ in range(1000):
                two.link.publish("slow", b"x")
            await asyncio.sleep(0.01)
        await until(lambda: "slow" in one.told.missed)
        await hears(two.link, "slow", slow)
        assert slow.count(b"x") < 20_000
        assert set(one.told.missed) == {"slow"}
        assert one.told.states == ["connected"]


async def test_a_server_that_is_not_there_or_refuses_is_told_without_secrets(current_nats: NatsServer) -> None:
    nobody = NatsBackplane(new_boot(), current_nats.options(no_such_server()))
    with pytest.raises(BackplaneAway, match=r"not reached within 0\.5 s: nats://127.*Connect call failed"):
        await nobody.connect(0.5)
    url = current_nats.url.replace("//", "//stranger:secret@")
    stranger = NatsBackplane(new_boot(), NatsOptions(servers=(url,)))
    with pytest.raises(BackplaneAway, match="Authorization Violation") as caught:
        await stranger.connect(1)
    assert "secret" not in str(caught.value)
    current_nats.stop()
    link = NatsBackplane(new_boot(), current_nats.options())
    with pytest.raises(BackplaneAway):
        await link.connect(0.5)
    current_nats.start()
    await link.connect(WITHIN_S)
    assert link.state == "connected"
    await link.close()


async def test_a_server_that_takes_too_little_is_refused(current_nats: NatsServer) -> None:
    current_nats.stop()
    current_nats.configure("max_payload: 1000")
    current_nats.start()
    link = NatsBackplane(new_boot(), current_nats.options())
    with pytest.raises(BackplaneAway, match="max_payload is 1000 bytes"):
        await link.connect(2)


async def test_a_connect_that_is_called_off_leaves_nothing(own_nats: NatsServer) -> None:
    with own_nats.frozen():
        link = NatsBackplane(new_boot(), own_nats.options())
        connecting = asyncio.ensure_future(link.connect(WITHIN_S))
        await asyncio.sleep(0.1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    assert len(asyncio.all_tasks()) == 1


async def test_a_link_that_is_lost_is_a_warning_and_one_that_is_closed_is_none(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chatx")

    def aways() -> list[str]:
        return [each.levelname for each in caplog.records if getattr(each, "code", None) == "link_away"]

    async with linked(lambda boot: NatsBackplane(boot, own_nats.options()), 1):
        pass
    assert aways() == ["INFO"]
    caplog.clear()
    async with linked(lambda boot: NatsBackplane(boot, own_nats.options()), 1) as (link,):
        own_nats.kill()
        await until(lambda: link.state == "away")
    assert aways() == ["WARNING"]
