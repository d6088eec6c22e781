"""Heads that no honest client writes, at the native server: each gets its refusal, and none a second meaning."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import pytest

from chatx.chat import Chat
from chatx.gateway.entry.target import origin_form
from chatx.gateway.native import greeting
from chatx.gateway.native.server import NativeServer
from tests.gateway.fakes import chatx_tasks
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import HANDSHAKE, answer, close_code, masked, opened, raw, server_tls
from tests.gateway.real_client import until
from tests.gateway.servers import named, native

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
LINES = ("Host: localhost", "Upgrade: websocket", "Connection: Upgrade", KEY, "Sec-WebSocket-Version: 13")
PATH = "/socket/websocket?vsn=2.0.0&user_id=ada"
GET = f"GET {PATH} HTTP/1.1"


def head(*more: str, first: str = GET, without: str | None = None) -> bytes:
    """Return a request to open a socket, with more lines or without one."""
    lines = [line for line in LINES if without is None or not line.startswith(without + ":")]
    return "\r\n".join([first, *lines, *more, "", ""]).encode("latin-1")


REFUSED: dict[str, tuple[bytes, int]] = {
    "no host": (head(without="Host"), 400),
    "two hosts": (head("Host: evil.example"), 400),
    "a second host in other letters": (head("hOsT: localhost"), 400),
    "two keys": (head(KEY), 400),
    "a key that is none": (head("Sec-WebSocket-Key: x", without="Sec-WebSocket-Key"), 400),
    "a key that is not ASCII": (head("Sec-WebSocket-Key: \xff\xfe", without="Sec-WebSocket-Key"), 400),
    "two versions": (head("Sec-WebSocket-Version: 8"), 400),
    "another version": (head("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), 400),
    "two upgrades": (head("Upgrade: h2c"), 426),
    "the same upgrade twice": (head("Upgrade: websocket"), 426),
    "a connection that closes": (head("Connection: close", without="Connection"), 426),
    "a connection of commas": (head("Connection: ,,,,", without="Connection"), 400),
    "a body": (head("Content-Length: 5"), 400),
    "a negative length": (head("Content-Length: -1"), 400),
    "two lengths": (head("Content-Length: 0", "Content-Length: 7"), 400),
    "chunks": (head("Transfer-Encoding: chunked"), 400),
    "a length and chunks": (head("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
    "a null byte in a value": (head("X: a\x00b"), 400),
    "a null byte in a name": (head("X\x00: a"), 400),
    "a lone carriage return": (head("X: a\rb"), 400),
    "a folded line": (head("X: a", " b"), 400),
    "a folded origin": (head("Origin: http://localhost", "\thttp://evil.example"), 400),
    "a space before the colon": (head("Origin : http://localhost"), 400),
    "no colon": (head("nonsense"), 400),
    "no name": (head(": x"), 400),
    "a name that is not ASCII": (head("\xff: x"), 400),
    "HTTP/1.0": (head(first=f"GET {PATH} HTTP/1.0"), 505),
    "HTTP/0.9": (head(first=f"GET {PATH} HTTP/0.9"), 400),
    "HTTP/9.9": (head(first=f"GET {PATH} HTTP/9.9"), 400),
    "no version": (head(first=f"GET {PATH}"), 400),
    "two spaces": (head(first=f"GET  {PATH} HTTP/1.1"), 400),
    "a method that is none": (head(first=f"G\x00T {PATH} HTTP/1.1"), 405),
    "another method": (head(first=f"OPTIONS {PATH} HTTP/1.1"), 405),
    "a path that is not ASCII": (head(first="GET /socket/\xff\xfe/websocket HTTP/1.1"), 400),
    "a null byte in the path": (head(first="GET /socket/\x00/websocket HTTP/1.1"), 404),
    "an escaped null byte in the path": (head(first="GET /socket%00/websocket HTTP/1.1"), 404),
    "an escape that is not UTF-8": (head(first="GET /socket/%ff%fe HTTP/1.1"), 404),
    "an escape that is none": (head(first="GET /socket/%zz HTTP/1.1"), 404),
    "a path that goes up": (head(first="GET /socket/../x/websocket HTTP/1.1"), 404),
    "a longer path": (head(first=f"GET /socket/x{PATH} HTTP/1.1"), 404),
    "two slashes": (head(first=f"GET /{PATH} HTTP/1.1"), 404),
    "no path": (head(first="GET ?vsn=2.0.0&user_id=ada HTTP/1.1"), 400),
    "another host's target": (head(first=f"GET http://evil.example{PATH} HTTP/1.1"), 400),
    "a target with a user in it": (head(first=f"GET http://localhost@evil.example{PATH} HTTP/1.1"), 400),
    "a target of an authority": (head(first="GET localhost:80 HTTP/1.1"), 400),
    "an asterisk": (head(first="GET * HTTP/1.1"), 404),
    "lines that end with a line feed": (GET.encode() + b"\r\n" + b"X: y\n" * 70 + b"\r\n\r\n", 431),
    "a query of null bytes": (head(first="GET /socket/websocket?vsn=%00 HTTP/1.1"), 403),
    "a query that is not UTF-8": (head(first="GET /socket/websocket?vsn=%ff%fe&user_id=%ff HTTP/1.1"), 403),
    "forwarding that is none": (head("X-Forwarded-For: " + "\xff, ," * 500, "Origin: http://[", "Cookie: =;;="), 403),
}


@pytest.mark.parametrize("request_, status", REFUSED.values(), ids=REFUSED)
@on_each_loop
async def test_an_odd_head_is_refused_and_harms_nobody(request_: bytes, status: int) -> None:
    async with Chat() as chat, native(chat, forwarded_allow_ips=("127.0.0.1",)) as (server, port), opened(port, b"bob"):
        said = await answer(port, request_)
        assert said.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"Retry-After" not in said
        await until(lambda: not server.greetings and not server.exchanges)
        assert server.connections == 1
        assert len(server.entrance.begin(None)[0].admission) == 2  # bob, and the one that was begun here


async def test_a_client_of_another_version_is_told_the_one_that_is_spoken() -> None:
    async with Chat() as chat, native(chat) as (_, port):
        said = await answer(port, REFUSED["another version"][0])
        assert b"\r\nSec-WebSocket-Version: 13\r\n" in said


@pytest.mark.parametrize(
    "request_",
    [
        head("Connection: keep-alive"),
        head("Upgrade: WebSocket", "Connection: keep-alive, upgrade", without="Upgrade"),
        head("Content-Length: 0"),
        head(first=f"GET HTTP://LOCALHOST{PATH} HTTP/1.1"),
        head(first=GET.replace("websocket", "websocke%74")),
        head("X: \xff\xfe", "Cookie: a=\xff", "Origin: http://localhost"),
        head(*(f"X-{number}: y" for number in range(greeting.HEAD_LINES - 6))),
    ],
)
async def test_an_unusual_head_that_is_right_opens_a_socket(request_: bytes) -> None:
    async with Chat() as chat, native(chat) as (_, port), raw(port) as (reader, writer):
        writer.write(request_)
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")


OWN, FOREIGN = "http://localhost", "http://evil.example"


@pytest.mark.parametrize(
    "lines",
    [
        (f"Origin: {FOREIGN}",),
        (f"Origin: {OWN}", f"Origin: {FOREIGN}"),
        (f"Origin: {FOREIGN}", f"Origin: {OWN}"),
        (f"origin: {FOREIGN}", f"ORIGIN: {OWN}"),
        (f"Origin: {OWN}", f"Origin: {OWN}"),
        (f"Origin: {FOREIGN}, {OWN}",),
        (f"Origin: {OWN}, {FOREIGN}",),
        (f"Origin: {OWN} {FOREIGN}",),
        (f"Origin: {OWN}@evil.example",),
        (f"Origin: {OWN}.evil.example",),
        (f"Origin: {OWN}\\@evil.example",),
        ("Origin: null",),
        ("Origin:",),
        (f"Sec-WebSocket-Origin: {OWN}", f"Origin: {FOREIGN}"),
        (f"X-Forwarded-Host: {FOREIGN.removeprefix('http://')}", f"Origin: {FOREIGN}"),
        ("X-Forwarded-Proto: https", "Origin: https://localhost"),
        ("Cookie: session=1",),
        ("cookie: ", "Cookie: session=1"),
    ],
)
async def test_no_way_of_writing_an_origin_gets_a_foreign_page_in(lines: tuple[str, ...]) -> None:
    asked: list[Any] = []

    def authenticate(handshake: Any) -> str:
        asked.append(handshake)
        return "ada"

    async with Chat() as chat, native(chat, authenticate) as (_, port):
        assert (await answer(port, head(*lines)))[9:12] in (b"400", b"403")
        assert asked == []


async def test_each_proxy_may_add_a_line_of_its_own_and_only_what_a_trusted_one_says_counts() -> None:
    seen: list[str] = []

    def authenticate(handshake: Any) -> str:
        seen.append(handshake.scope["client"][0])
        return "ada"

    lines = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 198.51.100.7, 10.0.0.1", "X-Forwarded-For: 10.0.0.2")
    async with Chat() as chat:
        for allowed in (("127.0.0.1", "10.0.0.0/8"), ()):
            async with native(chat, authenticate, forwarded_allow_ips=allowed) as (_, port), raw(port) as peer:
                peer[1].write(head(*lines))
                await peer[0].readline()
    assert seen == ["198.51.100.7", "127.0.0.1"]


@pytest.mark.parametrize(
    "lines", [("wss",), ("https,http",), (" HTTPS , http",), ("https", "http"), ('"https"',)], ids=",".join
)
async def test_a_page_behind_a_proxy_that_ends_tls_may_connect_however_the_proxy_says_so(
    lines: tuple[str, ...],
) -> None:
    said = [f"X-Forwarded-Proto: {line}" for line in lines]
    async with Chat() as chat, native(chat, forwarded_allow_ips=("127.0.0.1",)) as (_, port), raw(port) as peer:
        peer[1].write(head("Origin: https://localhost", *said))
        assert (await peer[0].readline()).startswith(b"HTTP/1.1 101 ")


async def test_strangers_behind_one_proxy_share_no_bound_also_where_it_writes_their_ports() -> None:
    async with (
        Chat(max_connections_per_address=1) as chat,
        native(chat, forwarded_allow_ips=("127.0.0.1",)) as (_, port),
        AsyncExitStack() as stack,
    ):
        for hop in ("203.0.113.7:40001", "[2001:db8::7]:40001", "[2001:db8:1::7]:40002", "203.0.113.8:40001"):
            reader, writer = await stack.enter_async_context(raw(port))
            writer.write(head(f"X-Forwarded-For: {hop}"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        assert (await answer(port, head("X-Forwarded-For: 203.0.113.7:40099")))[9:12] == b"429"


def test_a_target_is_a_path_on_the_one_host() -> None:
    assert origin_form("/a?b", ["h"]) == "/a?b"
    assert origin_form("*", ["h"]) == "*"
    assert origin_form("https://H:1?b", ["h:1"]) == "/?b"
    assert origin_form("http://h", ["h"]) == "/"
    for target, hosts in [("/a", []), ("/a", ["h", "h"]), ("//h", []), ("ftp://h/a", ["h"]), ("http:///a", ["h"])]:
        assert origin_form(target, hosts) is None


# Compression is not agreed to, and what says it is compressed is no frame.


@pytest.mark.parametrize("bits", [0x40, 0x20, 0x10, 0x70])
async def test_an_offer_of_compression_is_passed_over_and_reserved_bits_close_the_socket(bits: int) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"
    async with Chat() as chat, native(chat) as (_, port), raw(port) as (reader, writer):
        writer.write(head(offer))
        said = await reader.readuntil(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 101 ")
        assert b"extension" not in said.lower()
        bomb = masked(1, b"\xff" * 100)  # type: ignore[arg-type]
        writer.write(bytes((bomb[0] | bits,)) + bomb[1:])
        assert await close_code(reader) == 1002


# Slow heads


async def test_a_head_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "HEAD_S", 0.2)
    async with Chat() as chat, native(chat) as (server, port), raw(port) as (reader, writer):

        async def drip() -> None:
            for byte in HANDSHAKE:
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()
        await until(lambda: not server.greetings)


@on_each_loop
async def test_handshakes_of_tls_that_do_not_end_are_bounded_in_number_and_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.gateway.native.server.PENDING_HANDSHAKES", 3)
    async with Chat() as chat, native(chat, ssl=server_tls()) as (server, port):
        async with raw(port), raw(port), raw(port) as (_, hello):
            hello.write(b"\x16\x03\x01\x02\x00\x01")  # a ClientHello that goes no further
            await until(lambda: len(server.silent) == 3)
            async with opened(port, tls=True):
                assert server.connections == 1
            assert len(server.greetings) <= 3
        await until(lambda: not server.greetings)
        monkeypatch.setattr("chatx.gateway.native.tls.HEAD_S", 0.2)
        async with raw(port) as (reader, _), raw(port) as (_, hello):
            hello.write(b"\x16\x03\x01\x02\x00\x01")
            assert await gone(reader)
            await until(lambda: not server.greetings)
        async with raw(port) as (reader, writer):
            writer.write(HANDSHAKE % b"ada")
            await gone(reader)
            await until(lambda: not server.greetings)
        async with raw(port, tls=True) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # it does not take leave of TLS
            writer.write(REFUSED["no host"][0])
            await until(lambda: len(server.greetings) == 1)
            for _ in range(100):
                await asyncio.sleep(0.001)
                assert server.greetings
        await until(lambda: not server.greetings)
        async with opened(port, tls=True):
            assert server.connections == 1


async def gone(reader: asyncio.StreamReader) -> bool:
    """Return whether the peer ends the connection, having said nothing that is HTTP."""
    try:
        return b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return True


class FailsAtFirst(socket.socket):
    """A listening socket that has no file for the first connection, and loses the next ones."""

    failures: ClassVar[list[OSError]] = []

    def accept(self) -> Any:
        if self.failures:
            raise self.failures.pop()
        return super().accept()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_that_cannot_be_accepted_keeps_out_no_later_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tls: bool
) -> None:
    for module in ("tls", "listener"):
        monkeypatch.setattr(f"chatx.gateway.native.{module}.PAUSE_S", 0.01)
    lost = [OSError(each, "gone") for each in (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH)]
    failures = [*lost, OSError(errno.EMFILE, "too many open files")]
    monkeypatch.setattr(FailsAtFirst, "failures", failures)
    with socket.create_server(("127.0.0.1", 0)) as made:
        listening = FailsAtFirst(fileno=made.detach())
    async with Chat() as chat:
        server = NativeServer(chat, authenticate=named, ssl=server_tls() if tls else None)
        await server.start([listening])
        async with opened(listening.getsockname()[1], tls=tls):
            assert server.connections == 1
        await server.close()
    assert failures == []
    (told,) = [each for each in caplog.records if "accepted" in each.getMessage()]
    assert (told.levelname, told.__dict__["code"]) == ("WARNING", "EMFILE")


@on_each_loop
async def test_a_server_that_closes_ends_handshakes_of_tls_too() -> None:
    async with Chat() as chat, native(chat, ssl=server_tls()) as (server, port), raw(port) as (reader, _):
        await until(lambda: len(server.greetings) == 1)
        await server.close()
        assert await gone(reader)


# What is asked about takes its time


async def test_a_server_that_begins_to_drain_lets_in_nobody_who_is_being_asked_about() -> None:
    asked, known = asyncio.Event(), asyncio.Event()

    async def authenticate(handshake: Any) -> str:
        asked.set()
        await known.wait()
        return "ada"

    async with Chat() as chat, native(chat, authenticate) as (server, port), raw(port) as (reader, writer):
        writer.write(HANDSHAKE % b"ada")
        await asked.wait()
        await server.drain(0.1)
        known.set()
        said = await reader.read()
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5\r\n" in said
        assert server.connections == 0


async def test_a_client_that_writes_much_before_it_is_let_in_is_cut_off() -> None:
    asked = asyncio.Event()

    async def authenticate(handshake: Any) -> str:
        asked.set()
        await asyncio.sleep(3600)
        return "ada"

    async with (
        Chat(adapter_timeout_ms=3_600_000) as chat,
        native(chat, authenticate) as (server, port),
        raw(port) as (_, writer),
    ):
        writer.write(HANDSHAKE % b"ada")
        await asked.wait()
        writer.write(b"x" * 100_000)
        await until(lambda: not server.greetings and not chatx_tasks())
