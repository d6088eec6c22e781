"""A call from another thread or loop is refused and does nothing; reading a state of the moment and closing may be."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from anyio import from_thread, to_thread

from chatx import (
    CallbackSubscription,
    Chat,
    Closed,
    Connection,
    Message,
    PresenceState,
    Revoked,
    SlowConsumer,
    Subscription,
    WrongLoop,
)
from tests.faults import Gate

CHAT: dict[str, Callable[[Chat], Coroutine[Any, Any, Any]]] = {
    "start": lambda chat: chat.start(),
    "async with, a second time": lambda chat: chat.__aenter__(),
    "lifespan": lambda chat: chat.lifespan(None).__aenter__(),
    "stop": lambda chat: chat.stop(),
    "join": lambda chat: chat.join("room", "alice"),
    "leave": lambda chat: chat.leave("room", "bob"),
    "send_message": lambda chat: chat.send_message("room", "alice", "hello"),
    "send_message, trusted, with a key": lambda chat: chat.send_message(
        "room", "alice", "hello", idempotency_key="k", trusted=True
    ),
    "revoke": lambda chat: chat.revoke("bob"),
    "presence": lambda chat: chat.presence("room"),
    "history": lambda chat: chat.history("room"),
    "outbox": lambda chat: chat.outbox(),
    "subscribe": lambda chat: chat.subscribe("room").__aenter__(),
    "subscribe_callback": lambda chat: chat.subscribe_callback("room", print).__aenter__(),
    "connect": lambda chat: chat.connect("alice").__aenter__(),
}

CONNECTION: dict[str, Callable[[Connection], Coroutine[Any, Any, Any]]] = {
    "join": lambda connection: connection.join("other"),
    "leave": lambda connection: connection.leave("room"),
    "subscribe": lambda connection: connection.subscribe("other"),
    "unsubscribe": lambda connection: connection.unsubscribe("room"),
    "send_message": lambda connection: connection.send_message("room", "hello"),
    "__anext__": lambda connection: connection.__anext__(),
}

ALLOWED = {"aclose"}
"""Coroutines that may be called anywhere: closing never raises."""


def public_coroutines(kind: type) -> set[str]:
    return {
        name
        for name, member in inspect.getmembers(kind, inspect.iscoroutinefunction)
        if not name.startswith("_") and name not in ALLOWED
    }


def test_every_coroutine_that_may_be_called_is_tried_here() -> None:
    assert public_coroutines(Chat) == {name.split(",")[0] for name in CHAT} - {
        "async with",
        "lifespan",
        "subscribe",
        "subscribe_callback",
        "connect",
    }
    assert public_coroutines(Connection) == set(CONNECTION) - {"__anext__"}
    assert public_coroutines(Subscription) == public_coroutines(CallbackSubscription) == set()


async def elsewhere(call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run it in a thread, in a loop of its own, and expect the refusal."""

    def run() -> None:
        with pytest.raises(WrongLoop, match=r"anyio\.from_thread\.run.*asyncio\.run_coroutine_threadsafe") as refused:
            asyncio.run(call())
        assert (refused.value.code, refused.value.retryable) == ("wrong_loop", False)

    await asyncio.to_thread(run)


@pytest.mark.parametrize("call", CHAT.values(), ids=CHAT)
@pytest.mark.parametrize("middlewares", [(), (Gate(),)], ids=["plain", "awaits"])
async def test_a_call_of_the_chat_from_another_loop_is_refused_and_does_nothing(
    call: Callable[[Chat], Coroutine[Any, Any, Any]], middlewares: Any
) -> None:
    async with Chat(middlewares=middlewares) as chat, chat.subscribe("room") as subscription:
        await chat.join("room", "bob")
        before = chat.statistics()
        await elsewhere(lambda: call(chat))
        assert chat.statistics() == before
        assert list(await chat.presence("room")) == ["bob"]
        assert await chat.history("room") == []
        # Whoever reads is woken at once by what is sent where the chat runs.
        message = await chat.send_message("room", "alice", "hello", trusted=True)
        assert await asyncio.wait_for(anext(subscription), 10) == message


@pytest.mark.parametrize("call", CONNECTION.values(), ids=CONNECTION)
async def test_a_call_of_a_connection_from_another_loop_is_refused_and_does_nothing(
    call: Callable[[Connection], Coroutine[Any, Any, Any]],
) -> None:
    async with Chat() as chat, chat.connect("bob") as connection:
        await connection.join("room")
        await connection.subscribe("room")
        sent = await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(0)
        before = chat.statistics()
        await elsewhere(lambda: call(connection))
        assert chat.statistics() == before
        assert await anext(connection) == sent


async def test_a_subscription_is_not_read_from_another_loop() -> None:
    async with Chat() as chat, chat.subscribe("room") as subscription:
        await elsewhere(subscription.__anext__)
        message = await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(0)
        await elsewhere(subscription.__anext__)
        assert await anext(subscription) == message


async def test_what_another_task_waits_for_is_not_read_from_another_loop() -> None:
    async with Chat() as chat, chat.subscribe("room") as subscription:
        waiting = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0)
        await elsewhere(subscription.__anext__)
        message = await chat.send_message("room", "alice", "hello")
        assert await asyncio.wait_for(waiting, 10) == message


async def test_why_a_subscription_ended_is_not_read_from_another_loop() -> None:
    async with Chat(mailbox_size=1) as chat, chat.subscribe("room") as subscription:
        for _ in range(3):
            await chat.send_message("room", "alice", "hello")
            await asyncio.sleep(0.01)
        with pytest.raises(SlowConsumer):
            async for _ in subscription:
                pass
        await elsewhere(subscription.__anext__)
        with pytest.raises(SlowConsumer):
            await anext(subscription)


async def test_presence_that_was_dropped_is_not_put_right_from_another_loop() -> None:
    async with (
        Chat(mailbox_size=1) as chat,
        chat.subscribe("room", presence=True, overflow="drop_oldest") as subscription,
    ):
        assert isinstance(await anext(subscription), PresenceState)
        await chat.join("room", "bob")
        await asyncio.sleep(0.01)
        await chat.send_message("room", "bob", "pushes the diff out")
        await asyncio.sleep(0.01)
        while not isinstance(event := await anext(subscription), Message):
            assert not isinstance(event, PresenceState)
        await elsewhere(subscription.__anext__)
        assert isinstance(state := await anext(subscription), PresenceState)
        assert list(state.presences) == ["bob"]


OPENED_TWICE: dict[str, Callable[[Chat], Any]] = {
    "subscription": lambda chat: chat.subscribe("room"),
    "callback": lambda chat: chat.subscribe_callback("room", lambda _: None),
    "connection": lambda chat: chat.connect("alice"),
}


@pytest.mark.parametrize("make", OPENED_TWICE.values(), ids=OPENED_TWICE)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
async def test_what_is_opened_once_is_not_opened_a_second_time_from_another_loop(
    make: Callable[[Chat], Any], closed: bool
) -> None:
    async with Chat() as chat, make(chat) as opened:
        if closed:
            opened.close()
        await elsewhere(opened.__aenter__)
        with pytest.raises(Closed, match="opened once"):
            await opened.__aenter__()


@pytest.mark.parametrize("call", CONNECTION.values(), ids=CONNECTION)
async def test_a_revoked_connection_is_not_used_from_another_loop(
    call: Callable[[Connection], Coroutine[Any, Any, Any]],
) -> None:
    async with Chat() as chat, chat.connect("bob") as connection:
        await chat.revoke("bob")
        await elsewhere(lambda: call(connection))
        with pytest.raises(Revoked):
            await call(connection)


async def _code(call: Coroutine[Any, Any, Any]) -> str:
    try:
        await call
    except Exception as error:
        return str(getattr(error, "code", error))
    return ""


@pytest.mark.parametrize("unread", [0, 1])
def test_the_next_loop_of_the_same_thread_is_another_one_too(unread: int) -> None:
    chat = Chat()

    async def begin() -> tuple[Connection, Subscription]:
        await chat.start()
        connection = await chat.connect("bob").__aenter__()
        await connection.subscribe("room")
        subscription = await chat.subscribe("room")
        for _ in range(unread):
            await chat.send_message("room", "alice", "hello")
            await asyncio.sleep(0)
        return connection, subscription

    with asyncio.Runner() as home:
        connection, subscription = home.run(begin())
        for name, call in CHAT.items():
            assert asyncio.run(_code(call(chat))) == "wrong_loop", name
        for name, of_connection in CONNECTION.items():
            assert asyncio.run(_code(of_connection(connection))) == "wrong_loop", name
        assert asyncio.run(_code(subscription.__anext__())) == "wrong_loop"
        home.run(chat.stop())


async def test_a_chat_whose_loop_was_closed_under_it_says_so() -> None:
    chat = Chat()
    await asyncio.to_thread(lambda: asyncio.run(chat.start()))
    with pytest.raises(WrongLoop, match=r"That loop is closed, .* make another Chat"):
        await chat.start()


async def test_a_moments_state_may_be_read_anywhere() -> None:
    async with Chat() as chat, chat.connect("bob") as connection:
        assert (await asyncio.to_thread(chat.statistics)) == chat.statistics()
        assert (await asyncio.to_thread(lambda: (chat.dead_letters, connection.unread))) == ((), 0)


async def test_what_was_opened_may_be_closed_anywhere_and_is_closed_soon() -> None:
    async with Chat() as chat:
        connection = await chat.connect("bob").__aenter__()
        await connection.join("room")
        subscription = await chat.subscribe("room")
        callback = await chat.subscribe_callback("room", lambda _: None)
        for opened in (connection, subscription, callback):
            await asyncio.to_thread(opened.close)
        await asyncio.sleep(0.01)
        assert await chat.presence("room") == {}
        assert (chat.statistics().subscriptions, chat.statistics().connections) == (0, 0)


async def test_both_ways_in_from_a_thread_work_and_wake_whoever_reads() -> None:
    loop = asyncio.get_running_loop()
    async with Chat() as chat, chat.subscribe("room") as subscription:

        def plain_endpoint() -> Message:
            return from_thread.run(partial(chat.send_message, trusted=True), "room", "shop", "from anyio")

        def any_thread() -> Message:
            return asyncio.run_coroutine_threadsafe(chat.send_message("room", "shop", "from a thread"), loop).result(10)

        reading = asyncio.create_task(anext(subscription))
        await asyncio.sleep(0)
        message = await to_thread.run_sync(plain_endpoint)
        assert await asyncio.wait_for(reading, 10) == message
        assert await asyncio.to_thread(any_thread) == await asyncio.wait_for(anext(subscription), 10)
