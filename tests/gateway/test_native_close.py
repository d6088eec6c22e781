"""Every way in which a socket of the native server ends, in the plain and by TLS, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.frames import Opcode

from chatx.chat import Chat
from chatx.gateway.native import writing
from chatx.gateway.native.reading import RESET_MS, Pace
from chatx.gateway.native.server import NativeServer
from chatx.gateway.wire.bounds import PENDING_PUSHES
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import CLOSE, Peer, close_code, masked, next_frame, opened, pushed, server_tls
from tests.gateway.real_client import until
from tests.gateway.servers import native
from tests.limits import UNLIMITED

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])]

JOIN = pushed("room:a", "phx_join", {})
MOST = 10_000
"""Messages of 4 kB: more than the kernel and a transport take for somebody who does not read."""
STEP = 50
WAITING = 5
"""Writes that wait, each of `STEP` messages: they still do when every buffer on the way has filled."""


@asynccontextmanager
async def served(tls: bool, **options: Any) -> AsyncIterator[tuple[Chat, NativeServer, int]]:
    async with (
        Chat(rate_limit=UNLIMITED, **options) as chat,
        native(chat, ssl=server_tls() if tls else None) as (server, port),
    ):
        yield chat, server, port
        await until(lambda: not server.connections and not server.greetings)
        statistics = chat.statistics()
        assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)
        assert len(server.entrance.begin(None)[0].admission) == 1  # the one that was begun here


async def joined(peer: Peer, chat: Chat) -> None:
    reader, writer = peer
    writer.write(JOIN)
    await next_frame(reader)
    assert await chat.presence("a")


async def stuffed(peer: Peer, chat: Chat, server: NativeServer) -> int:
    """Send to a peer that does not read until some of it waits in its stream; return how many messages that took."""
    peer[0]._transport.pause_reading()  # type: ignore[attr-defined]
    held = next(client for client in server.streams.values() if client.user_id == "ada")
    sent = 0
    while held.session.socket.unread < WAITING and not held.session._ended:
        assert sent < MOST
        for _ in range(STEP):
            await chat.send_message("a", "bob", "x" * 4000)
        sent += STEP
        await asyncio.sleep(0.001)  # what was published in a turn is written in the next
    return sent


class Gate:
    """A moderation that waits until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def check(self, content: str) -> bool:
        await self.open.wait()
        return True


@on_each_loop
async def test_a_client_that_closes_is_answered_and_is_gone(tls: bool) -> None:
    async with served(tls) as (chat, _, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        peer[1].write(CLOSE)
        assert await close_code(peer[0]) == 1000
        assert await asyncio.wait_for(peer[0].read(), 10) == b""
        assert await chat.presence("a") == {}


@on_each_loop
async def test_a_client_whose_connection_breaks_is_gone(tls: bool) -> None:
    async with served(tls) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        peer[1].transport.abort()
        await until(lambda: not server.connections)
        assert await chat.presence("a") == {}


@on_each_loop
async def test_a_socket_that_is_closed_from_here_ends_with_the_answer_and_without_it(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", 0.1)
    for answers in (True, False):
        async with served(tls) as (chat, server, port), opened(port, tls=tls) as peer:
            await joined(peer, chat)
            assert await chat.revoke("ada") == 1
            assert await close_code(peer[0]) == 4003
            assert server.connections == 1
            if answers:
                peer[1].write(CLOSE)
                assert await asyncio.wait_for(peer[0].read(), 10) == b""
            await until(lambda: not server.connections)


@on_each_loop
async def test_pushes_that_wait_are_done_before_the_close_behind_them_is_answered_and_nothing_follows_it(
    tls: bool,
) -> None:
    gate = Gate()
    more = 10
    async with served(tls, moderation=gate) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        pushes = [
            pushed("room:a", "new_message", {"content": f"{number}"}, ref=f"{number + 2}")
            for number in range(PENDING_PUSHES + more)
        ]
        peer[1].write(b"".join(pushes) + CLOSE)
        (held,) = server.streams.values()
        await until(lambda: held.session.busy)
        gate.open.set()
        assert await close_code(peer[0]) == 1000
        assert await asyncio.wait_for(peer[0].read(), 10) == b""
        assert {each.content for each in await chat.history("a")} >= {f"{number}" for number in range(more)}


@on_each_loop
async def test_a_client_that_takes_nothing_and_closes_while_it_is_being_closed_is_gone(tls: bool) -> None:
    async with served(tls, mailbox_bytes=10**8) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        await stuffed(peer, chat, server)
        assert await chat.revoke("ada") == 1
        peer[1].write(CLOSE)
        await asyncio.sleep(0.05)  # both closes are to cross
        peer[0]._transport.resume_reading()  # type: ignore[attr-defined]
        assert await close_code(peer[0]) in (1000, 4003)
        await asyncio.wait_for(peer[0].read(), 10)


@on_each_loop
async def test_what_was_written_comes_before_the_close_also_to_a_slow_reader(tls: bool) -> None:
    async with served(tls, mailbox_bytes=10**8) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        sent = await stuffed(peer, chat, server)
        assert await chat.revoke("ada") == 1
        peer[0]._transport.resume_reading()  # type: ignore[attr-defined]
        messages = 0
        while (frame := await next_frame(peer[0]))[0] == 0x81:
            messages += b"new_message" in frame[1]
        assert frame == (0x88, (4003).to_bytes(2) + b"revoked")
        assert messages == sent
        peer[1].write(CLOSE)
        assert await asyncio.wait_for(peer[0].read(), 10) == b""


@on_each_loop
async def test_what_waits_for_a_slow_reader_waits_where_it_is_counted(tls: bool) -> None:
    async with served(tls, mailbox_bytes=10**8) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        sent = await stuffed(peer, chat, server)
        (held,) = server.streams
        peer[0]._transport.resume_reading()  # type: ignore[attr-defined]
        most = 0
        for _ in range(sent):
            most = max(most, held.writing._transport.get_write_buffer_size())
            await next_frame(peer[0])
        assert not held.writing.unread
        assert most < 2 * STEP * 4100  # one write, and what was there before


@on_each_loop
async def test_a_slow_reader_over_its_bound_is_told_and_cut_off(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", 0.5)
    async with served(tls, mailbox_bytes=100_000) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        await stuffed(peer, chat, server)
        for _ in range(STEP):
            await chat.send_message("a", "bob", "x" * 4000)
        await until(lambda: chat.statistics().members == 0)
        peer[0]._transport.resume_reading()  # type: ignore[attr-defined]
        assert await close_code(peer[0]) == 1013
        await until(lambda: not server.connections)


@on_each_loop
async def test_a_slow_reader_that_takes_nothing_at_all_is_cut_off(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "WRITE_STALL_S", 0.1)
    monkeypatch.setattr(writing, "CLOSE_S", 0.1)
    async with served(tls, mailbox_bytes=10**8) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        await stuffed(peer, chat, server)
        await until(lambda: not server.connections)


@on_each_loop
async def test_a_half_open_peer_is_out_of_the_room_at_once_and_gone_soon(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", 0.1)
    if tls:
        # Not every loop tells of the end of a TCP connection below TLS while there is something to write.
        monkeypatch.setattr(writing, "WRITE_STALL_S", 0.5)
    async with served(tls, mailbox_bytes=10**8) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        await stuffed(peer, chat, server)
        with socket.socket(fileno=os.dup(peer[1].transport.get_extra_info("socket").fileno())) as ours:
            ours.shutdown(socket.SHUT_WR)
        await until(lambda: chat.statistics().members == 0)
        await until(lambda: not server.connections)


@on_each_loop
async def test_pings_behind_a_close_are_no_way_to_fill_the_memory(tls: bool) -> None:
    async with served(tls) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        assert await chat.revoke("ada") == 1
        peer[1].write(masked(Opcode.PING, b"x" * 125) * 1000)
        await until(lambda: not server.connections)


@on_each_loop
async def test_a_drain_ends_slow_and_quick_readers_in_time(tls: bool) -> None:
    async with (
        served(tls, mailbox_bytes=10**8) as (chat, server, port),
        opened(port, tls=tls) as slow,
    ):
        await joined(slow, chat)
        await stuffed(slow, chat, server)
        async with opened(port, b"bob", tls=tls) as quick:
            await joined(quick, chat)
            await server.drain(0.5)
            assert await close_code(quick[0]) == 1012
        await until(lambda: not server.connections)


@on_each_loop
async def test_a_server_that_closes_cuts_off_everybody(tls: bool) -> None:
    async with served(tls, mailbox_bytes=10**8) as (chat, server, port), opened(port, tls=tls) as slow:
        await joined(slow, chat)
        await stuffed(slow, chat, server)
        async with opened(port, b"bob", tls=tls):
            await server.close()
            assert not server.connections


@on_each_loop
async def test_a_peer_that_resets_the_connection_behind_its_close_is_gone(tls: bool) -> None:
    ignored = pushed("phoenix", "heartbeat", {}) * 2000
    async with served(tls) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        (held,) = server.streams
        assert await chat.revoke("ada") == 1
        peer[1].write(ignored + CLOSE)
        while not held.reading._unparsed:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)
        linger = struct.pack("ii", 1, 0)  # with nothing to wait for, the end is a reset
        peer[1].transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer[1].transport.abort()
        await until(lambda: not server.connections)


@on_each_loop
async def test_pings_that_wait_behind_pushes_and_an_end_are_no_harm_to_a_socket_that_is_being_closed(
    tls: bool,
) -> None:
    gate = Gate()
    async with served(tls, moderation=gate) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        pushes = [pushed("room:a", "new_message", {"content": "x"}, ref=f"{number + 2}") for number in range(100)]
        peer[1].write(b"".join(pushes))
        (held,) = server.streams
        await until(lambda: held.reading.pace is Pace.BUSY)
        peer[1].write(masked(Opcode.PING, b"") * 40)
        await asyncio.sleep(0.01)
        with socket.socket(fileno=os.dup(peer[1].transport.get_extra_info("socket").fileno())) as ours:
            ours.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.02)  # it is to have arrived
        await chat.revoke("ada")
        await until(lambda: not server.connections)


@on_each_loop
async def test_the_answer_to_a_close_is_seen_although_the_session_was_busy(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", 1e6)
    async with served(tls, moderation=Gate()) as (chat, server, port), opened(port, tls=tls) as peer:
        await joined(peer, chat)
        pushes = [pushed("room:a", "new_message", {"content": "x"}, ref=f"{number + 2}") for number in range(100)]
        peer[1].write(b"".join(pushes))
        (held,) = server.streams
        await until(lambda: held.reading.pace is Pace.BUSY)
        assert await chat.revoke("ada") == 1
        assert await close_code(peer[0]) == 4003
        peer[1].write(CLOSE)
        assert await asyncio.wait_for(peer[0].read(), 10) == b""
        peer[1].close()
        await until(lambda: not server.connections)


@on_each_loop
async def test_a_reset_is_noticed_also_while_the_peer_is_not_read_since_its_session_is_busy(tls: bool) -> None:
    async with (
        served(tls, moderation=Gate(), adapter_timeout_ms=60_000) as (chat, server, port),
        opened(port, tls=tls) as peer,
    ):
        await joined(peer, chat)
        pushes = [pushed("room:a", "new_message", {"content": "x"}, ref=f"{number + 2}") for number in range(10_000)]
        peer[1].write(b"".join(pushes))
        ((held, client),) = server.streams.items()
        wheel = client.session.gateway.wheel
        await until(lambda: held.reading.pace is Pace.BUSY)
        await asyncio.sleep(0.05)  # some of it is to be left where nobody reads it
        linger = struct.pack("ii", 1, 0)  # with nothing to wait for, the end is a reset
        peer[1].transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer[1].transport.abort()
        await until(lambda: not server.connections)
        assert await chat.presence("a") == {}
        assert len(wheel) == 0


@on_each_loop
async def test_a_busy_peer_that_sends_no_more_has_not_reset_the_connection_and_its_pushes_are_done(tls: bool) -> None:
    gate = Gate()
    async with (
        served(tls, moderation=gate, adapter_timeout_ms=60_000) as (chat, server, port),
        opened(port, tls=tls) as peer,
    ):
        await joined(peer, chat)
        pushes = [pushed("room:a", "new_message", {"content": "x"}, ref=f"{number + 2}") for number in range(200)]
        peer[1].write(b"".join(pushes))
        (held,) = server.streams
        await until(lambda: held.reading.pace is Pace.BUSY)
        if not tls:  # below TLS an end without its leave is not taken for one behind what was sent
            with socket.socket(fileno=os.dup(peer[1].transport.get_extra_info("socket").fileno())) as ours:
                ours.shutdown(socket.SHUT_WR)
        await asyncio.sleep(3 * RESET_MS / 1000)
        assert server.connections == 1
        gate.open.set()
        if tls:
            peer[1].write(CLOSE)
            peer[1].close()
        await until(lambda: not server.connections)
        assert len(await chat.history("a", limit=200)) >= PENDING_PUSHES
