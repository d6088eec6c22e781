"""The defaults, attacked: what a hostile client does, and what it costs everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chatx.chat import Chat
from chatx.gateway.asgi.app import ChatApp
from chatx.gateway.entry.admission import PENDING_HANDSHAKES
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.session.gateway import Gateway
from tests.gateway.fakes import Client, FakeServer, by_name, chatx_tasks, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual


@asynccontextmanager
async def running(chat: Chat | None = None, **options: Any) -> AsyncIterator[tuple[Chat, ChatApp]]:
    async with chat or Chat(rate_limit=UNLIMITED) as chat:
        yield chat, chat.asgi(**{"authenticate": by_name, **options})
        statistics = chat.statistics()
        assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)
    assert chatx_tasks() == []


async def connected(app: ChatApp, user: str = "ada", **options: Any) -> FakeServer:
    server = FakeServer(app, query=f"vsn=2.0.0&user={user}", **options)
    await settle()
    return server


async def ended(*servers: FakeServer) -> None:
    for server in servers:
        server.disconnect()
    await settle()
    assert all(server.task.done() for server in servers)


def refused(server: FakeServer) -> bool:
    """Return whether the handshake was refused: a server makes a 403 of a close before the accept."""
    return server.task.done() and [each["type"] for each in server.sent] == ["websocket.close"]


# Connections


@virtual
async def test_a_user_with_too_many_sockets_is_refused_and_may_come_back_when_one_is_gone() -> None:
    async with running(Chat(max_connections_per_user=3)) as (_, app):
        held = [await connected(app) for _ in range(3)]
        late = await connected(app)
        other = await connected(app, "bob")

        assert all(server.accepted for server in [*held, other])
        assert refused(late)
        await ended(held.pop())
        held.append(await connected(app))
        assert held[-1].accepted
        await ended(*held, other)
        await chat_stopped(app)


async def chat_stopped(app: ChatApp) -> None:
    """Stop the chat, and check that nothing of its sockets is counted."""
    gateway = app._entrance._gateway
    await app._entrance._chat.stop()
    await settle()
    assert gateway is not None
    assert len(gateway.admission) == 0
    await app._entrance._chat.start()


@virtual
async def test_an_address_with_too_many_sockets_is_refused() -> None:
    async with running(Chat(max_connections_per_address=2)) as (_, app):
        held = [await connected(app, f"user{number}", client="192.0.2.1") for number in range(2)]
        late = await connected(app, "late", client="192.0.2.1")
        other = await connected(app, "late", client="192.0.2.2")

        assert refused(late)
        assert other.accepted
        await ended(*held, other)
        await chat_stopped(app)


@virtual
async def test_ten_sockets_a_user_are_the_default_and_no_address_has_a_bound() -> None:
    async with running() as (_, app):
        servers = [await connected(app, client="192.0.2.1") for _ in range(11)]
        others = [await connected(app, f"user{number}", client="192.0.2.1") for number in range(100)]

        assert [server.accepted for server in servers] == [True] * 10 + [False]
        assert all(server.accepted for server in others)
        await ended(*servers[:10], *others)
        await chat_stopped(app)


@virtual
async def test_handshakes_that_hang_fill_no_more_than_their_bound_and_each_gives_its_place_back() -> None:
    asked = 0

    async def hangs(handshake: Handshake) -> str | None:
        nonlocal asked
        asked += 1
        if handshake.params["user"] != "honest":
            await asyncio.Event().wait()
        return "honest"

    async with running(authenticate=hangs) as (_, app):
        flood = [FakeServer(app, query="vsn=2.0.0&user=evil") for _ in range(PENDING_HANDSHAKES + 50)]
        await settle()
        beyond = await connected(app, "honest")

        assert asked == PENDING_HANDSHAKES
        assert [server.task.done() for server in flood].count(True) == 50
        assert refused(beyond)
        # From elsewhere it is let in, and the oldest of them waits no longer.
        elsewhere = await connected(app, "honest", client="192.0.2.9")
        assert elsewhere.accepted
        assert refused(flood[0])
        assert [server.task.done() for server in flood].count(True) == 51
        await ended(elsewhere)
        await asyncio.sleep(6)  # past adapter_timeout_ms
        assert all(server.task.done() for server in flood)
        honest = await connected(app, "honest")
        assert honest.accepted
        await ended(honest)
        await chat_stopped(app)


@pytest.mark.parametrize("stage", ["authenticating", "accepting", "open"])
@virtual
async def test_a_connection_that_is_cut_at_any_stage_gives_its_place_back(stage: str) -> None:
    async def slowly(handshake: Handshake) -> str:
        await asyncio.sleep(1)
        return "ada"

    async with running(authenticate=slowly) as (_, app):
        server = FakeServer(app)
        await settle()
        if stage == "accepting":
            server.stall()
        if stage != "authenticating":
            await asyncio.sleep(2)
        server.task.cancel()
        await asyncio.gather(server.task, return_exceptions=True)
        await chat_stopped(app)


# Joins


class CountingAuth:
    def __init__(self, answer: bool) -> None:
        self.calls = 0
        self._answer = answer

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        self.calls += 1
        return self._answer


@virtual
async def test_as_many_rooms_as_a_socket_may_have_can_be_joined_at_once_and_not_one_more() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        refs = [client.ask(f"room:r{number}") for number in range(101)]
        await settle()

        assert [client.reply(ref)[0] for ref in refs] == ["ok"] * 100 + ["error"]
        assert client.reply(refs[100])[1]["code"] == "too_many_joins"
        client.session.end()


@pytest.mark.parametrize("most", [1, 3, 0])
@virtual
async def test_the_bound_of_joins_is_an_option_and_zero_is_none(most: int) -> None:
    async with Chat(max_joins_per_connection=most) as chat:
        client = Client(Gateway(chat.engine), "ada")
        refs = [client.ask(f"room:r{number}") for number in range(150)]
        await settle()

        assert [client.reply(ref)[0] for ref in refs].count("ok") == (most or 150)
        client.session.end()


@virtual
async def test_a_client_that_tries_every_refused_join_again_as_phoenix_js_does_is_never_too_fast() -> None:
    auth = CountingAuth(False)
    async with Chat(auth=auth) as chat:
        client = Client(Gateway(chat.engine), "ada")
        pauses = [1, 2, 5] + [10] * 20
        for pause in pauses:
            refs = [client.ask(f"room:r{number}") for number in range(100)]
            await settle()
            assert {client.reply(ref)[1]["code"] for ref in refs} == {"unauthorized"}
            client.forget()
            await asyncio.sleep(pause)
        assert auth.calls == 100 * len(pauses)
        client.session.end()


@virtual
async def test_a_flood_of_joins_is_refused_before_anybody_is_asked_and_may_go_on_later() -> None:
    auth = CountingAuth(False)
    async with Chat(auth=auth) as chat:
        gateway = Gateway(chat.engine)
        client, other = Client(gateway, "ada"), Client(gateway, "ada")
        refs = [client.ask(f"room:r{number % 50}") for number in range(2000)]
        await settle()

        codes = [client.reply(ref)[1]["code"] for ref in refs]
        assert auth.calls == codes.count("unauthorized") == 500
        assert codes.count("rate_limited") == 1500
        wait = client.reply(refs[-1])[1]["retry_after_ms"]
        assert 0 < wait <= 1000
        ref = other.ask("room:a")
        await settle()
        assert other.reply(ref)[1]["code"] == "unauthorized"  # a bucket of its own
        assert chat.statistics().rooms == 0
        assert chatx_tasks() == []
        client.forget()
        await asyncio.sleep(wait / 1000)
        ref = client.ask("room:a")
        await settle()
        assert client.reply(ref)[1]["code"] == "unauthorized"
        client.session.end()
        other.session.end()


# Revocation


@virtual
async def test_a_revoked_user_loses_every_socket_and_cannot_come_back_while_authenticate_refuses() -> None:
    banned: set[str] = set()

    def authenticate(handshake: Handshake) -> str | None:
        user = handshake.params["user"]
        return None if user in banned else user

    async with running(authenticate=authenticate) as (chat, app):
        eves = [await joined(app, "eve") for _ in range(3)]
        bob = await joined(app, "bob")
        banned.add("eve")
        assert await chat.revoke("eve") == 3
        assert set(await chat.presence("a")) == {"bob"}
        await chat.send_message("a", "bob", "secret")
        await settle()

        assert [server.closed for server in eves] == [4003] * 3
        assert all(server.task.done() for server in eves)
        assert all(contents(server) == [] for server in eves)
        assert contents(bob) == ["secret"]
        assert not (await connected(app, "eve")).accepted
        banned.clear()
        await ended(await joined(app, "eve"), bob)
        await chat_stopped(app)


@pytest.mark.parametrize("stage", ["authenticating", "accepting"])
@virtual
async def test_a_user_who_is_revoked_during_the_handshake_does_not_get_in(stage: str) -> None:
    async def slowly(handshake: Handshake) -> str:
        await asyncio.sleep(1)
        return "eve"

    async with running(authenticate=slowly) as (chat, app):
        server = FakeServer(app)
        server.text("own", "room:a", "phx_join")
        await settle()
        if stage == "accepting":
            server.stall()
            await asyncio.sleep(2)
        await chat.revoke("eve")
        server.flow()
        await asyncio.sleep(2)

        assert server.task.done()
        assert server.closed == (4003 if stage == "accepting" else 1008)
        assert server.received == []
        assert chat.statistics().members == 0


@virtual
async def test_a_revoked_user_whose_socket_takes_nothing_is_out_of_the_room_at_once() -> None:
    async with running() as (chat, app):
        server = await joined(app, "eve")
        server.stall()
        await chat.send_message("a", "bob", "hi")
        await settle()
        await chat.revoke("eve")
        assert await chat.presence("a") == {}
        await asyncio.sleep(25)
        assert server.task.done()


async def joined(app: ChatApp, user: str, room: str = "a") -> FakeServer:
    server = FakeServer(app, query=f"vsn=2.0.0&user={user}")
    ref = server.text("own", f"room:{room}", "phx_join")
    await settle()
    assert server.reply(ref)[0] == "ok"
    return server


def contents(server: FakeServer) -> list[str]:
    return [each.payload["content"] for each in server.received if each.event == "new_message"]


# Origins


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "host": "chat.example", "cookie": "session=1"},
        {"origin": "http://chat.example.evil.example", "host": "chat.example", "cookie": "session=1"},
        {"origin": "http://chat.example:81", "host": "chat.example", "cookie": "session=1"},
        {"origin": "https://chat.example", "host": "chat.example"},  # another scheme is another origin
        {"origin": "http://localhost:3000", "host": "localhost:4000", "cookie": "session=1"},
        {"origin": "http://127.0.0.1", "host": "localhost"},
        {"origin": "https://evil.example", "Origin": "http://chat.example", "host": "chat.example"},
        {"origin": "null", "host": "chat.example"},
        {"origin": "", "host": "chat.example"},
        {"origin": "http://[", "host": "chat.example"},
        {"host": "chat.example", "cookie": "session=1"},  # none, but cookies
    ],
)
@virtual
async def test_a_foreign_page_gets_no_socket_and_authenticate_is_not_asked(headers: dict[str, str]) -> None:
    asked: list[Handshake] = []

    def authenticate(handshake: Handshake) -> str:
        asked.append(handshake)
        return "ada"

    async with running(authenticate=authenticate) as (_, app):
        server = FakeServer(app, headers=headers)
        await settle()
        assert refused(server)
        assert asked == []
        await chat_stopped(app)


# Handshakes that are large


@virtual
async def test_a_flood_of_parameters_is_read_up_to_a_bound_and_repeated_headers_do_not_add_up() -> None:
    seen: list[Handshake] = []

    def authenticate(handshake: Handshake) -> str:
        seen.append(handshake)
        return "ada"

    async with running(authenticate=authenticate) as (_, app):
        flood = "&".join(f"p{number}={'%41' * 10}" for number in range(50_000))
        server = FakeServer(app, query="vsn=2.0.0&" + flood)
        await settle()
        assert len(seen[0].params) == 100
        await ended(server)


# Messages


DEEP = 50_000
SURROGATE = '"\\ud800"'
BOMBS: dict[str, str | bytes] = {
    "nested arrays": "[" * DEEP + "]" * DEEP,
    "nested arrays in the payload": '[null,"1","room:a","new_message",' + "[" * 20_000 + "]" * 20_000 + "]",
    "nested objects in the payload": '[null,"1","room:a","new_message",' + '{"a":' * 8000 + "1" + "}" * 8000 + "]",
    "nested objects that do not end": '[null,"1","room:a","new_message",' + '{"a":' * 8000,
    "a huge number": '[null,"1","room:a","new_message",{"content":' + "9" * 60_000 + "}]",
    "a huge exponent": '[null,"1","room:a","new_message",{"content":1e999999999}]',
    "a huge number as a ref": "[null," + "9" * 60_000 + ',"room:a","new_message",{}]',
    "a float as a ref": '[null,1e308,"room:a","new_message",{}]',
    "NaN": '[null,"1","room:a","new_message",NaN]',
    "Infinity": '[null,"1","room:a","new_message",{"content":Infinity}]',
    "invalid UTF-8": b"\x00\x01\x01\x06\x0b" + b"1" + b"1" + b"room:\xff" + b"new_message" + b"\xff" * 10,
    "a lone surrogate, escaped": f'[null,"1","room:a","new_message",{{"content":{SURROGATE}}}]',
    "a lone surrogate as a topic": f'[null,"1",{SURROGATE},"phx_join",{{}}]',
    "a lone surrogate as text": '[null,"1","room:a","new_message",{"content":"\ud800"}]',
    "duplicate keys": '[null,"1","room:a","new_message",{"content":1,"content":2,"content":[]}]',
    "a duplicate key that hides a bad one": '[null,"1","room:a","new_message",{"content":"x","content":7}]',
    "no array": "{}",
    "nothing": "",
    "a null byte": "\x00",
    "a byte order mark": "\ufeff[]",
    "too few elements": '[null,"1"]',
    "binary that ends early": b"\x00\xff\xff\xff\xff",
    "binary of no kind": b"\x07\x00\x00\x00\x00",
    "an empty binary": b"",
    "Phoenix's separator of long-polled messages": "\n" * 60_000,
    "attachments that never come": '51-["message",{"_placeholder":true,"num":0}]',
    "a prototype": '[null,"1","room:a","new_message",{"__proto__":{"content":"x"},"constructor":1}]',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@virtual
async def test_no_message_harms_anybody_but_its_sender(bomb: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (chat, app):
        evil, bystander = await joined(app, "evil"), await joined(app, "bystander")
        before = len(evil.sent)
        if isinstance(bomb, bytes):
            evil.binary(bomb)
        else:
            evil._inbox.put_nowait({"type": "websocket.receive", "text": bomb})
        await settle()
        await chat.send_message("a", "bob", "after")
        await settle()

        answers = [each for each in evil.received[before - 1 :] if each.event == "phx_reply"]
        assert evil.closed in (1007, 1009) or [each.payload["status"] for each in answers] == ["error"]
        assert contents(bystander) == ["after"]
        assert bystander.closed is None
        assert [each for each in caplog.records if each.levelname == "ERROR"] == []
        await ended(evil, bystander)


@pytest.mark.parametrize("binary", [False, True])
@virtual
async def test_a_message_over_64_kib_closes_its_socket_and_one_of_64_kib_is_read(binary: bool) -> None:
    async with running() as (_, app):
        for size, code in [(65_536, 1007), (65_537, 1009), (5_000_000, 1009)]:
            server = await joined(app, "ada")
            text = "x" * (size - 4) + "\U0001f600"  # in bytes, not in characters
            if binary:
                server.binary(b"\x01" * size)
            else:
                server._inbox.put_nowait({"type": "websocket.receive", "text": text})
            await settle()
            assert server.closed == code
            await ended(server)


# Refusals that tell nothing


@virtual
async def test_a_room_that_is_absent_and_one_that_is_forbidden_are_refused_alike_and_nothing_is_made() -> None:
    class Members:
        def __init__(self) -> None:
            self.calls: list[tuple[str, str]] = []

        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            self.calls.append((room_id, action))
            return user_id == "bob"

    auth = Members()
    async with running(Chat(auth=auth)) as (chat, app), chat.connect("bob") as bob:
        await bob.join("secret")
        await bob.send_message("secret", "hi")
        eve = await connected(app, "eve")
        auth.calls.clear()
        replies = []
        for room, params in [("secret", {}), ("absent", {}), ("secret", {"epoch": "e", "offset": 1})]:
            ref = eve.text("own", f"room:{room}", "phx_join", params)
            await settle()
            replies.append(eve.reply(ref))
        assert replies[0][0] == "error"
        assert replies[0] == replies[1] == replies[2]
        assert auth.calls == [("secret", "join"), ("absent", "join"), ("secret", "join")]
        assert chat.statistics().rooms == 1
        for event in ("new_message", "history", "access_token", "phx_whatever"):
            answers = []
            for room in ("secret", "absent"):
                ref = eve.text(None, f"room:{room}", event, {"content": "x"})
                await settle()
                answers.append(eve.reply(ref))
            assert answers[0] == answers[1]
        await ended(eve)


@virtual
async def test_permission_is_asked_anew_at_each_join_and_each_resume() -> None:
    allowed = {"ada"}

    class Live:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            return user_id in allowed

    async with running(Chat(auth=Live(), rate_limit=UNLIMITED)) as (chat, app):
        server = await joined(app, "ada")
        allowed.add("bob")
        message = await chat.send_message("a", "bob", "one")
        await chat.send_message("a", "bob", "two")
        await ended(server)
        allowed.discard("ada")
        again = await connected(app, "ada")
        place = {"epoch": message.epoch, "offset": message.offset}
        refs = [again.text("own", "room:a", "phx_join", params) for params in ({}, place)]
        await settle()

        assert [again.reply(ref)[1]["code"] for ref in refs] == ["unauthorized"] * 2
        assert contents(again) == []
        await ended(again)


# Slow readers


@virtual
async def test_slow_readers_hold_no_more_than_their_bound_and_slow_nobody_down() -> None:
    async with running(Chat(rate_limit=UNLIMITED, mailbox_bytes=100_000)) as (chat, app):
        slow = [await joined(app, f"slow{number}") for number in range(20)]
        quick = await joined(app, "quick")
        for server in slow:
            server.stall()
        most = 0
        for number in range(300):
            await chat.send_message("a", "bob", f"{number:03}" + "x" * 1000)
            await settle()
            most = max(most, sum(len(text) for each in chat.engine.consumers for text in waiting(each)))

        assert [content[:3] for content in contents(quick)] == [f"{number:03}" for number in range(300)]
        assert 20 * 50_000 < most <= 20 * 100_000
        for server in slow:
            server.flow()
        await settle()
        assert {server.closed for server in slow} == {1013}
        assert set(await chat.presence("a")) == {"quick"}
        await ended(quick)
        await chat_stopped(app)


def waiting(client: Any) -> list[str]:
    return [text for bundle in client.session.socket._bundles for text in bundle.texts]
