"""The phoenix client as it is published, polling, in Node, against both shells."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.longpoll.poller import ABANDONED_S
from chatx.gateway.native.server import NativeServer
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import SHELLS
from tests.longpoll.node import node_client
from tests.process import free_port

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]


def authenticate(handshake: Handshake) -> str | None:
    """Let in whoever says a name; one who polls shows a token too."""
    user = handshake.params.get("user_id")
    if handshake.token is not None and handshake.token != f"secret of {user}":
        return None
    return user


@asynccontextmanager
async def serving(shell: str, chat: Chat, port: int, **options: str) -> AsyncIterator[None]:
    """Serve a chat that runs, on this port."""
    listening = socket.create_server(("127.0.0.1", port))
    if shell == "native":
        server = NativeServer(chat, authenticate=authenticate)
        await server.start([listening])
        try:
            yield
        finally:
            await server.drain(0.2)
            await server.close()
            assert (len(server.longpoll), len(server.exchanges)) == (0, 0)
            listening.close()
        return
    app = Starlette(routes=[Mount("/socket", chat.asgi(authenticate=authenticate))])
    # As a restart does it: whoever polls is not waited for.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0, lifespan="off", **options)  # type: ignore[arg-type]
    uvicorn_server = uvicorn.Server(config)
    task = asyncio.create_task(uvicorn_server.serve([listening]))
    try:
        await until(lambda: uvicorn_server.started)
        yield
    finally:
        uvicorn_server.should_exit = True
        await task
        listening.close()


async def test_it_joins_pushes_hears_sees_who_is_there_and_leaves(shell: str) -> None:
    port = free_port()
    async with Chat() as chat, serving(shell, chat, port), node_client(port, "ada") as ada:
        ada.do("connect")
        assert (await ada.wait_for("open"))["transport"] == "LongPoll"
        assert (await ada.join("room:a"))["recovered"] is False
        async with real_client(port, "bob") as bob:
            await bob.ask("room:a", "phx_join")
            await ada.wait_for("presence", lambda each: each["users"] == ["ada", "bob"])
            await bob.ask("room:a", "new_message", {"content": "hello, ada"})
            assert await ada.contents(1) == ["hello, ada"]
            ada.do("push", topic="room:a", event="new_message", payload={"content": "hello, bob \U0001f600"})
            assert (await ada.wait_for("ok"))["response"]["offset"] == 2
            assert (await bob.wait_for_messages(2))[1]["content"] == "hello, bob \U0001f600"
            assert await ada.contents(2) == ["hello, ada", "hello, bob \U0001f600"]
            ada.do("push", topic="room:a", event="new_message", payload={"content": ""})
            assert (await ada.wait_for("error"))["response"]["code"] == "invalid_message"
        await ada.wait_for("presence", lambda each: each["users"] == ["ada"])
        ada.do("leave", topic="room:a")
        await alone(chat)


async def test_many_pushes_at_once_go_out_in_batches_and_arrive_in_order(shell: str) -> None:
    port = free_port()
    async with (
        Chat(rate_limit=RateLimit(1e6, 10**6)) as chat,
        serving(shell, chat, port),
        node_client(port, "ada") as ada,
    ):
        ada.do("connect")
        await ada.join("room:a")
        ada.do("pushes", topic="room:a", count=250)
        assert await ada.contents(250) == [str(number) for number in range(250)]
        await ada.wait_for("ok", lambda _: ada.count("ok") == 250)


async def test_it_comes_back_to_a_server_that_was_restarted_and_has_missed_nothing(shell: str) -> None:
    port = free_port()
    async with Chat() as chat, node_client(port, "ada") as ada:
        async with serving(shell, chat, port):
            ada.do("connect")
            await ada.join("room:a")
            await chat.send_message("a", "bob", "before")
            await ada.contents(1)
        await chat.send_message("a", "bob", "meanwhile 1")
        await chat.send_message("a", "bob", "meanwhile 2")
        ada.forget()
        async with serving(shell, chat, port):
            await chat.send_message("a", "bob", "after")
            assert (await ada.wait_for("joined"))["recovered"] is True
            assert await ada.contents(3) == ["meanwhile 1", "meanwhile 2", "after"]


async def test_it_comes_back_from_a_session_that_was_ended(shell: str) -> None:
    port = free_port()
    async with Chat() as chat, serving(shell, chat, port), node_client(port, "ada") as ada:
        ada.do("connect")
        await ada.join("room:a")
        await chat.send_message("a", "bob", "1")
        await ada.contents(1)
        ada.forget()
        await chat.revoke("ada")
        await chat.send_message("a", "bob", "2")
        assert (await ada.wait_for("close"))["code"] == 3410
        assert (await ada.wait_for("joined"))["recovered"] is True
        assert await ada.contents(1) == ["2"]


async def test_it_falls_back_from_a_websocket_that_cannot_connect(shell: str) -> None:
    port = free_port()
    async with Chat() as chat, serving(shell, chat, port), node_client(port, "ada", "fallback") as ada:
        ada.do("connect")
        assert (await ada.wait_for("open"))["transport"] == "LongPoll"
        await ada.join("room:a")
        await chat.send_message("a", "bob", "hello")
        assert await ada.contents(1) == ["hello"]


async def test_whoever_disconnects_has_left_long_before_an_abandoned_session_would_end(
    shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatx.gateway.longpoll.poller.CUT_OFF_S", 0.2)
    port = free_port()
    async with Chat() as chat, serving(shell, chat, port), node_client(port, "ada") as ada:
        ada.do("connect")
        await ada.join("room:a")
        await ada.wait_for("presence")
        await until(lambda: any(task.get_name() == "chatx poll" for task in asyncio.all_tasks()))
        ada.do("disconnect")
        await ada.wait_for("disconnected")
        async with asyncio.timeout(ABANDONED_S - 5):
            await alone(chat)
        assert chat.statistics().connections == 0


async def alone(chat: Chat) -> None:
    """Wait until nobody is in the room."""
    while await chat.presence("a"):  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(0.05)
