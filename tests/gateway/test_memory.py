"""What a client leaves behind: nothing that waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket as socketlib
import struct
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from chatx import Chat, Identity
from chatx.core.fanout import Subscriber
from chatx.core.message import Draft, Gap, Message
from chatx.core.room import Effects, Room
from chatx.errors import AdapterError, Blocked, RoomUnavailable, Unauthorized
from chatx.gateway.entry import handshake as entry
from chatx.gateway.entry.admission import Full
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.native.greeting import Greeting
from chatx.gateway.native.http import HttpExchange
from chatx.gateway.native.stream import Stream
from chatx.gateway.native.tcp import TcpTransport
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.hub import Hub
from chatx.gateway.session.joining import Membership
from chatx.gateway.session.session import Session
from chatx.gateway.wire.bounds import ANSWER_S
from chatx.runtime.process import RoomProcess
from tests.gateway.fakes import Client, FakeServer, settle
from tests.gateway.raw_peer import CLOSE, HANDSHAKE, answer, next_frame, opened, pushed, raw
from tests.gateway.real_client import until
from tests.gateway.servers import native
from tests.longpoll.polling import Call, PollingClient, inside
from tests.virtual import virtual


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Keep the collector out, whose work is not to be needed."""
    logging.disable(logging.CRITICAL)  # pytest keeps each record, with its traceback
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


class Left:
    """The handshakes and sessions that are still in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scopes: list[weakref.ref[Any]] = []

        class Scope(dict[str, Any]):
            """A scope that can be referred to weakly."""

        made = entry.handshake_of

        def handshake_of(scope: Any) -> Handshake:
            kept = Scope(scope)
            self.scopes.append(weakref.ref(kept))
            return made(kept)

        monkeypatch.setattr("chatx.gateway.asgi.app.handshake_of", handshake_of)
        monkeypatch.setattr("chatx.gateway.longpoll.exchange.handshake_of", handshake_of)
        # Not isinstance, which would have lazy objects of other packages look for what they stand for.
        self._sessions = sum(type(each) is Session for each in gc.get_objects())

    def count(self) -> tuple[int, int, int]:
        """Return how many handshakes there were, how many of them are left, and how many sessions are."""
        left = sum(scope() is not None for scope in self.scopes)
        sessions = sum(type(each) is Session for each in gc.get_objects())
        return len(self.scopes), left, sessions - self._sessions


def by_name(handshake: Handshake) -> Identity | None:
    user = handshake.params.get("user")
    return Identity(user, expires_at=2e10) if user else None


def raises(handshake: Handshake) -> str:
    raise ZeroDivisionError


async def raises_later(handshake: Handshake) -> str:
    await asyncio.sleep(0)
    raise ZeroDivisionError


async def refuses_later(handshake: Handshake) -> str:
    await asyncio.sleep(0)
    raise Unauthorized("not you")


async def exits_later(handshake: Handshake) -> str:
    await asyncio.sleep(0)
    raise SystemExit


async def hangs(handshake: Handshake) -> str:
    await asyncio.sleep(1e6)
    return "ada"


async def socket(app: Any, **scope: Any) -> None:
    server = FakeServer(app, **scope)
    await server.task


async def poll(app: Any, query: str = "vsn=2.0.0&user=ada", **scope: Any) -> None:
    await Call(app, "GET", query, **scope).reply()


REFUSED: dict[str, tuple[Callable[[Handshake], Any], Callable[[Any], Awaitable[None]]]] = {
    **{
        f"{name} {each.__name__}": (each, ask)
        for name, ask in (("socket", socket), ("poll", poll))
        for each in (raises, raises_later, refuses_later, exits_later, hangs)
    },
    "socket of a foreign origin": (by_name, lambda app: socket(app, headers={"origin": "https://evil.example"})),
    "socket of nobody": (by_name, lambda app: socket(app, query="vsn=2.0.0")),
    "socket of another version": (by_name, lambda app: socket(app, query="vsn=9.0.0&user=ada")),
    "poll of a foreign origin": (by_name, lambda app: poll(app, headers={"origin": "https://evil.example"})),
    "poll of nobody": (by_name, lambda app: poll(app, "vsn=2.0.0")),
}


@pytest.mark.parametrize("authenticate, ask", REFUSED.values(), ids=REFUSED)
@virtual
async def test_a_refused_client_leaves_nothing(
    authenticate: Callable[[Handshake], Any],
    ask: Callable[[Any], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = Left(monkeypatch)
    async with Chat() as chat:
        app = chat.asgi(authenticate=authenticate)
        for _ in range(5):
            await ask(app)
        await settle()
        assert left.count() == (5, 0, 0)


@virtual
async def test_a_socket_that_was_open_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    async with Chat() as chat:
        app = chat.asgi(authenticate=by_name)
        for end in ("disconnect", "malformed", "revoke"):
            server = FakeServer(app)
            server.text("own", "room:a", "phx_join")
            server.text(None, "room:a", "new_message", {"content": 7})
            server.text(None, "room:a", "access_token", {"token": "t"})
            await settle()
            if end == "disconnect":
                server.disconnect()
            elif end == "malformed":
                server.binary(b"\xff")
            else:
                await chat.revoke("ada")
            await server.task
            del server
        await settle()
        assert left.count() == (3, 0, 0)


@virtual
async def test_a_session_that_polled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(monkeypatch)
    async with Chat() as chat:
        app = chat.asgi(authenticate=by_name)
        for _ in range(3):
            await poll(app)
        await asyncio.sleep(60)
        assert left.count() == (3, 0, 0)


OF_A_ROOM = (Hub, RoomProcess, Room, Subscriber, Membership)
"""What a room's life is made of, where sockets are in it."""


def of_rooms() -> list[str]:
    return sorted(type(each).__name__ for each in gc.get_objects() if type(each) in OF_A_ROOM)


async def leaves(chat: Chat, client: Client) -> None:
    client.push("room:a", "phx_leave")


async def ends(chat: Chat, client: Client) -> None:
    client.session.end()


async def is_closed_by_its_room(chat: Chat, client: Client) -> None:
    process = chat.engine.rooms.find("a")
    assert process is not None
    process.close(RoomUnavailable())


async def is_out_of_its_room(chat: Chat, client: Client) -> None:
    process = chat.engine.rooms.find("a")
    assert process is not None
    process._report(Effects(process.room.fanout.publish(Gap("a", "missing", "e", 1, None)), ()))


@pytest.mark.parametrize("way", [leaves, ends, is_closed_by_its_room, is_out_of_its_room])
@virtual
async def test_a_rooms_life_leaves_nothing(way: Callable[[Chat, Client], Awaitable[None]]) -> None:
    async with Chat() as chat:
        gateway = Gateway(chat.engine)
        client = Client(gateway, "ada")
        before = of_rooms()
        for _ in range(3):
            await client.join("room:a")
            client.say("room:a", "x")
            await settle()
            await way(chat, client)
            await settle()
            if way is ends:
                client = Client(gateway, "ada")
        client.session.end()
        await asyncio.sleep(61)  # until an empty room is forgotten
        assert chat.statistics().rooms == 0
        assert of_rooms() == before


class Refuses:
    """Refuses joins or sends by exceptions of its own, later; keeps no hold of them."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.raised: list[weakref.ref[Unauthorized]] = []

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(0.1)
        if action == self.action:
            refusal = Unauthorized("not now")
            self.raised.append(weakref.ref(refusal))
            try:
                raise refusal
            finally:
                del refusal
        return True


@pytest.mark.parametrize("action", ["join", "subscribe", "send"])
@virtual
async def test_a_refusal_through_what_awaits_leaves_nothing(action: str) -> None:
    auth = Refuses(action)
    async with Chat(auth=auth) as chat:
        client = Client(Gateway(chat.engine), "ada")
        for _ in range(3):
            client.ask("room:a")
            await asyncio.sleep(1)
            client.say("room:a", "x")
            await asyncio.sleep(1)
        assert [each() for each in auth.raised] == [None] * 3
        client.session.end()


class Blocks:
    """Refuses every content, later, by exceptions of which it keeps no hold: as moderation, or as a middleware."""

    def __init__(self) -> None:
        self.raised: list[weakref.ref[Blocked]] = []

    async def check(self, content: str) -> bool:
        await asyncio.sleep(0.1)
        refusal = Blocked("not that")
        self.raised.append(weakref.ref(refusal))
        try:
            raise refusal
        finally:
            del refusal

    async def as_middleware(self, draft: Draft) -> Draft:
        await self.check(draft.content)
        return draft


def refusals() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) is Blocked]


@pytest.mark.parametrize("way", ["moderation", "middleware"])
@virtual
async def test_a_refusal_that_repeats_of_a_key_wait_for_leaves_nothing(way: str) -> None:
    blocks = Blocks()
    earlier = refusals()  # those of other tests
    middlewares: tuple[Any, ...] = ("moderation",) if way == "moderation" else (blocks.as_middleware,)
    async with Chat(moderation=blocks, middlewares=middlewares) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        refs = [client.say("room:a", "x", key="k") for _ in range(3)]
        await asyncio.sleep(1)
        assert [client.reply(ref)[1]["code"] for ref in refs] == ["blocked"] * 3
        assert [each() for each in blocks.raised] == [None] * len(blocks.raised)
        assert len(refusals()) <= len(earlier)  # nor did those that the repeats got
        client.session.end()


class Unreadable:
    """A store that cannot say where a room's stream stands."""

    async def save_message(self, message: Message) -> None:
        """Nothing is published here."""

    async def load_messages(self, room_id: str, *, after: Any = None, before: Any = None, limit: int) -> list[Message]:
        raise OSError("the store is away")

    async def last_position(self, room_id: str) -> None:
        await asyncio.sleep(0.1)
        raise OSError("the store is away")


@virtual
async def test_a_room_that_cannot_be_opened_leaves_nothing_of_those_that_waited_for_it() -> None:
    async with Chat(persistence=Unreadable()) as chat:
        gateway = Gateway(chat.engine)
        clients = [Client(gateway, user) for user in ("ada", "bob")]
        refs = [client.ask("room:a", epoch="e", offset=1) for client in clients]
        await asyncio.sleep(1)
        assert [client.reply(ref)[1]["code"] for client, ref in zip(clients, refs, strict=True)] == [
            "adapter_error"
        ] * 2
        assert not any(type(each) is AdapterError for each in gc.get_objects())
        for client in clients:
            client.session.end()


@pytest.mark.parametrize("silence", [0, ANSWER_S + 1], ids=["at once", "after an answer"])
@virtual
async def test_a_client_that_is_refused_at_the_bound_of_its_user_leaves_nothing(
    silence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Chat(max_connections_per_user=1) as chat:
        app = chat.asgi(authenticate=by_name)
        polling = PollingClient(inside(app))
        polling.params["user"] = "ada"
        await polling.open()
        waiting = asyncio.create_task(polling.poll())
        await settle()  # this poll is under way, and no handshake of those that are counted
        await asyncio.sleep(silence)
        left = Left(monkeypatch)
        coming = [FakeServer(app) for _ in range(3)]
        await settle()
        waiting = asyncio.create_task(polling.poll())
        await asyncio.gather(*(each.task for each in coming))
        assert not any(each.accepted for each in coming)
        del coming
        waiting.cancel()
        await settle()
        del waiting
        # The polls are handshakes too.
        assert left.count()[1:] == (0, 0)
        assert not any(type(each) in (Full, Refused) for each in gc.get_objects())
        await chat.revoke("ada")
        await settle()
        assert left.count()[2] == -1  # nor does the session that was asked


NATIVE = (Session, Stream, TcpTransport, Greeting, HttpExchange)
"""What a connection to the native server is made of."""


def of_connections() -> list[str]:
    return sorted(type(each).__name__ for each in gc.get_objects() if type(each) in NATIVE)


async def closes(port: int) -> None:
    async with opened(port) as (reader, writer):
        writer.write(pushed("room:a", "phx_join"))
        await next_frame(reader)
        writer.write(CLOSE)
        await reader.read()


async def resets(port: int) -> None:
    async with opened(port) as (reader, writer):
        writer.write(pushed("room:a", "phx_join"))
        await next_frame(reader)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socketlib.SOL_SOCKET, socketlib.SO_LINGER, linger)


async def is_refused(port: int) -> None:
    assert b" 403 " in await answer(port, HANDSHAKE.replace(b"user_id=%b", b"nobody=1"))


async def asks_plainly(port: int) -> None:
    assert b" 404 " in await answer(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def says_nothing(port: int) -> None:
    async with raw(port):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", [closes, resets, is_refused, asks_plainly, says_nothing])
async def test_a_connection_to_the_native_server_leaves_nothing(way: Callable[[int], Awaitable[None]]) -> None:
    async with Chat() as chat, native(chat) as (_, port):
        await way(port)
        await until(lambda: of_connections() == [])
        for _ in range(5):
            await way(port)
        await until(lambda: of_connections() == [])
