"""Requests to the native server that open no socket: what an attacker makes of them, and an application's failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from chatx.chat import Chat
from chatx.gateway.native import exchanges, http, patience
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import answer, raw, server_tls
from tests.gateway.real_client import until
from tests.gateway.servers import native

HOST = b"Host: a\r\n"

TOO_MUCH = b"x" * 2 * http.BODY_BYTES
UNREAD = b"POST /other HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n"


async def says_what_it_got(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    if scope["path"] == "/fails\n":
        raise LookupError("no such thing")
    if scope["path"] == "/silent":
        return
    said = f"{scope['http_version']} {scope['method']} {scope['path']} {len(body)}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": said})


@pytest.mark.parametrize(
    "request_, said",
    [
        (b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n", b"1.1 GET /a 0"),
        (b"GET /a HTTP/1.0\r\n\r\n", b"1.0 GET /a 0"),
        (b"GET http://a/b HTTP/1.1\r\n" + HOST + b"\r\n", b"1.1 GET /b 0"),
        (b"GET /%00%ff HTTP/1.1\r\n" + HOST + b"\r\n", b"1.1 GET /\x00\xef\xbf\xbd 0"),
        (b"GET /a HTTP/1.1\r\n" + HOST + b"\r\nGET /b HTTP/1.1\r\n" + HOST + b"\r\n", b"1.1 GET /a 0"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"1.1 POST / 3"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", b"1.1 GET / 0"),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"1.1 OPTIONS * 0"),
    ],
)
async def test_one_request_is_answered_and_the_connection_is_closed(request_: bytes, said: bytes) -> None:
    async with Chat() as chat, native(chat, http=says_what_it_got) as (server, port):
        head, _, body = (await answer(port, request_)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close" in head.lower()
        assert said in body
        assert body.count(b"GET") <= 1
        await until(lambda: not server.exchanges)


REFUSED: dict[str, tuple[bytes, int]] = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400),
    "another host's target": (b"GET http://b/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a tunnel": (b"CONNECT b:80 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a tunnel to a path": (b"CONNECT / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "two lengths that are the same": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nA: b\r\nContent-Length: 3\r\n\r\nabc",
        400,
    ),
    "two lengths in one line": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "a folded line": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n c\r\n\r\n", 400),
    "a line folded by a tab": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n\tc\r\n\r\n", 400),
    "a line without CR": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\nX-C: d\r\n\r\n", 400),
    "a CR amid a line": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\rX-C: d\r\n\r\n", 400),
    "a blank before a colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A : b\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "a length that is none": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc", 400),
    "a coding that is unknown": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "a chunk that is none": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    "a body without end": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999\r\n\r\n" + TOO_MUCH,
        413,
    ),
    "a length beyond the bound, of which nothing came": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (http.BODY_BYTES + 1),
        413,
    ),
    "the body of a HEAD": (b"HEAD / HTTP/1.1\r\n" + HOST + b"Content-Length: 300000\r\n\r\n" + TOO_MUCH, 413),
    "chunks of one byte": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (http.BODY_PIECES + 1),
        413,
    ),
    "a null byte in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400),
    "a path that is not ASCII": (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
}


@pytest.mark.parametrize("request_, status", REFUSED.values(), ids=REFUSED)
@on_each_loop
async def test_a_request_that_can_be_read_in_two_ways_or_has_no_end_is_refused(request_: bytes, status: int) -> None:
    asked: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)

    async with Chat() as chat, native(chat, http=app) as (server, port), raw(port) as (reader, writer):
        writer.write(request_)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"content-type: application/problem+json\r\n" in head.lower()
        if not request_.startswith(b"HEAD"):
            assert json.loads(await asyncio.wait_for(reader.read(), 10))["status"] == status
        writer.close()
        await until(lambda: not server.exchanges)
        assert asked == []


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("path", [b"/fails%0a", b"/silent"])
async def test_an_application_that_fails_is_a_500_and_one_line_of_the_log(
    method: bytes, path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    async with Chat() as chat, native(chat, http=says_what_it_got) as (server, port):
        said = await answer(port, method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert said.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert said.endswith(b"\r\n\r\n") == (method == b"HEAD")
        await until(lambda: not server.exchanges)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "\n" not in record.getMessage()
    assert unhandled == []


@pytest.mark.parametrize("fault", [SystemExit(1), BaseException("odd"), asyncio.CancelledError()])
async def test_nothing_that_an_application_raises_ends_the_server(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise fault

    async with Chat() as chat, native(chat, http=fails) as (server, port):
        for _ in range(2):
            got = await answer(port, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            assert got.startswith(b"HTTP/1.1 500 ")
        await until(lambda: not server.exchanges)
    assert [len(record.message) < 400 for record in caplog.records] == [True, True]
    assert {record.__dict__["address"] for record in caplog.records} == {"127.0.0.1"}
    assert {record.__dict__["path"] for record in caplog.records} == {"/" + "a" * (http.LOGGED_PATH - 1)}


async def test_a_client_that_goes_before_its_answer_is_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ended = 0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await receive()
        with contextlib.suppress(asyncio.CancelledError):
            await receive()
        ended += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with Chat() as chat, native(chat, http=slow) as (server, port):
        for _ in range(5):
            async with raw(port) as (_, writer):
                writer.write(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
                await until(lambda: any(not exchange.reading for exchange in server.exchanges))
        await until(lambda: ended == 5 and not server.exchanges)
    assert caplog.records == []


async def test_a_client_that_asks_to_go_on_is_told_to() -> None:
    async with Chat() as chat, native(chat, http=says_what_it_got) as (_, port), raw(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"abc")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.1)
    async with Chat() as chat, native(chat) as (server, port):
        said = await answer(port, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nab")
        assert said.startswith(b"HTTP/1.1 408 ")
        await until(lambda: not server.exchanges)


@pytest.mark.parametrize("tls", [False, True])
@on_each_loop
async def test_an_answer_that_is_not_taken_holds_the_application_up_and_ends_in_time(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            sent += 50_000

    monkeypatch.setattr(patience, "ANSWER_STALL_S", 0.25)
    context = server_tls() if tls else None
    async with Chat() as chat, native(chat, http=endless, ssl=context) as (server, port), raw(port, tls=tls) as peer:
        peer[0]._transport.pause_reading()  # type: ignore[attr-defined]
        peer[1].write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: sent > 0)
        await until(lambda: not server.exchanges)
        assert sent < 10_000_000


async def test_a_health_check_is_answered_however_many_requests_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_EXCHANGES", 5)
    async with (
        Chat() as chat,
        native(chat, http=says_what_it_got, health=("/health",)) as (server, port),
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(5):
            _, writer = await stack.enter_async_context(raw(port))
            writer.write(UNREAD)
        await until(lambda: len(server.exchanges.plain) == 5)
        for method in (b"GET", b"HEAD"):
            said = await answer(port, method + b" /health?x=1 HTTP/1.1\r\n" + HOST + b"\r\n")
            assert said.startswith(b"HTTP/1.1 200 ")
        # Nor does a body that does not come keep anybody else out: the oldest gives way.
        for _ in range(2):
            assert (await answer(port, b"GET /other HTTP/1.1\r\n" + HOST + b"\r\n")).startswith(b"HTTP/1.1 200 ")
        for _ in range(6):
            _, writer = await stack.enter_async_context(raw(port))
            writer.write(UNREAD)
        await until(lambda: len(server.exchanges.plain) == 5)
