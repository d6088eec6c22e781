"""The way past uvicorn's `send`: that it is taken, and only where it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from chatx import Chat, RateLimit
from chatx.gateway.asgi.uvicorn import Uvicorn, uvicorn_of
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


def protocol() -> WebSocketsSansIOProtocol:
    """One of uvicorn's, whose handshake is not answered yet."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    made = WebSocketsSansIOProtocol(Config(app), ServerState(), {}, asyncio.get_running_loop())
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


async def test_no_other_server_is_taken_for_it() -> None:
    async def receive() -> None:
        pass

    class WebSocketsSansIOProtocol:
        """Of another package."""

        async def receive(self) -> None:
            pass

    others: list[Callable[..., Any]] = [receive, WebSocketsSansIOProtocol().receive, asyncio.Queue[Any]().get]
    assert [uvicorn_of(other) for other in others] == [None, None, None]
