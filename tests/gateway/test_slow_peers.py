"""A peer that reads slowly, as long as it reads, is served to the end; one that takes nothing is not waited for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from chatx import Chat, RateLimit
from chatx.gateway.asgi import app
from chatx.gateway.asgi.app import AsgiSocket
from chatx.gateway.native import writing
from chatx.gateway.session.progress import taken_within, transport_of
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.bounds import CLOSING_S, LEAST_TAKEN
from tests.gateway.raw_peer import CLOSE, Peer, next_frame, opened, pushed, server_tls
from tests.gateway.servers import SHELLS, served
from tests.virtual import virtual

STALL_S = 3.0
CLOSED = (4003).to_bytes(2) + b"revoked"
PAGE = 50
PAGES = 3


@asynccontextmanager
async def asking_for_history(shell: str, monkeypatch: pytest.MonkeyPatch, *, tls: bool = False) -> AsyncIterator[Peer]:
    """Open a socket that is asked to write 600 kB to its peer, which must take something every three seconds."""
    monkeypatch.setattr(app, "WRITE_STALL_S", STALL_S)
    monkeypatch.setattr(writing, "WRITE_STALL_S", STALL_S)
    chat = Chat(rate_limit=RateLimit(1e9, 10**9))
    options: dict[str, Any] = {"ssl": server_tls()} if tls else {}
    async with served(shell, chat, **options) as port, opened(port, tls=tls, receive_buffer=4096) as (reader, writer):
        for _ in range(PAGE):
            await chat.send_message("a", "bob", "x" * 4000)
        writer.write(pushed("room:a", "phx_join"))
        for number in range(PAGES):
            writer.write(pushed("room:a", "history", {"limit": PAGE}, ref=f"{number + 2}"))
        yield reader, writer


@pytest.mark.slow
@pytest.mark.parametrize("shell,tls", [("asgi", False), ("native", False), ("native", True)])
async def test_a_peer_that_reads_slowly_but_steadily_gets_everything(
    shell: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking_for_history(shell, monkeypatch, tls=tls) as (reader, _):
        got = b""
        while got.count(b"x" * 4000) < PAGE * PAGES:
            # 40 kB a second: what the kernel and the server hold is more than is taken in the time of a stall.
            piece = await asyncio.wait_for(reader.read(4000), 15)
            assert piece, f"it was cut off after {len(got)} bytes"
            got += piece
            await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("shell,tls", [("asgi", False), ("native", False), ("native", True)])
async def test_a_peer_that_reads_slowly_but_steadily_gets_all_that_was_written_before_it_was_closed(
    shell: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", STALL_S)
    chat = Chat(rate_limit=RateLimit(1e9, 10**9))
    options: dict[str, Any] = {"ssl": server_tls()} if tls else {}
    async with served(shell, chat, **options) as port, opened(port, tls=tls, receive_buffer=4096) as (reader, writer):
        writer.write(pushed("room:a", "phx_join"))
        await next_frame(reader)
        for _ in range(2 * PAGE):
            await chat.send_message("a", "bob", "x" * 4000)
        await asyncio.sleep(0)  # what was published in a turn is written at its end
        assert await chat.revoke("ada") == 1
        got = b""
        while CLOSED not in got[-len(CLOSED) :]:
            piece = await asyncio.wait_for(reader.read(4000), 15)
            assert piece, f"it was cut off after {len(got)} bytes"
            got += piece
            await asyncio.sleep(0.1)
        assert got.count(b"x" * 4000) == 2 * PAGE
        writer.write(CLOSE)
        assert await asyncio.wait_for(reader.read(), 15) == b""


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
async def test_a_peer_that_takes_nothing_is_cut_off(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking_for_history(shell, monkeypatch) as (reader, _):
        await asyncio.sleep(3 * STALL_S)
        got = b""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(reader.read(65_536), 30):
                got += piece
        assert got.count(b"x" * 4000) < PAGE * PAGES


@pytest.mark.slow
@pytest.mark.parametrize("steadily", [False, True])
@pytest.mark.parametrize("shell", SHELLS)
async def test_a_server_that_stops_waits_for_no_peer_that_reads_slowly(shell: str, steadily: bool) -> None:
    chat = Chat(rate_limit=RateLimit(1e9, 10**9))
    async with AsyncExitStack() as serving:
        port = await serving.enter_async_context(served(shell, chat))
        async with opened(port, receive_buffer=4096) as (reader, writer):
            writer.write(pushed("room:a", "phx_join"))
            await next_frame(reader)
            for _ in range(4 * PAGE):
                await chat.send_message("a", "bob", "x" * 4000)
            await asyncio.sleep(0)  # what was published in a turn is written at its end

            got = []

            async def read() -> None:
                while piece := await reader.read(4000):
                    got.append(piece)
                    await asyncio.sleep(0.5)

            reading = asyncio.create_task(read() if steadily else asyncio.sleep(100))
            # It would take 100 s to read it all, and for ever not to.
            await asyncio.wait_for(serving.aclose(), 60)
            reading.cancel()
            assert len(b"".join(got)) < 4 * PAGE * 4000


class Taking(asyncio.Transport):
    """A transport whose peer takes so many bytes a second."""

    def __init__(self, size: int, rate: float) -> None:
        self._size = size
        self._rate = rate
        self._began = asyncio.get_running_loop().time()

    def get_write_buffer_size(self) -> int:
        return max(0, int(self._size - self._rate * (asyncio.get_running_loop().time() - self._began)))


@virtual
async def test_the_time_for_a_write_runs_from_what_was_taken_last_unless_it_is_next_to_nothing() -> None:
    async with taken_within(10, Taking(200 * LEAST_TAKEN, 2 * LEAST_TAKEN)):
        await asyncio.sleep(100)
    for rate in (0, 1, LEAST_TAKEN / 20):
        with pytest.raises(TimeoutError):
            async with taken_within(10, Taking(200 * LEAST_TAKEN, rate)):
                await asyncio.sleep(100)
    with pytest.raises(TimeoutError):
        async with taken_within(10, None):
            await asyncio.sleep(100)


class Past:
    """A way past an ASGI server's `send` that takes everything, as uvicorn does while its transport is not full."""

    open = writable = True

    def __init__(self) -> None:
        self.aborted = False

    async def wait_writable(self) -> None: ...

    def write(self, wire: bytes) -> None: ...

    def abort(self) -> None:
        self.aborted = True


async def never(message: object) -> None:
    await asyncio.sleep(1e9)


async def at_once(message: object) -> None: ...


@virtual
@pytest.mark.parametrize(
    "rate,earliest,latest",
    [(0, 10, 12.5), (LEAST_TAKEN / 20, 10, 12.5), (LEAST_TAKEN, CLOSING_S, CLOSING_S + 2.5)],
)
async def test_with_asgi_what_was_written_before_a_close_has_the_same_clock_and_a_bound(
    rate: float, earliest: float, latest: float
) -> None:
    socket = AsgiSocket(never, 10**6, None, Taking(10**6, rate))
    writer = asyncio.create_task(socket.run())
    socket.write(Bundle(["x"]))
    await asyncio.sleep(0)
    socket.close(1012, "restarting")
    await asyncio.sleep(earliest - 0.1)
    assert not writer.done()
    await asyncio.sleep(latest - earliest + 0.2)
    assert writer.cancelled()


@virtual
@pytest.mark.parametrize(
    "size,rate,aborted_after",
    [
        (10**6, 0, 10),
        (10**6, LEAST_TAKEN / 20, 10),
        (10**6, LEAST_TAKEN, CLOSING_S),
        (20_000, 2000, None),
        (0, 0, None),
    ],
)
async def test_behind_its_close_frame_uvicorn_waits_for_nobody_who_takes_next_to_nothing(
    size: int, rate: float, aborted_after: float | None
) -> None:
    past: Any = Past()
    socket = AsgiSocket(at_once, 10**6, past, Taking(size, rate))
    socket.close(1012, "restarting")
    await socket.run()
    parting = asyncio.create_task(socket.taken({}))
    await asyncio.sleep((aborted_after or 1000) - 0.1)
    assert not past.aborted
    await asyncio.sleep(3)
    assert past.aborted is (aborted_after is not None)
    assert parting.done()


async def test_only_a_transport_is_taken_for_one() -> None:
    class Cycle:
        def __init__(self, transport: object) -> None:
            self.transport = transport

        async def receive(self) -> None: ...

    transport = Taking(0, 0)
    assert transport_of(Cycle(transport).receive) is transport
    assert transport_of(Cycle(None).receive) is None
    assert transport_of(lambda: None) is None
