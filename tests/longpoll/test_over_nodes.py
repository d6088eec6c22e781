"""A client that polls, whose requests reach another node than the one that holds its session."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from chatx.cluster.polling import Poll, Polled, PollEnded, Post, Posted
from chatx.cluster.rpc import Answer, Ask
from chatx.gateway.longpoll.app import POLL_S
from chatx.gateway.longpoll.held import MAX_POSTS
from chatx.gateway.longpoll.outbox import BATCH_BYTES
from chatx.gateway.longpoll.poller import ABANDONED_S, CUT_OFF_S
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY
from chatx.gateway.wire.posts import MAX_POST_BYTES
from chatx.runtime.nodes.polling import LEFT_S
from tests.gateway.real_client import until
from tests.gateway.servers import named
from tests.longpoll.node import node_client
from tests.longpoll.polling import Call, PollingClient, Reply, inside
from tests.process import free_port
from tests.runtime.nodes.fabric import Fabric, Node, nodes, room_of
from tests.virtual import virtual

NAMES = ("a", "b", "c")


class Balancer:
    """Gives each request to the next node."""

    def __init__(self, found: list[Node]) -> None:
        self.apps = [each.chat.asgi(authenticate=named) for each in found]
        self.turn = -1

    async def __call__(self, method: str, query: str, headers: dict[str, str], body: bytes) -> Reply:
        self.turn = (self.turn + 1) % len(self.apps)
        return await inside(self.apps[self.turn])(method, query, headers, body)

    def held(self, node: int) -> int:
        return len(self.apps[node]._longpoll)


@asynccontextmanager
async def balanced(**options: Any) -> AsyncIterator[tuple[Fabric, list[Node], Balancer]]:
    async with nodes(*NAMES, **options) as (fabric, found):
        yield fabric, found, Balancer(found)


@virtual
async def test_a_client_may_ask_any_node() -> None:
    async with balanced() as (_, found, balancer):
        room = room_of("b", "a", "c")
        ada = PollingClient(balancer)
        await ada.open()
        assert balancer.held(0) == 1
        await ada.join(f"room:{room}")
        for number in range(20):
            await found[number % 3].chat.send_message(room, "bob", f"{number}")
        ref = await ada.push(f"room:{room}", "new_message", {"content": "mine"})
        assert (await ada.answer(ref))[0] == "ok"
        await ada.poll_for(lambda frame: frame.event == "new_message" and frame.payload["content"] == "mine")
        contents = [each.payload["content"] for each in ada.frames if each.event == "new_message"]
        assert contents == [*map(str, range(20)), "mine"]
        assert [balancer.held(each) for each in range(3)] == [1, 0, 0]


@virtual
async def test_a_poll_on_another_node_is_woken_at_once() -> None:
    async with balanced() as (_, found, balancer):
        room = room_of("c", "a", "b")
        ada = PollingClient(balancer)
        await ada.open()
        await ada.join(f"room:{room}")
        while (await ada.poll()).status == 200:
            pass
        balancer.turn = 0  # the next one is not the holder
        poll = asyncio.create_task(ada.poll())
        await asyncio.sleep(1)
        assert not poll.done()
        loop = asyncio.get_running_loop()
        since = loop.time()
        await found[2].chat.send_message(room, "bob", "hello")
        assert (await poll).contents == ["hello"]
        assert loop.time() - since < 0.5
        # Nothing more: it is answered when its time is over, and the next goes on from there.
        balancer.turn = 1
        since = loop.time()
        assert (await ada.poll()).status == 204
        assert POLL_S <= loop.time() - since < POLL_S + 0.5


@virtual
async def test_a_response_that_is_lost_is_given_again_by_any_node() -> None:
    async with balanced() as (_, found, balancer):
        room = room_of("a", "b", "c")
        ada = PollingClient(balancer)
        await ada.open()
        await ada.join(f"room:{room}")
        while (await ada.poll()).status == 200:
            pass
        await found[0].chat.send_message(room, "bob", "hello")
        token = ada.token
        balancer.turn = 0
        assert (await ada.poll()).contents == ["hello"]
        ada.token = token  # it has not got it
        assert (await ada.poll()).contents == ["hello"]
        assert (await ada.poll()).status == 204


@virtual
async def test_a_newer_poll_takes_the_place_of_one_on_another_node() -> None:
    async with balanced() as (_, _, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        balancer.turn = 0
        first = asyncio.create_task(ada.poll())
        await asyncio.sleep(1)
        second = asyncio.create_task(ada.poll())
        assert (await first).status == 204
        assert not second.done()
        await second


@virtual
async def test_a_session_ends_whose_client_polls_nowhere() -> None:
    async with balanced() as (_, _, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        balancer.turn = 0
        assert (await ada.poll()).status == 204
        await asyncio.sleep(ABANDONED_S - 1)
        assert balancer.held(0) == 1
        await asyncio.sleep(10)
        assert balancer.held(0) == 0
        assert (await ada.poll()).status == 410


@virtual
async def test_a_poll_that_its_client_breaks_off_on_another_node_ends_its_session_soon() -> None:
    async with balanced() as (_, _, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        call = Call(balancer.apps[1], "GET", f"vsn=2.0.0&token={ada.token}")
        await asyncio.sleep(1)
        call.disconnect()
        await call.task
        await asyncio.sleep(CUT_OFF_S + 6)
        assert balancer.held(0) == 0


@virtual
async def test_a_node_that_is_gone_in_the_middle_of_a_poll_keeps_no_session() -> None:
    async with balanced() as (fabric, found, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        call = Call(balancer.apps[1], "GET", f"vsn=2.0.0&token={ada.token}")
        await asyncio.sleep(1)
        fabric.cut |= {(found[1].boot, found[0].boot), (found[0].boot, found[1].boot)}
        await call.task
        await asyncio.sleep(LEFT_S + CUT_OFF_S + 6)
        assert balancer.held(0) == 0


@virtual
async def test_a_poll_does_not_wait_for_a_holder_that_is_gone() -> None:
    async with balanced() as (fabric, found, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        balancer.turn = 0
        poll = asyncio.create_task(ada.request("GET"))
        await asyncio.sleep(1)
        await found[0].crash()
        fabric.see("b", "c")
        since = asyncio.get_running_loop().time()
        assert (await poll).http == 503
        assert asyncio.get_running_loop().time() - since < 0.5


@virtual
async def test_where_the_holder_is_gone_the_client_begins_anew_and_misses_nothing() -> None:
    async with balanced() as (fabric, found, balancer):
        room = room_of("b", "a", "c")
        ada = PollingClient(balancer)
        await ada.open()
        await ada.join(f"room:{room}")
        await found[1].chat.send_message(room, "bob", "one")
        seen = await ada.poll_for(lambda frame: frame.event == "new_message")
        fabric.cut |= {(found[0].boot, each.boot) for each in found} | {(each.boot, found[0].boot) for each in found}
        balancer.turn = 0
        reply = await ada.request("GET")
        assert (reply.http, reply.body["status"]) == (503, 500)
        fabric.see("b", "c")
        await found[1].chat.send_message(room, "bob", "two")
        balancer.turn = 0
        assert (await ada.poll()).status == 410
        balancer.turn = 0
        await ada.open()
        balancer.turn = 0
        ada.frames.clear()
        payload = {"epoch": seen.payload["epoch"], "offset": seen.payload["offset"]}
        ref, frame = ada.frame(f"room:{room}", "phx_join", payload)
        balancer.turn = 1
        await ada.post(frame)
        while not any(each.ref == ref for each in ada.frames):
            balancer.turn = 0
            await ada.poll()
        (joined,) = [each for each in ada.frames if each.ref == ref]
        assert joined.payload["response"]["recovered"] is True
        await_two = [each for each in ada.frames if each.event == "new_message"]
        while not await_two:
            balancer.turn = 0
            await ada.poll()
            await_two = [each for each in ada.frames if each.event == "new_message"]
        assert [each.payload["content"] for each in await_two] == ["two"]


@pytest.mark.parametrize(
    "token",
    [
        "chatx-lp." + "z" * 16 + "." + "s" * 43 + ".0",  # a node that nobody knows
        "chatx-lp." + "b".ljust(16, "0") + "." + "s" * 43 + ".0",  # a session that nobody knows
        "chatx-lp." + "a".ljust(16, "0") + "." + "s" * 43 + ".0",  # of this node itself
        "chatx-lp." + "s" * 43 + ".0",  # of no node
    ],
)
@virtual
async def test_a_token_that_nobody_knows_is_gone(token: str) -> None:
    async with balanced() as (_, _, balancer):
        ada = PollingClient(balancer)
        ada.token = token
        reply = await ada.request("GET")
        assert (reply.http, reply.status, reply.body["token"]) == (200, 410, None)
        balancer.turn = -1
        assert (await ada.post("[]")).status == 410


@virtual
async def test_a_post_on_another_node_has_the_same_bounds() -> None:
    async with balanced() as (_, _, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        assert ada.token is not None
        secret = ada.token.split(".")[2]
        poller = balancer.apps[0]._longpoll._pollers[secret]
        poller.posts = MAX_POSTS
        reply = await ada.post("[]")
        assert (reply.http, reply.body["status"]) == (429, 500)
        poller.posts = 0
        balancer.turn = 0
        assert (await ada.request("POST", {}, b"x" * (MAX_POST_BYTES + 1))).http == 413
        assert balancer.held(0) == 1  # what is too large has not gone to the other node
        balancer.turn = 0
        reply = await ada.post(*["[]"] * 101)
        assert reply.http == 413
        assert balancer.held(0) == 0


@virtual
async def test_what_was_written_ahead_of_a_sessions_end_reaches_a_poll_on_another_node() -> None:
    async with balanced() as (_, _, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        assert ada.token is not None
        poller = balancer.apps[0]._longpoll._pollers[ada.token.split(".")[2]]
        balancer.turn = 0
        poll = asyncio.create_task(ada.request("GET"))
        await asyncio.sleep(1)
        poller.write(Bundle(["last words"]))
        poller.close(CLOSE_GOING_AWAY, "over")
        assert (await poll).body["messages"] == ["last words"]
        balancer.turn = 0
        assert (await ada.request("GET")).status == 410


@virtual
async def test_who_only_pretends_to_have_a_session_brings_no_body_to_another_node() -> None:
    async with balanced() as (_, found, balancer):
        sent: list[Ask] = []
        answer = found[0].answer

        async def answer_and_note(ask: Ask) -> Answer:
            sent.append(ask)
            return await answer(ask)

        found[0].answer = answer_and_note  # type: ignore[method-assign]
        ada = PollingClient(balancer)
        ada.token = f"chatx-lp.{found[0].boot}.{'s' * 43}.0"
        balancer.turn = 0
        assert (await ada.post("[]" * 1000)).status == 410
        assert [len(each.body) for each in sent if isinstance(each, Post)] == [0]


@virtual
async def test_a_batch_goes_from_node_to_node_in_parts_that_fit() -> None:
    async with balanced(message_size_limit=60_000, mailbox_bytes=4_000_000) as (_, found, balancer):
        room = room_of("a", "b", "c")
        ada = PollingClient(balancer)
        await ada.open()
        await ada.join(f"room:{room}")
        for _ in range(30):
            await found[0].chat.send_message(room, "bob", "x" * 60_000)
        balancer.turn = 0
        polled = await ada.poll()
        assert 0 < len(polled.contents) * 60_000 <= BATCH_BYTES
        while len([each for each in ada.frames if each.event == "new_message"]) < 30:
            balancer.turn = 0
            assert (await ada.poll()).status == 200


@virtual
async def test_a_node_believes_no_other_about_polls() -> None:
    async with balanced() as (_, found, balancer):
        ada = PollingClient(balancer)
        await ada.open()
        assert ada.token is not None
        secret = ada.token.split(".")[2]
        polls = found[0].abroad.polls
        boot = found[1].boot
        assert await polls.answer(Poll("s" * 43, boot, 1, 0)) == Polled(410, 0, ())
        assert await polls.answer(Post("s" * 43, "", b"")) == Posted(410)
        # However often it says so, that is one poll, which ends once.
        for _ in range(2):
            assert await polls.answer(Poll(secret, boot, 1, 0)) == Polled(204, 0, ())
        for _ in range(3):
            await polls.answer(PollEnded(secret, boot, 1, True))
        assert balancer.apps[0]._longpoll._pollers[secret]._polls == 0
        assert await polls.answer(Poll(secret, boot, 2, 7)) == Polled(410, 0, ())  # out of step
        await polls.answer(PollEnded(secret, boot, 2, False))


@pytest.mark.process
async def test_the_phoenix_client_notices_nothing_and_comes_back_where_its_node_is_killed() -> None:
    port = free_port()
    async with balanced() as (fabric, found, balancer):
        room = room_of("b", "a", "c")
        served = [*balancer.apps]
        turns = itertools.count()

        async def next_one(scope: Any, receive: Any, send: Any) -> None:
            await served[next(turns) % len(served)](scope, receive, send)

        app = Starlette(routes=[Mount("/socket", next_one)])
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0, lifespan="off", port=port)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        try:
            await until(lambda: server.started)
            async with node_client(port, "ada") as ada:
                ada.do("connect")
                await ada.join(f"room:{room}")
                ada.do("pushes", topic=f"room:{room}", count=100)
                for number in range(100, 120):
                    await found[number % 3].chat.send_message(room, "bob", f"{number}")
                assert sorted(await ada.contents(120), key=int) == [f"{number}" for number in range(120)]
                await ada.wait_for("ok", lambda _: ada.count("ok") == 100)

                (holder,) = [each for each in range(3) if balancer.held(each)]
                assert holder == 0  # whoever got the first request; the room is another's
                ada.forget()
                await found[holder].crash()
                served.remove(balancer.apps[holder])
                fabric.see(*(name for each, name in enumerate(NAMES) if each != holder))
                await found[1].chat.send_message(room, "bob", "after")
                assert (await ada.wait_for("joined"))["recovered"] is True
                assert await ada.contents(1) == ["after"]
        finally:
            server.should_exit = True
            await serving
