"""Silence is what a server that reads would not have heard: never what it has not come to read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.frames import Opcode

from chatx.chat import Chat
from chatx.core.rate_limit import RateLimit
from chatx.gateway.asgi.app import WRITE_STALL_S, AsgiSocket, ChatApp
from chatx.gateway.longpoll.held import POST_S
from chatx.gateway.longpoll.poller import ABANDONED_S
from chatx.gateway.native.stream import Stream
from chatx.gateway.session.expiry import DOUBTS, TICK_S
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.progress import taken_within
from chatx.gateway.session.socket import Bundle, Flow
from chatx.gateway.wire.bounds import IDLE_TIMEOUT_S, PENDING_PUSHES
from chatx.testing import VirtualLoop
from tests.gateway.fakes import Client, FakeServer, settle
from tests.gateway.phoenix_peer import raw_frame
from tests.gateway.raw_peer import masked, next_frame, opened
from tests.gateway.real_client import real_client, until
from tests.gateway.servers import SHELLS, named, served
from tests.longpoll.polling import NDJSON, Call, PollingClient, inside
from tests.virtual import turns, virtual

BELIEVED_S = (DOUBTS + 1) * TICK_S
"""Seconds after its time until silence is believed, at most."""


def takes(seconds: float) -> None:
    """Let this turn of the virtual loop take so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop._set_time(loop.time() + seconds)


class LongWay(FakeServer):
    """A server, or middlewares, through which a message comes a few turns late."""

    async def _run(self, app: ChatApp) -> None:
        async def receive() -> dict[str, Any]:
            message = await self._inbox.get()
            await turns(2)
            return message

        await app(self.scope, receive, self._send)


@pytest.mark.parametrize("server", [FakeServer, LongWay])
@pytest.mark.parametrize("long_turns", [1, 4])
@virtual
async def test_a_client_that_beat_in_time_outlives_turns_that_take_longer_than_its_silence(
    server: Callable[..., FakeServer], long_turns: int
) -> None:
    async with Chat() as chat:
        app = chat.asgi(authenticate=lambda handshake: handshake.params.get("user"))
        beating, silent = server(app), server(app, query="vsn=2.0.0&user=bob")
        await settle()
        await asyncio.sleep(IDLE_TIMEOUT_S - 1)
        ref = beating.text(None, "phoenix", "heartbeat")
        for number in range(long_turns):
            takes(2.0 + number)
            await turns(1)
        await settle()
        assert (beating.closed, silent.closed) == (None, None)
        assert beating.reply(ref) == ("ok", {})

        await asyncio.sleep(BELIEVED_S)
        assert (beating.closed, silent.closed) == (None, 1001)
        await asyncio.sleep(IDLE_TIMEOUT_S)
        assert beating.closed == 1001


class Gate:
    """Moderation that waits until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def check(self, content: str) -> bool:
        await self.opened.wait()
        return True


@virtual
async def test_who_was_not_read_until_just_before_the_look_is_not_silent() -> None:
    gate = Gate()
    limit = RateLimit(1e6, 10**6)
    async with Chat(moderation=gate, rate_limit=limit, adapter_timeout_ms=10**6) as chat:
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        for _ in range(PENDING_PUSHES):
            client.say("room:a", "x")
        await asyncio.sleep(IDLE_TIMEOUT_S - 0.001)
        assert client.session.busy
        gate.opened.set()
        await settle()
        assert not client.session.busy
        # What it sent meanwhile is read from here on, however long that takes within the time of a silence.
        await asyncio.sleep(IDLE_TIMEOUT_S - 1)
        assert client.socket.closed is None
        await asyncio.sleep(1 + BELIEVED_S)
        assert client.socket.closed == (1001, "silent for too long")


@virtual
async def test_silence_is_believed_in_time_and_doubted_anew_after_each_sign_of_life() -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        for _ in range(3):
            await asyncio.sleep(IDLE_TIMEOUT_S + BELIEVED_S - TICK_S - 0.01)
            assert client.socket.closed is None
            client.push("phoenix", "heartbeat")
        await asyncio.sleep(IDLE_TIMEOUT_S + BELIEVED_S)
        assert client.socket.closed == (1001, "silent for too long")


@virtual
async def test_a_poll_that_came_in_time_is_taken_after_a_turn_that_took_longer_than_its_silence() -> None:
    async with Chat() as chat:
        app = chat.asgi(authenticate=named)

        async def behind_middlewares(*args: Any) -> None:
            await turns(2)
            await app(*args)

        ada = PollingClient(inside(behind_middlewares))
        await ada.open()
        await asyncio.sleep(ABANDONED_S - 1)
        poll = asyncio.create_task(ada.poll())
        for _ in range(3):
            takes(2.0)
            await turns(1)
        assert (await poll).status == 204
        await asyncio.sleep(ABANDONED_S + BELIEVED_S)
        assert await ada.poll() == (410, [])


@virtual
async def test_a_post_that_came_in_time_is_taken_after_a_turn_that_took_longer_than_its_time() -> None:
    async with Chat() as chat:
        app = chat.asgi(authenticate=named)
        ada = PollingClient(inside(app))
        await ada.open()
        call = Call(app, "POST", f"vsn=2.0.0&user_id=ada&token={ada.token}", headers={"content-type": NDJSON})
        request = call.inbox.get_nowait()
        await settle()
        takes(POST_S + 1)
        await turns(1)
        call.inbox.put_nowait(request)  # which the server comes to now
        assert (await call.reply()).body == {"status": 200}


@virtual
async def test_a_write_that_is_taken_after_a_turn_longer_than_its_time_is_not_given_up() -> None:
    taken = asyncio.Event()

    async def send(message: Any) -> None:
        await taken.wait()

    socket = AsgiSocket(send, 1000)
    writing = asyncio.create_task(socket.run())
    socket.write(Bundle(["one"]))
    await asyncio.sleep(1)
    takes(2 * WRITE_STALL_S)
    await turns(3)  # the server comes to know of what was taken, and tells
    assert not writing.done()
    taken.set()
    await settle()
    socket.write(Bundle(["two"]))
    taken.clear()
    await asyncio.sleep(WRITE_STALL_S - 1)
    assert not writing.done()
    await asyncio.sleep(2)
    assert writing.cancelled()


@virtual
async def test_a_response_that_is_taken_after_a_turn_longer_than_its_time_is_not_given_up() -> None:
    async with taken_within(10, None):
        await asyncio.sleep(1)
        takes(20)
        await turns(3)
    with pytest.raises(TimeoutError):
        async with taken_within(10, None):
            await asyncio.sleep(1)
            takes(20)
            await asyncio.sleep(10)


class Unread(asyncio.Transport):
    """Takes everything, and may be told to read no further."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.mark.parametrize(
    "data",
    [masked(Opcode.TEXT, b"x", fin=False), masked(Opcode.TEXT, b"x" * 60_000)[:50_000]],
    ids=["a fragment", "pieces of a frame"],
)
@virtual
async def test_who_is_amid_a_message_is_not_silent(data: bytes) -> None:
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        stream = Stream(Unread(), 1_000_000, Flow(), lambda _: None)
        stream.begin(client.session, b"")
        await asyncio.sleep(IDLE_TIMEOUT_S - 1)
        stream.data_received(data)
        await asyncio.sleep(IDLE_TIMEOUT_S - 1)
        assert client.socket.closed is None
        stream.connection_lost(None)


HEARTBEAT = raw_frame(2, None, "7", "phoenix", "heartbeat", {})
assert isinstance(HEARTBEAT, str)
LARGE = raw_frame(2, None, "7", "phoenix", "heartbeat", {"filling": "x" * 60_000})
assert isinstance(LARGE, str)


@pytest.mark.process
@pytest.mark.parametrize("text", [HEARTBEAT, LARGE], ids=["one piece", "many pieces"])
@pytest.mark.parametrize("shell", SHELLS)
async def test_what_waits_in_the_kernel_while_the_loop_is_held_up_is_read_before_it_is_judged(
    shell: str, text: str
) -> None:
    chat = Chat()
    async with served(shell, chat, idle_timeout_s=0.25) as port, opened(port) as (reader, writer):
        await until(lambda: chat.statistics().connections == 1)
        writer.write(masked(Opcode.TEXT, text.encode()))
        for _ in range(5):
            time.sleep(0.3)  # noqa: ASYNC251  # this is the fault
            await asyncio.sleep(0)
        first, data = await next_frame(reader)
        assert (first, b'"ok"' in data) == (0x81, True)


class SlowAtFirst:
    """Moderation that takes its time for the first message, which those behind it wait for."""

    async def check(self, content: str) -> bool:
        await asyncio.sleep(3 if content == "0" else 0)
        return True


@pytest.mark.process
@pytest.mark.parametrize("shell", SHELLS)
async def test_who_is_not_read_while_an_adapter_is_waited_for_is_not_silent(shell: str) -> None:
    chat = Chat(moderation=SlowAtFirst(), middlewares=("moderation",))
    count = PENDING_PUSHES + 5
    async with served(shell, chat, idle_timeout_s=0.25) as port, real_client(port, "ada") as ada:
        await ada.ask("room:a", "phx_join")
        for number in range(count):
            await ada.push("room:a", "new_message", {"content": f"{number}"})
        assert [each["offset"] for each in await ada.wait_for_messages(count)] == list(range(1, count + 1))
        await ada.connection.wait_closed()  # now it is
        assert ada.connection.close_code == 1001
