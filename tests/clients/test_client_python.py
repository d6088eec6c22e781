"""The Python client with real servers: what it sends and hears, across cuts."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from chatx import Chat, Identity, RateLimit, Unauthorized
from chatx.client import (
    Client,
    ClientClosed,
    Event,
    Gap,
    HistoryRefused,
    JoinRefused,
    Message,
    Presence,
    Room,
    SendRefused,
    State,
)
from chatx.gateway import sign
from tests.clients.peers import PATIENCE_S
from tests.gateway.real_client import until
from tests.gateway.servers import SHELLS, served
from tests.nats import Proxy
from tests.process import serve
from tests.virtual import unlimited

pytestmark = pytest.mark.process


@asynccontextmanager
async def client(port: int, user: str = "ada", **options: Any) -> AsyncIterator[Client]:
    options.setdefault("first_pause_s", 0.01)
    async with Client(f"ws://localhost:{port}/socket", params={"user_id": user}, **options) as connected:
        yield connected


async def heard(room: Room, until: Callable[[Event], bool]) -> list[Event]:
    """Iterate until an event, which is the last one."""
    events = []
    async with asyncio.timeout(PATIENCE_S):
        async for event in room:
            events.append(event)
            if until(event):
                return events
    raise AssertionError(f"it ended: {events}")


def says(content: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Message) and event.content == content


def contents(events: list[Event]) -> list[str]:
    return [event.content for event in events if isinstance(event, Message)]


@pytest.mark.parametrize("shell", SHELLS)
async def test_it_sends_and_hears_itself_and_others_behind_the_history(shell: str) -> None:
    chat = Chat()
    async with served(shell, chat) as port:
        for number in range(4):
            await chat.send_message("general", "bob", f"old {number}")
        async with client(port) as ada, ada.room("general", history=2) as room:
            sent = await room.send("Hello", {"mood": "glad"})
            assert (sent.user, sent.offset, sent.data, sent.duplicate) == ("ada", 5, {"mood": "glad"}, False)
            events = await heard(room, says("Hello"))
            assert contents(events) == ["old 2", "old 3", "Hello"]
            assert events[-1] == sent
            assert [each.content for each in await room.history(before=sent, limit=3)] == ["old 1", "old 2", "old 3"]
            assert [each.offset for each in await room.history(after=(sent.epoch, 3))] == [4, 5]
            assert [each.offset for each in await room.history(limit=250)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("transport", ["websocket", "longpoll"])
@pytest.mark.parametrize("shell", SHELLS)
async def test_across_cuts_nothing_is_missed_doubled_or_reordered(shell: str, transport: str) -> None:
    chat = unlimited()
    async with (
        served(shell, chat) as port,
        Proxy(port).running() as proxy,
        client(proxy.port, transport=transport) as ada,
        client(port, "bob") as bob,
        ada.room("general") as here,
        bob.room("general") as there,
    ):
        for number in range(24):
            sending = asyncio.gather(here.send(f"ada {number}"), there.send(f"bob {number}"))
            if number % 4 == 1:
                proxy.cut()
            elif number % 4 == 3:  # the server may have it, and nobody hears of that
                proxy.swallows_answers = True
                await there.send(f"meanwhile {number}")
                proxy.cut()
                proxy.swallows_answers = False
            await sending
        await there.send("the end")
        ours, theirs = await asyncio.gather(heard(here, says("the end")), heard(there, says("the end")))
        assert contents(ours) == contents(theirs)
        for name in ("ada", "bob"):
            said = [each for each in contents(ours) if each.startswith(name)]
            assert said == [f"{name} {number}" for number in range(24)]
        assert not [each for each in ours if isinstance(each, Gap)]


async def test_a_connection_on_which_nothing_comes_is_made_anew() -> None:
    chat = Chat()
    async with (
        served("native", chat) as port,
        Proxy(port).running() as proxy,
        client(proxy.port, answer_s=0.5, heartbeat_s=0.5) as ada,
        ada.room("general") as room,
    ):
        proxy.swallows = True
        sending = asyncio.create_task(room.send("Hello"))
        await heard(room, lambda event: isinstance(event, State) and event.state == "away")
        proxy.swallows = False
        assert (await sending).offset == 1


async def test_what_is_not_kept_is_a_gap_and_what_follows_comes() -> None:
    chat = unlimited(history_size=4)
    async with (
        served("native", chat) as port,
        Proxy(port).running() as proxy,
        client(proxy.port) as ada,
        ada.room("general") as room,
    ):
        first = await room.send("first")
        await heard(room, says("first"))
        proxy.swallows = True
        for number in range(8):
            await chat.send_message("general", "bob", f"m{number}")
        proxy.cut()
        proxy.swallows = False
        (gap,) = [each for each in await heard(room, lambda event: isinstance(event, Gap)) if isinstance(each, Gap)]
        assert gap == Gap("general", "too_old", first.epoch, 9, 8)
        await room.send("on")
        assert contents(await heard(room, says("on"))) == ["on"]


async def test_a_refusal_for_good_raises_and_one_for_a_while_waits() -> None:
    class Strict:
        def check(self, content: str) -> bool:
            return content != "bad"

    chat = Chat(moderation=Strict(), rate_limit=RateLimit(messages_per_sec=100, burst=1))
    async with served("native", chat) as port, client(port) as ada, ada.room("general") as room:
        results = await asyncio.gather(
            *(room.send(content) for content in ("one", "bad", "two", "three")), return_exceptions=True
        )
        refused = results[1]
        assert isinstance(refused, SendRefused)
        assert refused.code == "blocked"
        assert [each.offset for each in results if isinstance(each, Message)] == [1, 2, 3]
        assert contents(await heard(room, says("three"))) == ["one", "two", "three"]


async def test_a_room_that_may_not_be_joined_says_so() -> None:
    class Nobody:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            raise Unauthorized("Members only.")

    async with served("native", Chat(auth=Nobody())) as port, client(port) as ada:
        with pytest.raises(JoinRefused, match="unauthorized: Members only"):
            async with ada.room("general"):
                pass


async def test_who_is_there_is_told_where_it_is_wanted() -> None:
    chat = Chat()
    async with (
        served("native", chat) as port,
        client(port) as ada,
        client(port, "bob") as bob,
        ada.room("general", presence=True) as room,
    ):
        await heard(room, lambda event: isinstance(event, Presence) and set(event.members) == {"ada"})
        async with bob.room("general"):
            await heard(room, lambda event: isinstance(event, Presence) and set(event.members) == {"ada", "bob"})
        await heard(room, lambda event: isinstance(event, Presence) and set(event.members) == {"ada"})


async def test_a_user_who_is_shut_out_is_told_and_stays_away() -> None:
    chat = Chat()
    async with served("native", chat) as port, client(port) as ada, ada.room("general") as room:
        await chat.revoke("ada")
        with pytest.raises(ClientClosed, match="revoked"):
            await heard(room, lambda event: False)
        with pytest.raises(ClientClosed, match="revoked"):
            await room.send("Hello")


async def test_a_reader_that_is_slow_gets_all_of_it_and_holds_up_nothing_else() -> None:
    chat = unlimited()
    async with (
        served("native", chat) as port,
        client(port, queue_events=8) as ada,
        ada.room("busy") as busy,
        ada.room("other") as other,
    ):
        for number in range(100):
            await chat.send_message("busy", "bob", f"m{number}")
        # What it does not read keeps no answer from it.
        assert (await busy.send("the end")).offset == 101
        assert (await other.send("Hello")).offset == 1
        assert contents(await heard(busy, says("the end"))) == [*(f"m{number}" for number in range(100)), "the end"]
        await busy.send("live again")
        assert contents(await heard(busy, says("live again"))) == ["live again"]


async def test_a_token_is_fetched_for_each_connection() -> None:
    tokens = iter(["ada", "bob"])
    asked = []

    async def token() -> str:
        asked.append(next(tokens))
        return asked[-1]

    chat = Chat()
    async with (
        served("asgi", chat, authenticate=lambda handshake: handshake.token) as port,
        Proxy(port).running() as proxy,
        Client(f"http://localhost:{proxy.port}/socket/", token=token, first_pause_s=0.01) as one,
        one.room("general") as room,
    ):
        assert (await room.send("Hello")).user == "ada"
        proxy.cut()
        assert (await room.send("Hello")).user == "bob"


async def test_history_that_is_not_kept_is_refused() -> None:
    chat = unlimited(history_size=2)
    async with served("native", chat) as port, client(port) as ada, ada.room("general") as room:
        places = [await room.send(f"m{number}") for number in range(5)]
        with pytest.raises(HistoryRefused, match="too_old"):
            await room.history(after=places[0])


class NoWebSockets(Proxy):
    """Lets requests through, and refuses what would be a WebSocket.

    Attributes:
        refused: How many those were.
    """

    refused = 0

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("peername")[1] == self._to:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                self.refused += 1
                writer.transport.abort()
                return
            writer.write(head)
        await super()._pump(reader, writer)


async def test_where_no_websocket_gets_through_it_polls() -> None:
    chat = Chat()
    async with (
        served("native", chat) as port,
        NoWebSockets(port).running() as proxy,
        client(proxy.port, heartbeat_s=0.2) as ada,
        ada.room("general") as room,
    ):
        assert (await room.send("Hello")).offset == 1
        assert proxy.refused == 2
        await chat.send_message("general", "bob", "Hello Ada")
        assert contents(await heard(room, says("Hello Ada"))) == ["Hello", "Hello Ada"]
        # A session that the server ends begins anew, and no WebSocket is tried for a while.
        await chat.revoke("ada")
        assert (await room.send("again")).offset == 3
        assert proxy.refused == 2


async def test_a_refused_handshake_is_asked_again_as_a_websocket(caplog: pytest.LogCaptureFixture) -> None:
    refuses = ["once", "twice", "three times"]
    chat = Chat()
    async with served("native", chat, lambda handshake: None if refuses else "ada") as port, client(port) as ada:
        opening = asyncio.create_task(ada.room("general").__aenter__())
        await until(lambda: "answered 403" in caplog.text)
        refuses.clear()
        await opening
        assert ada._websocket is not None
    assert "a poll" not in caplog.text


async def test_it_trusts_what_it_is_told_to(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    server_tls, client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    certificate.configure_cert(server_tls)
    authority.configure_trust(client_tls)
    chat = Chat()
    async with served("native", chat, ssl=server_tls) as port:
        url = f"wss://localhost:{port}/socket"
        for transport in ("websocket", "longpoll"):
            options: dict[str, Any] = {"params": {"user_id": "ada"}, "transport": transport}
            async with Client(url, ssl=client_tls, **options) as ada, ada.room(transport) as room:
                assert (await room.send("Hello")).offset == 1


async def test_a_server_is_killed_and_stopped_and_all_that_was_sent_is_there_once(tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    (tmp_path / "chatx.toml").write_text(
        '[chatx]\ndurability = "stored"\nrate_limit = { messages_per_sec = 1000, burst = 1000 }\n'
    )
    asked: list[int] = []

    def token() -> str:
        asked.append(len(asked))
        return sign(secret, Identity("ada", expires_at=time.time() + 900, rooms=("general",)))

    store = f"sqlite:///{tmp_path / 'chat.db'}"
    with serve("--config", str(tmp_path / "chatx.toml"), "--store", store, CHATX_SECRET=secret) as server:
        async with Client(f"ws://localhost:{server.port}/socket", token=token, first_pause_s=0.05) as ada:
            async with ada.room("general") as room:
                sent = []
                ends_of: list[list[Callable[[], object]]] = [[server.kill, server.wait], [server.stop], []]
                for number, ends in enumerate(ends_of):
                    sends = [asyncio.create_task(room.send(f"m{number} {each}")) for each in range(20)]
                    await sends[5]
                    for end in ends:
                        await asyncio.to_thread(end)
                    if ends:
                        server.begin_again()
                        await asyncio.to_thread(server.wait_until_it_answers)
                    sent += await asyncio.gather(*sends)
                assert [each.offset for each in sent] == list(range(1, 61))
                assert contents(await heard(room, says("m2 19"))) == [each.content for each in sent]
            with pytest.raises(JoinRefused, match="unauthorized"):
                async with ada.room("elsewhere"):
                    pass
    assert len(asked) >= 3
