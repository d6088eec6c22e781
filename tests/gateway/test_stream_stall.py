"""How long a peer of the native server may take nothing: from the last byte that it took, and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from chatx.gateway.native.stream import Stream
from chatx.gateway.native.tcp import TcpTransport
from chatx.gateway.native.writing import CLOSE_S, WRITE_STALL_S
from chatx.gateway.session.progress import Progress, untaken
from chatx.gateway.session.socket import Bundle, Flow
from chatx.gateway.wire.bounds import CLOSING_S, LEAST_TAKEN
from tests.gateway.loops import on_each_loop
from tests.virtual import virtual

HELD = 200 * LEAST_TAKEN


class Holds(asyncio.Transport):
    """Holds what is written until it is taken by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.held += len(data)

    def get_write_buffer_size(self) -> int:
        return self.held

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted = True


class Listens:
    """A session that keeps why it was cut."""

    def __init__(self) -> None:
        self.cuts: list[int] = []

    def cut(self, code: int, reason: str) -> None:
        self.cuts.append(code)

    def end(self) -> None:
        pass


def paused() -> tuple[Stream, Holds, Listens]:
    """Return a stream whose transport holds `HELD` bytes, and its session."""
    transport, session = Holds(), Listens()
    told: Any = session
    stream = Stream(transport, 1_000_000, Flow(), lambda _: None)
    stream.begin(told, b"")
    transport.write(bytes(HELD))
    stream.pause_writing()
    return stream, transport, session


@virtual
async def test_a_peer_that_takes_a_little_again_and_again_is_not_cut_off_until_it_stops() -> None:
    stream, transport, session = paused()
    for _ in range(20):
        await asyncio.sleep(WRITE_STALL_S - 3)
        transport.held -= LEAST_TAKEN
    assert session.cuts == []
    await asyncio.sleep(WRITE_STALL_S - 1)
    assert session.cuts == []
    await asyncio.sleep(1 + WRITE_STALL_S / 4)
    assert session.cuts == [1013]
    stream.connection_lost(None)


@virtual
async def test_a_peer_that_takes_next_to_nothing_is_cut_off() -> None:
    for taken, is_cut in ((1, True), (LEAST_TAKEN // 2 - 1, True), (LEAST_TAKEN, False)):
        stream, transport, session = paused()
        for _ in range(10):
            await asyncio.sleep(WRITE_STALL_S / 2)
            transport.held -= taken
        assert session.cuts == ([1013] if is_cut else []), taken
        stream.connection_lost(None)


@virtual
async def test_what_was_taken_long_ago_is_no_excuse_for_next_to_nothing_now() -> None:
    stream, transport, session = paused()
    transport.held -= 20 * LEAST_TAKEN
    for _ in range(int(2 * WRITE_STALL_S)):
        await asyncio.sleep(1)
        transport.held -= 1
    assert session.cuts == [1013]
    stream.connection_lost(None)


@virtual
async def test_what_is_taken_before_the_first_look_counts() -> None:
    stream, transport, session = paused()
    await asyncio.sleep(1)
    transport.held -= LEAST_TAKEN
    await asyncio.sleep(WRITE_STALL_S)
    assert session.cuts == []
    await asyncio.sleep(WRITE_STALL_S / 2)
    assert session.cuts == [1013]
    stream.connection_lost(None)


@virtual
async def test_a_connection_that_is_gone_is_not_looked_at_any_more() -> None:
    for ends in ((lambda stream: stream.writing.close(1012, "")), Stream.eof_received, (lambda _: None)):
        stream, transport, session = paused()
        ends(stream)
        stream.connection_lost(None)
        await asyncio.sleep(2 * CLOSING_S)
        assert (transport.aborted, session.cuts) == (False, [])


@virtual
async def test_the_last_bytes_are_enough_however_few_they_are() -> None:
    stream, transport, session = paused()
    transport.held = 10
    for _ in range(2):
        await asyncio.sleep(WRITE_STALL_S - 1)
        assert session.cuts == []
        transport.held = 0
    stream.connection_lost(None)


def closing() -> tuple[Stream, Holds]:
    """Return a stream that is closed from this side while some of it waits, and its transport."""
    stream, transport, _ = paused()
    for _ in range(100):
        stream.writing.write(Bundle(["x" * LEAST_TAKEN]))
    stream.writing.close(1012, "restarting")
    assert stream.writing.unread == 100
    return stream, transport


async def seconds_until(condition: Callable[[], bool], at_most: float) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition() and loop.time() < began + at_most:  # noqa: ASYNC110  # the clock is virtual
        await asyncio.sleep(0.25)
    return loop.time() - began


@virtual
async def test_a_peer_that_is_being_closed_and_takes_nothing_is_cut_off_in_time() -> None:
    stream, transport = closing()
    assert await seconds_until(lambda: transport.aborted, 100) <= 1.5 * CLOSE_S
    stream.connection_lost(None)


@virtual
async def test_a_peer_that_is_being_closed_and_takes_one_byte_again_and_again_is_cut_off_as_soon() -> None:
    stream, transport = closing()

    def taken() -> bool:
        transport.held -= 1
        return transport.aborted

    assert await seconds_until(taken, 100) <= 1.5 * CLOSE_S
    stream.connection_lost(None)


@virtual
async def test_a_peer_that_is_being_closed_has_its_time_from_what_it_took_last_and_gets_all_of_it() -> None:
    stream, transport = closing()
    for _ in range(16):
        await asyncio.sleep(CLOSE_S - 1)
        transport.held -= HELD // 16
        assert not transport.aborted
    stream.resume_writing()
    assert stream.writing.unread == 0
    assert transport.held > 100 * LEAST_TAKEN
    for _ in range(5):
        await asyncio.sleep(CLOSE_S - 1)
        transport.held -= transport.held // 2
        assert not transport.aborted
    transport.held = 0  # and then it does not answer
    assert await seconds_until(lambda: transport.aborted, 100) <= 1.5 * CLOSE_S
    stream.connection_lost(None)


@virtual
async def test_a_peer_that_is_being_closed_is_not_waited_for_without_end_however_steadily_it_reads() -> None:
    stream, transport = closing()
    transport.held = 10**9

    def taken() -> bool:
        transport.held -= LEAST_TAKEN
        return transport.aborted

    assert CLOSING_S <= await seconds_until(taken, 1000) <= CLOSING_S + CLOSE_S
    stream.connection_lost(None)


@virtual
async def test_a_peer_that_closes_is_not_waited_for_however_it_reads() -> None:
    stream, transport, _ = paused()
    stream.eof_received()

    def taken() -> bool:
        transport.held -= LEAST_TAKEN
        return transport.aborted

    assert await seconds_until(taken, 100) <= CLOSE_S + 0.5
    stream.connection_lost(None)


@virtual
async def test_a_peer_that_takes_nothing_is_cut_off_in_time_and_one_that_took_all_is_not() -> None:
    stream, transport, session = paused()
    await asyncio.sleep(WRITE_STALL_S - 1)
    assert session.cuts == []
    await asyncio.sleep(2)
    assert session.cuts == [1013]
    stream.connection_lost(None)
    stream, transport, session = paused()
    transport.held = 0
    stream.resume_writing()
    await asyncio.sleep(10 * WRITE_STALL_S)
    assert session.cuts == []
    stream.connection_lost(None)


@on_each_loop
async def test_what_the_kernel_holds_is_not_taken_yet() -> None:
    lost = asyncio.get_running_loop().create_future()

    class Told(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    near, far = socket.socketpair()
    with far:
        transport = TcpTransport(asyncio.get_running_loop(), near, None, Told())
        transport.write(bytes(3_000_000))
        before = untaken(transport)
        assert before > transport.get_write_buffer_size() > 0
        far.recv(100_000)
        assert untaken(transport) < before
        transport.abort()
        await lost
        assert untaken(transport) == 0


class Below(asyncio.Transport):
    """A transport that tells of nothing but its socket, as by TLS of none of what is between it and the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})

    def get_write_buffer_size(self) -> int:
        return 0


async def test_what_was_taken_counts_also_where_the_kernel_was_given_as_much_meanwhile() -> None:
    def fill() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(bytes(65_536))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        far = socket.create_connection(listening.getsockname())
        near, _ = listening.accept()
    with near, far:
        near.setblocking(False)
        fill()
        progress, before = Progress(Below(near)), untaken(Below(near))
        assert not progress.look()
        async with asyncio.timeout(10):
            while True:
                far.recv(65_536)
                await asyncio.sleep(0.01)  # until the kernel knows of it
                fill()
                if untaken(Below(near)) >= before:
                    break
        assert progress.look()
        assert not progress.look()
