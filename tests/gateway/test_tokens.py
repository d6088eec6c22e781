"""Sockets whose identity expires: their end, and the new token that puts it off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chatx import Identity
from chatx.chat import Chat
from chatx.gateway.asgi.app import ChatApp
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.wire.bounds import PENDING_PUSHES
from tests.gateway.fakes import Client, FakeServer, chatx_tasks, settle
from tests.virtual import virtual

START = time.time()


def now() -> float:
    """The wall clock in Unix seconds, as the virtual clock moves it."""
    return START + asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.session.session.time.time", now)


class Tokens:
    """Knows tokens of the form `user/seconds/room,room`; `seconds` from now, or nothing for one that never expires."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.slow: dict[str, float] = {}

    async def __call__(self, handshake: Handshake) -> Identity | None:
        token = handshake.token or handshake.params["token"]
        self.asked.append(token)
        began = now()
        await asyncio.sleep(self.slow.get(token, 0))
        if token.count("/") != 2:
            return None
        user, seconds, rooms = token.split("/")
        return Identity(
            user,
            expires_at=began + float(seconds) if seconds else None,
            rooms=tuple(rooms.split(",")) if rooms else None,
        )


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[Chat, ChatApp, Tokens]]:
    tokens = Tokens()
    async with Chat(**options) as chat:
        yield chat, chat.asgi(authenticate=tokens), tokens
        statistics = chat.statistics()
        assert (statistics.members, statistics.connections) == (0, 0)
    assert chatx_tasks() == []


async def joined(app: ChatApp, token: str, room: str = "a") -> FakeServer:
    server = FakeServer(app, query=f"vsn=2.0.0&token={token}")
    ref = server.text("own", f"room:{room}", "phx_join")
    await settle()
    assert server.reply(ref)[0] == "ok"
    return server


async def renewed(server: FakeServer, token: Any, room: str = "a") -> tuple[str, dict[str, Any]]:
    ref = server.text(None, f"room:{room}", "access_token", {"token": token})
    await settle()
    return server.reply(ref)


async def beats(server: FakeServer, seconds: int) -> None:
    for _ in range(seconds // 20):
        await asyncio.sleep(20)
        server.text(None, "phoenix", "heartbeat")
    await asyncio.sleep(seconds % 20)


@virtual
async def test_a_socket_is_closed_when_its_identity_expires_however_busy_it_is_and_no_other() -> None:
    async with running() as (chat, app, _):
        short, long = await joined(app, "ada/100/"), await joined(app, "bob//")
        both = asyncio.gather(beats(short, 99), beats(long, 99))
        await both
        assert short.closed is None
        await beats(long, 5)

        assert short.closed == 4001
        assert short.task.done()
        assert long.closed is None
        assert set(await chat.presence("a")) == {"bob"}
        long.disconnect()
        await settle()


@pytest.mark.parametrize("seconds", ["0", "-1", "-1000000000"])
@virtual
async def test_an_identity_that_has_expired_already_is_refused_before_the_socket_opens(seconds: str) -> None:
    async with running() as (_, app, _):
        server = FakeServer(app, query=f"vsn=2.0.0&token=ada/{seconds}/")
        await settle()
        # Were it opened and then closed, phoenix.js would be back after 10 ms.
        assert [each["type"] for each in server.sent] == ["websocket.close"]


@virtual
async def test_a_new_token_puts_the_end_off_and_then_counts_alone() -> None:
    async with running() as (_, app, tokens):
        server = await joined(app, "ada/50/")
        await beats(server, 40)
        status, response = await renewed(server, "ada/100/")

        assert (status, tokens.asked) == ("ok", ["ada/50/", "ada/100/"])
        assert response["expires_at"] == pytest.approx(START + 140, abs=1)
        await beats(server, 80)
        assert server.closed is None
        assert (await renewed(server, "ada/10/"))[0] == "ok"  # which brings it nearer
        await beats(server, 11)
        assert server.closed == 4001


@virtual
async def test_a_new_token_that_never_expires_is_the_last() -> None:
    async with running() as (_, app, _):
        server = await joined(app, "ada/50/")
        assert await renewed(server, "ada//") == ("ok", {"expires_at": None})
        await beats(server, 500)
        assert server.closed is None
        server.disconnect()
        await settle()


@virtual
async def test_a_time_that_is_absurdly_far_ahead_is_a_time_like_any_other() -> None:
    async with Chat() as chat:
        app = chat.asgi(authenticate=lambda handshake: Identity("ada", expires_at=10**300))
        server = await joined(app, "x")
        assert await renewed(server, "y") == ("ok", {"expires_at": 1e300})
        await beats(server, 200)
        assert server.closed is None
        server.disconnect()
        await settle()


@pytest.mark.parametrize("token", ["nonsense", "bob/1000/", "ada/-5/"])
@virtual
async def test_a_token_that_is_not_valid_or_anothers_is_refused_and_the_present_one_stays(token: str) -> None:
    async with running() as (chat, app, _):
        server = await joined(app, "ada/50/")
        status, response = await renewed(server, token)

        assert (status, response["code"]) == ("error", "unauthorized")
        assert set(await chat.presence("a")) == {"ada"}
        await beats(server, 45)
        assert server.closed is None
        await beats(server, 6)
        assert server.closed == 4001


@pytest.mark.parametrize("payload", [{}, {"token": ""}, {"token": 7}, {"token": None}, {"token": "x" * 8193}, []])
@virtual
async def test_a_payload_without_a_token_is_refused_and_nobody_is_asked(payload: Any) -> None:
    async with running() as (_, app, tokens):
        server = await joined(app, "ada/50/")
        ref = server.text(None, "room:a", "access_token", payload)
        await settle()

        assert server.reply(ref)[1]["code"] == "invalid_message"
        assert len(tokens.asked) == 1
        server.disconnect()
        await settle()


@virtual
async def test_a_socket_that_does_not_expire_has_no_such_event() -> None:
    async with running() as (_, app, tokens):
        server = await joined(app, "ada//")
        status, response = await renewed(server, "ada/10/")

        assert (status, response["code"]) == ("error", "invalid_message")
        assert len(tokens.asked) == 1
        server.disconnect()
        await settle()


@virtual
async def test_a_new_token_without_a_room_ends_the_membership_there_and_joining_again_is_refused() -> None:
    async with running() as (chat, app, _):
        server = await joined(app, "ada/50/a,b")
        server.text("own", "room:b", "phx_join")
        await settle()
        assert (await renewed(server, "ada/50/b"))[0] == "ok"

        assert [each.topic for each in server.received if each.event == "phx_error"] == ["room:a"]
        assert await chat.presence("a") == {}
        assert set(await chat.presence("b")) == {"ada"}
        ref = server.text("own", "room:a", "phx_join")
        await settle()
        assert server.reply(ref)[1]["code"] == "unauthorized"
        server.disconnect()
        await settle()


@virtual
async def test_a_join_that_is_under_way_when_its_room_goes_is_refused() -> None:
    class Slow:
        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            await asyncio.sleep(1 if room_id == "b" else 0)
            return True

    async with running(auth=Slow()) as (chat, app, _):
        server = await joined(app, "ada/50/a,b")
        ref = server.text("own", "room:b", "phx_join")
        await settle()
        assert (await renewed(server, "ada/50/a"))[0] == "ok"
        await asyncio.sleep(5)

        assert server.reply(ref)[1]["code"] == "unauthorized"
        assert await chat.presence("b") == {}
        server.disconnect()
        await settle()


@virtual
async def test_an_older_token_whose_answer_comes_later_does_not_undo_the_newer() -> None:
    async with running() as (_, app, tokens):
        tokens.slow["ada/20/"] = 2
        server = await joined(app, "ada/50/")
        old = server.text(None, "room:a", "access_token", {"token": "ada/20/"})
        new = server.text(None, "room:a", "access_token", {"token": "ada/100/"})
        await asyncio.sleep(3)

        assert server.reply(old) == server.reply(new)
        await beats(server, 60)
        assert server.closed is None
        server.disconnect()
        await settle()


@virtual
async def test_a_flood_of_tokens_asks_no_more_often_than_a_flood_of_joins() -> None:
    async with running() as (_, app, tokens):
        server = await joined(app, "ada/500/")
        refs = [server.text(None, "room:a", "access_token", {"token": "nonsense"}) for _ in range(1000)]
        await asyncio.sleep(1)

        codes = [server.reply(ref)[1]["code"] for ref in refs]
        assert 490 <= len(tokens.asked) <= 520
        assert codes.count("rate_limited") == 1001 - len(tokens.asked)
        server.disconnect()
        await settle()


@virtual
async def test_an_authenticate_that_hangs_or_fails_refuses_the_token_and_not_the_socket() -> None:
    async with running() as (_, app, tokens):
        tokens.slow["ada/200/"] = 1e6
        server = await joined(app, "ada/50/")
        hung = server.text(None, "room:a", "access_token", {"token": "ada/200/"})
        failed = server.text(None, "room:a", "access_token", {"token": "ada/nan/"})
        await asyncio.sleep(6)

        assert [server.reply(ref)[1]["code"] for ref in (hung, failed)] == ["adapter_error", "unauthorized"]
        assert server.closed is None
        await asyncio.sleep(50)
        assert server.closed == 4001


# Silence


@virtual
async def test_the_time_in_which_the_server_reads_nothing_is_not_the_clients_silence() -> None:
    class Slow:
        async def check(self, content: str) -> bool:
            await asyncio.sleep(100)
            return True

    async with Chat(moderation=Slow(), middlewares=("moderation",), adapter_timeout_ms=10**6) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        for _ in range(PENDING_PUSHES):
            client.say("room:a", "x")
        await asyncio.sleep(99)
        assert client.session.busy
        await asyncio.sleep(2)
        assert not client.session.busy
        assert client.socket.closed is None
        await asyncio.sleep(62)
        assert client.socket.closed == (1001, "silent for too long")
        assert await chat.presence("a") == {}


@virtual
async def test_sessions_that_have_ended_are_not_watched_and_leave_no_timer() -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        clients = [Client(gateway, Identity(f"user{number}", expires_at=now() + 900)) for number in range(50)]
        assert len(gateway.wheel) == 50
        for client in clients:
            client.session.end()
        assert len(gateway.wheel) == 0
