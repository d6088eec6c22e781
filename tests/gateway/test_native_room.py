"""Who gives way at the native server's bounds, so that there is room for who comes from elsewhere, and for health."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sized
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from chatx.chat import Chat
from chatx.gateway.entry.handshake import Handshake
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import HANDSHAKE, Peer, answer, raw, server_tls
from tests.gateway.real_client import until
from tests.gateway.servers import native

GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
ELSEWHERE = "127.0.0.2"


async def answers(scope: Any, receive: Any, send: Any) -> None:
    """Answer without end where it is asked for much."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/much":
        await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"ok"})


def holds(held: Sized, count: int) -> bool:
    return len(held) == count


async def unread(stack: AsyncExitStack, port: int, path: bytes, *, tls: bool, source: str = "127.0.0.1") -> Peer:
    """Ask for a path, and read no answer."""
    reader, writer = await stack.enter_async_context(raw(port, tls=tls, source=source))
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(GET % path)
    return reader, writer


def served_by(tls: bool) -> dict[str, Any]:
    return {"http": answers, "health": ("/healthz",), "ssl": server_tls() if tls else None}


@on_each_loop
async def test_a_slow_authenticate_keeps_nobody_from_saying_what_they_come_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.gateway.native.server.PENDING_HANDSHAKES", 3)

    async def authenticate(handshake: Handshake) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        Chat(adapter_timeout_ms=3_600_000) as chat,
        native(chat, authenticate, http=answers) as (server, port),
        AsyncExitStack() as stack,
    ):
        for _ in range(10):
            _, writer = await stack.enter_async_context(raw(port))
            writer.write(HANDSHAKE % b"ada")
        await until(lambda: len(server.greetings) == 10 and not server.silent)
        for path in (b"healthz", b"other"):
            assert (await answer(port, GET % path)).startswith(b"HTTP/1.1 200 ")
        assert len(server.greetings) == 10


@on_each_loop
async def test_handshakes_of_one_address_that_authenticate_is_slow_about_give_way_to_one_from_elsewhere() -> None:
    async def authenticate(handshake: Handshake) -> str:
        if handshake.params["user_id"] != "honest":
            await asyncio.Event().wait()
        return "honest"

    async with (
        Chat(adapter_timeout_ms=3_600_000) as chat,
        native(chat, authenticate) as (server, port),
        AsyncExitStack() as stack,
    ):
        gateway, place = server.entrance.begin(None)
        place.end()
        gateway.admission._pending_limit = 4
        flood = [await stack.enter_async_context(raw(port)) for _ in range(4)]
        for number, (_, writer) in enumerate(flood):
            writer.write(HANDSHAKE % b"eve")
            await until(partial(holds, gateway.admission, number + 1))
        refused = await answer(port, HANDSHAKE % b"honest")
        assert refused.startswith(b"HTTP/1.1 503 ")
        reader, writer = await stack.enter_async_context(raw(port, source=ELSEWHERE))
        writer.write(HANDSHAKE % b"honest")
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        said = await asyncio.wait_for(flood[0][0].read(), 10)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in said
        assert not flood[1][0].at_eof()


@on_each_loop
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_answers_that_one_address_does_not_take_keep_out_nobody_and_push_out_none_of_another(
    monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_EXCHANGES", 4)
    monkeypatch.setattr("chatx.gateway.native.patience.ANSWER_STALL_S", 60.0)  # of room alone is this, not of patience
    async with (
        Chat() as chat,
        native(chat, **served_by(tls)) as (server, port),
        AsyncExitStack() as stack,
    ):
        slow = await unread(stack, port, b"much", tls=tls, source=ELSEWHERE)
        for number in range(3):
            await unread(stack, port, b"much", tls=tls)
            await until(partial(holds, server.exchanges.plain.waiting, number + 2))
        for _ in range(3):
            await unread(stack, port, b"much", tls=tls)
        for path in (b"other", b"healthz"):
            assert (await answer(port, GET % path, tls=tls)).startswith(b"HTTP/1.1 200 ")
        assert len(server.exchanges.plain) <= 4
        slow[0]._transport.resume_reading()  # type: ignore[attr-defined]
        head = await asyncio.wait_for(slow[0].readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert await asyncio.wait_for(slow[0].readexactly(8_000_000), 60)


@on_each_loop
async def test_connections_that_do_not_end_behind_their_answer_hold_no_place_of_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_EXCHANGES", 2)
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_LEAVING", 4)
    async with (
        Chat() as chat,
        native(chat, **served_by(tls=True)) as (server, port),
        AsyncExitStack() as stack,
    ):
        for _ in range(9):
            await unread(stack, port, b"other", tls=True)
            await until(lambda: not server.greetings)
        await until(lambda: len(server.exchanges.leaving) == 4)
        for path in (b"other", b"healthz"):
            assert (await answer(port, GET % path, tls=True)).startswith(b"HTTP/1.1 200 ")
        assert len(server.exchanges) <= 5


@on_each_loop
async def test_requests_for_health_are_bounded_and_the_newest_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_HEALTH", 3)
    head = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    async with (
        Chat() as chat,
        native(chat, **served_by(tls=False)) as (server, port),
        AsyncExitStack() as stack,
    ):
        slow = await stack.enter_async_context(raw(port, source=ELSEWHERE))
        slow[1].write(head)
        await until(lambda: len(server.exchanges.health) == 1)
        for _ in range(6):
            _, writer = await stack.enter_async_context(raw(port))
            writer.write(head)
        await until(lambda: len(server.exchanges.health) == 3 and not server.greetings)
        assert (await answer(port, GET % b"healthz")).startswith(b"HTTP/1.1 200 ")
        slow[1].write(b"x" * 9)
        assert (await slow[0].readline()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "said, status",
    [(b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400), (HANDSHAKE % b"nobody", 403)],
    ids=["at once", "when it was asked about"],
)
@on_each_loop
async def test_refusals_that_do_not_end_give_way_as_silence_does(
    monkeypatch: pytest.MonkeyPatch, said: bytes, status: int
) -> None:
    monkeypatch.setattr("chatx.gateway.native.server.PENDING_HANDSHAKES", 3)
    async with (
        Chat() as chat,
        native(chat, lambda _: None, **served_by(tls=True)) as (server, port),
        AsyncExitStack() as stack,
    ):
        for _ in range(6):
            reader, writer = await stack.enter_async_context(raw(port, tls=True))
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # it does not take leave of TLS
            writer.write(said)
        await until(lambda: server.refused[status] == 6)
        assert len(server.greetings) == len(server.silent) <= 3
        assert (await answer(port, GET % b"other", tls=True)).startswith(b"HTTP/1.1 200 ")
        assert server.refused[408] == 0  # none of them was silent


@on_each_loop
async def test_a_poll_that_has_its_answer_gives_way_before_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_POLLS", 2)
    poll = b"GET /socket/longpoll?vsn=2.0.0&user_id=ada HTTP/1.1\r\nHost: localhost\r\n"
    async with (
        Chat() as chat,
        native(chat, ssl=server_tls()) as (server, port),
        raw(port, tls=True) as (waiting, writer),
        AsyncExitStack() as stack,
    ):
        token = (await answer(port, poll + b"\r\n", tls=True)).partition(b'"token":"')[2].partition(b'"')[0]
        await until(lambda: not server.exchanges)
        writer.write(poll + b"X-Phoenix-LongPoll-Token: " + token + b"\r\n\r\n")
        await until(partial(holds, server.exchanges.polls, 1))
        for number in (1, 1, 1):
            reader, gone = await stack.enter_async_context(raw(port, tls=True))
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # it does not take leave of TLS
            gone.write(b"GET /socket/longpoll?token=chatx-lp." + b"x" * 43 + b".0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(partial(holds, server.exchanges.polls.waiting, number))
            await until(lambda: not server.greetings)
        await chat.revoke("ada")
        assert (await asyncio.wait_for(waiting.read(), 10)).startswith(b"HTTP/1.1 200 ")


@on_each_loop
async def test_a_poll_that_is_turned_away_is_told_so_and_its_application_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.gateway.native.exchanges.MAX_HEALTH", 1)
    ended = 0

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await receive()
        try:
            await receive()
            await asyncio.Event().wait()
        finally:
            ended += 1

    async with Chat() as chat, native(chat, http=waits, health=("/healthz",)) as (server, port), raw(port) as first:
        first[1].write(GET % b"healthz")
        await until(lambda: len(server.exchanges.health) == 1)
        async with raw(port) as second:
            second[1].write(GET % b"healthz")
            said = await asyncio.wait_for(first[0].read(), 10)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 5\r\n" in said.lower()
            await until(lambda: ended == 1)
            with contextlib.suppress(TimeoutError):
                assert not await asyncio.wait_for(second[0].read(1), 0.05)
        await until(lambda: not server.exchanges)
