"""The ends of thousands of rooms: within the drain, each on its own, and none where nothing was said."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chatx import Chat, Message
from chatx.adapters.sqlite import SQLitePersistence
from chatx.runtime.storage import CLOSED_AT_ONCE, CLOSING
from tests.faults import Broken, Stored
from tests.virtual import virtual

ROOMS = 8000


class EachEnd(Stored):
    """Takes one end a call, and notes how many are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self.poison: set[str] = set()

    async def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if room_id in self.poison:
                raise Broken
            await super().mark_closed(room_id, epoch, offset)
        finally:
            self._now -= 1


class ManyEnds(EachEnd):
    """Takes many ends a call, all or none."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def mark_all_closed(self, ends: Sequence[tuple[str, str, int]]) -> None:
        self.batches.append(len(ends))
        if self.poison & {room_id for room_id, _, _ in ends}:
            raise Broken
        await asyncio.sleep(self.wait_ms / 1000)
        self.proven.update({room_id: (epoch, offset) for room_id, epoch, offset in ends})


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # time is virtual, and there is no event for it
        await asyncio.sleep(0.05)


async def talk(chat: Chat, rooms: int) -> None:
    for number in range(rooms):
        await chat.send_message(f"room {number}", "alice", "hello")
    await until(lambda: not chat.statistics().delivery_waiting)


@pytest.mark.parametrize("kind", [EachEnd, ManyEnds])
@virtual
async def test_eight_thousand_rooms_keep_their_proof_within_the_drain(kind: type[EachEnd]) -> None:
    store = kind()
    chat = Chat(persistence=store, middlewares=(), delivery_batch_size=1000)
    await chat.start()
    await talk(chat, ROOMS)
    store.wait_ms = 2
    began = asyncio.get_running_loop().time()
    await chat.stop(drain_timeout_ms=1000)
    assert asyncio.get_running_loop().time() - began < 1
    assert len(store.proven) == ROOMS
    assert store.most <= CLOSING
    if isinstance(store, ManyEnds):
        assert max(store.batches) <= CLOSED_AT_ONCE
        assert "mark_closed" not in store.calls


@pytest.mark.parametrize("kind", [EachEnd, ManyEnds])
@virtual
async def test_an_end_that_fails_costs_no_other_room_its_proof(kind: type[EachEnd]) -> None:
    store = kind()
    store.poison = {"room 3"}
    async with Chat(persistence=store, middlewares=()) as chat:
        await talk(chat, 700)
    assert set(store.proven) == {f"room {number}" for number in range(700)} - {"room 3"}


@virtual
async def test_rooms_that_are_being_forgotten_when_the_chat_stops_keep_their_proof_too() -> None:
    store = EachEnd()
    chat = Chat(persistence=store, middlewares=(), room_idle_ms=1000)
    await chat.start()
    await talk(chat, 200)
    store.wait_ms = 100
    await until(lambda: store.most > 0)
    await chat.send_message("another", "alice", "hello")
    await chat.stop()
    assert len(store.proven) == 201
    assert store.most <= CLOSING


@virtual
async def test_a_sweep_of_many_rooms_asks_the_store_for_a_few_at_a_time_and_first_for_those_that_are_wanted() -> None:
    store = EachEnd()
    async with Chat(persistence=store, middlewares=(), room_idle_ms=1000, drain_timeout_ms=60_000) as chat:
        await talk(chat, 2 * CLOSED_AT_ONCE + 100)
        store.wait_ms = 1000
        await until(lambda: store.most > 0)
        wanted = f"room {2 * CLOSED_AT_ONCE + 90}"
        began = asyncio.get_running_loop().time()
        await chat.send_message(wanted, "alice", "again")
        # Behind the batch that is under way, the one that it is ahead in, and what opening takes.
        assert asyncio.get_running_loop().time() - began <= 2 * (CLOSED_AT_ONCE / CLOSING + 2) + 3
        assert len(store.proven) < 2 * CLOSED_AT_ONCE + 100
        assert store.most <= CLOSING
        store.wait_ms = 0


@virtual
async def test_a_room_in_which_nothing_was_said_is_never_marked() -> None:
    store = Stored()
    async with Chat(persistence=store, room_idle_ms=1000) as chat:
        await chat.join("joined", "alice")
        await chat.leave("joined", "alice")
        async with chat.connect("bob") as connection, chat.subscribe("read", presence=True):
            await connection.join("joined")
            await connection.subscribe("read", after=("before", 1))
        await chat.history("asked")
        await asyncio.sleep(5)
        assert chat.statistics().rooms == 0
        await chat.join("there at the end", "alice")
    assert set(store.calls) == {"last_position", "load_messages"}


@virtual
async def test_a_refused_message_marks_nothing() -> None:
    class No:
        async def check(self, content: str) -> bool:
            return False

    store = Stored()
    async with Chat(persistence=store, moderation=No()) as chat:
        results = await asyncio.gather(
            *(chat.send_message("room", "alice", "x") for _ in range(3)), return_exceptions=True
        )
        assert not any(isinstance(each, Message) for each in results)
    assert set(store.calls) == {"last_position"}


@virtual
async def test_the_first_message_of_each_life_withdraws_the_proof_once() -> None:
    store = Stored()
    for life in range(3):
        async with Chat(persistence=store, middlewares=()) as chat:
            await chat.join("room", "alice")
            assert store.calls.count("mark_open") == life
            await asyncio.gather(*(chat.send_message("room", f"user {number % 3}", "hello") for number in range(9)))
            await chat.send_message("room", "alice", "hello")
            assert store.calls.count("mark_open") == life + 1
            assert store.proven == {}
        assert store.proven["room"][1] == 10 * (life + 1)


@virtual
async def test_sends_that_wait_for_the_proof_keep_their_users_order() -> None:
    store = Stored()
    store.wait_ms = 1000
    async with Chat(persistence=store, middlewares=()) as chat:
        await chat.join("room", "alice")
        sends: list[Any] = []
        for number in range(60):
            sends.append(asyncio.create_task(chat.send_message("room", f"user {number % 3}", f"{number}")))
            await asyncio.sleep(0.025)
        messages = sorted(await asyncio.gather(*sends), key=lambda each: each.offset)
        for user in range(3):
            own = [int(each.content) for each in messages if each.user_id == f"user {user}"]
            assert own == sorted(own)
        assert store.calls.count("mark_open") == 1


async def test_joins_and_readers_leave_nothing_in_sqlite(tmp_path: Any) -> None:
    store = SQLitePersistence(tmp_path / "chat.db")
    async with Chat(persistence=store, middlewares=()) as chat:
        for number in range(20):
            await chat.join(f"joined {number}", "alice")
            async with chat.subscribe(f"read {number}"):
                pass
            await chat.history(f"asked {number}")
        await chat.send_message("said", "alice", "hello")
    for table in ("chatx_streams", "chatx_rooms"):
        assert store._opened().execute(f"SELECT room_id FROM {table}").fetchall() == [("said",)]
    store.close()
