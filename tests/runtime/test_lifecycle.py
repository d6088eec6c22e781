"""Starting and stopping: what is refused when, what is drained, and that nothing is left."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chatx import (
    AdapterError,
    AlreadyStarted,
    Chat,
    ChatConfig,
    ChatError,
    Closed,
    ConfigError,
    Message,
)
from chatx.core.message import Draft
from chatx.runtime.dead_letters import DeadLetter
from chatx.testing import run_virtual
from tests.faults import Batches, FaultyPersistence, Gate, Hang, HangDeaf, Listener, Stored, raises
from tests.process import interruptible
from tests.virtual import virtual


def left_over() -> list[str]:
    """Return what is left of tasks, timers and threads but for the caller."""
    loop = asyncio.get_running_loop()
    tasks = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    timers = [str(timer) for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("chatx")]
    return tasks + timers + threads


async def iterate(chat: Chat) -> None:
    async with chat.subscribe("room"):
        pass


async def connect(chat: Chat) -> None:
    async with chat.connect("alice"):
        pass


async def listen(chat: Chat) -> None:
    async with chat.subscribe_callback("room", Listener()):
        pass


USES: dict[str, Callable[[Chat], Coroutine[Any, Any, object]]] = {
    "join": lambda chat: chat.join("room", "alice"),
    "leave": lambda chat: chat.leave("room", "alice"),
    "send_message": lambda chat: chat.send_message("room", "alice", "hello"),
    "send_message with a key": lambda chat: chat.send_message("room", "alice", "hello", idempotency_key="k"),
    "send_message of what is not valid": lambda chat: chat.send_message("", "", ""),
    "subscribe": iterate,
    "subscribe_callback": listen,
    "connect": connect,
    "presence": lambda chat: chat.presence("room"),
    "history": lambda chat: chat.history("room"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@virtual
async def test_before_start_and_after_stop_every_use_is_closed(
    use: Callable[[Chat], Coroutine[Any, Any, object]],
) -> None:
    chat = Chat()
    with pytest.raises(Closed) as caught:
        await use(chat)
    assert (caught.value.code, caught.value.retryable) == ("closed", False)
    async with chat:
        pass
    with pytest.raises(Closed):
        await use(chat)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@virtual
async def test_while_it_drains_every_new_use_is_closed(use: Callable[[Chat], Coroutine[Any, Any, object]]) -> None:
    gate = Gate()
    chat = Chat(middlewares=(gate,), adapter_timeout_ms=60_000)
    await chat.start()
    under_way = asyncio.create_task(chat.send_message("room", "alice", "hello"))
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(chat.stop())
    await asyncio.sleep(0.01)
    with pytest.raises(Closed):
        await use(chat)
    gate.open()
    assert (await under_way).offset == 1, "what was under way finishes"
    await stopping


@virtual
async def test_what_was_opened_before_is_closed_after_the_stop() -> None:
    chat = Chat()
    await chat.start()
    connection = await chat.connect("alice").__aenter__()
    await connection.join("room")
    await connection.subscribe("room")
    subscription = await chat.subscribe("room")
    listener = Listener()
    _ = await listener.listen(chat, "room")
    await chat.send_message("room", "alice", "unread")
    waiting = asyncio.create_task(anext(await chat.subscribe("other")))
    await asyncio.sleep(0.01)
    await chat.stop()
    for reader in (connection, subscription):
        assert (await anext(reader)).content == "unread"  # type: ignore[union-attr]
        with pytest.raises(Closed, match="stopped"):
            await anext(reader)
    with pytest.raises(Closed):
        await waiting
    assert listener.closed == ["closed"]
    for use in (
        connection.join("room"),
        connection.leave("room"),
        connection.subscribe("room"),
        connection.unsubscribe("room"),
        connection.send_message("room", "hello"),
    ):
        with pytest.raises(Closed):
            await use
    subscription.close()
    connection.close()
    await asyncio.sleep(0)
    assert left_over() == []


@virtual
async def test_starting_twice_is_an_error_and_harms_nothing() -> None:
    chat = Chat()
    async with chat:
        with pytest.raises(AlreadyStarted) as caught:
            await chat.start()
        assert caught.value.code == "already_started"
        with pytest.raises(AlreadyStarted):
            async with chat:
                raise AssertionError("must not start")
        assert (await chat.send_message("room", "alice", "hello")).offset == 1
    assert left_over() == []


@virtual
async def test_stopping_what_is_not_started_or_was_stopped_does_nothing() -> None:
    chat = Chat()
    await chat.stop()
    async with chat:
        pass
    await chat.stop()
    await chat.stop()
    assert chat.statistics().running is False


@virtual
async def test_stopping_twice_at_the_same_time_is_one_stop_and_both_wait_for_it() -> None:
    persistence = Batches()
    persistence.down = True
    loop = asyncio.get_running_loop()
    chat = Chat(persistence=persistence, drain_timeout_ms=2000, delivery_max_retries=1000)
    await chat.start()
    await chat.send_message("room", "alice", "hello")
    first = asyncio.create_task(chat.stop())
    await asyncio.sleep(1)
    second = asyncio.create_task(chat.stop())
    with pytest.raises(AlreadyStarted):
        await chat.start()
    await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(first, second)
    assert loop.time() == 2.0
    assert left_over() == []


@virtual
async def test_cancelling_a_stop_does_not_cut_the_drain_short() -> None:
    persistence = Batches()
    persistence.down = True
    chat = Chat(persistence=persistence, delivery_max_retries=1000)
    await chat.start()
    await chat.send_message("room", "alice", "hello")
    stopping = asyncio.create_task(chat.stop())
    await asyncio.sleep(0.5)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert chat.statistics().running is False
    persistence.down = False
    await chat.stop()
    assert persistence.contents == ["hello"]
    assert chat.dead_letters == ()
    assert left_over() == []


@pytest.mark.parametrize("turns", [1, 2, 5])
@virtual
async def test_a_stop_that_the_loops_shutdown_cancels_still_leaves_nothing_and_hides_nothing(turns: int) -> None:
    persistence = Batches()
    persistence.down = True
    chat = Chat(persistence=persistence, delivery_max_retries=1000)
    await chat.start()
    sent = await chat.send_message("room", "alice", "hello")
    subscription = await chat.subscribe("room")
    caller = asyncio.create_task(chat.stop())
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks():
        if task.get_name() == "chatx stop":
            task.cancel()
    await asyncio.wait([caller])
    # Cancelled before it began, it has done nothing yet, and can be called again.
    await chat.stop()
    assert [(each.message, each.reason) for each in chat.dead_letters] == [(sent, "stopped")]
    with pytest.raises(Closed):
        await anext(subscription)
    assert left_over() == []
    await chat.start()
    await chat.stop()


@virtual
async def test_a_stop_that_is_cancelled_waits_for_nothing_any_more() -> None:
    loop = asyncio.get_running_loop()
    persistence, letters = Batches(), Hang()
    persistence.down = True

    async def on_dead_letter(letter: DeadLetter) -> None:
        await letters()

    chat = Chat(
        persistence=persistence,
        on_dead_letter=on_dead_letter,
        adapter_timeout_ms=60_000,
        drain_timeout_ms=60_000,
        delivery_max_retries=0,
    )
    await chat.start()
    await chat.send_message("room", "alice", "hello")
    stopping = asyncio.create_task(chat.stop())
    while not letters.begun:  # noqa: ASYNC110  # it is told by the delivery's own clock
        await asyncio.sleep(0.01)
    began = loop.time()
    for task in asyncio.all_tasks():
        if task.get_name() == "chatx stop":
            task.cancel()
    await asyncio.wait([stopping])
    assert loop.time() == began
    assert letters.cancelled == 1
    assert left_over() == []


@virtual
async def test_a_chat_starts_again_and_begins_empty() -> None:
    chat = Chat()
    async with chat:
        await chat.join("room", "alice")
        first = await chat.send_message("room", "alice", "hello", idempotency_key="k")
    async with chat:
        assert await chat.presence("room") == {}
        assert await chat.history("room") == []
        second = await chat.send_message("room", "alice", "hello", idempotency_key="k")
        assert (second.offset, second.duplicate) == (1, False)
        assert second.epoch != first.epoch
        assert chat.statistics().sent == 1
    assert left_over() == []


def test_a_chat_is_built_without_a_loop_and_runs_on_one_loop_after_another() -> None:
    chat = Chat(persistence=Batches())

    async def use() -> None:
        async with chat:
            await chat.send_message("room", "alice", "hello")

    run_virtual(use())
    asyncio.run(use())
    run_virtual(use())


@virtual
async def test_an_exception_in_the_block_goes_through_and_the_chat_stops() -> None:
    chat = Chat()
    with pytest.raises(ZeroDivisionError):
        async with chat:
            await chat.join("room", "alice")
            raise ZeroDivisionError
    assert chat.statistics().running is False
    assert left_over() == []


@virtual
async def test_cancelling_the_block_stops_the_chat_in_order() -> None:
    persistence = Batches()
    chat = Chat(persistence=persistence, delivery_tick_ms=5000)

    async def run() -> None:
        async with chat:
            await chat.send_message("room", "alice", "hello")
            await asyncio.sleep(1000)

    running = asyncio.create_task(run())
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert persistence.contents == ["hello"]
    assert left_over() == []


@virtual
async def test_lifespan_runs_the_chat_for_as_long_as_the_application() -> None:
    chat = Chat()
    async with chat.lifespan(object()):
        assert chat.statistics().running is True
        await chat.send_message("room", "alice", "hello")
    assert chat.statistics().running is False


@virtual
async def test_statistics_of_a_stopped_chat_are_all_zero() -> None:
    chat = Chat()
    for _ in range(2):
        statistics = chat.statistics()
        assert (statistics.running, statistics.cluster_strategy) == (False, "local")
        assert not any(getattr(statistics, name) for name in statistics.__struct_fields__ if name != "cluster_strategy")
        async with chat:
            await chat.send_message("room", "alice", "hello")


# Stopping under load


@virtual
async def test_stopping_under_load_refuses_or_delivers_every_message() -> None:
    persistence = Batches()

    async def slow(draft: Draft) -> Draft:
        await asyncio.sleep(0.05)
        return draft

    chat = Chat(persistence=persistence, middlewares=(slow,), delivery_batch_size=7)
    accepted: list[str] = []
    ended: list[str] = []

    async def send(user: str) -> None:
        for number in range(1_000_000):
            try:
                message = await chat.send_message(f"room {number % 3}", user, f"{user} {number}")
            except ChatError as error:
                ended.append(error.code)
                return
            accepted.append(message.content)

    await chat.start()
    senders = [asyncio.create_task(send(f"user {number}")) for number in range(20)]
    await asyncio.sleep(1.01)
    await chat.stop()
    await asyncio.wait(senders)
    assert ended == ["closed"] * 20
    assert len(accepted) > 300
    assert sorted(persistence.contents) == sorted(accepted)
    assert left_over() == []


@pytest.mark.parametrize("key", [None, "k"])
@virtual
async def test_sends_that_outlast_the_drain_are_refused_and_never_published(key: str | None) -> None:
    gate = Gate()
    persistence = Batches()
    listener = Listener()
    loop = asyncio.get_running_loop()
    chat = Chat(persistence=persistence, middlewares=(gate,), adapter_timeout_ms=60_000, drain_timeout_ms=2000)
    await chat.start()
    _ = await listener.listen(chat, "room")
    # The first of each is in the middleware; the others wait behind it.
    sends = [
        asyncio.create_task(chat.send_message("room", f"user {number % 2}", "hello", idempotency_key=key))
        for number in range(8)
    ]
    await asyncio.sleep(1)
    began = loop.time()
    await chat.stop()
    assert loop.time() - began <= 3.0
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert {type(each) for each in results} <= {AdapterError, Closed}
    gate.open()
    await asyncio.sleep(10)
    assert (listener.contents, persistence.contents, chat.dead_letters) == ([], [], ())
    assert left_over() == []


@virtual
async def test_a_middleware_that_ignores_the_stop_is_left_behind_and_its_message_is_not_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deaf = HangDeaf()

    async def never_mind(draft: Draft) -> Draft:
        await deaf()
        return draft

    loop = asyncio.get_running_loop()
    persistence = Batches()
    chat = Chat(persistence=persistence, middlewares=(never_mind,), adapter_timeout_ms=60_000, drain_timeout_ms=500)
    await chat.start()
    sending = asyncio.create_task(chat.send_message("room", "alice", "hello"))
    await asyncio.sleep(0.1)
    await chat.stop()
    assert loop.time() <= 0.1 + 0.5 + 1.0
    assert "1 adapter calls did not end" in caplog.text
    deaf.release()
    with pytest.raises(Closed):
        await sending
    assert persistence.contents == []
    assert left_over() == []


@virtual
async def test_a_middleware_may_stop_the_chat_without_a_deadlock() -> None:
    async def stop(draft: Draft) -> Draft:
        await chat.stop()
        return draft

    loop = asyncio.get_running_loop()
    chat = Chat(middlewares=(stop,), drain_timeout_ms=1000)
    await chat.start()
    with pytest.raises(ChatError):
        await chat.send_message("room", "alice", "hello")
    await chat.stop()
    assert loop.time() <= 2.0
    assert left_over() == []


@virtual
async def test_a_reader_may_stop_the_chat_it_reads() -> None:
    chat = Chat()
    await chat.start()
    read: list[str] = []
    with pytest.raises(Closed):
        async with chat.subscribe("room") as subscription:
            await chat.send_message("room", "alice", "one")
            await chat.send_message("room", "alice", "two")
            async for event in subscription:
                assert isinstance(event, Message)
                read.append(event.content)
                await chat.stop()
    assert read == ["one", "two"]
    assert left_over() == []


@virtual
async def test_a_clean_stop_proves_every_rooms_place_and_one_cut_short_does_not() -> None:
    stored = Stored()
    async with Chat(persistence=stored) as chat:
        for room in ("a", "b"):
            await chat.send_message(room, "alice", "hello")
    assert {room: offset for room, (_, offset) in stored.proven.items()} == {"a": 1, "b": 1}
    stored.hang.add("mark_closed")
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Chat(persistence=stored, drain_timeout_ms=1000, adapter_timeout_ms=60_000) as chat:
        await chat.send_message("a", "alice", "hello")
    assert loop.time() - began <= 3.0
    assert list(stored.proven) == ["b"]
    assert left_over() == []


@virtual
async def test_reading_from_persistence_while_the_chat_stops_ends_closed_and_leaves_nothing() -> None:
    stored = Stored()
    async with Chat(persistence=stored, history_size=1) as chat:
        first = await chat.send_message("room", "alice", "0")
        for number in range(1, 5):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(1)
        stored.hang.add("load_messages")
        reading = asyncio.create_task(chat.subscribe("room", after=first).__aenter__())
        older = asyncio.create_task(chat.history("room"))
        await asyncio.sleep(0.1)
    results = await asyncio.gather(reading, older, return_exceptions=True)
    assert isinstance(results[0], Closed)
    assert left_over() == []


@virtual
async def test_idle_loops_have_one_timer_whatever_the_number_of_rooms_and_connections() -> None:
    loop = asyncio.get_running_loop()
    async with Chat() as chat:
        connections = [await chat.connect(f"user {number}").__aenter__() for number in range(50)]
        for number, connection in enumerate(connections):
            await connection.join(f"room {number}")
            await connection.subscribe(f"room {number}")
        await asyncio.sleep(0)
        assert len([timer for timer in loop._scheduled if not timer.cancelled()]) == 1  # type: ignore[attr-defined]
        assert len(asyncio.all_tasks()) == 1, "no task a room, a connection or a subscription"
        for connection in connections:
            connection.close()


@virtual
async def test_a_stopped_chat_keeps_no_room_or_message_in_memory() -> None:
    chat = Chat(persistence=Batches())
    async with chat:
        async with chat.connect("alice") as connection:
            await connection.join("room")
            await connection.subscribe("room")
            await chat.send_message("room", "alice", "hello")
        process = chat.engine.rooms.find("room")
        assert process is not None
        name = type(process)
        del process, connection
    await asyncio.sleep(0)
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is name and each.room_id == "room"]


async def test_plain_adapters_threads_end_with_the_chat() -> None:
    persistence = FaultyPersistence(raises)
    for _ in range(3):
        async with Chat(persistence=persistence, delivery_tick_ms=1) as chat:
            for number in range(20):
                await chat.send_message(f"room {number}", "alice", "hello")
        assert left_over() == []
    assert len(persistence.saved) == 60


@virtual
async def test_two_chats_side_by_side_do_not_know_each_other() -> None:
    one, two = Batches(), Batches()
    async with Chat(persistence=one) as first, Chat(persistence=two) as second:
        listener = Listener()
        _ = await listener.listen(second, "room")
        await first.join("room", "alice")
        await first.send_message("room", "alice", "first", idempotency_key="k")
        assert await second.presence("room") == {}
        assert not (await second.send_message("room", "alice", "second", idempotency_key="k")).duplicate
        assert listener.contents == ["second"]
        assert (first.statistics().members, second.statistics().members) == (1, 0)
    assert (one.contents, two.contents) == (["first"], ["second"])


@virtual
async def test_config_comes_whole_or_in_options_but_not_both() -> None:
    config = ChatConfig(history_size=3)
    assert Chat(config=config).config is config
    assert Chat(history_size=3).config == config
    with pytest.raises(ConfigError, match="history_size"):
        Chat(config=config, history_size=3)
    with pytest.raises(ConfigError, match="must be a ChatConfig"):
        Chat(config={"history_size": 3})  # type: ignore[arg-type]


# Real processes


def run_python(program: str, *, interrupt_after: str | None = None) -> tuple[int, str, float]:
    """Run a program; return its exit code, what it printed, and how many seconds its end took."""
    with interruptible():
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", textwrap.dedent(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert process.stdout is not None
    printed = ""
    with contextlib.closing(process.stdout):
        for line in process.stdout:
            printed += line
            if interrupt_after is not None and interrupt_after in line:
                process.send_signal(2)
                interrupt_after = None
            if "end" in line:
                break
        began = time.monotonic()
        printed += process.stdout.read()
        code = process.wait(20)
    return code, printed, time.monotonic() - began


@pytest.mark.process
def test_a_process_ends_although_an_adapters_thread_hangs() -> None:
    code, printed, seconds = run_python("""
        import asyncio, threading
        from chatx import Chat

        class Hangs:
            def save_message(self, message):
                threading.Event().wait()

        async def main():
            async with Chat(persistence=Hangs(), adapter_timeout_ms=50, drain_timeout_ms=50) as chat:
                await chat.send_message("room", "alice", "hello")
                await asyncio.sleep(0.1)
            print([(each.message.content, each.reason) for each in chat.dead_letters])
            print("end")

        asyncio.run(main())
    """)
    assert code == 0, printed
    assert "[('hello', 'stopped')]" in printed
    assert seconds < 5


@pytest.mark.process
def test_an_interrupted_process_drains_before_it_ends() -> None:
    code, printed, _ = run_python(
        """
        import asyncio
        from chatx import Chat

        class Saves:
            async def save_message(self, message):
                await asyncio.sleep(0.05)
                print("saved", message.content)

        async def main():
            async with Chat(persistence=Saves(), delivery_tick_ms=60_000) as chat:
                for number in range(3):
                    await chat.send_message("room", "alice", str(number))
                print("sent")
                await asyncio.sleep(60)

        asyncio.run(main())
        """,
        interrupt_after="sent",
    )
    assert code != 0
    assert "saved 0\nsaved 1\nsaved 2\n" in printed
    assert "KeyboardInterrupt" in printed
    assert "never retrieved" not in printed
