"""A server that stops, under what holds a request open: a live page's stream, and a poll. Real processes and sockets.

Nothing here is timed. A server that waits for its clients never ends, and the wait for its end is bounded.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chatx import Chat, RateLimit
from chatx.gateway.entry.stopping import GRACE_S, TICK_S, told_when_stopping
from chatx.gateway.wire.closes import CLOSE_RESTART
from chatx.integrations.html import render
from tests.integrations.live_reader import Reader, settle
from tests.integrations.uvicorn_like import UvicornLike, task_of
from tests.longpoll.polling import Call, PollingClient, inside
from tests.process import module
from tests.virtual import virtual

APP = Path(__file__).with_name("held_app.py")


class Held:
    """A request that is held open, on a connection of its own."""

    def __init__(self, port: int, path: str, method: str = "GET", more: str = "") -> None:
        self.socket = socket.create_connection(("localhost", port), 20)
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        self.got = b""

    def until(self, what: bytes) -> None:
        while what not in self.got:
            part = self.socket.recv(65_536)
            assert part, self.got
            self.got += part

    def to_the_end(self) -> bytes:
        while part := self.socket.recv(65_536):
            self.got += part
        self.close()
        return self.got

    def close(self) -> None:
        self.socket.close()


def stream(port: int) -> Held:
    held = Held(port, "/events")
    held.until(b"event: people")
    return held


def session(port: int) -> str:
    """Return the token of a session that polls."""
    held = Held(port, "/socket/longpoll?vsn=2.0.0&user_id=bob")
    held.until(b"}")
    held.close()
    token: str = json.loads(held.got.split(b"\r\n\r\n", 1)[1])["token"]
    return token


def poll(port: int, token: str) -> Held:
    """Open a poll, and return when it is certain that the server has read it."""
    held = Held(port, f"/socket/longpoll?vsn=2.0.0&token={token}")
    answered = Held(port, "/version")
    answered.until(b"first")
    answered.close()
    return held


def answer(port: int, path: str) -> bytes:
    """Return what one request of its own is answered."""
    return Held(port, path, more="Connection: close\r\n").to_the_end()


LOOPS = ("asyncio", "uvloop")
# Which one it takes by itself depends on what is installed.
UVICORN = {loop: ("uvicorn", "held_app:app", "--port", "{port}", "--loop", loop) for loop in LOOPS}
HYPERCORN = {
    loop: ("hypercorn", "held_app:app", "--bind", "localhost:{port}", "--worker-class", loop) for loop in LOOPS
}


@pytest.mark.process
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("server", ["uvicorn", "workers", "hypercorn"])
def test_a_server_that_stops_ends_what_is_held_open_and_says_nothing_of_it(
    server: str, loop: str, sent: signal.Signals
) -> None:
    command = {
        "uvicorn": UVICORN[loop],
        "workers": (*UVICORN[loop], "--workers", "2"),
        "hypercorn": HYPERCORN[loop],
    }[server]
    with module(*command, cwd=APP.parent, MIDDLEWARE="1") as running:
        assert loop.encode() in answer(running.port, "/loop")
        # Of two workers, either may get a connection; a poll belongs to the one that has its session.
        held = [stream(running.port) for _ in range(4)]
        if server != "workers":
            held.append(poll(running.port, session(running.port)))
        with connect(f"ws://localhost:{running.port}/socket/websocket?vsn=2.0.0&user_id=eve") as open_socket:
            _, output = running.stop(sent)
            with pytest.raises(ConnectionClosed) as closed:
                open_socket.recv()

        for each in held[:4]:
            assert each.to_the_end().endswith(b"\r\n0\r\n\r\n")
        for each in held[4:]:
            assert b'"status":204' in each.to_the_end()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CLOSE_RESTART
    assert "Traceback" not in output
    assert "ERROR" not in output


@pytest.mark.process
@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_reloads_does_so_under_open_streams(loop: str, tmp_path: Path) -> None:
    source = tmp_path / "held_app.py"
    shutil.copy(APP, source)
    with module(*UVICORN[loop], "--reload", cwd=tmp_path) as server:
        for now, then in (("first", "second"), ("second", "third")):
            held = stream(server.port)
            source.write_text(source.read_text().replace(f'VERSION = "{now}"', f'VERSION = "{then}"'))
            assert held.to_the_end().endswith(b"\r\n0\r\n\r\n")
            # The parent keeps the port: whoever comes meanwhile is served by the next process.
            assert f'"{then}"'.encode() in answer(server.port, "/version")
        _, output = server.stop(signal.SIGTERM)

    assert "Traceback" not in output


@pytest.mark.process
@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_at_its_maximum_of_requests_ends_what_is_held_open(loop: str) -> None:
    with module(*UVICORN[loop], "--limit-max-requests", "4", cwd=APP.parent) as server:
        held = stream(server.port)
        for _ in range(4):
            answer(server.port, "/version")
        _, output = server.wait()

        assert held.to_the_end().endswith(b"\r\n0\r\n\r\n")
    assert "Traceback" not in output


@pytest.mark.process
@pytest.mark.parametrize("loop", LOOPS)
def test_who_breaks_off_under_a_middleware_leaves_no_traceback(loop: str) -> None:
    with module(*UVICORN[loop], cwd=APP.parent, MIDDLEWARE="1") as server:
        token = session(server.port)
        broken = [stream(server.port), poll(server.port, token)]
        # A post whose body never comes whole.
        broken.append(Held(server.port, f"/socket/longpoll?vsn=2.0.0&token={token}", "POST", "content-length: 9\r\n"))
        broken[-1].socket.sendall(b"\r\nhalf")
        for each in broken:
            each.close()
        # The next poll of the session comes behind them all.
        after = poll(server.port, token)
        _, output = server.stop()

        assert b'"status":204' in after.to_the_end()
    assert "Traceback" not in output
    assert "ERROR" not in output


async def test_of_two_servers_in_one_loop_only_the_streams_of_the_one_that_stops_end() -> None:
    def app_of(chat: Chat) -> Starlette:
        async def events(request: Request) -> Response:
            return chat.live("general", render, user_id="ada")

        return Starlette(routes=[Route("/events", events)], lifespan=chat.lifespan)

    with ExitStack() as stack:
        chats = [Chat(), Chat()]
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in chats]
        servers = [uvicorn.Server(uvicorn.Config(app_of(chat), log_level="warning")) for chat in chats]
        tasks = [asyncio.create_task(server.serve([at])) for server, at in zip(servers, listening, strict=True)]
        readers = []
        for at in listening:
            reader, writer = await asyncio.open_connection(*at.getsockname())
            stack.callback(writer.close)
            writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"event: people")
            readers.append(reader)
        servers[0].should_exit = True
        async with asyncio.timeout(20):
            assert (await readers[0].read()).endswith(b"\r\n0\r\n\r\n")
            await tasks[0]
            await chats[1].send_message("general", "bob", "still here")
            await readers[1].readuntil(b"still here")
            servers[1].should_exit = True
            assert (await readers[1].read()).endswith(b"\r\n0\r\n\r\n")
            await tasks[1]


@virtual
async def test_a_reader_that_takes_nothing_does_not_hold_up_a_server_that_stops() -> None:
    server = UvicornLike()
    task = task_of(server)
    async with Chat(rate_limit=RateLimit(messages_per_sec=1e6, burst=10**6)) as chat:
        reads, stalls = (Reader(chat.live("general", render, user_id=user)) for user in ("ada", "eve"))
        await settle()
        stalls.stall()
        await chat.send_message("general", "bob", "hi")
        server.should_exit = True
        await asyncio.sleep(TICK_S * 1.5)
        assert (reads.task.done(), reads.complete, stalls.task.done()) == (True, True, False)
        await asyncio.sleep(GRACE_S)
        assert stalls.task.done()
        await stalls.task
        assert await chat.presence("general") == {}
    task.cancel()


@virtual
async def test_a_poll_and_a_body_that_does_not_come_do_not_hold_up_a_server_that_stops() -> None:
    server = UvicornLike()
    task = task_of(server)
    async with Chat() as chat:
        app = chat.asgi(authenticate=lambda handshake: handshake.params.get("user_id"))
        ada, eve = PollingClient(inside(app), "ada"), PollingClient(inside(app), "eve")
        for client in (ada, eve):
            await client.open()
        waits = Call(app, "GET", f"vsn=2.0.0&token={ada.token}")
        comes = Call(app, "POST", f"vsn=2.0.0&token={eve.token}")
        comes.inbox.get_nowait()
        await settle()
        server.should_exit = True
        await asyncio.sleep(TICK_S * 1.5)
        assert (await waits.reply()).body["status"] == 204
        assert not comes.task.done()
        await asyncio.sleep(GRACE_S)
        assert (comes.task.done(), (await comes.reply()).body) == (True, {"status": 408})
    task.cancel()


@virtual
async def test_a_stream_that_is_opened_while_the_server_stops_ends_too() -> None:
    server = UvicornLike()
    server.should_exit = True
    task = task_of(server)
    async with Chat() as chat:
        reader = Reader(chat.live("general", render, user_id="ada"))
        await asyncio.sleep(TICK_S * 1.5)
        assert (reader.task.done(), reader.complete) == (True, True)
    task.cancel()


class Changed:
    """A server of uvicorn's that has nothing of what is asked for."""


@pytest.mark.parametrize(
    "server, module", [(UvicornLike(), "another.server"), (Changed(), "uvicorn.server")], ids=["unknown", "changed"]
)
@virtual
async def test_a_server_that_is_unknown_or_has_changed_is_not_asked(server: Any, module: str) -> None:
    task = task_of(server, module)
    server.should_exit = True
    await asyncio.sleep(0)
    told: list[str] = []
    scopes: list[dict[str, Any]] = [{}, {"server": None}, {"server": ("localhost", 80)}, {"server": ("/a/path", None)}]
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(told_when_stopping(scope, lambda: told.append("told")))
        await asyncio.sleep(TICK_S * 10)
    task.cancel()

    assert told == []
