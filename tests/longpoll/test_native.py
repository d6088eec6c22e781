"""Polls on the native server: they wait without being in anybody's way, and a drain and a close find them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from chatx.chat import Chat
from chatx.gateway.native import exchanges
from chatx.gateway.native.server import NativeServer
from tests.gateway.fakes import chatx_tasks
from tests.gateway.real_client import until
from tests.gateway.servers import native
from tests.longpoll.polling import PollingClient, over

pytestmark = pytest.mark.process


@asynccontextmanager
async def polls(server: NativeServer, port: int, count: int) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Let this many clients wait, each in a room of its own."""
    async with httpx2.AsyncClient(timeout=20, limits=httpx2.Limits(max_connections=None)) as http:
        clients = [PollingClient(over(http, port), f"user{number}") for number in range(count)]
        for number, client in enumerate(clients):
            await client.open()
            await client.join(f"room:{number}")
            await client.poll_for(lambda frame: frame.event == "presence_state")
        waiting = [asyncio.create_task(client.poll()) for client in clients]
        await until(lambda: len(server.exchanges.polls) == count)
        yield waiting
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_polls_that_wait_are_not_among_the_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_EXCHANGES", 2)
    async with Chat() as chat, native(chat) as (server, port), polls(server, port, 5) as waiting:
        assert not server.exchanges.plain
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"http://localhost:{port}/health")).status_code == 404
            assert (await http.get(f"http://localhost:{port}/elsewhere/longpoll")).status_code == 404
        for number, poll in enumerate(waiting):
            await chat.send_message(str(number), "bob", "hello")
            assert (await poll).contents == ["hello"]
        await until(lambda: not server.exchanges.polls)


async def test_a_drain_lets_nobody_in_and_sends_whoever_polls_away() -> None:
    async with Chat() as chat, native(chat) as (server, port), polls(server, port, 5) as waiting:
        for number in range(5):
            await chat.send_message(str(number), "bob", "the last thing before")
        # Within the turn: nothing of it is written yet, and no poll has been answered.
        await server.drain(0.2)
        # Each had its message first.
        assert [(await poll).contents for poll in waiting] == [["the last thing before"]] * 5
        assert (len(server.longpoll), chat.statistics().connections, await chat.presence("0")) == (0, 0, {})
        async with httpx2.AsyncClient() as http:
            reply = await PollingClient(over(http, port)).request("GET")
            assert (reply.http, reply.body) == (503, {"status": 500})


async def test_a_close_leaves_nothing_of_those_who_poll() -> None:
    async with Chat() as chat, native(chat) as (server, port), polls(server, port, 5):
        await server.close()
        assert (len(server.longpoll), len(server.exchanges)) == (0, 0)
        await until(lambda: not chatx_tasks())
        assert (chat.statistics().connections, await chat.presence("0")) == (0, {})


async def test_a_connection_that_breaks_while_it_polls_loses_nothing() -> None:
    async with Chat() as chat, native(chat) as (server, port), httpx2.AsyncClient(timeout=20) as http:
        ada = PollingClient(over(http, port))
        await ada.open()
        await ada.join("room:a")
        await ada.poll_for(lambda frame: frame.event == "presence_state")
        async with httpx2.AsyncClient(timeout=20) as other:
            broken = PollingClient(over(other, port))
            broken.token = ada.token
            poll = asyncio.create_task(broken.poll())
            await until(lambda: len(server.exchanges.polls) == 1)
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)
        await until(lambda: not server.exchanges.polls)
        await chat.send_message("a", "bob", "hello")
        assert (await ada.poll()).contents == ["hello"]


async def said(port: int, data: bytes) -> bytes:
    """Return all that the server says to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            return await reader.read()
    finally:
        writer.close()


async def test_a_post_counts_with_all_requests_until_its_body_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_EXCHANGES", 0)
    head = b"POST /socket/longpoll HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
    async with Chat() as chat, native(chat) as (server, port):
        assert (await said(port, head)).startswith(b"HTTP/1.1 503 ")
        assert (await said(port, head + b"[]")).endswith(b'{"status":410}')
        assert (await said(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        assert (await said(port, b"GET /\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_POLLS", 0)
        assert (await said(port, head + b"[]")).startswith(b"HTTP/1.1 503 ")
        await until(lambda: not server.exchanges)


async def test_sessions_of_one_address_keep_out_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.longpoll.app.MAX_SESSIONS", 3)
    other = httpx2.AsyncHTTPTransport(local_address="127.0.0.2")
    async with (
        Chat(max_connections_per_user=0) as chat,
        native(chat) as (server, port),
        httpx2.AsyncClient(timeout=20) as http,
        httpx2.AsyncClient(timeout=20, transport=other) as elsewhere,
    ):
        url = f"http://127.0.0.1:{port}/socket/longpoll?user_id=ada&vsn=2.0.0"
        codes = [(await http.get(url)).status_code for _ in range(4)]
        assert codes == [200, 200, 200, 503]
        oldest = server.longpoll.sessions[0]
        assert (await elsewhere.get(url.replace("user_id", "nobody"))).json() == {"status": 403}
        assert server.longpoll.sessions[0] is oldest  # who is not let in ends nobody's
        assert (await elsewhere.get(url)).status_code == 200
        assert oldest not in server.longpoll.sessions
        assert (await elsewhere.get(url)).status_code == 503  # it would have as many as the other
        assert (await http.get(url)).status_code == 503
        assert len(server.longpoll) == 3


async def test_polls_of_one_address_put_off_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_POLLS", 2)
    other = httpx2.AsyncHTTPTransport(local_address="127.0.0.2")
    async with (
        Chat() as chat,
        native(chat) as (server, port),
        httpx2.AsyncClient(timeout=20) as http,
        httpx2.AsyncClient(timeout=20, transport=other) as elsewhere,
    ):
        url = f"http://127.0.0.1:{port}/socket/longpoll?user_id=ada&vsn=2.0.0"
        clients = (elsewhere, http, http)
        tokens = [(await client.get(url)).json()["token"] for client in clients]
        await until(lambda: not server.exchanges.polls)
        polling = []
        for client, token in zip(clients, tokens, strict=True):
            polling.append(asyncio.create_task(client.get(url, headers={"x-phoenix-longpoll-token": token})))
            if len(polling) < 3:
                await until(lambda: len(server.exchanges.polls) == len(polling))
        assert (await polling[1]).status_code == 503
        assert not polling[0].done()
        for task in polling:
            task.cancel()
