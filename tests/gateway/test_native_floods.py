"""Floods of small things from one peer of the native server: what they cost, and that nobody else feels them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from websockets.frames import Opcode

from chatx.chat import Chat
from chatx.gateway.native import reading
from chatx.gateway.wire.bounds import CONTROL_FRAMES_BURST, MAX_FRAGMENTS
from tests.gateway.echo import Echo, EchoEntrance
from tests.gateway.fakes import chatx_tasks
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import HANDSHAKE, answer, close_code, masked, next_frame, opened, pushed, raw, server_tls
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import native

HEARTBEAT = pushed("phoenix", "heartbeat", {})


@on_each_loop
async def test_a_flood_is_taken_a_piece_at_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 10 * len(HEARTBEAT))
    turns = 0
    at: list[int] = []

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    class Noting(Echo):
        def receive(self, data: str | bytes) -> None:
            at.append(turns)
            super().receive(data)

    async with Chat() as chat, native(chat) as (server, port):
        server.entrance = EchoEntrance(chat, Noting)
        async with opened(port) as (reader, writer):
            counting = asyncio.create_task(count_turns())
            writer.write(HEARTBEAT * 500)
            for _ in range(500):
                assert b"heartbeat" in (await next_frame(reader))[1]
            counting.cancel()
    assert len(at) == 500
    assert max(at.count(turn) for turn in set(at)) <= 10


@on_each_loop
async def test_fragments_without_end_are_kept_by_nobody() -> None:
    """500,000 fragments of two bytes pinned 31 MB in one server."""
    two_bytes = masked(Opcode.CONT, b"xx", fin=False) * 100_000
    async with (
        Chat() as chat,
        native(chat) as (server, port),
        opened(port) as (reader, writer),
        opened(port, b"eve") as (other, writer2),
    ):
        writer.write(masked(Opcode.TEXT, b"", fin=False) + two_bytes)
        writer2.write(masked(Opcode.BINARY, b"", fin=False) + masked(Opcode.CONT, b"", fin=False) * 100_000)
        assert await close_code(reader) == 1008
        assert await close_code(other) == 1008
        for each in server.streams:  # the peers have not gone yet
            assert len(each.reading._parts or ()) <= MAX_FRAGMENTS


@on_each_loop
async def test_pings_are_answered_without_a_task_each_and_a_flood_of_them_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Chat() as chat, native(chat) as (server, port), opened(port) as (reader, writer):
        before = len(asyncio.all_tasks())
        writer.write(b"".join(masked(Opcode.PING, b"%d" % number) for number in range(CONTROL_FRAMES_BURST)))
        for number in range(CONTROL_FRAMES_BURST):
            assert await next_frame(reader) == (0x8A, b"%d" % number)
        assert len(asyncio.all_tasks()) == before
        writer.write(masked(Opcode.PONG, b"") * CONTROL_FRAMES_BURST)
        assert await close_code(reader) == 1008
        writer.close()
        await until(lambda: not server.connections)


@on_each_loop
async def test_a_flood_of_joins_is_felt_by_nobody_else() -> None:
    asked = 0

    class Auth:
        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            nonlocal asked
            asked += user_id == "eve"
            await asyncio.sleep(0)
            return user_id == "bob"

    async with (
        Chat(auth=Auth()) as chat,
        native(chat) as (_, port),
        real_client(port, "bob") as bystander,
        opened(port, b"eve") as (reader, writer),
    ):
        await bystander.ask("room:a", "phx_join")
        flood = [pushed(f"room:r{number % 50}", "phx_join", {}, ref="1") for number in range(2000)]
        writer.write(b"".join(flood))
        limited = 0
        for _ in range(2000):
            limited += b"rate_limited" in (await next_frame(reader))[1]
        assert asked <= 600
        assert limited >= 1400
        await bystander.ask("room:a", "new_message", {"content": "still here"})
        assert chatx_tasks() == []
        assert chat.statistics().rooms == 1


async def test_connections_that_hang_fill_their_bound_and_no_more_and_time_frees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.gateway.native.server.PENDING_HANDSHAKES", 50)
    monkeypatch.setattr("chatx.gateway.native.greeting.HEAD_S", 0.3)
    async with Chat() as chat, native(chat) as (server, port), AsyncExitStack() as stack:
        for number in range(60):
            _, writer = await stack.enter_async_context(raw(port))
            writer.write(HANDSHAKE[:number])
        await until(lambda: len(server.silent) == 50)
        assert len(server.greetings) == 50
        async with opened(port):
            assert server.connections == 1
        assert len(server.greetings) <= 50
        await until(lambda: not server.greetings)
        async with opened(port):
            assert server.connections == 1


@pytest.mark.parametrize("most", [0, 3])
async def test_sockets_of_an_address_are_bounded_and_zero_is_no_bound(most: int) -> None:
    async with (
        Chat(max_connections_per_user=0, max_connections_per_address=most) as chat,
        native(chat) as (server, port),
        AsyncExitStack() as stack,
    ):
        for _ in range(most or 20):
            await stack.enter_async_context(opened(port))
        assert server.connections == (most or 20)
        if most:
            assert (await answer(port, HANDSHAKE % b"ada")).startswith(b"HTTP/1.1 429 ")


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_flood_of_one_address_pushes_out_its_own_and_no_slow_newcomer_of_another(
    monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    monkeypatch.setattr("chatx.gateway.native.server.PENDING_HANDSHAKES", 5)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with (
        Chat() as chat,
        native(chat, ssl=server_tls() if tls else None) as (server, port),
        AsyncExitStack() as stack,
    ):
        slow = await stack.enter_async_context(raw(port, tls=tls, source="127.0.0.2"))
        slow[1].write(request[:10])
        for _ in range(20):
            await stack.enter_async_context(raw(port))  # by TLS, it does not even begin its handshake
        await until(lambda: len(server.silent) == 5 and server.refused[408] >= 10)
        slow[1].write(request[10:])
        assert await slow[0].readuntil(b"\r\n") == b"HTTP/1.1 404 Not Found\r\n"


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bodies_of_one_address_that_do_not_come_push_out_no_slow_body_of_another(
    monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_EXCHANGES", 5)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    async with (
        Chat() as chat,
        native(chat, ssl=server_tls() if tls else None) as (server, port),
        AsyncExitStack() as stack,
    ):
        slow = await stack.enter_async_context(raw(port, tls=tls, source="127.0.0.2"))
        slow[1].write(head)
        await until(lambda: len(server.exchanges.plain) == 1)
        for _ in range(12):
            _, writer = await stack.enter_async_context(raw(port, tls=tls))
            writer.write(head)
        await until(lambda: len(server.exchanges.plain) == 5 and not server.greetings)
        slow[1].write(b"[]")
        assert await slow[0].readuntil(b"\r\n") == b"HTTP/1.1 404 Not Found\r\n"
