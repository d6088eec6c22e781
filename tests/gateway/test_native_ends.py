"""The end of a request to the native server: its answer reaches who sends on, and who takes it slowly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatx.chat import Chat
from chatx.gateway.native.farewell import UNKNOWN, Farewell, to_come
from chatx.gateway.native.limits import ANSWER_STALL_BYTES, ANSWER_STALL_S
from chatx.gateway.native.patience import Patience
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import raw, server_tls
from tests.gateway.real_client import until
from tests.gateway.servers import native
from tests.virtual import virtual

HOST = b"Host: localhost\r\n"
SIZE = 200_000
REFUSED = {
    "full": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 200000\r\n\r\n", 503, b"Too many requests"),
    "folded": (b"POST / HTTP/1.1\r\n" + HOST + b" x\r\nContent-Length: 200000\r\n\r\n", 400, b"none of them folded"),
    "chunks": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 200000\r\n\r\n",
        400,
        b"one way to tell its length",
    ),
    "too much": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 500000\r\n\r\n" + b"x" * 300_000, 413, b"at most"),
    "upgrade": (
        b"POST / HTTP/1.1\r\nUpgrade: websocket\r\n" + HOST + b"Content-Length: 200000\r\n\r\n",
        400,
        b"no request to open a WebSocket",
    ),
    "head": (b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 100 + b"\r\n", 431, b"at most"),
}


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", REFUSED)
async def test_who_is_refused_amid_a_body_reads_the_whole_answer(
    monkeypatch: pytest.MonkeyPatch, *, kind: str, tls: bool
) -> None:
    head, status, text = REFUSED[kind]
    if kind == "full":
        monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_EXCHANGES", 0)
    async with (
        Chat() as chat,
        native(chat, ssl=server_tls() if tls else None) as (server, port),
        raw(port, tls=tls) as (reader, writer),
        asyncio.timeout(30),
    ):
        writer.write(head)
        # It is refused by now; whoever sends first and reads then finds no reset.
        await until(lambda: bool(server.refused) or bool(server.exchanges.leaving))
        for _ in range(SIZE // 20_000):
            writer.write(b"x" * 20_000)
            await writer.drain()
        said = await reader.readuntil(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 %d " % status)
        length = int(said.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        assert text in body
        if not tls or kind not in ("chunks", "head"):  # whose ends nothing tells
            assert await reader.read() == b""
        writer.close()
        await until(lambda: not server.greetings and not server.exchanges)


@pytest.mark.parametrize("sends", [False, True], ids=["silence", "flood"])
@on_each_loop
async def test_what_comes_behind_a_refusal_is_read_within_bounds(monkeypatch: pytest.MonkeyPatch, sends: bool) -> None:
    monkeypatch.setattr("chatx.gateway.native.farewell.LINGER_S", 3600.0 if sends else 0.05)
    monkeypatch.setattr("chatx.gateway.native.patience.ANSWER_STALL_S", 3600.0)
    async with Chat() as chat, native(chat) as (server, port), raw(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n x: y\r\nContent-Length: 99999999\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 10)
        if sends:
            with pytest.raises(ConnectionError):
                for _ in range(1000):
                    writer.write(b"x" * 20_000)
                    await writer.drain()
        await until(lambda: not server.greetings)


@on_each_loop
async def test_a_request_behind_the_first_costs_nobody_the_answer_and_a_flood_of_them_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.gateway.native.farewell.LINGER_S", 3600.0)
    go = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    get = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    async with Chat() as chat, native(chat, http=waits) as (server, port):
        async with raw(port) as (reader, writer):
            writer.write(get)
            await until(lambda: len(server.exchanges.plain) == 1)
            writer.write(get)
            await until(lambda: any(each._behind for each in server.exchanges))
            go.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(get)
            assert await reader.read() == b"ok"
            assert len(server.exchanges.leaving) == 1  # until the peer, who may be sending, has seen the end too
        await until(lambda: not server.exchanges)
        go.clear()
        async with raw(port) as (_, writer):
            writer.write(get)
            with pytest.raises(ConnectionError):
                for _ in range(1000):
                    writer.write(b"x" * 20_000)
                    await writer.drain()
        await until(lambda: not server.exchanges)


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_application_goes_on_when_what_waited_is_taken(*, tls: bool) -> None:
    stalled, go = asyncio.Event(), asyncio.Event()

    async def begins(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not stalled.is_set():
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            await asyncio.sleep(0)
        await go.wait()
        await send({"type": "http.response.body", "body": b"the end"})

    async with (
        Chat() as chat,
        native(chat, http=begins, ssl=server_tls() if tls else None) as (server, port),
        raw(port, tls=tls) as (reader, writer),
        asyncio.timeout(30),
    ):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: bool(server.exchanges.plain.waiting))
        stalled.set()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        taking = asyncio.create_task(reader.read())
        await until(lambda: not server.exchanges.plain.waiting)
        for _ in range(100):
            await asyncio.sleep(0)
            assert len(server.exchanges.plain) == 1
        go.set()
        assert b"the end" in await taking


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_answer_that_is_taken_slowly_but_steadily_is_given_whole(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: longer than the application has for it, and than a peer may take nothing."""
    monkeypatch.setattr("chatx.gateway.native.http.EXCHANGE_S", 2.0)
    monkeypatch.setattr("chatx.gateway.native.patience.ANSWER_STALL_S", 3.0)

    async def much(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"400000")]})
        for _ in range(4):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body"})

    async with (
        Chat() as chat,
        native(chat, http=much, ssl=server_tls() if tls else None) as (_, port),
        raw(port, tls=tls, receive_buffer=4096) as (reader, writer),
    ):
        writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
        got = 0
        while got < 400_000:
            piece = await asyncio.wait_for(reader.read(4000), 15)
            assert piece, f"it was cut off after {got} bytes"
            got += len(piece)
            await asyncio.sleep(0.1)


@pytest.mark.slow
@on_each_loop
async def test_what_is_written_at_once_is_waited_for_by_tls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS takes all of it at once, and ends both ways at once: the time for that is no time for the answer."""
    monkeypatch.setattr("chatx.gateway.native.tls.CLOSE_S", 1.0)
    monkeypatch.setattr("chatx.gateway.native.patience.ANSWER_STALL_S", 3.0)

    async def much(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
        await send({"type": "http.response.body", "body": b"x" * 1_000_000})

    async with (
        Chat() as chat,
        native(chat, http=much, ssl=server_tls()) as (server, port),
        raw(port, tls=True, receive_buffer=4096) as (reader, writer),
    ):
        writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
        got = 0
        while got < 1_000_000:
            piece = await asyncio.wait_for(reader.read(5000), 15)
            assert piece, f"it was cut off after {got} bytes"
            got += len(piece)
            if got < 800_000:  # the rest is in the peer's own buffers, and no longer the server's matter
                await asyncio.sleep(0.03)
        await until(lambda: not server.exchanges)


class Taking(asyncio.Transport):
    """A transport whose peer takes so many bytes a second."""

    def __init__(self, size: int, rate: float) -> None:
        self._size = size
        self._rate = rate
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self.aborted_at: float | None = None

    def get_write_buffer_size(self) -> int:
        return max(0, int(self._size - self._rate * (self._loop.time() - self._began)))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None: ...

    def write_more(self, size: int) -> None:
        self._size += size

    def abort(self) -> None:
        self.aborted_at = self._loop.time() - self._began


@virtual
async def test_who_takes_what_is_asked_of_a_peer_is_waited_for_and_who_takes_drops_is_not() -> None:
    steady = Taking(10 * ANSWER_STALL_BYTES, 2 * ANSWER_STALL_BYTES / ANSWER_STALL_S)
    drops = Taking(10 * ANSWER_STALL_BYTES, 1)
    nothing = Taking(1, 0)
    ended = Taking(1, 0)
    more = Taking(10, 0)
    patiences = [Patience(each) for each in (steady, drops, nothing, ended, more)]
    for patience in patiences:
        patience.begin()
    patiences[3].end()
    await asyncio.sleep(ANSWER_STALL_S / 2)
    more.write_more(10)  # which is no progress
    await asyncio.sleep(ANSWER_STALL_S * 4 / 5)
    assert [each.aborted_at is None for each in (steady, drops, nothing, ended, more)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    await asyncio.sleep(ANSWER_STALL_S * 3.2)
    assert steady.aborted_at is None
    await asyncio.sleep(ANSWER_STALL_S * 3)
    assert steady.aborted_at is not None  # it has all, and the connection does not end


@virtual
async def test_a_connection_that_is_closed_behind_its_answer_does_not_wait_for_who_does_not_take_it() -> None:
    steady, nothing = Taking(3 * ANSWER_STALL_BYTES, ANSWER_STALL_BYTES / ANSWER_STALL_S * 1.5), Taking(1, 0)
    farewells = [Farewell(each, 0, lambda _: None) for each in (steady, nothing)]
    await asyncio.sleep(ANSWER_STALL_S * 1.5)
    assert (steady.aborted_at is None, nothing.aborted_at is None) == (True, False)
    farewells[0].connection_lost(None)
    await asyncio.sleep(ANSWER_STALL_S * 10)
    assert steady.aborted_at is None


@pytest.mark.parametrize(
    "head, behind, left",
    [
        (b"GET / HTTP/1.1\r\n\r\n", 7, 0),
        (b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\n", 5, 7),
        (b"POST / HTTP/1.1\r\ncontent-length:\t12 \r\n\r\n", 12, 0),
        (b"POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\n", 99, 0),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 99, UNKNOWN),
        (b"POST / HTTP/1.1\r\nContent-Length: twelve\r\n\r\n", 0, UNKNOWN),
        (b"POST / HTTP/1.1\r\nContent-Length: 12, 12\r\n\r\n", 0, UNKNOWN),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", 0, UNKNOWN),
    ],
)
def test_what_is_on_its_way_is_what_the_head_says_or_unknown(head: bytes, behind: int, left: int) -> None:
    assert to_come(head, behind) == left
