"""The ASGI shell, with a server that is driven by hand and a clock that is not waited for."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chatx.chat import Chat
from chatx.errors import ConfigError, Unauthorized
from chatx.gateway.asgi.app import WRITE_STALL_S, AsgiSocket, ChatApp
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.bounds import ANSWER_S, PENDING_PUSHES
from tests.gateway.fakes import FakeServer, by_name, chatx_tasks, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual


@asynccontextmanager
async def running(chat: Chat | None = None, **options: Any) -> AsyncIterator[tuple[Chat, ChatApp]]:
    async with chat or Chat(rate_limit=UNLIMITED) as chat:
        yield chat, chat.asgi(**{"authenticate": by_name, **options})
    assert chatx_tasks() == []


async def joined(app: ChatApp, room: str = "a", user: str = "ada") -> FakeServer:
    server = FakeServer(app, query=f"vsn=2.0.0&user={user}")
    ref = server.text("own", f"room:{room}", "phx_join")
    await settle()
    assert server.reply(ref)[0] == "ok"
    return server


async def gone(server: FakeServer, chat: Chat) -> None:
    """Check that nothing of a connection is left."""
    await settle()
    assert server.task.done()
    await server.task
    statistics = chat.statistics()
    assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)
    assert chatx_tasks() == []


# Handshakes


@virtual
async def test_a_client_connects_joins_sends_and_goes() -> None:
    async with running() as (chat, app):
        server = await joined(app)
        assert server.sent[0] == {"type": "websocket.accept", "subprotocol": None}
        ref = server.text(None, "room:a", "new_message", {"content": "hi"})
        beat = server.text(None, "phoenix", "heartbeat")
        await settle()

        assert server.reply(ref)[0] == "ok"
        assert server.reply(beat) == ("ok", {})
        assert [each.payload["content"] for each in server.received if each.event == "new_message"] == ["hi"]
        assert set(await chat.presence("a")) == {"ada"}
        server.disconnect()
        await gone(server, chat)


@pytest.mark.parametrize(
    "options",
    [
        {"query": "vsn=3.0.0&user=ada"},
        {"query": "vsn=nonsense&user=ada"},
        {"path": "/socket/longpoll"},
        {"path": "/socket"},
        {"headers": {"origin": "http://evil.example", "host": "chat.example"}},
        {"headers": {"cookie": "session=1"}},
        {"query": "vsn=2.0.0"},
        {"query": "vsn=2.0.0&user="},
        {"query": "vsn=2.0.0&user=a%00b"},
        {"query": "vsn=2.0.0&user=" + "x" * 129},
        {"query": "&".join(f"p{number}=1" for number in range(1000)) + "&vsn=2.0.0&user=ada"},
    ],
)
@virtual
async def test_a_handshake_that_is_refused_is_closed_before_it_is_accepted(options: dict[str, Any]) -> None:
    async with running() as (chat, app):
        server = FakeServer(app, **options)
        await gone(server, chat)

        # A server makes a 403 of it.
        assert [each["type"] for each in server.sent] == ["websocket.close"]


@pytest.mark.parametrize("version, expected", [("", 4), ("&vsn=1.0.0", 4), ("&vsn=2.0.0", 5)])
@virtual
async def test_the_version_follows_vsn_and_is_1_where_there_is_none(version: str, expected: int) -> None:
    async with running() as (_, app):
        server = FakeServer(app, query="user=ada" + version)
        await settle()
        assert server.accepted
        text = (
            '[null,"1","phoenix","heartbeat",{}]'
            if expected == 5
            else '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}'
        )
        server._inbox.put_nowait({"type": "websocket.receive", "text": text, "bytes": None})
        await settle()
        assert server.sent[-1]["text"].startswith("[" if expected == 5 else "{")
        assert "phx_reply" in server.sent[-1]["text"]
        server.disconnect()
        await server.task


@virtual
async def test_listed_origins_may_connect() -> None:
    async with running(origins=("https://site.example",)) as (_, app):
        server = FakeServer(app, headers={"origin": "https://site.example", "host": "chat.example", "cookie": "a=1"})
        await settle()
        assert server.accepted
        server.disconnect()
        await server.task


@virtual
async def test_the_subprotocol_phoenix_is_accepted_and_its_token_reaches_authenticate() -> None:
    seen: list[Handshake] = []

    def authenticate(handshake: Handshake) -> str:
        seen.append(handshake)
        return "ada"

    async with running(authenticate=authenticate) as (_, app):
        server = FakeServer(app, subprotocols=("phoenix", "base64url.bearer.phx.czNjcmV0"))
        await settle()
        assert server.sent[0] == {"type": "websocket.accept", "subprotocol": "phoenix"}
        assert seen[0].token == "s3cret"
        server.disconnect()
        await server.task


async def hangs(handshake: Handshake) -> str:
    await asyncio.Event().wait()
    return "ada"


def raises(handshake: Handshake) -> str:
    raise ValueError("the database is gone")


async def raises_later(handshake: Handshake) -> str:
    await asyncio.sleep(0.1)
    raise ValueError("the database is gone")


def cancels(handshake: Handshake) -> str:
    raise asyncio.CancelledError


def refuses(handshake: Handshake) -> str:
    raise Unauthorized("not you")


async def later(handshake: Handshake) -> str:
    return "ada"


def forgets_to_await(handshake: Handshake) -> Any:
    return later(handshake)


@pytest.mark.parametrize(
    "authenticate",
    [
        hangs,
        raises,
        raises_later,
        cancels,
        refuses,
        lambda handshake: None,
        lambda handshake: False,
        lambda handshake: True,
        lambda handshake: 7,
        lambda handshake: b"ada",
        lambda handshake: "",
        lambda handshake: "a\u202eb",
        forgets_to_await,
    ],
)
@virtual
async def test_authenticate_fails_closed_whatever_it_does(authenticate: Callable[[Handshake], Any]) -> None:
    async with running(authenticate=authenticate) as (chat, app):
        server = FakeServer(app)
        await asyncio.sleep(10)
        await gone(server, chat)

        assert [each["type"] for each in server.sent] == ["websocket.close"]


@pytest.mark.parametrize("offered", [(), ("phoenix",)])
@virtual
async def test_a_chat_that_does_not_run_opens_no_socket_in_order_to_close_it(offered: tuple[str, ...]) -> None:
    server = FakeServer(Chat().asgi(authenticate=by_name), subprotocols=offered)
    await server.task

    assert [each["type"] for each in server.sent] == ["websocket.close"]


@virtual
async def test_a_chat_that_does_not_run_is_told_with_503_where_the_server_can_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "uvicorn", raising=False)  # which would log an error where it cannot be told apart
    app = Chat().asgi(authenticate=by_name)
    server = FakeServer(app)
    server.scope["extensions"] = {"websocket.http.response": {}}
    await server.task

    assert [each["type"] for each in server.sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert server.sent[0]["status"] == 503
    assert (b"retry-after", b"5") in server.sent[0]["headers"]


@virtual
async def test_a_chat_that_is_started_again_serves_again() -> None:
    chat = Chat()
    app = chat.asgi(authenticate=by_name)
    for _ in range(2):
        async with chat:
            server = await joined(app)
            server.text(None, "room:a", "new_message", {"content": "hi"})
            await settle()
            assert [each.event for each in server.received].count("new_message") == 1
            server.disconnect()
            await gone(server, chat)


@virtual
async def test_plain_http_is_told_to_upgrade() -> None:
    async with running() as (_, app):
        server = FakeServer(app, kind="http")
        await server.task

        assert [each["type"] for each in server.sent] == ["http.response.start", "http.response.body"]
        assert server.sent[0]["status"] == 426
        assert (b"upgrade", b"websocket") in server.sent[0]["headers"]


@virtual
async def test_a_lifespan_of_its_own_is_refused_with_what_to_do() -> None:
    async with running() as (_, app):
        server = FakeServer(app, kind="lifespan")
        with pytest.raises(ConfigError, match=r"chat\.lifespan"):
            await server.task


@pytest.mark.parametrize(
    "options, named",
    [
        ({"authenticate": None}, "authenticate is None"),
        ({"authenticate": lambda: "ada"}, "authenticate must take"),
        ({"authenticate": by_name, "origins": ("example.org",)}, "example.org"),
        ({"authenticate": by_name, "origins": "example.org"}, "example.org"),
        ({"authenticate": by_name, "origins": 7}, "origins is 7"),
        *(
            ({"authenticate": by_name, "idle_timeout_s": silence}, "idle_timeout_s is")
            for silence in (0, -1, float("nan"), True, "60", None)
        ),
    ],
)
def test_what_cannot_work_is_refused_when_the_application_is_built(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Chat().asgi(**options)


# Ends


@virtual
async def test_a_silent_client_is_closed_and_one_that_beats_is_not() -> None:
    async with running() as (chat, app):
        silent, beating = await joined(app, user="ada"), await joined(app, user="bob")
        for _ in range(4):
            await asyncio.sleep(30)
            beating.text(None, "phoenix", "heartbeat")
        await settle()

        assert silent.closed == 1001
        assert silent.task.done()
        assert beating.closed is None
        assert set(await chat.presence("a")) == {"bob"}
        beating.disconnect()
        await gone(beating, chat)


@virtual
async def test_at_the_bound_of_a_user_who_went_silent_gives_way_to_a_newcomer_and_who_beats_does_not() -> None:
    async with running(Chat(rate_limit=UNLIMITED, max_connections_per_user=2)) as (chat, app):
        silent, beating = await joined(app), await joined(app)
        await asyncio.sleep(30)
        beating.text(None, "phoenix", "heartbeat")
        await asyncio.sleep(14)
        # Nothing can be asked through this server: who may live stays, however long a newcomer would wait.
        early = FakeServer(app, query="vsn=2.0.0&user=ada")
        await settle()
        assert early.sent[0]["type"] == "websocket.close"
        assert silent.closed is None

        await asyncio.sleep(2)
        newcomer = FakeServer(app, query="vsn=2.0.0&user=ada")
        await asyncio.sleep(ANSWER_S / 2)
        assert not newcomer.sent
        await asyncio.sleep(ANSWER_S / 2)
        await settle()
        assert newcomer.accepted
        assert silent.closed == 1001
        assert silent.task.done()
        another = FakeServer(app, query="vsn=2.0.0&user=ada")
        await settle()
        assert another.sent[0]["type"] == "websocket.close"
        assert beating.closed is None
        beating.disconnect()
        newcomer.disconnect()
        await gone(newcomer, chat)


@virtual
async def test_a_frame_that_is_none_closes_with_its_code() -> None:
    async with running() as (chat, app):
        for data, code in [(b"\xff\xff", 1007), (b"x" * 70_000, 1009)]:
            server = await joined(app)
            server.binary(data)
            await gone(server, chat)
            assert server.closed == code


@virtual
async def test_a_disconnect_while_a_join_is_under_way_leaves_nothing() -> None:
    class Slow:
        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            await asyncio.sleep(2)
            return True

    async with running(Chat(auth=Slow())) as (chat, app):
        server = FakeServer(app)
        server.text("own", "room:a", "phx_join")
        await settle()
        server.disconnect()
        await gone(server, chat)
        await asyncio.sleep(5)

        assert server.received == []
        assert await chat.presence("a") == {}


@virtual
async def test_a_server_that_cancels_the_connection_leaves_nothing() -> None:
    async with running() as (chat, app):
        server = await joined(app)
        server.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server.task
        statistics = chat.statistics()

        assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)
        assert chatx_tasks() == []


@virtual
async def test_a_socket_whose_peer_is_gone_ends_at_the_next_write() -> None:
    async with running() as (chat, app):
        for error in (OSError("gone"), RuntimeError("the response is complete"), ConnectionResetError()):
            server = await joined(app)
            server.send_error = error
            await chat.send_message("a", "bob", "hi")
            await gone(server, chat)


@virtual
async def test_an_error_of_the_server_that_nobody_knows_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (chat, app):
        server = await joined(app)
        server.send_error = LookupError("a bug of the server")
        await chat.send_message("a", "bob", "hi")
        await gone(server, chat)

        assert "a bug of the server" in caplog.text


@virtual
async def test_stopping_the_chat_tells_each_client_to_come_back() -> None:
    chat = Chat()
    await chat.start()
    app = chat.asgi(authenticate=by_name)
    servers = [await joined(app, user=f"user{number}") for number in range(3)]
    await chat.stop()
    await settle()

    assert [server.closed for server in servers] == [1012, 1012, 1012]
    assert all(server.task.done() for server in servers)
    assert chatx_tasks() == []


# Bounds


@virtual
async def test_a_client_that_does_not_read_is_closed_as_slow_and_the_others_go_on() -> None:
    async with running(Chat(rate_limit=UNLIMITED, mailbox_bytes=50_000)) as (chat, app):
        slow, quick = await joined(app, user="slow"), await joined(app, user="quick")
        slow.stall()
        for number in range(100):
            await chat.send_message("a", "server", f"{number:02}" + "x" * 1000)
            await asyncio.sleep(0.01)

        got = [each.payload["offset"] for each in quick.received if each.event == "new_message"]
        assert got == list(range(1, 101))
        slow.flow()
        await settle()
        # What it did take is whole; it goes on from there.
        taken = [each.payload["offset"] for each in slow.received if each.event == "new_message"]
        assert slow.closed == 1013
        assert taken == [1]  # which was on its way; what waited behind it was dropped
        assert slow.task.done()
        assert set(await chat.presence("a")) == {"quick"}
        quick.disconnect()
        await gone(quick, chat)


@pytest.mark.parametrize("text", ["x" * 4000, "\u00e9" * 2000, "\U0001f600" * 1000])
@virtual
async def test_the_bound_of_a_socket_is_in_bytes_whatever_is_written(text: str) -> None:
    async with running(Chat(rate_limit=UNLIMITED, mailbox_bytes=100_000)) as (chat, app):
        slow = await joined(app)
        slow.stall()
        for sent in range(40):
            if sent == 20:
                assert chat.statistics().unread == 19  # one is on its way
            await chat.send_message("a", "server", text)
            await settle()
        slow.flow()
        await gone(slow, chat)

        # 160,000 bytes of content, whether a character has one byte or four.
        assert slow.closed == 1013


@virtual
async def test_a_client_that_keeps_up_is_never_slow_however_much_it_is_sent() -> None:
    async with running(Chat(rate_limit=UNLIMITED, mailbox_bytes=5000)) as (chat, app):
        server = await joined(app)
        for _ in range(50):
            server.text(None, "room:a", "new_message", {"content": "x" * 1000})
            await settle()

        assert [each.event for each in server.received].count("new_message") == 50
        assert server.closed is None
        server.disconnect()
        await gone(server, chat)


@virtual
async def test_one_frame_larger_than_the_bound_is_written_all_the_same() -> None:
    # A presence_state can be; a client that can never be given it would come back for ever.
    async with running(Chat(rate_limit=UNLIMITED, mailbox_bytes=1000)) as (chat, app):
        server = await joined(app)
        await chat.send_message("a", "bob", "x" * 4000)
        await settle()

        assert len(server.received[-1].payload["content"]) == 4000
        assert server.closed is None
        server.disconnect()
        await gone(server, chat)


@virtual
async def test_a_write_that_never_ends_is_given_up() -> None:
    async with running() as (chat, app):
        server = await joined(app)
        server.stall()
        await chat.send_message("a", "bob", "hi")
        await asyncio.sleep(WRITE_STALL_S - 1)
        assert not server.task.done()
        await asyncio.sleep(2)
        await gone(server, chat)


@virtual
async def test_a_write_that_begins_when_an_earlier_one_would_be_given_up_has_its_own_time() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(WRITE_STALL_S - 1 if sent else 0)
        sent.append(message.get("text", message.get("code")))

    loop = asyncio.get_running_loop()
    socket = AsgiSocket(send, 1000)
    loop.call_at(loop.time() + WRITE_STALL_S, socket.write, Bundle(["two"]))
    writer = asyncio.create_task(socket.run())
    socket.write(Bundle(["one"]))
    await asyncio.sleep(2 * WRITE_STALL_S)
    assert sent == ["one", "two"]
    socket.close(1012, "")
    await writer


@virtual
async def test_each_write_has_its_own_time_and_the_one_that_never_ends_is_given_up() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(WRITE_STALL_S - 1 if len(sent) < 3 else math.inf)
        sent.append(message["text"])

    socket = AsgiSocket(send, 1000)
    writer = asyncio.create_task(socket.run())
    socket.write(Bundle(["one", "two", "three", "never"]))
    await asyncio.sleep(4 * WRITE_STALL_S - 3.5)
    assert (sent, writer.done()) == (["one", "two", "three"], False)
    await asyncio.sleep(1)
    assert writer.cancelled()


@virtual
async def test_a_client_that_goes_while_a_write_waits_is_gone_at_once() -> None:
    async with running() as (chat, app):
        server = await joined(app)
        server.stall()
        await chat.send_message("a", "bob", "hi")
        await settle()
        server.disconnect()
        await gone(server, chat)


@virtual
async def test_what_was_written_goes_before_the_close_and_what_comes_after_it_goes_nowhere() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(1)
        sent.append(message.get("text", message.get("code")))

    socket = AsgiSocket(send, 1000)
    writer = asyncio.create_task(socket.run())
    socket.write(Bundle(["one", "two"]))
    await asyncio.sleep(0.5)
    socket.write(Bundle(["three"]))
    drained = asyncio.create_task(socket.drained())
    await asyncio.sleep(2)
    assert not drained.done()
    socket.close(1012, "first")
    socket.close(1001, "second")
    socket.write(Bundle(["never"]))
    await writer

    assert sent == ["one", "two", "three", 1012]
    await drained


@virtual
async def test_waiting_for_a_socket_to_drain_ends_with_the_socket() -> None:
    async def send(message: Any) -> None:
        raise OSError("gone")

    socket = AsgiSocket(send, 1000)
    socket.write(Bundle(["one"]))
    await socket.run()
    await asyncio.wait_for(socket.drained(), 1)


@virtual
async def test_a_client_that_comes_while_the_chat_drains_is_refused_before_its_socket_opens() -> None:
    class Slow:
        async def check(self, content: str) -> bool:
            await asyncio.sleep(3)
            return True

    async def authenticate(handshake: Handshake) -> str:
        await asyncio.sleep(1)
        return "ada"

    chat = Chat(moderation=Slow())
    await chat.start()
    sending = asyncio.create_task(chat.send_message("a", "bob", "hi"))
    early = FakeServer(chat.asgi(authenticate=authenticate))
    await settle()
    stopping = asyncio.create_task(chat.stop())
    await settle()
    late = FakeServer(chat.asgi(authenticate=authenticate))
    await sending
    await stopping
    await settle()

    assert not early.accepted
    assert not late.accepted


@virtual
async def test_the_shell_reads_no_further_while_as_many_pushes_wait_as_may() -> None:
    class Slow:
        async def check(self, content: str) -> bool:
            await asyncio.sleep(0.1)
            return True

    async with running(Chat(rate_limit=UNLIMITED, moderation=Slow())) as (chat, app):
        server = await joined(app)
        for number in range(PENDING_PUSHES + 10):
            server.text(None, "room:a", "new_message", {"content": f"m{number}"})
        await settle()

        assert chat.statistics().admitted == PENDING_PUSHES
        assert server._inbox.qsize() == 10
        await asyncio.sleep(0.1 * (PENDING_PUSHES + 11))
        replies = [each.payload["status"] for each in server.received if each.event == "phx_reply"]
        assert replies == ["ok"] * (1 + PENDING_PUSHES + 10)
        server.disconnect()
        await gone(server, chat)
