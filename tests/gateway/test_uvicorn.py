"""The way past uvicorn's `send`: that it is taken, and only where it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN

from chatx import Chat, RateLimit
from chatx.gateway.asgi.uvicorn import Uvicorn, uvicorn_of
from chatx.gateway.wire.bounds import PENDING_PUSHES
from tests.gateway.fakes import chatx_tasks
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import served


@pytest.mark.process
@pytest.mark.parametrize("compression", ["deflate", None])
async def test_what_a_turn_leaves_goes_out_as_one_write(
    compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    write = Uvicorn.write

    def counted(way: Uvicorn, wire: bytes) -> None:
        writes.append(wire)
        write(way, wire)

    monkeypatch.setattr(Uvicorn, "write", counted)
    chat = Chat()
    async with served("asgi", chat) as port, real_client(port, "ada", compression=compression) as ada:
        await ada.ask("room:a", "phx_join")
        await ada.wait_for(lambda each: each.event == "presence_state")
        before = len(writes)
        for number in range(10):
            await chat.send_message("a", "bob", f"{number}")
        assert [each["content"] for each in await ada.wait_for_messages(10)] == [f"{number}" for number in range(10)]
        assert len(writes) == before + 1
        # The server's own frames find their places between.
        await asyncio.wait_for(await ada.connection.ping(), 10)
        await chat.send_message("a", "bob", "after a ping")
        await ada.wait_for_messages(11)


@pytest.mark.process
async def test_a_client_that_takes_nothing_does_not_keep_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.asgi.app.WRITE_STALL_S", 0.3)
    ways: list[Uvicorn] = []
    abort = Uvicorn.abort

    def noted(way: Uvicorn) -> None:
        ways.append(way)
        abort(way)

    monkeypatch.setattr(Uvicorn, "abort", noted)
    chat = Chat(mailbox_bytes=50_000_000, rate_limit=RateLimit(messages_per_sec=1e6, burst=10**6))
    async with served("asgi", chat) as port, real_client(port, "ada", close_timeout=0.1, compression=None) as ada:
        await ada.ask("room:a", "phx_join")
        ada.connection.transport.pause_reading()
        for _ in range(3000):
            await chat.send_message("a", "bob", "x" * 4000)
        await until(lambda: bool(ways))
        await until(lambda: not chatx_tasks())


class Slow:
    """Moderation that takes its time for the first message, which those behind it wait for."""

    async def check(self, content: str) -> bool:
        await asyncio.sleep(3 if content == "0" else 0)
        return True


@pytest.mark.process
async def test_uvicorn_takes_no_client_for_dead_whom_the_application_does_not_read() -> None:
    chat = Chat(moderation=Slow(), middlewares=("moderation",))
    pings = {"ws_ping_interval": 0.2, "ws_ping_timeout": 1.5}
    async with served("asgi", chat, uvicorn_options=pings) as port, real_client(port, "ada") as ada:
        await ada.ask("room:a", "phx_join")
        for number in range(PENDING_PUSHES + 2):
            await ada.push("room:a", "new_message", {"content": f"{number}"})
        await ada.wait_for_messages(PENDING_PUSHES + 2)
        # And it asks on: a client that answers no more is found out.
        ada.connection.transport.pause_reading()
        await until(lambda: not chatx_tasks())


def protocol(**options: Any) -> WebSocketsSansIOProtocol:
    """One of uvicorn's, whose handshake is not answered yet."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    made = WebSocketsSansIOProtocol(Config(app, **options), ServerState(), {}, asyncio.get_running_loop())
    made.transport = asyncio.Transport()
    return made


async def test_uvicorns_receive_leads_to_it_and_it_is_shut_before_the_handshake() -> None:
    way = uvicorn_of(protocol().receive)
    assert way is not None
    assert (way.open, way.writable) == (False, True)


@pytest.mark.parametrize("missing", ["writable", "handshake_complete", "transport"])
async def test_a_uvicorn_that_has_changed_gets_messages_by_send(missing: str) -> None:
    changed = protocol()
    delattr(changed, missing)
    assert uvicorn_of(changed.receive) is None


async def test_a_client_is_asked_by_the_ping_that_is_due_next_where_there_is_one() -> None:
    frames: list[bytes] = []

    class Transport(asyncio.Transport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            frames.append(bytes(data))

        def is_closing(self) -> bool:
            return False

    def opened(**options: Any) -> tuple[WebSocketsSansIOProtocol, Uvicorn]:
        made = protocol(**options)
        made.transport = Transport()
        way = uvicorn_of(made.receive)
        assert way is not None
        assert way.ask() is None  # before the handshake
        made.handshake_complete = True
        made.conn.state = OPEN
        made.start_keepalive()
        return made, way

    asking, way = opened()
    answered, again = way.ask(), way.ask()
    assert answered is not None
    assert again is not None
    assert (len(frames), answered(), again()) == (1, False, False)
    assert asking.pending_ping_payload is not None
    asking.handle_pong(Frame(Opcode.PONG, asking.pending_ping_payload))
    assert (answered(), again()) == (True, True)
    asking.writable.clear()
    assert way.ask() is None  # behind what it does not take
    asking.writable.set()
    with way.while_not_read():
        assert (asking.ping_timer, asking.pong_timer) == (None, None)
    assert asking.ping_timer is not None
    asking.stop_keepalive()

    _, silent = opened(ws_ping_interval=None)
    assert silent.ask() is None
    changed = protocol()
    del changed.ping_timer
    made = Uvicorn(changed)
    changed.handshake_complete, changed.conn.state, changed.transport = True, OPEN, Transport()
    with made.while_not_read():
        assert made.ask() is None
    assert len(frames) == 1


async def test_no_other_server_is_taken_for_it() -> None:
    async def receive() -> None:
        pass

    class WebSocketsSansIOProtocol:
        """Of another package."""

        async def receive(self) -> None:
            pass

    others: list[Callable[..., Any]] = [receive, WebSocketsSansIOProtocol().receive, asyncio.Queue[Any]().get]
    assert [uvicorn_of(other) for other in others] == [None, None, None]
