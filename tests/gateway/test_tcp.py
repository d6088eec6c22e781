"""The native server's own transport and what sends past it: order, what waits, how it ends; on each loop."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.gateway.native.protocol import wire_protocol
from chatx.gateway.native.tcp import TcpTransport
from chatx.gateway.native.writing import Writing
from chatx.gateway.session.socket import Audience, Bundle, Flow
from tests.gateway.loops import on_each_loop

BIG = random.Random(1).randbytes(3_000_000)
"""More than two small buffers of the kernel hold."""


class Kept(asyncio.Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = b""
        self.lost = asyncio.get_running_loop().create_future()
        self.resumed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.told.append("eof")
        return False

    def pause_writing(self) -> None:
        self.told.append("paused")
        self.resumed.clear()

    def resume_writing(self) -> None:
        self.told.append("resumed")
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.lost.set_result(exc)


def connected(protocol: Kept) -> tuple[TcpTransport, socket.socket]:
    """A transport, and the other end, which is read by hand; the kernel holds little between them."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    far.setblocking(False)
    return TcpTransport(asyncio.get_running_loop(), near, "the peer", protocol), far


async def read(far: socket.socket, size: int) -> bytes:
    """Read this many bytes, or what there is before the end."""
    loop = asyncio.get_running_loop()
    data = b""
    async with asyncio.timeout(10):
        while len(data) < size and (piece := await loop.sock_recv(far, 65_536)):
            data += piece
    return data


@on_each_loop
async def test_what_is_written_arrives_in_order_whoever_takes_it() -> None:
    protocol = Kept()
    transport, far = connected(protocol)
    transport.write(b"first ")
    assert transport.direct(b"second ") == 7
    taken = transport.direct(BIG)
    assert 0 < taken < len(BIG)
    transport.write_rest(BIG[taken:])
    transport.write(b" last")
    assert (protocol.told, transport.get_write_buffer_size()) == (["made", "paused"], len(BIG) - taken + 5)
    assert await read(far, len(BIG) + 18) == b"first second " + BIG + b" last"
    await protocol.resumed.wait()
    assert (protocol.told, transport.get_write_buffer_size()) == (["made", "paused", "resumed"], 0)
    transport.close()
    await protocol.lost
    far.close()


@on_each_loop
async def test_a_close_waits_for_what_waits_and_an_abort_does_not() -> None:
    for end, all_of_it in ((TcpTransport.close, True), (TcpTransport.abort, False)):
        protocol = Kept()
        transport, far = connected(protocol)
        transport.write(BIG)
        end(transport)
        assert transport.is_closing()
        transport.close()
        got = await read(far, len(BIG) + 1)
        assert (got == BIG) is all_of_it
        assert BIG.startswith(got)
        assert await protocol.lost is None
        transport.abort()
        transport.write(b"nobody's")
        assert protocol.told.count("lost") == 1
        with pytest.raises(OSError):
            transport.direct(b"the descriptor may be another's by now")
        far.close()


@on_each_loop
async def test_an_end_is_told_behind_what_waits() -> None:
    protocol = Kept()
    transport, far = connected(protocol)
    transport.write(BIG)
    transport.write_eof()
    transport.write_eof()
    with pytest.raises(RuntimeError, match="behind the end"):
        transport.write(b"more")
    assert await read(far, len(BIG) + 1) == BIG
    far.sendall(b"an answer")
    far.close()
    assert await protocol.lost is None
    assert (protocol.data, protocol.told[-2:]) == (b"an answer", ["eof", "lost"])


@on_each_loop
async def test_while_reading_is_paused_nothing_is_read() -> None:
    protocol = Kept()
    transport, far = connected(protocol)
    transport.pause_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    far.sendall(b"hello")
    for _ in range(5):
        await asyncio.sleep(0)
    assert protocol.data == b""
    transport.resume_reading()
    far.close()
    await protocol.lost
    assert protocol.data == b"hello"
    transport.resume_reading()
    assert not transport.is_reading()


@on_each_loop
async def test_a_peer_that_resets_ends_it_without_a_failure_whatever_is_under_way() -> None:
    under_way: list[Callable[[TcpTransport], object]] = [
        lambda transport: transport.write(b"x"),
        lambda transport: transport.write(BIG),
        lambda transport: transport.pause_reading(),
        lambda transport: None,
    ]
    for does in under_way:
        listening = socket.create_server(("127.0.0.1", 0))
        far = socket.create_connection(listening.getsockname())
        near, peer = listening.accept()
        protocol = Kept()
        transport = TcpTransport(asyncio.get_running_loop(), near, peer, protocol)
        assert transport.get_extra_info("peername") == far.getsockname()
        assert transport.get_extra_info("sockname") == far.getpeername()
        assert transport.get_extra_info("socket") is near
        assert transport.get_extra_info("sslcontext") is None
        does(transport)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        far.close()
        if not transport.is_reading():
            transport.write(b"x" * 10)
            transport.write(b"x" * 10)
        async with asyncio.timeout(10):
            assert await protocol.lost is None
        assert near.fileno() == -1
        listening.close()


async def test_a_protocol_that_fails_ends_its_own_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Kept):
        def data_received(self, data: bytes) -> None:
            raise LookupError("a fault")

    protocol = Fails()
    _, far = connected(protocol)
    far.sendall(b"hello")
    assert isinstance(await protocol.lost, LookupError)
    assert [(record.levelno, record.__dict__["address"]) for record in caplog.records] == [(logging.ERROR, None)]
    far.close()


class Outlet:
    """A socket of an audience, whose `direct` does as it is told."""

    def __init__(self, does: str) -> None:
        self.does = does
        self.got = b""
        self.abandoned = 0
        self.direct: Callable[[bytes], int | None] | None = None if does == "writes" else self.take
        self.unread = 0

    def take(self, wire: bytes) -> int | None:
        match self.does:
            case "some":
                self.got += wire[:3]
                return 3
            case "blocks":
                raise BlockingIOError
            case "is interrupted":
                raise InterruptedError
            case "is gone":
                raise ConnectionResetError
            case "fails":
                raise LookupError
        self.got += wire
        return None if self.does == "all, untold" else len(wire)

    def write_rest(self, data: bytes) -> None:
        self.got += data

    def abandon(self) -> None:
        self.abandoned += 1

    def ask(self) -> None:
        raise AssertionError

    def write(self, bundle: Bundle) -> None:
        self.got += bundle.wire

    async def drained(self) -> None:
        raise AssertionError

    def close(self, code: int, reason: str) -> None:
        raise AssertionError


DOES = ("all", "all", "all, untold", "some", "blocks", "is interrupted", "is gone", "fails", "writes")


@given(st.lists(st.sampled_from(DOES), max_size=20))
def test_an_audience_gets_everything_once_and_whoever_is_gone_is_abandoned(does: list[str]) -> None:
    outlets = [Outlet(each) for each in does]
    bundle = Bundle(["one", "two"])
    audience = Audience(outlets)
    audience.send(bundle)
    audience.send(bundle)
    for outlet in outlets:
        gone = outlet.does in ("is gone", "fails")
        assert outlet.got == (b"" if gone else bundle.wire * 2)
        assert outlet.abandoned == (2 if gone else 0)


@pytest.mark.parametrize("paused", [False, True])
@on_each_loop
async def test_a_reset_right_behind_a_write_is_noticed(paused: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for _ in range(40):
            far = socket.create_connection(listening.getsockname())
            near, peer = listening.accept()
            protocol = Kept()
            transport = TcpTransport(asyncio.get_running_loop(), near, peer, protocol)
            await asyncio.sleep(0)
            if paused:
                transport.pause_reading()
            far.send(b"a frame")
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            await asyncio.sleep(0)
            transport.resume_reading()
            async with asyncio.timeout(10):
                assert await protocol.lost is None


@on_each_loop
async def test_a_websocket_that_is_abandoned_ends_at_once_and_says_nothing() -> None:
    near, far = socket.socketpair()
    with far:
        protocol = Kept()
        transport = TcpTransport(asyncio.get_running_loop(), near, None, protocol)
        writing = Writing(transport, wire_protocol(opened=True), 1000, Flow())
        writing.abandon()
        assert writing.direct is None
        async with asyncio.timeout(10):
            assert await protocol.lost is None
        assert far.recv(1) == b""
