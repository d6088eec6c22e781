"""What happens at the edges of a chat's life and of its bounds: each of these once went wrong."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import AdapterError, Chat, ChatError, Closed, ConfigError, InvalidMessage, Message
from chatx.core.message import Event
from chatx.gateway.asgi.app import AsgiSocket
from chatx.gateway.session.socket import Bundle
from tests.virtual import virtual


@virtual
async def test_a_sender_that_never_gives_up_does_not_keep_the_chat_from_stopping() -> None:
    chat = Chat()
    await chat.start()
    connection = chat.connect("bob")
    await connection.__aenter__()
    refused = 0
    done = False

    async def never_gives_up(send: Any) -> None:
        nonlocal refused
        while not done:
            try:
                await send()
            except ChatError:
                refused += 1

    senders = [
        asyncio.create_task(never_gives_up(lambda: chat.send_message("r", "alice", "hello"))),
        asyncio.create_task(never_gives_up(lambda: connection.send_message("r", "hello"))),
    ]
    await asyncio.sleep(0)
    await chat.stop()
    done = True
    await asyncio.gather(*senders)
    assert refused


class Unreadable:
    """Persistence that saves and cannot be read."""

    async def save_message(self, message: Message) -> None:
        pass

    async def load_messages(
        self, room_id: str, *, after: object = None, before: object = None, limit: int
    ) -> Sequence[Message]:
        raise OSError("the disk is gone")

    async def last_position(self, room_id: str) -> None:
        return None


@virtual
async def test_a_history_that_cannot_be_read_is_an_error_and_not_a_short_answer() -> None:
    async with Chat(persistence=Unreadable(), history_size=3) as chat:
        for number in range(10):
            await chat.send_message("r", "alice", str(number))
        assert [message.content for message in await chat.history("r", limit=3)] == ["7", "8", "9"]
        with pytest.raises(AdapterError):
            await chat.history("r", limit=10)


class SlowNotifier:
    """Takes its time for each user, and remembers who was told what."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    async def notify(self, user_id: str, message: Message) -> None:
        await asyncio.sleep(0.01)
        self.told.append((user_id, message.offset))


@virtual
async def test_many_members_do_not_multiply_what_waits_for_the_notifier() -> None:
    notifier = SlowNotifier()
    async with Chat(notifier=notifier, delivery_queue_limit=10, middlewares=(), drain_timeout_ms=600_000) as chat:
        for number in range(100):
            await chat.join("r", f"user {number}")
        most = 0
        waiting = chat.engine.delivery._notifying
        assert waiting is not None
        for _ in range(10):
            await chat.send_message("r", "alice", "hello")
            await asyncio.sleep(0.05)
            most = max(most, len(waiting._live))
        assert most <= 4 * 10 + 10
    assert sorted(notifier.told) == sorted((f"user {user}", offset + 1) for user in range(100) for offset in range(10))


def cancelled(*_: object) -> None:
    """Ask a cancelled future for its result."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    future.result()


@virtual
async def test_a_telemetry_handler_that_raises_cancelled_error_is_detached_and_cancels_nobody() -> None:
    async with Chat(room_idle_ms=40) as chat:
        chat.telemetry.attach("broadcast", cancelled)
        assert (await chat.send_message("r", "alice", "hello")).offset == 1
        assert not chat.telemetry.watched("broadcast")
        chat.telemetry.attach("room_forgotten", cancelled)
        await asyncio.sleep(1)
        assert not chat.telemetry.watched("room_forgotten")
        await chat.send_message("r", "alice", "hello")
        await asyncio.sleep(1)
        assert chat.statistics().rooms == 0


class SlowAuth:
    """Takes its time to say yes."""

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(0.05)
        return True


@virtual
async def test_a_subscription_closed_while_it_is_being_opened_stays_closed() -> None:
    got: list[Event] = []
    async with Chat(auth=SlowAuth(), middlewares=()) as chat:
        for subscription in (
            chat.subscribe("r", user_id="alice"),
            chat.subscribe_callback("r", got.append, user_id="alice"),
        ):
            opening = asyncio.create_task(subscription.__aenter__())
            await asyncio.sleep(0.01)
            subscription.close()
            with pytest.raises(Closed):
                await opening
        await chat.send_message("r", "bob", "hello")
        assert not got
        assert (chat.statistics().subscriptions, chat.statistics().connections) == (0, 0)


class Broken:
    """Persistence that saves nothing."""

    async def save_message(self, message: Message) -> None:
        raise OSError("no")


@virtual
async def test_a_hanging_on_dead_letter_does_not_hold_up_the_stop() -> None:
    async def hang(letter: object) -> None:
        await asyncio.sleep(3600)

    chat = Chat(
        persistence=Broken(),
        on_dead_letter=hang,
        adapter_timeout_ms=60_000,
        drain_timeout_ms=100,
        delivery_max_retries=0,
        delivery_tick_ms=1,
    )
    loop = asyncio.get_running_loop()
    async with chat:
        await chat.send_message("r", "alice", "hello")
        await asyncio.sleep(0.05)
        began = loop.time()
    assert loop.time() - began < 2
    assert [letter.message.offset for letter in chat.dead_letters] == [1]


class NeverAnswers:
    """A moderation that hangs."""

    async def check(self, content: str) -> bool:
        await asyncio.get_running_loop().create_future()
        return True


@virtual
async def test_what_the_stop_cuts_off_is_closed_and_no_fault_of_the_adapter() -> None:
    chat = Chat(moderation=NeverAnswers(), adapter_timeout_ms=60_000, drain_timeout_ms=100)
    await chat.start()
    send = asyncio.create_task(chat.send_message("r", "alice", "hello"))
    await asyncio.sleep(0.01)
    await chat.stop()
    with pytest.raises(Closed):
        await send


@virtual
async def test_what_a_callback_publishes_while_it_is_caught_up_comes_after_what_it_missed() -> None:
    seen: list[int] = []
    async with Chat(middlewares=()) as chat:
        first = await chat.send_message("r", "alice", "1")
        for number in (2, 3):
            await chat.send_message("r", "alice", str(number))

        def answer(event: Event) -> None:
            assert isinstance(event, Message)
            seen.append(event.offset)
            if event.offset == 1:
                # A send in which nothing awaits ends in its first step.
                with pytest.raises(StopIteration):
                    chat.send_message("r", "bot", "welcome back").send(None)

        async with chat.subscribe_callback("r", answer, after=(first.epoch, 0)):
            await chat.send_message("r", "alice", "5")
    assert seen == [1, 2, 3, 4, 5]


@virtual
async def test_a_connection_refuses_what_is_no_room_id_when_it_leaves_too() -> None:
    wrong: Any
    async with Chat() as chat, chat.connect("alice") as connection:
        for wrong in (["r"], None, 5, ""):
            with pytest.raises(InvalidMessage):
                await connection.leave(wrong)
            with pytest.raises(InvalidMessage):
                await connection.unsubscribe(wrong)


@virtual
async def test_a_socket_that_is_too_slow_gets_no_more_frames_but_its_close() -> None:
    sent: list[Any] = []
    takes = asyncio.Semaphore(0)

    async def send(event: Any) -> None:
        await takes.acquire()
        sent.append(event)

    socket = AsgiSocket(send, 100)
    writer = asyncio.create_task(socket.run())
    socket.write(Bundle(["x" * 30] * 3))
    await asyncio.sleep(0)
    socket.write(Bundle(["y" * 30]))  # over the bound, with the three still to be taken
    for _ in range(2):
        takes.release()
        await asyncio.sleep(0)
    await writer
    assert [event["type"] for event in sent] == ["websocket.send", "websocket.close"]
    assert sent[-1]["code"] == 1013


@virtual
async def test_the_limit_of_a_history_has_a_bound_that_the_error_names() -> None:
    wrong: Any
    async with Chat() as chat:
        assert await chat.history("r", limit=10_000) == []
        for wrong in (10_001, 2**64, 0, -1, True, "5", 1.5):
            with pytest.raises(InvalidMessage, match="10000"):
                await chat.history("r", limit=wrong)


async def test_an_async_telemetry_handler_is_refused_as_nobody_would_await_it() -> None:
    async def handler(event: str, measurements: Any, metadata: Any) -> None:
        pass

    with pytest.raises(ConfigError, match="plain function"):
        Chat().telemetry.attach("broadcast", handler)


@virtual
async def test_a_place_that_is_none_is_refused_by_the_name_of_its_argument() -> None:
    async with Chat() as chat, chat.connect("bob") as connection:
        for wrong in (5, "epoch", ("epoch",), ("epoch", -1), ("epoch", True), (1, 1), "x" * 10_000):
            with pytest.raises(InvalidMessage, match=r"^before is ") as refused:
                await chat.history("room", before=wrong)  # type: ignore[arg-type]
            assert len(refused.value.reason) < 400
            for opening in (
                chat.subscribe("room", after=wrong).__aenter__(),  # type: ignore[arg-type]
                chat.subscribe_callback("room", print, after=wrong).__aenter__(),  # type: ignore[arg-type]
                connection.subscribe("room", after=wrong),
            ):
                with pytest.raises(InvalidMessage, match=r"^after is ") as refused:
                    await opening
                assert len(refused.value.reason) < 400
