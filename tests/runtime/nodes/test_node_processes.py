"""Nodes as processes, over a real broker: `chatx serve` three times, and clients of the wire on each."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat
from chatx.cli.cluster import heard
from chatx.cluster.backplane import BackplaneAway
from chatx.cluster.placement import Placement, Seat, View
from chatx.config import ChatConfig
from tests import process
from tests.gateway.real_client import RealClient, real_client, until
from tests.nats import NatsServer, server
from tests.postgres import Postgres
from tests.process import Served, freeze

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

NAMES = ("node-a", "node-b", "node-c")


class Cluster:
    """Three nodes on one broker.

    Attributes:
        room: A room that no test before was in.
    """

    def __init__(self, broker: NatsServer, stack: ExitStack, **variables: str) -> None:
        self.broker = broker
        self.room = "general"
        self.nodes: dict[str, Served] = {}
        self.url = f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}"
        for name in NAMES:
            self.nodes[name] = stack.enter_context(
                process.serve(
                    "--insecure-user-param",
                    CHATX_CLUSTER_STRATEGY="pg",
                    CHATX_CLUSTER_URL=self.url,
                    CHATX_CLUSTER_NAME="test",
                    CHATX_NODE_NAME=name,
                    **variables,
                )
            )

    async def begin_anew(self, room: str) -> None:
        """Have all of it there for the next test, whatever the one before did."""
        self.room = room
        for node in self.nodes.values():
            if node.process.poll() is not None:
                node.restart()
        await self.agree()

    async def agree(self) -> None:
        """Wait until all nodes are up and see each other.

        What an owner acknowledges in the moment in which it is cut off may be lost with `pg`, and another one begins
        the room anew: each is told, and neither is what these tests are about.
        """
        config = ChatConfig(cluster_strategy="pg", cluster_url=self.url, cluster_name="test")
        async with asyncio.timeout(60):
            while True:
                with suppress(BackplaneAway):
                    up = [each for each in await heard(config) if each.state == "up"]
                    if len(up) == len(NAMES) and len({each.view for each in up}) == 1:
                        return

    def owner(self) -> str:
        """Return which node has the room."""
        seat = Placement(View.of(Seat(name, name) for name in NAMES)).owner(self.room)
        assert seat is not None
        return seat.node


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with server("current", tmp_path_factory.mktemp("cluster")) as broker, ExitStack() as stack:
        yield Cluster(broker, stack)


@pytest.fixture
async def cluster(running: Cluster, request: pytest.FixtureRequest) -> Cluster:
    await running.begin_anew(request.node.name)
    return running


class Member:
    """A client of the wire that does what phoenix.js does: joins again when its room goes, from where it stands."""

    def __init__(self, client: RealClient, room: str) -> None:
        self.client = client
        self.topic = f"room:{room}"
        self.seen: list[dict[str, Any]] = []
        self._read = 0

    async def join(self) -> dict[str, Any]:
        """Join, again and again while the room's owner cannot be reached; return the answer."""
        place = {"epoch": self.seen[-1]["epoch"], "offset": self.seen[-1]["offset"]} if self.seen else {}
        async with asyncio.timeout(60):
            while True:
                reply = await self._asked("phx_join", place)
                if reply["status"] == "ok":
                    answer: dict[str, Any] = reply["response"]
                    if self.seen and not answer["recovered"]:
                        # It was told of a gap: the room has begun anew, and it loads what was said since.
                        page = await self._asked("history", {"limit": 50})
                        known = {each["id"] for each in self.seen}
                        self.seen += [each for each in page["response"]["messages"] if each["id"] not in known]
                    return answer
                await asyncio.sleep(0.2)

    async def send(self, content: str, **more: Any) -> dict[str, Any]:
        """Send, again and again under one key while that is refused for now; return the answer."""
        async with asyncio.timeout(60):
            while True:
                reply = await self._asked("new_message", {"content": content, "key": content} | more)
                if reply["status"] == "ok" or reply["response"].get("code") == "epoch_changed":
                    response: dict[str, Any] = reply["response"]
                    return response
                if reply["response"].get("reason") == "unmatched topic":
                    await self.join()
                await asyncio.sleep(0.2)

    async def sees(self, *contents: str) -> None:
        """Wait until messages have come."""
        while not {*contents} <= {each["content"] for each in self.seen}:
            await self._take()

    async def falls_out(self) -> None:
        """Wait until the room goes."""
        while not self._gone:
            await self._take(rejoins=False)

    _gone = False

    async def _take(self, *, rejoins: bool = True) -> None:
        frames = self.client.received
        if self._read == len(frames):
            count = len(frames)
            await self.client.wait_for(lambda _: len(frames) > count)
        frame = frames[self._read]
        self._read += 1
        if frame.event == "new_message" and frame.payload["id"] not in {each["id"] for each in self.seen}:
            self.seen.append(frame.payload)
        elif frame.event == "phx_error":
            self._gone = True
            if rejoins:
                await self.join()

    async def _asked(self, event: str, payload: dict[str, Any]) -> dict[str, Any]:
        ref = await self.client.push(self.topic, event, payload)
        if event == "phx_join":
            self._gone = False
        reply = await self.client.wait_for(lambda each: each.event == "phx_reply" and each.ref == ref)
        answer: dict[str, Any] = reply.payload
        return answer

    @property
    def places(self) -> list[tuple[str, int, str]]:
        return [(each["epoch"], each["offset"], each["content"]) for each in self.seen]


async def in_the_room(stack: AsyncExitStack, cluster: Cluster, *names: str) -> dict[str, Member]:
    """Return a member on each of these nodes."""
    members = {}
    for name in names:
        client = await stack.enter_async_context(real_client(cluster.nodes[name].port, f"user-{name}"))
        members[name] = Member(client, cluster.room)
        await members[name].join()
    return members


async def all_talk(members: dict[str, Member], when: str) -> None:
    """Let each say something, and all see all of it, in one order."""
    contents = [f"{when} {name}" for name in members]
    for member, content in zip(members.values(), contents, strict=True):
        await member.send(content)
    for member in members.values():
        await member.sees(*contents)
    told = [[each for each in member.places if each[2] in contents] for member in members.values()]
    assert all(each == told[0] for each in told)


async def test_a_room_is_one_on_three_nodes(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        members = await in_the_room(stack, cluster, *NAMES)
        for number in range(10):
            await all_talk(members, f"{number}")
        for member in members.values():
            assert [offset for _, offset, _ in member.places] == list(range(1, 31))
        state = await members["node-c"].client.wait_for(lambda each: each.event == "presence_state")
        assert {*state.payload} == {f"user-{name}" for name in NAMES}


async def test_whoever_is_revoked_on_one_node_is_out_on_all(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        here = Chat(cluster_strategy="pg", cluster_url=cluster.url, cluster_name="test", node_name="here")
        await stack.enter_async_context(here)
        await until(lambda: here.statistics().nodes["up"] == 4)
        eves = [
            await stack.enter_async_context(real_client(cluster.nodes[name].port, "eve")) for name in (*NAMES, "node-a")
        ]
        members = await in_the_room(stack, cluster, "node-b", "node-c")
        for eve in eves:
            await Member(eve, cluster.room).join()
        assert await here.revoke("eve") == 0  # of hers there is nothing on this node
        # "Within a second" is what is promised; that no node needs more than being told is what can be held here.
        async with asyncio.timeout(10):
            for eve in eves:
                await eve.connection.wait_closed()
                assert eve.connection.close_code == 4003
            while "eve" in await here.presence(cluster.room):  # noqa: ASYNC110  # told a round trip later
                await asyncio.sleep(0.01)
        await all_talk(members, "after")


async def test_when_the_owner_is_killed_the_room_goes_on_in_another_epoch_and_all_are_told(cluster: Cluster) -> None:
    owner = cluster.owner()
    async with AsyncExitStack() as stack:
        others = [name for name in NAMES if name != owner]
        members = await in_the_room(stack, cluster, *others)
        await all_talk(members, "before")
        hasty = (await in_the_room(stack, cluster, others[0]))[others[0]]
        epoch = (await hasty.send("once"))["epoch"]
        cluster.nodes[owner].kill()
        # Had its answer been lost, it would send again, at once: nobody has told it yet.
        assert (await hasty.send("once", epoch=epoch))["code"] == "epoch_changed"
        for member in members.values():
            await member.falls_out()
            answer = await member.join()
            assert (answer["recovered"], answer["reason"]) == (False, "epoch_changed")
        await all_talk(members, "after")
        for member in members.values():
            assert len({epoch for epoch, _, _ in member.places}) == 2
            assert [content for _, _, content in member.places].count("once") == 1
    cluster.nodes[owner].wait()


async def test_a_node_that_is_told_to_stop_hands_its_rooms_over_in_their_streams(cluster: Cluster) -> None:
    owner = cluster.owner()
    async with AsyncExitStack() as stack:
        members = await in_the_room(stack, cluster, *(name for name in NAMES if name != owner))
        await all_talk(members, "before")
        cluster.nodes[owner].process.send_signal(signal.SIGTERM)
        await all_talk(members, "after")
        for member in members.values():
            assert [offset for _, offset, _ in member.places] == [1, 2, 3, 4]
            assert len({epoch for epoch, _, _ in member.places}) == 1
    cluster.nodes[owner].wait()


@pytest.mark.parametrize("what", ["owner", "broker"])
async def test_what_freezes_and_goes_on_is_in_the_room_again(cluster: Cluster, what: str) -> None:
    owner = cluster.owner()
    async with AsyncExitStack() as stack:
        members = await in_the_room(stack, cluster, *NAMES)
        await all_talk(members, "before")
        with frozen(cluster, owner) if what == "owner" else cluster.broker.frozen():
            await asyncio.sleep(5)
        await cluster.agree()
        await all_talk(members, "after")


async def test_a_broker_that_is_killed_and_comes_back_loses_no_room(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        members = await in_the_room(stack, cluster, *NAMES)
        await all_talk(members, "before")
        cluster.broker.kill()
        node = cluster.nodes["node-b"]
        await until(lambda: ready(node) == (503, "away"))
        cluster.broker.start()
        await cluster.agree()
        await all_talk(members, "after")
        assert ready(node) == (200, "ok")


async def test_over_postgresql_nothing_stored_is_lost_when_its_owner_is_killed(
    tmp_path: Path, postgres: Postgres
) -> None:
    with server("current", tmp_path) as broker, ExitStack() as stack:
        cluster = Cluster(broker, stack, CHATX_STORE=postgres.new_database(), CHATX_DURABILITY="stored")
        owner = cluster.owner()
        async with AsyncExitStack() as clients:
            members = await in_the_room(clients, cluster, *(name for name in NAMES if name != owner))
            await all_talk(members, "before")
            talking = asyncio.gather(*(many(member, name) for name, member in members.items()))
            await asyncio.sleep(0.5)
            cluster.nodes[owner].kill()
            acknowledged = [content for contents in await talking for content in contents]
            for member in members.values():
                await member.sees(*acknowledged)
                assert len({epoch for epoch, _, _ in member.places}) == 1
                offsets = sorted(offset for _, offset, _ in member.places)
                assert offsets == list(range(1, len(offsets) + 1))
                contents = [content for _, _, content in member.places]
                assert len({*contents}) == len(contents)


async def many(member: Member, name: str) -> list[str]:
    """Send, each under a key of its own, until the owner has been gone for a while; return what was acknowledged."""
    contents = [f"{name} {number}" for number in range(60)]
    for content in contents:
        await member.send(content)
        await asyncio.sleep(0.03)
    return contents


@contextmanager
def frozen(cluster: Cluster, name: str) -> Iterator[None]:
    freeze(cluster.nodes[name].process.pid)
    try:
        yield
    finally:
        cluster.nodes[name].process.send_signal(signal.SIGCONT)


def ready(node: Served) -> tuple[int, str]:
    """Return what a node says of its readiness, and of the others."""
    try:
        with urllib.request.urlopen(f"{node.url}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)["nodes"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["nodes"]
