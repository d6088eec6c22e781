"""The native server: what it alone must hold, from the first byte to the last, over real sockets in this loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from chatx.chat import Chat
from chatx.errors import ConfigError
from chatx.gateway.entry.forwarded import Proxies
from chatx.gateway.native import exchanges, greeting, writing
from chatx.gateway.native import server as websocket
from chatx.gateway.native.reading import PIECE_BYTES
from chatx.gateway.native.server import NativeServer
from chatx.gateway.wire.bounds import PENDING_PUSHES
from tests.gateway.echo import EchoEntrance
from tests.gateway.fakes import chatx_tasks
from tests.gateway.loops import on_each_loop
from tests.gateway.phoenix_peer import raw_frame
from tests.gateway.raw_peer import (
    CLOSE,
    HANDSHAKE,
    answer,
    client_tls,
    close_code,
    masked,
    next_frame,
    opened,
    pushed,
    raw,
    server_tls,
)
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import named, native
from tests.limits import UNLIMITED


@pytest.mark.parametrize(
    "head, status",
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * greeting.HEAD_BYTES, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (greeting.HEAD_LINES + 1) + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nno header\r\n\r\n", 400),
        (b"POST /socket/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", 405),
        (b"GET /socket/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
        (HANDSHAKE.replace(b"/socket/", b"/other/") % b"ada", 404),
        (HANDSHAKE.replace(b"vsn=2.0.0&user_id=%b", b"vsn=2.0.0"), 403),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n\r\n" + b"x" * 600_000, 413),
    ],
)
async def test_a_bad_head_gets_the_status_that_says_so(head: bytes, status: int) -> None:
    async with Chat() as chat, native(chat) as (server, port):
        said = await answer(port, head)
        assert said.startswith(f"HTTP/1.1 {status} ".encode())
        assert server.connections == 0


@pytest.mark.parametrize("path", [b"/socket/websocket?vsn=2.0.0", b"/socket/websocket/"])
async def test_a_request_whose_upgrade_was_lost_on_the_way_is_told_so(path: bytes) -> None:
    async with Chat() as chat, native(chat) as (_, port):
        said = await answer(port, b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
        assert said.startswith(b"HTTP/1.1 426 ")
        assert b"\r\nupgrade: websocket\r\n" in said.lower()
        assert b"has to hand on Upgrade" in said


async def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "HEAD_S", 0.05)
    async with Chat() as chat, native(chat) as (_, port):
        assert (await answer(port, b"GET / HT")).startswith(b"HTTP/1.1 408 ")


async def test_connections_that_say_nothing_are_bounded_and_the_oldest_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.gateway.native.server.PENDING_HANDSHAKES", 2)
    async with Chat() as chat, native(chat) as (server, port):
        async with raw(port) as (oldest, _):
            await until(lambda: len(server.greetings) == 1)
            async with raw(port):
                await until(lambda: len(server.silent) == 2)
                for _ in range(5):
                    async with opened(port):
                        pass
                assert len(server.greetings) <= 2
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(oldest.read(), 10) == b""
        assert server.refused[408] >= 1


async def test_a_client_that_goes_while_it_is_asked_about_leaves_nothing() -> None:
    asked = asyncio.Event()

    async def authenticate(handshake: Any) -> str:
        asked.set()
        await asyncio.sleep(3600)
        return "ada"

    async with Chat(adapter_timeout_ms=3_600_000) as chat, native(chat, authenticate) as (server, port):
        async with raw(port) as (_, writer):
            writer.write(HANDSHAKE % b"ada")
            await asked.wait()
        await until(lambda: not server.greetings and not chatx_tasks())
        assert len(server.entrance.begin(None)[0].admission) == 1  # the one that was begun here


async def test_a_chat_that_does_not_run_is_a_503_and_so_is_a_server_that_drains() -> None:
    chat = Chat()
    async with native(chat) as (server, port):
        assert (await answer(port, HANDSHAKE % b"ada")).startswith(b"HTTP/1.1 503 ")
        await chat.start()
        await server.drain(0.1)
        assert (await answer(port, HANDSHAKE % b"ada")).startswith(b"HTTP/1.1 503 ")
        assert (await answer(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        await chat.stop()


async def test_a_handshake_that_fails_here_is_a_500_and_the_log_says_whose(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(EchoEntrance):
        async def admit(self, *args: Any) -> Any:
            raise LookupError("a fault of ours")

    async with Chat() as chat, native(chat) as (server, port):
        server.entrance = Broken(chat)
        assert (await answer(port, HANDSHAKE % b"ada")).startswith(b"HTTP/1.1 500 ")
        assert len(server.entrance.begin(None)[0].admission) == 1  # the one that was begun here
    (record,) = caplog.records
    assert (record.levelname, record.__dict__["address"]) == ("ERROR", "127.0.0.1")


async def test_an_authenticate_that_fails_is_a_refusal() -> None:
    def authenticate(handshake: Any) -> str:
        raise LookupError("no such thing")

    async with Chat() as chat, native(chat, authenticate) as (_, port):
        assert (await answer(port, HANDSHAKE % b"ada")).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "frames, code",
    [
        (b"".join(masked(Opcode.PING, b"") for _ in range(100)), 1008),
        (masked(Opcode.TEXT, b"", fin=False) + masked(Opcode.CONT, b"", fin=False) * 200, 1008),
        (masked(Opcode.TEXT, b"x" * 40_000, fin=False) + masked(Opcode.CONT, b"x" * 40_000), 1009),
        (masked(Opcode.TEXT, b"\xff\xfe"), 1007),
        (masked(Opcode.TEXT, b"not json"), 1007),
        (masked(Opcode.CONT, b"x"), 1002),
        (Frame(Opcode.TEXT, b"[]").serialize(mask=False), 1002),
        (bytes((0xC1, 0x80, 0, 0, 0, 0)), 1002),
        (masked(Opcode.CLOSE, (3000).to_bytes(2)), 3000),
    ],
    # A mask is drawn by chance, and the name of a test must not be.
    ids=["pings", "pieces", "bytes", "text", "json", "continued", "unmasked", "reserved", "closed"],
)
async def test_frames_that_are_too_much_or_wrong_close_the_socket_and_no_other(frames: bytes, code: int) -> None:
    async with Chat() as chat, native(chat) as (server, port), real_client(port, "bob") as bystander:
        await bystander.ask("room:a", "phx_join")
        async with opened(port) as (reader, writer):
            writer.write(frames)
            assert await close_code(reader) == code
            writer.write(b"\x00" * 10)
            assert await asyncio.wait_for(reader.read(), 10) == b""
        await until(lambda: server.connections == 1)
        await bystander.ask("room:a", "new_message", {"content": "still here"})


async def test_a_message_in_pieces_and_frames_in_drips_are_understood() -> None:
    async with Chat() as chat, native(chat) as (_, port), opened(port) as (reader, writer):
        text = raw_frame(2, "1", "1", "room:a", "phx_join", {})
        data = text.encode() if isinstance(text, str) else text
        pieces = [data[start : start + 7] for start in range(0, len(data), 7)]
        frames = masked(Opcode.TEXT, pieces[0], fin=False) + b"".join(
            masked(Opcode.CONT, piece, fin=piece is pieces[-1]) for piece in pieces[1:]
        )
        for byte in frames:
            writer.write(bytes((byte,)))
            await writer.drain()
        first, _ = await reader.readexactly(2)
        assert first == 0x81
        assert await chat.presence("a")


async def test_the_socket_may_be_at_a_path_of_several_segments() -> None:
    async with Chat() as chat, native(chat, path="/chat/of/ours") as (_, port):
        handshake = HANDSHAKE % b"ada"
        assert b" 101 " in await first_line(port, handshake.replace(b"/socket/", b"/chat/of/ours/"))
        assert b" 404 " in await first_line(port, handshake)


async def first_line(port: int, data: bytes) -> bytes:
    async with raw(port) as (reader, writer), asyncio.timeout(10):
        writer.write(data)
        return await reader.readline()


async def test_what_follows_a_handshake_at_once_is_not_lost() -> None:
    async with Chat() as chat, native(chat) as (_, port), raw(port) as (reader, writer):
        text = raw_frame(2, "1", "1", "room:a", "phx_join", {})
        writer.write(HANDSHAKE % b"ada" + masked(Opcode.TEXT, text.encode() if isinstance(text, str) else text))
        await reader.readuntil(b"\r\n\r\n")
        assert (await reader.readexactly(1)) == b"\x81"


async def test_a_client_with_many_pushes_under_way_is_read_no_further_until_they_are_done() -> None:
    going = asyncio.Event()

    class Slow:
        async def check(self, content: str) -> bool:
            await going.wait()
            return True

    async with (
        Chat(moderation=Slow(), rate_limit=UNLIMITED) as chat,
        native(chat) as (server, port),
        real_client(port, "ada") as client,
    ):
        await client.ask("room:a", "phx_join")
        for number in range(300):
            await client.push("room:a", "new_message", {"content": f"{number}"})
        (served,) = server.streams.values()
        await until(lambda: served.session.busy)
        beat = await client.push("phoenix", "heartbeat")
        await asyncio.sleep(0.1)
        assert len(served.session._tasks or ()) == PENDING_PUSHES
        going.set()
        messages = await client.wait_for_messages(300)
        assert [each["content"] for each in messages] == [f"{number}" for number in range(300)]
        await client.wait_for(lambda each: each.event == "phx_reply" and each.ref == beat)


async def test_a_peer_that_takes_nothing_for_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "WRITE_STALL_S", 0.2)
    monkeypatch.setattr(writing, "CLOSE_S", 0.2)
    async with Chat(rate_limit=UNLIMITED, mailbox_bytes=10**9) as chat, native(chat) as (server, port):
        async with opened(port) as (reader, writer):
            text = raw_frame(2, "1", "1", "room:a", "phx_join", {})
            writer.write(masked(Opcode.TEXT, text.encode() if isinstance(text, str) else text))
            await until(lambda: chat.statistics().rooms == 1)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
            for _ in range(3000):
                await chat.send_message("a", "bob", "x" * 4000)
            await until(lambda: server.connections == 0)
        assert await chat.presence("a") == {}


async def test_a_drain_lets_everything_out_before_it_sends_away() -> None:
    async with Chat(rate_limit=UNLIMITED) as chat, native(chat) as (server, port):
        async with real_client(port, "ada") as ada, real_client(port, "bob") as bob:
            for client in (ada, bob):
                await client.ask("room:a", "phx_join")
            for number in range(100):
                await chat.send_message("a", "eve", f"{number}")
            await asyncio.gather(server.drain(5), ada.wait_for_messages(100), bob.wait_for_messages(100))
            for client in (ada, bob):
                with pytest.raises(ConnectionClosed):
                    await client.wait_for(lambda _: False)
                assert client.connection.close_code == 1012
        assert server.connections == 0


async def test_what_is_published_in_the_turn_in_which_a_drain_begins_comes_before_the_close() -> None:
    async with Chat() as chat, native(chat) as (server, port), real_client(port, "ada") as ada:
        await ada.ask("room:a", "phx_join")
        await ada.wait_for(lambda each: each.event == "presence_state")
        # A send in which nothing waits does not give way to the loop.
        await chat.send_message("a", "eve", "last words")
        await server.drain(5)
        assert [each["content"] for each in await ada.wait_for_messages(1)] == ["last words"]
        with pytest.raises(ConnectionClosed):
            await ada.wait_for(lambda _: False)
        assert ada.connection.close_code == 1012


async def test_a_drain_sends_away_in_batches_and_tells_those_who_stay_of_nobody_who_goes() -> None:
    seen: list[int] = []
    async with Chat() as chat, native(chat) as (server, port), contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(opened(port, b"user%d" % number)) for number in range(120)]
        for number, (_, writer) in enumerate(peers):
            writer.write(pushed(f"room:{number % 12}", "phx_join", {}))
        await until(lambda: chat.statistics().members == 120)

        async def watch() -> None:
            while len(server.streams):
                seen.append(server.sockets_closed.get(1012, 0))
                await asyncio.sleep(0)

        async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
            frames = [b""]
            while (frame := await next_frame(reader))[0] != 0x88:
                frames.append(frame[1])
            assert int.from_bytes(frame[1][:2]) == 1012
            writer.write(CLOSE)
            writer.close()
            return frames

        reading = [asyncio.create_task(read(*peer)) for peer in peers]
        await asyncio.gather(watch(), server.drain(5))
        read_by_all = await asyncio.gather(*reading)

    assert sorted(set(seen)) == [0, 40, 80, 120]
    assert not [frame for frames in read_by_all for frame in frames if b'"leaves":{"' in frame]


async def test_whoever_is_not_sent_away_yet_is_refused_a_join_while_the_server_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "_STEP_S", 10.0)  # it holds on between its two batches
    async with Chat() as chat, native(chat) as (server, port), contextlib.AsyncExitStack() as stack:
        peers = {
            b"user%d" % number: await stack.enter_async_context(opened(port, b"user%d" % number))
            for number in range(60)
        }
        draining = asyncio.create_task(server.drain(60))
        await until(lambda: bool(server.sockets_closed.get(1012)))
        stays = next(client for client in server.streams.values() if not client.session._ended)
        reader, writer = peers[stays.user_id.encode()]
        writer.write(pushed("room:a", "phx_join", {}))
        _, reply = await next_frame(reader)
        assert b'"code":"room_unavailable"' in reply
        assert chat.statistics().rooms == 0
        draining.cancel()


async def test_a_drain_whose_time_is_over_amid_its_batches_cuts_off_the_rest() -> None:
    async with Chat() as chat, native(chat) as (server, port), contextlib.AsyncExitStack() as stack:
        for number in range(60):
            await stack.enter_async_context(opened(port, b"user%d" % number))

        async def hold_up_the_loop() -> None:
            while not server.sockets_closed.get(1012):  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0)
            time.sleep(0.4)  # noqa: ASYNC251  # this is the fault

        await asyncio.gather(server.drain(0.3), hold_up_the_loop())
        assert (server.sockets_closed[1012], server.connections) == (30, 0)


async def test_a_drain_does_not_wait_longer_than_it_may_for_whoever_does_not_answer() -> None:
    async with Chat() as chat, native(chat) as (server, port), opened(port) as (reader, _):
        await server.drain(0.2)
        await until(lambda: server.connections == 0)
        assert await close_code(reader) == 1012


async def test_other_requests_go_to_the_application_and_its_failures_stay_there() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        if scope["path"] == "/fails":
            raise LookupError("no such thing")
        said = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} {body.decode()}".encode()
        headers = [(b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    async with Chat() as chat, native(chat, http=app) as (server, port):
        said = await answer(port, b"POST /a%20b?c=d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz")
        assert said.startswith(b"HTTP/1.1 200 ")
        assert said.endswith(b"\r\n\r\nPOST /a b c=d xyz")
        assert (await answer(port, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await answer(port, b"GET /fails HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
        assert (await answer(port, b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        await until(lambda: not server.exchanges)


@pytest.mark.parametrize(
    "said, code",
    [
        (masked(Opcode.BINARY, b"x" * 70_000), 1009),
        (b"\xff" * 20, 1002),
        (masked(Opcode.CLOSE, (999).to_bytes(2)), 1002),
        (masked(Opcode.PING, b"") * 100, 1008),
        (CLOSE, None),
    ],
    ids=["too large", "no frame", "no code", "pings", "its own"],
)
async def test_every_close_from_this_side_is_counted_once_and_none_of_the_peers(said: bytes, code: int | None) -> None:
    async with Chat() as chat, native(chat) as (server, port), opened(port) as (reader, writer):
        writer.write(said)
        assert await close_code(reader) == (code or 1000)
        writer.write(CLOSE * 2)
        writer.close()
        await until(lambda: not server.connections)
        assert server.sockets_closed == ({} if code is None else {code: 1})


async def test_requests_under_way_are_bounded_and_each_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_EXCHANGES", 1)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
    async with Chat() as chat, native(chat) as (server, port):
        async with raw(port) as (reader, writer):
            writer.write(request)
            await until(lambda: len(server.exchanges.plain) == 1)
            assert (await answer(port, request + b"xyz")).startswith(b"HTTP/1.1 404 ")
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 503 ")
        await until(lambda: not server.exchanges)
        assert (await answer(port, request + b"xyz")).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("tls", [False, True])
@on_each_loop
async def test_small_writes_are_not_held_back_until_others_are_acknowledged(tls: bool) -> None:
    async with (
        Chat() as chat,
        native(chat, ssl=server_tls() if tls else None) as (server, port),
        opened(port, tls=tls),
    ):
        (held,) = server.streams
        ours = held.writing._transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_unix_socket_is_served_too(tmp_path: Path) -> None:
    path = str(tmp_path / "chat")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    async with Chat() as chat:
        server = NativeServer(chat, authenticate=named)
        await server.start([listening])
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(HANDSHAKE % b"ada")
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        writer.close()
        await until(lambda: not server.connections)
        await server.close()
    listening.close()


async def test_an_origin_behind_a_trusted_proxy_is_the_one_that_the_proxy_tells() -> None:
    seen: list[Any] = []

    def authenticate(handshake: Any) -> str:
        seen.append((handshake.scope["client"][0], handshake.scope["scheme"]))
        return "ada"

    headers = {"X-Forwarded-For": "198.51.100.7, 127.0.0.9", "X-Forwarded-Proto": "https"}
    async with Chat() as chat:
        async with native(chat, authenticate, forwarded_allow_ips=("127.0.0.0/8", "::1")) as (_, port):
            options = {"origin": f"https://localhost:{port}", "additional_headers": headers}
            async with real_client(port, "ada", **options):
                pass
        async with native(chat, authenticate) as (_, port):
            with pytest.raises(InvalidStatus):
                async with real_client(port, "ada", origin=f"https://localhost:{port}", additional_headers=headers):
                    pass
    assert seen == [("198.51.100.7", "wss")]


def test_proxies_are_addresses_and_what_is_no_address_is_not_believed() -> None:
    with pytest.raises(ConfigError, match="forwarded_allow_ips"):
        Proxies(("nonsense",))
    proxies = Proxies(("*",))
    assert proxies.client("10.0.0.1", {"x-forwarded-for": "evil, 10.0.0.2"}) == "10.0.0.2"
    assert proxies.client(None, {"x-forwarded-for": "10.0.0.2"}) is None
    assert proxies.scheme("10.0.0.1", {"x-forwarded-proto": "gopher"}, "http") == "http"


@pytest.mark.parametrize("wrong", [{"path": "socket"}, {"path": "/socket/"}, {"origins": ("nonsense",)}])
def test_wrong_arguments_are_told_at_once(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        NativeServer(Chat(), authenticate=named, **wrong)
    with pytest.raises(ConfigError):
        NativeServer(Chat(), authenticate=None)  # type: ignore[arg-type]


@on_each_loop
async def test_clients_chat_over_tls_and_resume_and_pages_of_the_plain_origin_are_foreign() -> None:
    options: dict[str, Any] = {"ssl": client_tls()}
    async with Chat(rate_limit=UNLIMITED) as chat, native(chat, ssl=server_tls()) as (server, port):
        async with real_client(port, "ada", **options) as ada, real_client(port, "bob", **options) as bob:
            start = await ada.ask("room:a", "phx_join")
            await bob.ask("room:a", "phx_join")
            for number in range(50):
                await ada.push("room:a", "new_message", {"content": f"{number}" + "x" * 4000})
            assert await ada.wait_for_messages(50) == await bob.wait_for_messages(50)
        await until(lambda: not server.connections)
        async with real_client(port, "ada", **options) as back:
            response = await back.ask("room:a", "phx_join", {"epoch": start["epoch"], "offset": 40})
            assert response["recovered"] is True
            assert [each["offset"] for each in await back.wait_for_messages(10)] == list(range(41, 51))
        with pytest.raises(InvalidStatus):
            async with real_client(port, "ada", origin=f"http://localhost:{port}", **options):
                pass


async def test_over_tls_it_takes_no_plain_request() -> None:
    async with Chat() as chat, native(chat, ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as (server, port):
        said = b""
        with contextlib.suppress(ConnectionError):
            said = await answer(port, HANDSHAKE % b"ada")
        assert b"HTTP" not in said
        assert server.connections == 0


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
async def test_a_message_behind_one_as_large_as_what_is_parsed_at_once_is_read_too(size: int) -> None:
    async with Chat() as chat, native(chat) as (_, port), real_client(port, "ada", compression=None) as client:
        head = 8  # two bytes, two of length, four of the mask
        begin, end = '[null,"1","phoenix","heartbeat",{"x":"', '"}]'
        first = (begin + "x" * (size - head - len(begin) - len(end)) + end).encode()
        second = b'[null,"2","phoenix","heartbeat",{}]'
        frames = [Frame(Opcode.TEXT, text).serialize(mask=True) for text in (first, second)]
        assert len(frames[0]) == size
        client.connection.transport.write(b"".join(frames))
        await client.wait_for(lambda each: each.ref == "1")
        await client.wait_for(lambda each: each.ref == "2")
