"""How long a peer of the native server may take nothing: from the last byte that it took, and no longer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from chatx.gateway.native.stream import Stream
from chatx.gateway.native.tcp import TcpTransport
from chatx.gateway.native.writing import WRITE_STALL_S
from chatx.gateway.session.progress import untaken
from chatx.gateway.session.socket import Flow
from tests.gateway.loops import on_each_loop
from tests.virtual import virtual


class Holds(asyncio.Transport):
    """Holds what is written until it is taken by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.held += len(data)

    def get_write_buffer_size(self) -> int:
        return self.held

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


class Listens:
    """A session that keeps why it was cut."""

    def __init__(self) -> None:
        self.cuts: list[int] = []

    def cut(self, code: int, reason: str) -> None:
        self.cuts.append(code)

    def end(self) -> None:
        pass


def paused() -> tuple[Stream, Holds, Listens]:
    """Return a stream whose transport holds 1,000 bytes, and its session."""
    transport, session = Holds(), Listens()
    told: Any = session
    stream = Stream(transport, 1_000_000, Flow(), lambda _: None)
    stream.begin(told, b"")
    transport.write(bytes(1000))
    stream.pause_writing()
    return stream, transport, session


@virtual
async def test_a_peer_that_takes_a_little_again_and_again_is_not_cut_off_until_it_stops() -> None:
    stream, transport, session = paused()
    for _ in range(20):
        await asyncio.sleep(WRITE_STALL_S - 3)
        transport.held -= 1
    assert session.cuts == []
    await asyncio.sleep(WRITE_STALL_S - 1)
    assert session.cuts == []
    await asyncio.sleep(1 + WRITE_STALL_S / 4)
    assert session.cuts == [1013]
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
