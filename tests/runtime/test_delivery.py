"""The delivery worker: what was accepted is saved, or a dead letter; nothing else ever happens to it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Chat, DeadLetter, Message, RoomOverloaded
from chatx.testing import run_virtual
from tests.faults import (
    AsyncFaultyNotifier,
    AsyncFaultyPersistence,
    Batches,
    Block,
    Broken,
    FaultyNotifier,
    FaultyPersistence,
    Hang,
    Scripted,
    awaited,
    raises,
)
from tests.virtual import virtual

# Batches


@virtual
async def test_a_message_waits_for_its_batch_at_most_one_tick() -> None:
    persistence = Batches()
    async with Chat(persistence=persistence, delivery_tick_ms=250) as chat:
        await asyncio.sleep(1)
        for number in range(3):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(0.1)
        await chat.send_message("room", "alice", "3")
        await asyncio.sleep(1)
        assert persistence.calls == [(1.25, ["0", "1", "2", "3"])]


@virtual
async def test_a_full_batch_goes_at_once_and_no_batch_is_larger() -> None:
    persistence = Batches()
    chat = Chat(persistence=persistence, delivery_batch_size=4, delivery_tick_ms=1000, middlewares=())
    async with chat:
        for number in range(10):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(0.001)
        assert persistence.calls == [(0, ["0", "1", "2", "3"]), (0, ["4", "5", "6", "7"])]
        await asyncio.sleep(2)
        assert persistence.calls[2:] == [(1.0, ["8", "9"])]


@virtual
async def test_one_batch_is_under_way_at_a_time() -> None:
    class Slow:
        under_way = 0
        most = 0

        async def save_messages(self, messages: list[Message]) -> None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(0.5)
            self.under_way -= 1

    persistence = Slow()
    async with Chat(persistence=persistence, delivery_batch_size=2, middlewares=()) as chat:
        for number in range(10):
            await chat.send_message(f"room {number}", "alice", "hello")
    assert persistence.most == 1


@virtual
async def test_batches_keep_the_order_of_every_room() -> None:
    persistence = Batches()
    async with Chat(persistence=persistence, delivery_batch_size=7, middlewares=()) as chat:
        for number in range(100):
            await chat.send_message(f"room {number % 3}", "alice", str(number))
    for room in range(3):
        own = [each.offset for each in persistence.saved if each.room_id == f"room {room}"]
        assert own == list(range(1, len(own) + 1))
    assert len(persistence.saved) == 100


@virtual
async def test_persistence_that_saves_one_by_one_keeps_a_rooms_order_and_serves_rooms_side_by_side() -> None:
    class Slow:
        order: list[str]
        in_room: dict[str, int]

        def __init__(self) -> None:
            self.order, self.in_room = [], {}

        async def save_message(self, message: Message) -> None:
            assert not self.in_room.get(message.room_id), "two of one room at a time"
            self.in_room[message.room_id] = 1
            await asyncio.sleep(0.1 + 0.01 * (message.offset % 3))
            self.in_room[message.room_id] = 0
            self.order.append(f"{message.room_id} {message.offset}")

    persistence = Slow()
    loop = asyncio.get_running_loop()
    async with Chat(persistence=persistence, middlewares=()) as chat:
        for number in range(20):
            await chat.send_message(f"room {number % 4}", "alice", "hello")
    for room in range(4):
        assert [each for each in persistence.order if each.startswith(f"room {room}")] == [
            f"room {room} {offset}" for offset in range(1, 6)
        ]
    assert loop.time() < 1.0, "the rooms one after another would take over two seconds"


# Failures and retries


@virtual
async def test_a_poisoned_message_fails_alone_and_the_others_of_its_batch_are_saved() -> None:
    persistence = Batches("poison")
    chat = Chat(persistence=persistence, delivery_max_retries=3)
    async with chat:
        for content in ("a", "poison", "b"):
            await chat.send_message("room", "alice", content)
        await asyncio.sleep(0.11)
        await chat.send_message("room", "alice", "c")
        await asyncio.sleep(5)
        assert sorted(persistence.contents) == ["a", "b", "c"]
        assert [(each.message.content, each.attempts, each.reason) for each in chat.dead_letters] == [
            ("poison", 4, "raised")
        ]
        assert [contents for _, contents in persistence.calls if "poison" in contents] == [
            ["a", "poison", "b"],
            *[["poison"]] * 3,
        ]
        statistics = chat.statistics()
        assert (statistics.delivered, statistics.dead_letters, statistics.delivery_waiting) == (3, 1, 0)
        assert statistics.delivery_retries == 5, "three of the batch, and two more of the poison"


@virtual
async def test_later_messages_do_not_wait_for_one_that_is_tried_again() -> None:
    persistence = AsyncFaultyPersistence(awaited(raises))
    async with Chat(persistence=persistence, delivery_retry_base_ms=600_000, drain_timeout_ms=1) as chat:
        await chat.send_message("room", "victim", "fails")
        for number in range(3):
            await chat.send_message("room", "alice", str(number))
            await asyncio.sleep(0.2)
        assert [each.content for each in persistence.saved] == ["0", "1", "2"]


@virtual
async def test_retries_back_off_exponentially_with_full_jitter() -> None:
    persistence = AsyncFaultyPersistence(awaited(raises))
    loop = asyncio.get_running_loop()
    planned: list[tuple[float, int, float]] = []
    chat = Chat(
        persistence=persistence,
        delivery_max_retries=12,
        delivery_retry_base_ms=100,
        drain_timeout_ms=1000,
        middlewares=(),
    )

    def retried(event: str, measured: Any, about: Any) -> None:
        assert about["room_id"] == "room"
        assert about["adapter"] == "persistence"
        planned.append((loop.time(), measured["attempt"], measured["backoff_ms"]))

    chat.telemetry.attach("delivery_retry", retried)
    async with chat:
        for _ in range(20):
            await chat.send_message("room", "victim", "fails")
        await chat.send_message("room", "alice", "is saved, so that the others fail by their own fault")
        await asyncio.sleep(1000)
    for attempt in range(1, 13):
        waits = [wait for _, number, wait in planned if number == attempt]
        assert len(waits) == 20
        ceiling = min(30_000, 100 * 2 ** (attempt - 1))
        assert all(0 <= wait < ceiling for wait in waits)
        assert max(waits) - min(waits) > ceiling / 4, "full jitter spreads them over all of it"


@virtual
async def test_no_retry_means_one_attempt() -> None:
    persistence = Batches("poison")
    chat = Chat(persistence=persistence, delivery_max_retries=0)
    async with chat:
        await chat.send_message("room", "alice", "poison")
    assert [(each.attempts, each.reason) for each in chat.dead_letters] == [(1, "raised")]


@virtual
async def test_persistence_that_hangs_is_a_timeout() -> None:
    hang = Hang()
    persistence = AsyncFaultyPersistence(hang)
    chat = Chat(persistence=persistence, delivery_max_retries=1, adapter_timeout_ms=300)
    async with chat:
        await chat.send_message("room", "victim", "hello")
        await chat.send_message("room", "alice", "is saved, so that it is not the store")
        await asyncio.sleep(1)
    assert (hang.begun, hang.cancelled) == (3, 3), "the first might have been the store's"
    assert [(each.attempts, each.reason) for each in chat.dead_letters] == [(2, "timeout")]


@virtual
async def test_persistence_that_is_down_for_a_while_loses_nothing() -> None:
    persistence = Batches()
    persistence.down = True
    chat = Chat(persistence=persistence, delivery_max_retries=50, delivery_retry_base_ms=100, middlewares=())
    async with chat:
        for number in range(200):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(120)
        persistence.down = False
        await asyncio.sleep(40)
        assert sorted(persistence.contents, key=int) == [str(number) for number in range(200)]
        assert chat.statistics().delivery_waiting == 0


# The invariant

OUTCOMES = st.sampled_from(["ok", "raise", "hang", "lost answer", "slow"])

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.11, 1.0, 7.0])),
    ),
    max_size=40,
)


@given(
    script=st.lists(OUTCOMES, max_size=60),
    steps=steps,
    retries=st.integers(0, 3),
    batch=st.integers(1, 5),
    limit=st.integers(1, 20),
    drain_ms=st.sampled_from([1, 407, 2973]),
)
def test_what_was_accepted_is_saved_or_a_dead_letter_under_every_schedule(
    script: list[str], steps: list[tuple[str, Any]], retries: int, batch: int, limit: int, drain_ms: int
) -> None:
    persistence = Scripted(script)
    told: list[DeadLetter] = []

    async def tell(letter: DeadLetter) -> None:
        told.append(letter)

    chat = Chat(
        persistence=persistence,
        middlewares=(),
        delivery_max_retries=retries,
        delivery_batch_size=batch,
        delivery_queue_limit=limit,
        drain_timeout_ms=drain_ms,
        adapter_timeout_ms=2000,
        on_dead_letter=tell,
    )
    accepted: list[Message] = []

    async def main() -> None:
        async with chat:
            for step, value in steps:
                if step == "wait":
                    await asyncio.sleep(value)
                    continue
                try:
                    accepted.append(await chat.send_message(f"room {value}", "alice", "hello"))
                except RoomOverloaded:
                    assert chat.statistics().delivery_waiting == limit
                assert chat.statistics().delivery_waiting <= limit

    run_virtual(main())
    saved = [each.id for each in persistence.saved]
    dead = [each.message.id for each in chat.dead_letters]
    stopped = {each.message.id for each in chat.dead_letters if each.reason == "stopped"}
    everything = {each.id for each in accepted}
    assert set(saved) | set(dead) == everything
    assert len(set(dead)) == len(dead)
    assert [each.message.id for each in told] == dead
    assert all(each.attempts <= retries + 1 for each in chat.dead_letters)
    for message in accepted:
        if message.id in persistence.answers_lost:
            continue
        if message.id in stopped:
            # The stop cut off a call under way: it may have saved the message, and nobody can know.
            assert saved.count(message.id) <= 1
        else:
            assert saved.count(message.id) + dead.count(message.id) == 1
    for room in range(3):
        firsts = dict.fromkeys(each.offset for each in persistence.attempts if each.room_id == f"room {room}")
        assert list(firsts) == sorted(firsts), "first attempts keep the room's order"


# Dead letters


@virtual
async def test_dead_letters_are_bounded_and_the_oldest_goes() -> None:
    persistence = Batches(*(str(number) for number in range(20)))
    told: list[str] = []

    async def tell(letter: DeadLetter) -> None:
        told.append(letter.message.content)

    chat = Chat(
        persistence=persistence,
        delivery_max_retries=0,
        dead_letter_limit=3,
        on_dead_letter=tell,
        middlewares=(),
    )
    async with chat:
        for number in range(20):
            await chat.send_message("room", "alice", str(number))
        await chat.send_message("room", "alice", "fine")
        await asyncio.sleep(1)
        assert chat.statistics().dead_letters == 20
    assert [each.message.content for each in chat.dead_letters] == ["17", "18", "19"]
    assert sorted(told, key=int) == [str(number) for number in range(20)]


async def die(chat: Chat) -> None:
    async with chat:
        await chat.send_message("room", "alice", "poison")
        await chat.send_message("room", "alice", "fine")
        await asyncio.sleep(1)
        assert chat.statistics().delivery_waiting == 0
        assert chat.statistics().delivered == 1


@virtual
async def test_an_async_on_dead_letter_is_awaited() -> None:
    told: list[DeadLetter] = []

    async def tell(letter: DeadLetter) -> None:
        await asyncio.sleep(0.01)
        told.append(letter)

    chat = Chat(persistence=Batches("poison"), delivery_max_retries=1, on_dead_letter=tell)
    await die(chat)
    assert tuple(told) == chat.dead_letters
    assert told[0].message.content == "poison"


@pytest.mark.parametrize("form", ["plain", "async", "hangs"])
@virtual
async def test_an_on_dead_letter_that_fails_harms_nothing(form: str, caplog: pytest.LogCaptureFixture) -> None:
    def plain(letter: DeadLetter) -> None:
        raise Broken

    async def awaiting(letter: DeadLetter) -> None:
        raise Broken

    async def hangs(letter: DeadLetter) -> None:
        await Hang()()

    handlers: dict[str, Callable[[DeadLetter], Any]] = {"plain": plain, "async": awaiting, "hangs": hangs}
    chat = Chat(
        persistence=Batches("poison"), delivery_max_retries=1, on_dead_letter=handlers[form], adapter_timeout_ms=50
    )
    await die(chat)
    assert [each.message.content for each in chat.dead_letters] == ["poison"]
    assert "on_dead_letter" in caplog.text


@virtual
async def test_an_on_dead_letter_that_hangs_does_not_hold_up_first_attempts() -> None:
    async def hangs(letter: DeadLetter) -> None:
        await Hang()()

    persistence = Batches("poison")
    chat = Chat(persistence=persistence, delivery_max_retries=0, on_dead_letter=hangs, drain_timeout_ms=1)
    async with chat:
        await chat.send_message("room", "alice", "poison")
        await asyncio.sleep(0.2)
        await chat.send_message("room", "alice", "fine")
        await asyncio.sleep(0.2)
        assert persistence.contents == ["fine"]


@virtual
async def test_a_dead_letter_is_logged_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    events: list[Any] = []
    chat = Chat(persistence=Batches("poison"), delivery_max_retries=0)
    chat.telemetry.attach("dead_letter", lambda event, measured, about: events.append((dict(measured), about)))
    async with chat:
        message = await chat.send_message("room", "alice", "poison")
    logged = [each.getMessage() for each in caplog.records if "dead letter" in each.getMessage()]
    assert len(logged) == 1
    assert message.id in logged[0]
    assert "poison" not in logged[0]
    assert events == [({"attempts": 1}, {"room_id": "room", "message_id": message.id, "adapter": "persistence"})]


# Stopping


@virtual
async def test_stop_delivers_what_waits_without_waiting_for_the_tick() -> None:
    persistence = Batches()
    loop = asyncio.get_running_loop()
    async with Chat(persistence=persistence, delivery_tick_ms=5000, middlewares=()) as chat:
        for number in range(250):
            await chat.send_message("room", "alice", str(number))
        began = loop.time()
    assert loop.time() == began
    assert persistence.contents == [str(number) for number in range(250)]


@virtual
async def test_stop_goes_on_retrying_until_the_deadline_and_what_is_left_is_a_dead_letter() -> None:
    persistence = Batches()
    persistence.down = True
    loop = asyncio.get_running_loop()
    chat = Chat(
        persistence=persistence,
        notifier=AsyncFaultyNotifier(awaited(raises)),
        delivery_max_retries=1000,
        drain_timeout_ms=3000,
    )
    await chat.start()
    await chat.join("room", "victim")
    sent = [await chat.send_message("room", "alice", str(number)) for number in range(3)]
    # Only a few tries so far: the next backoff is drawn, but ends before the deadline.
    await asyncio.sleep(0.2)
    began = loop.time()
    await chat.stop()
    assert loop.time() == began + 3.0
    assert len([contents for at, contents in persistence.calls if at > began]) > 0
    letters = [(each.message, each.adapter, each.user_id, each.reason) for each in chat.dead_letters]
    assert sorted(letters, key=lambda each: (each[0].offset, each[1])) == [
        (message, adapter, "victim" if adapter == "notifier" else None, "stopped")
        for message in sent
        for adapter in ("notifier", "persistence")
    ]
    persistence.down = False
    await asyncio.sleep(60)
    assert persistence.saved == [], "a dead letter is not delivered after all"


@virtual
async def test_stop_is_over_as_soon_as_persistence_recovers() -> None:
    persistence = Batches()
    persistence.down = True
    loop = asyncio.get_running_loop()
    async with Chat(persistence=persistence, delivery_max_retries=1000) as chat:
        await chat.send_message("room", "alice", "hello")
        loop.call_later(2, lambda: setattr(persistence, "down", False))
    assert 2 <= loop.time() < 10
    assert persistence.contents == ["hello"]
    assert chat.dead_letters == ()


async def test_a_message_that_waits_for_a_thread_when_the_chat_stops_is_not_saved_behind_its_dead_letter() -> None:
    block = Block()
    persistence = FaultyPersistence(block)
    chat = Chat(
        persistence=persistence, delivery_tick_ms=1, drain_timeout_ms=100, adapter_timeout_ms=60_000, middlewares=()
    )
    async with chat:
        for number in range(20):
            await chat.send_message(f"room {number}", "victim", "hello")
    begun = block.begun
    block.release()
    for thread in threading.enumerate():
        if thread.name == "chatx-adapter":
            thread.join(2)
    assert block.begun == begun
    assert len(chat.dead_letters) == 20


# Notifiers


@virtual
async def test_every_member_but_the_sender_is_notified_once() -> None:
    notifier = AsyncFaultyNotifier(awaited(raises), victim="nobody")
    async with Chat(notifier=notifier) as chat, chat.connect("bob") as one, chat.connect("bob") as two:
        await one.join("room")
        await two.join("room")
        for user in ("alice", "carol"):
            await chat.join("room", user)
        await chat.join("other", "dave")
        await chat.send_message("room", "alice", "from a member")
        await asyncio.sleep(1)
        assert sorted(notifier.notified) == [("bob", "from a member"), ("carol", "from a member")]
        notifier.notified.clear()
        await chat.send_message("room", "eve", "from a guest")
        # Who is a member is settled when the message is published.
        await chat.leave("room", "carol")
        await chat.join("room", "frank")
        await asyncio.sleep(1)
        assert sorted(notifier.notified) == [(user, "from a guest") for user in ("alice", "bob", "carol")]
        assert chat.statistics().delivery_waiting == 0


@virtual
async def test_nobody_to_notify_is_no_failure() -> None:
    notifier = AsyncFaultyNotifier(awaited(raises))
    async with Chat(notifier=notifier) as chat:
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(1)
        assert (chat.statistics().delivery_waiting, chat.statistics().dead_letters) == (0, 0)


class Named(AsyncFaultyNotifier):
    """A notifier that names whom to notify."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__(awaited(raises))
        self.answer = answer

    async def recipients(self, message: Message) -> Any:
        return self.answer()


class NamedInAThread(Named):
    """The same, in a thread."""

    def recipients(self, message: Message) -> Any:
        return self.answer()


@pytest.mark.parametrize("answer", [["bob", "alice"], ("bob", "alice"), {"bob": 1, "alice": 2}, iter(["bob", "alice"])])
@virtual
async def test_recipients_names_whom_to_notify(answer: Any) -> None:
    notifier = Named(lambda: answer)
    async with Chat(notifier=notifier) as chat:
        await chat.join("room", "carol")
        await chat.send_message("room", "alice", "hello")
    assert sorted(notifier.notified) == [("alice", "hello"), ("bob", "hello")]


def broken_names() -> Iterator[str]:
    yield "bob"
    raise Broken


@pytest.mark.parametrize(
    "answer",
    [lambda: None, lambda: 5, lambda: [1], lambda: b"bob", broken_names, raises],
    ids=["None", "int", "ints", "bytes", "a generator that raises", "raises"],
)
@virtual
async def test_recipients_that_answers_wrongly_is_tried_again_and_then_a_dead_letter(answer: Callable[[], Any]) -> None:
    notifier = Named(answer)
    chat = Chat(notifier=notifier, delivery_max_retries=2)
    async with chat:
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(30)
        assert chat.statistics().delivery_waiting == 0
        assert chat.statistics().adapter_failures == {"Named": 3}
    assert [(each.adapter, each.user_id, each.attempts) for each in chat.dead_letters] == [("notifier", None, 3)]
    assert notifier.attempts == []


async def test_a_plain_recipients_runs_in_a_thread() -> None:
    threads: list[str] = []

    def names() -> list[str]:
        threads.append(threading.current_thread().name)
        return ["bob"]

    notifier = NamedInAThread(names)
    async with Chat(notifier=notifier, delivery_tick_ms=1) as chat:
        await chat.send_message("room", "alice", "hello")
    assert threads == ["chatx-adapter"]
    assert notifier.notified == [("bob", "hello")]


@virtual
async def test_a_user_whose_notification_fails_is_tried_again_and_the_others_are_not() -> None:
    notifier = AsyncFaultyNotifier(awaited(raises))
    chat = Chat(notifier=notifier, delivery_max_retries=4)
    async with chat:
        for user in ("victim", "bob", "carol"):
            await chat.join("room", user)
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(30)
    assert sorted(notifier.attempts) == sorted([("bob", "hello"), ("carol", "hello"), *[("victim", "hello")] * 5])


@virtual
async def test_a_notifier_that_fails_does_not_keep_messages_from_being_saved() -> None:
    persistence = Batches()
    notifier = AsyncFaultyNotifier(awaited(raises), victim="bob")
    chat = Chat(persistence=persistence, notifier=notifier, delivery_max_retries=1)
    async with chat:
        await chat.join("room", "bob")
        for number in range(5):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(10)
        assert persistence.contents == ["0", "1", "2", "3", "4"]
        assert chat.statistics().delivered == 5
        assert chat.statistics().dead_letters == 5


async def test_a_blocked_notifier_thread_leaves_the_loop_alone() -> None:
    block = Block()
    notifier = FaultyNotifier(block)
    async with Chat(notifier=notifier, adapter_timeout_ms=20, drain_timeout_ms=50, delivery_tick_ms=1) as chat:
        await chat.join("room", "victim")
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(0.03)
        assert (await chat.send_message("room", "alice", "again")).offset == 2
        block.release()
