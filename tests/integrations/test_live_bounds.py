"""How many live pages may be open, what one user may have them read, and who gives way. The clock is not waited for."""

from __future__ import annotations

import asyncio
import logging
from json import loads
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Route

from chatx import Chat, RateLimited
from chatx.gateway.entry.admission import COME_BACK_S
from chatx.integrations import live_streams
from chatx.integrations.live_streams import UNTAKEN_S, streams_of
from chatx.integrations.starlette import KEEP_ALIVE_S, snapshot
from tests.faults import Stored
from tests.gateway.real_client import until
from tests.gateway.servers import under_uvicorn
from tests.integrations.live_reader import Reader, settle
from tests.integrations.test_live import gone, opened, plain, running, say
from tests.virtual import virtual


def refused(reader: Reader) -> dict[str, Any]:
    """Return the error of a reader that was refused."""
    assert reader.complete or len(reader.sent) == 2
    error: dict[str, Any] = loads(reader.text)
    return error


class Peer:
    """A client as a transport shows it: what waits for it, and the part of it that it takes.

    It stands where an ASGI server's `receive` has its transport.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.takes = True

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, name: str) -> None:
        """Have no socket to look at."""


class Request(asyncio.Queue[dict[str, Any]]):
    """The receiving end of a request whose transport can be seen."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.transport = peer


class SeenReader(Reader):
    """A reader whose server lets it be seen what it takes."""

    def __init__(self, chat: Chat, user: str) -> None:
        self.peer = Peer()
        super().__init__(chat.live("a", plain, user_id=user))

    async def _run(self, response: Any) -> None:
        request = Request(self.peer)
        request.put_nowait(self._inbox.get_nowait())
        self._inbox = request
        await response(self.scope, request.get, self._send)

    async def _send(self, message: Any) -> None:
        if not self.peer.takes:
            self.peer.waiting += len(message.get("body", b""))
        await super()._send(message)


@virtual
async def test_a_user_has_as_many_live_pages_as_sockets_and_the_next_one_is_told_when_to_come_back() -> None:
    async with running(max_connections_per_user=3) as chat:
        readers = [await opened(chat) for _ in range(3)]
        one_more = await opened(chat)
        assert one_more.status == 429
        assert one_more.headers["retry-after"] == "5"
        error = refused(one_more)
        assert error["code"] == "rate_limited"
        assert error["retryable"] is True
        assert error["retry_after_ms"] == COME_BACK_S * 1000
        # Others are not concerned, and a place that is given back is there again.
        assert (await opened(chat, "bob")).status == 200
        assert chat.statistics().connections == 4
        readers[0].disconnect()
        await settle()
        assert (await opened(chat)).status == 200
        assert (await opened(chat)).status == 429


@virtual
async def test_two_hundred_streams_of_one_user_are_not_two_hundred() -> None:
    async with running() as chat:
        readers = [await opened(chat) for _ in range(200)]
        assert [reader.status for reader in readers].count(200) == chat.config.max_connections_per_user == 10
        assert chat.statistics().connections == 10
        for reader in readers:
            reader.disconnect()
        for reader in readers:
            await gone(reader, chat)
        assert len(streams_of(chat.engine)) == 0


@virtual
async def test_no_bound_is_no_bound() -> None:
    async with running(max_connections_per_user=0) as chat:
        assert {(await opened(chat)).status for _ in range(50)} == {200}


@virtual
async def test_an_address_has_as_many_live_pages_as_sockets() -> None:
    async with running(max_connections_per_address=2) as chat:

        async def of(user: str, address: str) -> Reader:
            reader = Reader(chat.live("a", plain, user_id=user))
            reader.scope["client"] = (address, 1234)
            await settle()
            return reader

        assert [(await of(f"user {number}", "203.0.113.7")).status for number in range(3)] == [200, 200, 429]
        assert (await of("user 9", "203.0.113.8")).status == 200


@virtual
async def test_all_live_pages_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_streams, "MAX_STREAMS", 4)
    async with running() as chat:
        readers = [await opened(chat, f"user {number}") for number in range(5)]
        assert [reader.status for reader in readers] == [200] * 4 + [503]
        assert refused(readers[4])["code"] == "room_overloaded"
        assert readers[4].headers["retry-after"] == "5"
        readers[0].disconnect()
        await settle()
        assert (await opened(chat, "user 9")).status == 200


@virtual
async def test_a_refusal_is_told_to_the_operator_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with running(max_connections_per_user=1) as chat:
        await opened(chat)
        with caplog.at_level(logging.WARNING, "chatx"):
            for _ in range(20):
                assert (await opened(chat)).status == 429
        (line,) = caplog.records
        assert "'ada' has 1 live pages already; raise max_connections_per_user" in line.getMessage()
        assert line.user == "ada"  # type: ignore[attr-defined]
        assert line.code == "full"  # type: ignore[attr-defined]


class NoAuth:
    """Counts how often it is asked, and forbids all."""

    def __init__(self) -> None:
        self.asked = 0

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        self.asked += 1
        return False


@virtual
async def test_who_may_not_read_has_no_place_and_cannot_ask_without_end() -> None:
    auth = NoAuth()
    async with running(auth=auth, max_connections_per_user=1, max_joins_per_connection=1) as chat:
        statuses = [(await opened(chat)).status for _ in range(1000)]
        assert set(statuses) == {403, 429}
        assert statuses.count(403) == auth.asked < 1000
        assert len(streams_of(chat.engine)) == 0
        error = refused(await opened(chat))
        assert error["code"] == "rate_limited"
        await asyncio.sleep(error["retry_after_ms"] / 1000)
        assert (await opened(chat)).status == 403


@virtual
async def test_one_user_begins_only_so_many_rooms_by_live_pages() -> None:
    async with running(max_connections_per_user=1) as chat:
        statuses = []
        for number in range(300):
            reader = Reader(chat.live(f"room {number}", plain, user_id="ada"))
            await settle()
            statuses.append(reader.status)
            reader.disconnect()
            await settle()
        assert set(statuses) == {200, 429}
        assert statuses.count(200) == chat.statistics().rooms < 150
        # A room that is there is no way around it, or the answer would tell which rooms there are.
        reader = Reader(chat.live("room 0", plain, user_id="ada"))
        await settle()
        assert reader.status == 429


@pytest.mark.parametrize("way", ["reset", "replay"])
@virtual
async def test_what_live_pages_read_from_history_is_charged_to_their_user(way: str) -> None:
    async with running(history_bytes_per_sec=10_000, persistence=Stored(), history_size=4) as chat:
        messages = await say(chat, *["x" * 1000] * 40)
        await asyncio.sleep(1)
        place = f"after={messages[0].epoch}:0" if way == "replay" else ""
        statuses = []
        for _ in range(10):
            reader = await opened(chat, query=place)
            statuses.append(reader.status)
            reader.disconnect()
            await settle()
        # 80,000 bytes at once, and each brings 50,000; the first that is in debt waits.
        assert statuses == [200, 200, *[429] * 8]
        assert (await opened(chat, "bob")).status == 200
        error = refused(await opened(chat))
        await asyncio.sleep(error["retry_after_ms"] / 1000 + 0.001)
        assert (await opened(chat)).status == 200


@virtual
async def test_a_page_is_charged_to_its_user_as_its_stream_is() -> None:
    async with running(history_bytes_per_sec=10_000) as chat:
        await say(chat, *["x" * 1000] * 40)
        for _ in range(2):
            await snapshot(chat, "a", plain, user_id="ada")
        with pytest.raises(RateLimited) as refused:
            await snapshot(chat, "a", plain, user_id="ada")
        assert (await opened(chat)).status == 429
        await snapshot(chat, "a", plain, user_id="bob")
        await asyncio.sleep(refused.value.retry_after or 0)
        await snapshot(chat, "a", plain, user_id="ada")


@virtual
async def test_what_is_said_live_is_charged_to_nobody() -> None:
    async with running(history_bytes_per_sec=1000) as chat:
        (first,) = await say(chat, "first")
        reader = await opened(chat, query=f"after={first.epoch}:1")
        await say(chat, *["x" * 1000] * 40)
        assert len(reader.messages) == 40
        assert (await opened(chat)).status == 200


@virtual
async def test_a_client_that_takes_nothing_any_more_gives_way_to_a_newcomer_of_its_user() -> None:
    async with running(max_connections_per_user=2) as chat:
        lost, alive = SeenReader(chat, "ada"), SeenReader(chat, "ada")
        await settle()
        lost.peer.takes = False
        await asyncio.sleep(KEEP_ALIVE_S + 1)
        assert lost.peer.waiting
        # It may be about to take it.
        assert (await opened(chat)).status == 429
        await asyncio.sleep(UNTAKEN_S)
        assert (await opened(chat)).status == 200
        await settle()
        assert lost.task.done()
        assert not alive.task.done()
        assert (await opened(chat)).status == 429


@virtual
async def test_a_client_that_takes_little_but_steadily_is_alive() -> None:
    async with running(max_connections_per_user=1) as chat:
        slow = SeenReader(chat, "ada")
        await settle()
        slow.peer.takes = False
        await say(chat, "x" * 1000)
        for _ in range(20):
            await asyncio.sleep(UNTAKEN_S / 2)
            slow.peer.waiting -= 20
            assert (await opened(chat)).status == 429
        assert not slow.task.done()


async def asked_for(port: int) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask a server for the stream; return the head of its answer, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return await reader.readuntil(b"\r\n\r\n"), reader, writer


async def test_streams_over_real_connections_are_bounded_and_a_closed_one_gives_its_place_back() -> None:
    async with Chat(max_connections_per_user=3) as chat:

        async def events(_: StarletteRequest) -> Response:
            return chat.live("a", plain, user_id="ada")

        async with under_uvicorn(Starlette(routes=[Route("/events", events)])) as port:
            opened = [await asked_for(port) for _ in range(5)]
            assert [head.split()[1] for head, _, _ in opened] == [b"200"] * 3 + [b"429"] * 2
            assert b"\r\nretry-after: 5\r\n" in opened[4][0]
            assert len(streams_of(chat.engine)) == 3
            opened[0][2].transport.abort()
            await until(lambda: len(streams_of(chat.engine)) == 2)
            again, _, last = await asked_for(port)
            assert again.split()[1] == b"200"
            for *_, writer in opened:
                writer.transport.abort()
            last.transport.abort()
