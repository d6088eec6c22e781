"""A store that is away costs nobody a message: what it does not take waits in order, and no attempt is counted."""

import asyncio
import errno
import random
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import Chat, ChatError, Message, RoomOverloaded
from chatx.adapters.away import says_away
from chatx.adapters.boundary import AdapterFailure
from chatx.runtime import delivery
from chatx.runtime.saving import SAVING
from tests.faults import Block, Broken, FaultyPersistence, Hang, HangDeaf
from tests.virtual import virtual


class OperationalError(Exception):
    """What a driver of another maker raises, by PEP 249."""


class DriverError(Exception):
    """What a driver raises from what it met."""


class StoreDown(Exception):
    """A name that says nothing to anybody."""


def from_another(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


AWAY: dict[str, Exception] = {
    "refused": ConnectionRefusedError("refused"),
    "reset": ConnectionResetError("reset"),
    "timeout": TimeoutError("too late"),
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "locked": sqlite3.OperationalError("database is locked"),
    "driver": OperationalError("server closed the connection"),
    "caused": from_another(DriverError("no connection"), ConnectionRefusedError()),
    "group": ExceptionGroup("all attempts failed", [ConnectionRefusedError(), ConnectionRefusedError()]),
    "nameless": StoreDown("no"),
}


class Outage:
    """Saves batches, but for the times when it is away; then each call fails in the same way."""

    def __init__(self, error: Exception | None, *poison: str) -> None:
        self.error = error
        self.poison = poison
        self.away = False
        self.saved: list[Message] = []
        self.calls = 0
        self.refused = 0

    async def save_messages(self, messages: Sequence[Message]) -> None:
        self.calls += 1
        if self.away:
            self.refused += 1
            if self.error is None:
                await Hang()()
            else:
                raise self.error
        if any(each.content in self.poison for each in messages):
            raise ValueError("This content cannot be stored.")
        self.saved += messages

    @property
    def contents(self) -> list[str]:
        return [each.content for each in self.saved]


class OutageOfEach:
    """The same, one message at a time."""

    def __init__(self, error: Exception | None, *poison: str) -> None:
        self.batches = Outage(error, *poison)

    async def save_message(self, message: Message) -> None:
        await self.batches.save_messages([message])


def forms(error: Exception | None, *poison: str) -> list[tuple[Any, Outage]]:
    """Return both forms of persistence, each with what tells of it."""
    one, each = Outage(error, *poison), OutageOfEach(error, *poison)
    return [(one, one), (each, each.batches)]


FORMS = pytest.mark.parametrize("form", [0, 1], ids=["batches", "each"])


class Full(random.Random):
    """Draws the longest waits."""

    def random(self) -> float:
        return 0.999


def draw(chat: Chat, jitter: random.Random) -> None:
    """Let backoffs and probes be drawn by this."""
    assert chat.engine.delivery._saving is not None
    chat.engine.delivery._saving._jitter = jitter


def give_all_the_backoff(chat: Chat) -> None:
    """Let every backoff be as long as it may."""
    draw(chat, Full())


@FORMS
@pytest.mark.parametrize("kind", [*AWAY, "hangs"])
@virtual
async def test_an_outage_costs_no_message_and_keeps_the_order(kind: str, form: int) -> None:
    persistence, store = forms(AWAY.get(kind))[form]
    chat = Chat(persistence=persistence, middlewares=(), delivery_max_retries=5, adapter_timeout_ms=500)
    async with chat:
        draw(chat, random.Random(11))  # how often it is tried hangs on the draws
        for number in range(1060):
            if number == 100:
                store.away = True
            if number == 900:
                store.away = False
            await chat.send_message(f"room {number % 3}", "alice", str(number))
            await asyncio.sleep(0.015)
        assert 1 < store.refused < (800 if kind == "nameless" else 40), "a store that is away is left in peace"
        await asyncio.sleep(10)
        assert chat.statistics().delivery_waiting == 0
        assert chat.statistics().delivered == 1060
        assert chat.dead_letters == ()
    for room in range(3):
        offsets = [each.offset for each in store.saved if each.room_id == f"room {room}"]
        assert list(dict.fromkeys(offsets)) == sorted(set(offsets)), "in order"


@FORMS
@pytest.mark.parametrize("kind", [kind for kind in AWAY if kind != "nameless"])
@virtual
async def test_one_message_alone_waits_for_a_store_that_says_it_is_away(kind: str, form: int) -> None:
    persistence, store = forms(AWAY[kind])[form]
    store.away = True
    chat = Chat(persistence=persistence, delivery_max_retries=1)
    async with chat:
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(600)
        assert chat.dead_letters == ()
        assert store.calls < 600
        store.away = False
        await asyncio.sleep(6)
        assert store.contents == ["hello"]


@FORMS
@virtual
async def test_the_queue_fills_senders_are_told_and_it_recovers_by_itself(form: int) -> None:
    persistence, store = forms(ConnectionRefusedError())[form]
    store.away = True
    chat = Chat(persistence=persistence, middlewares=(), delivery_queue_limit=50)
    told: list[Any] = []
    for event in ("persistence_away", "persistence_back"):
        chat.telemetry.attach(event, lambda name, measured, about: told.append((name, measured["waiting"], about)))
    async with chat:
        for number in range(50):
            await chat.send_message("room", "alice", str(number))
            await asyncio.sleep(0.1)
        with pytest.raises(RoomOverloaded, match="50 messages wait to be saved already") as refused:
            await chat.send_message("room", "alice", "one too many")
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 5.0
        await asyncio.sleep(60)
        store.away = False
        await asyncio.sleep(6)
        await chat.send_message("room", "alice", "50")
    assert store.contents == [str(number) for number in range(51)]
    assert chat.dead_letters == ()
    assert [name for name, _, _ in told] == ["persistence_away", "persistence_back"]
    assert told[0][2]["failure"] == "raised"


@virtual
async def test_the_queue_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SAVING_BYTES", 100_000)
    store = Outage(ConnectionRefusedError())
    store.away = True
    async with Chat(persistence=store, middlewares=(), drain_timeout_ms=1) as chat:
        with pytest.raises(RoomOverloaded):
            for _ in range(100):
                await chat.send_message("room", "alice", "x" * 4000)
        assert chat.statistics().delivery_waiting == 25


@FORMS
@virtual
async def test_messages_at_fault_are_given_up_once_the_store_is_back_and_the_others_are_saved(form: int) -> None:
    poison = [f"poison {number}" for number in range(150)]
    persistence, store = forms(ConnectionRefusedError(), *poison)[form]
    store.away = True
    chat = Chat(persistence=persistence, middlewares=(), delivery_max_retries=2, delivery_batch_size=20)
    async with chat:
        for content in poison:
            await chat.send_message("room", "alice", content)
        for number in range(30):
            await chat.send_message("room", "alice", f"fine {number}")
        await asyncio.sleep(30)
        store.away = False
        await asyncio.sleep(300)
        assert chat.statistics().delivery_waiting == 0
    assert sorted(store.contents) == sorted(f"fine {number}" for number in range(30))
    assert sorted(each.message.content for each in chat.dead_letters) == sorted(poison)
    assert {each.reason for each in chat.dead_letters} == {"raised"}


@FORMS
@virtual
async def test_more_messages_at_fault_than_a_batch_hold_up_no_others_for_long(form: int) -> None:
    poison = [f"poison {number}" for number in range(100)]
    persistence, store = forms(None, *poison)[form]
    async with Chat(persistence=persistence, middlewares=(), delivery_batch_size=10, delivery_max_retries=1) as chat:
        for content in poison:
            await chat.send_message("room", "alice", content)
        for number in range(20):
            await chat.send_message("room", "alice", f"fine {number}")
            await asyncio.sleep(10)
            assert store.contents == [f"fine {each}" for each in range(number + 1)]
        assert chat.statistics().dead_letters == 100


@virtual
async def test_one_that_closes_the_connection_each_time_is_given_up_where_others_are_saved() -> None:
    class Picky(Outage):
        async def save_messages(self, messages: Sequence[Message]) -> None:
            if any(each.content == "too large for it" for each in messages):
                raise ConnectionResetError
            await super().save_messages(messages)

    store = Picky(None)
    async with Chat(persistence=store, middlewares=(), delivery_max_retries=3) as chat:
        await chat.send_message("room", "alice", "too large for it")
        for number in range(60):
            await chat.send_message("room", "alice", str(number))
            await asyncio.sleep(1)
        assert [each.message.content for each in chat.dead_letters] == ["too large for it"]
        assert store.contents == [str(number) for number in range(60)]


@FORMS
@virtual
async def test_one_that_was_at_fault_once_waits_too_when_the_store_is_away(form: int) -> None:
    persistence, store = forms(ConnectionRefusedError(), "poison")[form]
    chat = Chat(persistence=persistence, middlewares=(), delivery_max_retries=2, delivery_retry_base_ms=2000)
    async with chat:
        await chat.send_message("room", "alice", "poison")
        await chat.send_message("room", "alice", "fine")
        await asyncio.sleep(0.11)
        assert store.contents == ["fine"]
        # From here on nobody sends, so that there is nothing to compare it with.
        store.away = True
        store.poison = ()
        await asyncio.sleep(600)
        assert chat.dead_letters == ()
        store.away = False
        await asyncio.sleep(60)
        assert store.contents == ["fine", "poison"]


@virtual
async def test_one_that_is_being_tried_again_when_the_store_goes_away_has_not_failed_by_its_own_fault() -> None:
    persistence, store = forms(None, "poison")[1]
    chat = Chat(persistence=persistence, middlewares=(), delivery_max_retries=1, delivery_retry_base_ms=2000)
    async with chat:
        give_all_the_backoff(chat)
        await chat.send_message("room", "alice", "poison")
        await chat.send_message("room", "alice", "fine")
        await asyncio.sleep(0.11)
        store.away = True
        await asyncio.sleep(3)  # the second attempt with it has begun, and hangs
        store.error = ConnectionRefusedError()
        await chat.send_message("room", "alice", "also")
        await asyncio.sleep(10)
        assert chat.dead_letters == ()
        store.away, store.poison = False, ()
        await asyncio.sleep(20)
        assert store.contents == ["fine", "also", "poison"]


@FORMS
@virtual
async def test_a_stop_tries_a_store_that_was_away_at_once(form: int) -> None:
    persistence, store = forms(ConnectionRefusedError())[form]
    store.away = True
    loop = asyncio.get_running_loop()
    async with Chat(persistence=persistence, middlewares=(), delivery_retry_base_ms=5000) as chat:
        give_all_the_backoff(chat)
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(1)
        store.away = False
        began = loop.time()
    assert loop.time() == began
    assert store.contents == ["hello"]


@FORMS
@virtual
async def test_a_store_that_goes_away_again_is_not_tried_again_at_once(form: int) -> None:
    persistence, store = forms(ConnectionRefusedError())[form]
    async with Chat(persistence=persistence, middlewares=(), delivery_retry_base_ms=2000) as chat:
        give_all_the_backoff(chat)
        for content in ("one", "two"):
            store.away, store.refused = True, 0
            await chat.send_message("room", "alice", content)
            await asyncio.sleep(1)
            assert store.refused == 1
            store.away = False
            await asyncio.sleep(10)
        assert store.contents == ["one", "two"]


@virtual
async def test_a_batch_that_is_too_much_at_once_is_saved_one_by_one() -> None:
    class Small(Outage):
        async def save_messages(self, messages: Sequence[Message]) -> None:
            if len(messages) > 3:
                raise TimeoutError
            await super().save_messages(messages)

    store = Small(None)
    async with Chat(persistence=store, middlewares=(), delivery_max_retries=0) as chat:
        for number in range(40):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(1)
        assert store.contents == [str(number) for number in range(40)]
        assert chat.dead_letters == ()


@FORMS
@virtual
async def test_what_is_left_when_the_chat_stops_is_a_dead_letter_with_no_attempt(form: int) -> None:
    persistence, store = forms(ConnectionRefusedError())[form]
    store.away = True
    loop = asyncio.get_running_loop()
    chat = Chat(persistence=persistence, middlewares=(), drain_timeout_ms=3000)
    await chat.start()
    for number in range(10):
        await chat.send_message("room", "alice", str(number))
    await asyncio.sleep(30)
    calls, began = store.calls, loop.time()
    await chat.stop()
    assert loop.time() - began == pytest.approx(3.0)
    assert store.calls > calls, "it is tried once more"
    assert [(each.message.content, each.reason, each.attempts) for each in chat.dead_letters] == [
        (str(number), "stopped", 0) for number in range(10)
    ]


@virtual
async def test_calls_that_do_not_heed_their_end_are_bounded_and_no_message_is_in_two() -> None:
    deaf = HangDeaf()
    under_way: list[str] = []

    class Deaf:
        async def save_message(self, message: Message) -> None:
            assert message.id not in under_way, "the same message twice at a time"
            under_way.append(message.id)
            await deaf()
            under_way.remove(message.id)

    chat = Chat(persistence=Deaf(), middlewares=(), adapter_timeout_ms=100)
    async with chat:
        for number in range(100):
            await chat.send_message(f"room {number}", "alice", "hello")
        await asyncio.sleep(600)
        assert 2 <= len(under_way) <= SAVING
        assert chat.dead_letters == ()
        deaf.release()
        await asyncio.sleep(10)
        assert chat.statistics().delivery_waiting == 0
    assert chat.dead_letters == ()


async def test_threads_that_hang_are_bounded_and_the_store_comes_back() -> None:
    block = Block()
    persistence = FaultyPersistence(block)
    chat = Chat(
        persistence=persistence, middlewares=(), adapter_timeout_ms=10, delivery_tick_ms=1, delivery_retry_base_ms=1
    )
    async with chat:
        for number in range(20):
            await chat.send_message(f"room {number}", "victim", "hello")
        await asyncio.sleep(0.5)
        assert block.begun <= SAVING
        assert chat.dead_letters == ()
        block.release()
        async with asyncio.timeout(20):
            while chat.statistics().delivery_waiting:  # noqa: ASYNC110  # threads save, which know no asyncio.Event
                await asyncio.sleep(0.01)
    assert chat.dead_letters == ()
    assert not [thread for thread in threading.enumerate() if thread.name == "chatx-adapter"]


@FORMS
@virtual
async def test_messages_that_hang_for_good_are_in_one_call_each_and_the_others_are_saved(form: int) -> None:
    deaf = HangDeaf()
    under_way: set[str] = set()

    class Picky(Outage):
        async def save_messages(self, messages: Sequence[Message]) -> None:
            ids = {each.id for each in messages}
            assert not under_way & ids, "the same message twice at a time"
            under_way.update(ids)
            if any(each.content == "hangs" for each in messages):
                await deaf()
            under_way.difference_update(ids)
            await super().save_messages(messages)

    class PickyOfEach:
        async def save_message(self, message: Message) -> None:
            await store.save_messages([message])

    store = Picky(None)
    chat = Chat(
        persistence=PickyOfEach() if form else store,
        middlewares=(),
        delivery_max_retries=1,
        delivery_batch_size=5,
        adapter_timeout_ms=100,
    )
    async with chat:
        await chat.send_message("room", "alice", "0")
        for number in range(1, 40):
            if number == 20:
                await chat.send_message("room", "alice", "hangs")
            await chat.send_message("room", "alice", str(number))
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)
        # Those that were in one call with it wait until that has returned.
        assert len(set(store.contents)) >= 35
        assert chat.dead_letters == ()
        deaf.release()
        await asyncio.sleep(60)
        assert set(store.contents) == {"hangs", *(str(number) for number in range(40))}
        assert chat.statistics().delivery_waiting == 0
    assert chat.dead_letters == ()


@pytest.mark.parametrize("kind", [kind for kind in AWAY if kind != "nameless"])
def test_what_says_that_the_store_is_away(kind: str) -> None:
    assert says_away(AWAY[kind])
    assert says_away(from_another(AdapterFailure("raised", "no"), AWAY[kind]))


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), Broken(), KeyError("room"), ChatError("no"), StoreDown(), sqlite3.IntegrityError("twice")],
)
def test_what_does_not(error: Exception) -> None:
    assert not says_away(error)
    assert not says_away(from_another(AdapterFailure("raised", "no"), error))
    assert not says_away(AdapterFailure("wrong_answer", "no"))


@pytest.mark.parametrize("failure", ["timeout", "busy"])
def test_a_call_that_got_no_answer_says_so_too(failure: str) -> None:
    assert says_away(AdapterFailure(failure, "no"))


def test_causes_that_go_in_a_circle_come_to_an_end() -> None:
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert not says_away(one)


class HangingContents(Outage):
    """Hangs whenever it is given one of the contents that it cannot store: the same as a store that is away."""

    async def save_messages(self, messages: Sequence[Message]) -> None:
        if any(each.content in self.poison for each in messages):
            await Hang()()
        self.saved += messages


@pytest.mark.parametrize("rooms", [1, 5])
@virtual
async def test_messages_that_always_hang_hold_up_no_others_for_ever(rooms: int) -> None:
    store = HangingContents(None, "hangs 0", "hangs 1", "hangs 2")
    async with Chat(persistence=store, middlewares=(), delivery_max_retries=1, adapter_timeout_ms=500) as chat:
        for number in range(3):
            await chat.send_message("room 0", "alice", f"hangs {number}")
        for number in range(20):
            await chat.send_message(f"room {number % rooms}", "alice", f"fine {number}")
        await asyncio.sleep(900)
        assert sorted(store.contents) == sorted(f"fine {number}" for number in range(20))
        assert {letter.message.content for letter in chat.dead_letters} == set(store.poison)
