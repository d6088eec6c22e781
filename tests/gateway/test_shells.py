"""What holds for both shells, over real sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from chatx import Identity
from chatx.chat import Chat
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.wire.frames import Version
from tests.gateway.fakes import chatx_tasks
from tests.gateway.phoenix_peer import raw_frame, read
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import SHELLS, served
from tests.limits import UNLIMITED

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]

CLIENTS = 50
SENT = 4000
"""Messages of 4 kB: more than the kernel takes for somebody who does not read."""


async def test_fifty_clients_see_the_same_messages_in_the_same_order(shell: str) -> None:
    chat = Chat(rate_limit=UNLIMITED)
    async with served(shell, chat) as port, AsyncExitStack() as stack:
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
        assert len(await chat.presence("a")) == CLIENTS
        await stack.aclose()
        await until(lambda: not chatx_tasks())
        assert await chat.presence("a") == {}
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections) == (0, 0)


async def test_a_refused_handshake_is_a_403(shell: str) -> None:
    async with served(shell, Chat()) as port:
        for options in ({"origin": "http://evil.example"}, {"origin": None, "additional_headers": {"Cookie": "a=1"}}):
            with pytest.raises(InvalidStatus) as refused:
                async with real_client(port, "ada", **options):
                    pass
            assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "target",
    [
        "websocket?vsn=123.1.1&user_id=ada",
        "websocket?vsn=&user_id=ada",
        "websocket?vsn=2.0.0",
    ],
)
async def test_a_handshake_without_a_known_version_or_a_user_is_a_403(shell: str, target: str) -> None:
    async with served(shell, Chat()) as port:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws://localhost:{port}/socket/{target}"):
                pass
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("path", ["websocket/more", "", "more/websockets"])
async def test_at_another_path_there_is_no_socket(shell: str, path: str) -> None:
    async with served(shell, Chat()) as port:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"ws://localhost:{port}/socket/{path}?vsn=2.0.0&user_id=ada"):
                pass
        # An application cannot answer a handshake with another status under every server.
        assert refused.value.response.status_code == {"asgi": 403, "native": 404}[shell]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_message_that_cannot_be_read_is_refused_and_the_socket_and_its_rooms_stay(
    shell: str, version: Version
) -> None:
    def frame(ref: str, topic: str, event: str, payload: str) -> str:
        text = raw_frame(version, None, ref, topic, event, {"put": "here"})
        return text.replace('{"put":"here"}', payload)

    async with (
        served(shell, Chat()) as port,
        connect(f"ws://localhost:{port}/socket/websocket?vsn={version}.0.0&user_id=ada") as ada,
    ):

        async def answer(ref: str) -> tuple[str, Any]:
            while True:
                reply = read(version, str(await asyncio.wait_for(ada.recv(), 10)))
                if reply.ref == ref and reply.event == "phx_reply":
                    return reply.payload["status"], reply.payload["response"].get("code")

        for room in ("a", "b"):
            await ada.send(frame(room, f"room:{room}", "phx_join", "null"))
            assert (await answer(room))[0] == "ok"
        for number, payload in enumerate(('{"content":"cut \\ud83d"}', '{"content":NaN}', "[" * 20_000, '"', "")):
            for event in ("new_message", "history", "phx_join", "phx_leave", "x"):
                ref = f"{number} {event}"
                await ada.send(frame(ref, "room:a", event, payload))
                assert await answer(ref) == ("error", "invalid_message")
        for room in ("a", "b"):
            await ada.send(frame(f"last {room}", f"room:{room}", "new_message", '{"content":"still here"}'))
            assert (await answer(f"last {room}"))[0] == "ok"
        for event in ("history", "phx_leave"):
            await ada.send(frame(event, "room:a", event, "null"))
            assert (await answer(event))[0] == "ok"


async def test_a_slash_behind_the_path_is_no_other_path(shell: str) -> None:
    async with served(shell, Chat()) as port, connect(f"ws://localhost:{port}/socket/websocket/?user_id=ada"):
        pass


async def test_what_a_handshake_says_reaches_authenticate(shell: str) -> None:
    handshakes: list[Handshake] = []

    def authenticate(handshake: Handshake) -> str:
        handshakes.append(handshake)
        return "ada"

    headers = [("X-Application", "chat"), ("Traceparent", "00-0af7-b7ad-01"), ("Cookie", 'a=1; session="x y"')]
    async with (
        served(shell, Chat(), authenticate) as port,
        real_client(
            port,
            "%C3%A4d%20a&empty=&q=1+2",
            additional_headers=headers,
            user_agent_header="foo/1.0",
            subprotocols=["phoenix", "123"],
        ),
    ):
        (handshake,) = handshakes
        assert handshake.params == {"vsn": "2.0.0", "user_id": "\u00e4d a", "empty": "", "q": "1 2"}
        assert handshake.cookies == {"a": "1", "session": "x y"}
        assert (handshake.subprotocols, handshake.token) == (("phoenix", "123"), None)
        told = {name: handshake.headers.get(name) for name in ("x-application", "traceparent", "user-agent", "host")}
        assert told == {
            "x-application": "chat",
            "traceparent": "00-0af7-b7ad-01",
            "user-agent": "foo/1.0",
            "host": f"localhost:{port}",
        }
        scope = handshake.scope
        assert (scope["type"], scope["scheme"], scope["client"][0]) == ("websocket", "ws", "127.0.0.1")


async def test_a_client_that_offers_no_subprotocol_that_is_known_gets_none(shell: str) -> None:
    async with served(shell, Chat()) as port, real_client(port, "ada", subprotocols=["mqtt"]) as client:
        assert client.connection.subprotocol is None
        await client.ask("phoenix", "heartbeat")


async def test_a_ping_is_answered_with_what_it_carries(shell: str) -> None:
    async with served(shell, Chat()) as port, real_client(port, "ada") as client:
        answered = asyncio.gather(await client.connection.ping(b"123"), await client.connection.ping(b""))
        beat = await client.ask("phoenix", "heartbeat")
        await answered
        assert beat == {}


async def test_the_hundred_and_first_join_is_refused_until_a_room_is_left(shell: str) -> None:
    async with served(shell, Chat()) as port, real_client(port, "ada") as client:
        for number in range(100):
            await client.ask(f"room:{number}", "phx_join")
        refs = [await client.push(f"room:{number}", "phx_join") for number in (100, 101)]
        for ref in refs:
            reply = await client.wait_for(lambda each: each.ref == ref)  # noqa: B023
            assert reply.payload["status"] == "error"
            assert reply.payload["response"]["reason"] == "too many channels joined"
        await client.ask("room:0", "phx_leave")
        await client.ask("room:100", "phx_join")
        assert (await client.ask("room:99", "new_message", {"content": "still here"}))["offset"] == 1


async def test_at_a_bound_a_handshake_is_refused_and_a_place_that_is_given_back_can_be_had(shell: str) -> None:
    chat = Chat(max_connections_per_user=1, max_connections_per_address=2)
    async with served(shell, chat) as port:
        async with real_client(port, "ada"), real_client(port, "bob"):
            for user in ("ada", "carol"):
                with pytest.raises(InvalidStatus) as refused:
                    async with real_client(port, user):
                        pass
                # uvicorn logs an error for any status but 403.
                assert refused.value.response.status_code == {"asgi": 403, "native": 429}[shell]
        await until(lambda: not chat.statistics().connections and not chatx_tasks())
        async with real_client(port, "ada") as client:
            assert (await client.ask("room:a", "phx_join"))["recovered"] is False


async def test_a_revoked_user_and_an_expired_token_each_have_their_close_code(shell: str) -> None:
    def authenticate(handshake: Handshake) -> Identity:
        user = handshake.params["user_id"]
        return Identity(user, expires_at=time.time() + 1 if user == "ada" else None)

    chat = Chat()
    async with (
        served(shell, chat, authenticate) as port,
        real_client(port, "ada") as expiring,
        real_client(port, "eve") as revoked,
    ):
        await revoked.ask("room:a", "phx_join")
        assert await chat.revoke("eve") == 1
        await asyncio.gather(expiring.connection.wait_closed(), revoked.connection.wait_closed())
        assert (expiring.connection.close_code, revoked.connection.close_code) == (4001, 4003)


async def test_the_token_arrives_and_only_phoenix_is_echoed(shell: str) -> None:
    tokens: list[str | None] = []

    async def authenticate(handshake: Handshake) -> str:
        await asyncio.sleep(0)
        tokens.append(handshake.token)
        return "ada"

    async with (
        served(shell, Chat(), authenticate) as port,
        real_client(port, "x", subprotocols=["base64url.bearer.phx.czNjcmV0", "phoenix"]) as client,
    ):
        assert client.connection.subprotocol == "phoenix"
        await client.ask("phoenix", "heartbeat")
    assert tokens == ["s3cret"]


async def test_a_message_larger_than_the_protocol_allows_is_closed_with_1009(shell: str) -> None:
    async with served(shell, Chat()) as port, real_client(port, "ada") as client:
        await client.push("room:a", "new_message", {"content": "x" * 65_536})
        with pytest.raises(ConnectionClosedError):
            await client.wait_for(lambda _: False)
        assert client.connection.close_code == 1009


async def test_whoever_reads_nothing_is_closed_as_slow_and_resumes_while_the_others_get_everything(shell: str) -> None:
    chat = Chat(rate_limit=UNLIMITED, mailbox_bytes=200_000, history_size=4000)
    async with served(shell, chat) as port, real_client(port, "quick") as quick:
        await quick.ask("room:a", "phx_join")
        offsets: list[int] = []

        async def read_quickly() -> None:
            async for text in quick.connection:
                offsets.extend(each.payload["offset"] for each in [read(2, str(text))] if each.event == "new_message")

        reading = asyncio.create_task(read_quickly())
        async with real_client(port, "slow", max_queue=1, close_timeout=0.1, compression=None) as slow:
            start = await slow.ask("room:a", "phx_join")
            for number in range(1, SENT + 1):
                await chat.send_message("a", "bob", f"{number:05}" + "x" * 4000)
                if number % 20 == 0:
                    await until(lambda: len(offsets) >= number - 20)  # noqa: B023
            assert await alone(chat, "quick")
        async with real_client(port, "slow") as back:
            position = {"epoch": start["epoch"], "offset": SENT - 10}
            assert (await back.ask("room:a", "phx_join", position))["recovered"] is True
            missed = await back.wait_for_messages(10)
            assert [each["content"][:5] for each in missed] == [f"{number:05}" for number in range(SENT - 9, SENT + 1)]
        await until(lambda: len(offsets) == SENT)
        assert offsets == list(range(1, SENT + 1))
        reading.cancel()


async def alone(chat: Chat, user_id: str) -> bool:
    """Wait until nobody else is in the room."""
    async with asyncio.timeout(20):
        while set(await chat.presence("a")) != {user_id}:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.05)
    return True


async def test_what_is_published_in_the_turn_in_which_the_chat_stops_comes_before_the_close(shell: str) -> None:
    chat = Chat()
    async with served(shell, chat) as port, real_client(port, "ada") as client:
        await client.ask("room:a", "phx_join")
        # A send in which nothing waits does not give way to the loop.
        await chat.send_message("a", "bob", "last words")
        await chat.stop()
        assert [each["content"] for each in await client.wait_for_messages(1)] == ["last words"]
        await client.connection.wait_closed()
        assert client.connection.close_code == 1012
        await chat.start()


async def test_a_stopped_chat_sends_everyone_away_to_come_back(shell: str) -> None:
    chat = Chat()
    async with served(shell, chat) as port, real_client(port, "ada") as client:
        await client.ask("room:a", "phx_join")
        await chat.stop()
        await client.connection.wait_closed()
        assert client.connection.close_code == 1012
        await chat.start()
