"""The ASGI application under a real server, with real clients over real sockets."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from chatx import Identity
from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.entry.handshake import Handshake
from tests.gateway.fakes import chatx_tasks
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import named, under_uvicorn
from tests.process import demo

pytestmark = pytest.mark.process

CLIENTS = 50


def starlette_app(chat: Chat) -> Any:
    return Starlette(routes=[Mount("/socket", chat.asgi(authenticate=named))], lifespan=chat.lifespan)


def fastapi_app(chat: Chat) -> Any:
    app = FastAPI(lifespan=chat.lifespan)
    app.mount("/socket", chat.asgi(authenticate=named))
    return app


@pytest.mark.parametrize("build", [starlette_app, fastapi_app])
async def test_fifty_clients_see_the_same_messages_in_the_same_order(build: Callable[[Chat], Any]) -> None:
    chat = Chat(rate_limit=RateLimit(messages_per_sec=1e6, burst=10**6))
    async with under_uvicorn(build(chat)) as port, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(real_client(port, f"user{number}")) for number in range(CLIENTS)]
        await asyncio.gather(*(client.ask("room:a", "phx_join") for client in clients))
        for number in range(4):
            await asyncio.gather(
                *(client.push("room:a", "new_message", {"content": f"{number}"}) for client in clients)
            )
        everything = await asyncio.gather(*(client.wait_for_messages(4 * CLIENTS) for client in clients))

        assert [each["offset"] for each in everything[0]] == list(range(1, 4 * CLIENTS + 1))
        for seen in everything[1:]:
            assert seen == everything[0]
        for number in range(CLIENTS):
            # One sender's messages keep their order.
            own = [each["content"] for each in everything[0] if each["user_id"] == f"user{number}"]
            assert own == ["0", "1", "2", "3"]
        assert len(await chat.presence("a")) == CLIENTS
        await stack.aclose()
        await until(lambda: not chatx_tasks())
        assert await chat.presence("a") == {}
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections) == (0, 0)


async def test_a_refused_handshake_is_a_403() -> None:
    async with under_uvicorn(starlette_app(Chat())) as port:
        for options in ({"origin": "http://evil.example"}, {"origin": None, "additional_headers": {"Cookie": "a=1"}}):
            with pytest.raises(InvalidStatus) as refused:
                async with real_client(port, "ada", **options):
                    pass
            assert refused.value.response.status_code == 403


async def test_at_a_bound_a_handshake_is_refused_and_a_place_that_is_given_back_can_be_had(
    capfd: pytest.CaptureFixture[str],
) -> None:
    chat = Chat(max_connections_per_user=1, max_connections_per_address=2)
    async with under_uvicorn(starlette_app(chat)) as port:
        async with real_client(port, "ada"), real_client(port, "bob"):
            for user in ("ada", "carol"):
                with pytest.raises(InvalidStatus) as refused:
                    async with real_client(port, user):
                        pass
                assert refused.value.response.status_code == 403
        await until(lambda: not chatx_tasks())
        async with real_client(port, "ada") as client:
            assert (await client.ask("room:a", "phx_join"))["offset"] == 0
    assert capfd.readouterr().err == ""


async def test_a_revoked_user_and_an_expired_token_each_have_their_close_code() -> None:
    def authenticate(handshake: Handshake) -> Identity:
        user = handshake.params["user_id"]
        return Identity(user, expires_at=time.time() + 1 if user == "ada" else None)

    chat = Chat()
    app = Starlette(routes=[Mount("/socket", chat.asgi(authenticate=authenticate))], lifespan=chat.lifespan)
    async with under_uvicorn(app) as port, real_client(port, "ada") as expiring, real_client(port, "eve") as revoked:
        await revoked.ask("room:a", "phx_join")
        assert await chat.revoke("eve") == 1
        await asyncio.gather(expiring.connection.wait_closed(), revoked.connection.wait_closed())
        assert (expiring.connection.close_code, revoked.connection.close_code) == (4001, 4003)


async def test_the_token_arrives_and_only_phoenix_is_echoed() -> None:
    tokens: list[str | None] = []

    def authenticate(handshake: Handshake) -> str:
        tokens.append(handshake.token)
        return "ada"

    chat = Chat()
    app = Starlette(routes=[Mount("/socket", chat.asgi(authenticate=authenticate))], lifespan=chat.lifespan)
    async with (
        under_uvicorn(app) as port,
        real_client(port, "x", subprotocols=["base64url.bearer.phx.czNjcmV0", "phoenix"]) as client,
    ):
        assert client.connection.subprotocol == "phoenix"
    assert tokens == ["s3cret"]


async def test_a_message_larger_than_the_protocol_allows_is_closed_with_1009() -> None:
    async with under_uvicorn(starlette_app(Chat())) as port, real_client(port, "ada") as client:
        await client.connection.send("x" * 65_537)
        with pytest.raises(ConnectionClosedError) as closed:
            await client.connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_a_stopped_demo_tells_clients_to_come_back_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    with demo(tmp_path / "demo.db") as server:
        async with real_client(server.port, "ada") as client:
            head = await client.ask("room:a", "phx_join")
            sent = [await client.ask("room:a", "new_message", {"content": f"m{number}"}) for number in range(3)]
            status, printed = await asyncio.to_thread(server.stop, signal.SIGTERM)
            with pytest.raises(ConnectionClosedError) as closed:
                await client.wait_for(lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert status == 0
        assert printed.count("\n") == 1, printed

        server.begin_again()
        await asyncio.to_thread(server.wait_until_it_answers)
        async with real_client(server.port, "ada") as client:
            position = {"epoch": head["epoch"], "offset": 1}
            joined = await client.ask("room:a", "phx_join", position)
            assert joined == {"epoch": head["epoch"], "offset": 3, "recovered": True}
            assert [each["content"] for each in await client.wait_for_messages(2)] == ["m1", "m2"]
            history = await client.ask("room:a", "history")
            assert [each["id"] for each in history["messages"]] == [each["id"] for each in sent]
            newest = await client.ask("room:a", "new_message", {"content": "m3"})
            assert (newest["epoch"], newest["offset"]) == (head["epoch"], 4)


def saved(store: Path) -> int:
    with closing(sqlite3.connect(store)) as db:
        count: int = db.execute("SELECT count(*) FROM chatx_entries").fetchone()[0]
        return count


async def test_a_killed_demo_begins_a_new_epoch_and_keeps_what_was_saved(tmp_path: Path) -> None:
    with demo(tmp_path / "demo.db") as server:
        async with real_client(server.port, "ada") as client:
            head = await client.ask("room:a", "phx_join")
            await client.ask("room:a", "new_message", {"content": "m0"})
            await until(lambda: saved(server.store) == 1)
            await asyncio.to_thread(server.stop, signal.SIGKILL)
        server.begin_again()
        await asyncio.to_thread(server.wait_until_it_answers)
        async with real_client(server.port, "ada") as client:
            joined = await client.ask("room:a", "phx_join", {"epoch": head["epoch"], "offset": 1})
            assert (joined["recovered"], joined["reason"]) == (False, "epoch_changed")
            history = await client.ask("room:a", "history")
            assert [each["content"] for each in history["messages"]] == ["m0"]
