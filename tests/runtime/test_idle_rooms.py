"""Rooms that nobody is in are bounded: the oldest are forgotten early; where none can go the next one is refused."""

import asyncio
from typing import Any

import pytest

from chatx import Chat, ChatError, RoomOverloaded
from tests.faults import CrashingChat, Gate, Stored
from tests.virtual import virtual


def there(chat: Chat) -> list[str]:
    return [process.room_id for process in chat.engine.rooms]


@pytest.mark.parametrize("way", ["send", "trusted", "join and leave", "subscribe", "connection"])
@pytest.mark.parametrize("persistence", [None, Stored], ids=["memory", "stored"])
@virtual
async def test_one_user_cannot_fill_the_memory_with_rooms(way: str, persistence: Any) -> None:
    async with Chat(idle_rooms_limit=50, persistence=persistence and persistence(), delivery_tick_ms=1) as chat:
        await chat.join("held", "bob")
        kept = await chat.send_message("held", "bob", "hello")
        most = 0
        for number in range(1000):
            room_id = f"room {number}"
            if way in ("send", "trusted"):
                try:
                    await chat.send_message(room_id, "mallory", "hello", trusted=way == "trusted")
                except RoomOverloaded as refused:
                    await asyncio.sleep(refused.retry_after or 0)
            elif way == "join and leave":
                await chat.join(room_id, "mallory")
                await chat.leave(room_id, "mallory")
            elif way == "subscribe":
                async with chat.subscribe(room_id):
                    pass
            else:
                async with chat.connect("mallory") as connection:
                    await connection.join(room_id)
                    await connection.subscribe(room_id)
            most = max(most, chat.statistics().rooms)
            await asyncio.sleep(0)
        assert most <= 51
        # The room that somebody is in is as it was.
        assert await chat.history("held") == [kept]
        assert (await chat.send_message("held", "bob", "hello")).offset == 2


@virtual
async def test_rooms_that_somebody_is_in_do_not_count() -> None:
    async with Chat(idle_rooms_limit=5) as chat:
        for number in range(100):
            await chat.join(f"room {number}", "alice")
        subscriptions = [await chat.subscribe(f"read {number}") for number in range(100)]
        assert chat.statistics().rooms == 200
        for number in range(100):
            assert (await chat.send_message(f"room {number}", "alice", "hello")).offset == 1
        for subscription in subscriptions:
            subscription.close()
        await asyncio.sleep(0)
        await chat.join("another", "alice")
        await asyncio.sleep(0)
        assert chat.statistics().rooms == 100 + 5


@virtual
async def test_rooms_in_which_nothing_was_said_go_first_and_then_the_oldest() -> None:
    async with Chat(idle_rooms_limit=4) as chat:
        for room_id in ("said 1", "said 2"):
            await chat.send_message(room_id, "alice", "hello")
        for room_id in ("blank 1", "blank 2"):
            await chat.join(room_id, "alice")
            await chat.leave(room_id, "alice")
        await asyncio.sleep(0)
        for room_id, gone in (("new 1", "blank 1"), ("new 2", "blank 2"), ("new 3", "said 1"), ("new 4", "said 2")):
            assert gone in there(chat)
            await chat.send_message(room_id, "bob", "hello")
            assert gone not in there(chat)
            await asyncio.sleep(0)


@virtual
async def test_where_nothing_is_saved_the_next_room_is_refused_and_those_that_are_there_go_on() -> None:
    stored = Stored()
    stored.fail.add("save_messages")
    chat = Chat(persistence=stored, idle_rooms_limit=10, delivery_max_retries=1000, delivery_retry_base_ms=1)
    async with chat:
        sent = [await chat.send_message(f"room {number}", "alice", "hello") for number in range(10)]
        for opening in (
            chat.send_message("one more", "alice", "hello"),
            chat.join("one more", "alice"),
            chat.subscribe("one more").__aenter__(),
        ):
            with pytest.raises(RoomOverloaded, match="10 rooms that nobody is in") as refused:
                await opening
            assert refused.value.retry_after
        assert chat.statistics().refused == {"room_overloaded": 1}
        again = await chat.send_message("room 0", "alice", "hello")
        assert (again.epoch, again.offset) == (sent[0].epoch, 2)
        stored.fail.clear()
        await asyncio.sleep(60)
        await chat.send_message("one more", "alice", "hello")
    # Nothing was lost by the bound.
    assert len(stored.rows) == 12
    assert len(stored.proven) == 11


@virtual
async def test_a_room_let_go_of_early_goes_on_from_the_store() -> None:
    stored = Stored()
    async with Chat(persistence=stored, idle_rooms_limit=1, delivery_tick_ms=1, middlewares=()) as chat:
        for turn in range(5):
            for room_id in ("a", "b", "c"):
                message = await chat.send_message(room_id, "alice", "hello")
                assert message.offset == turn + 1
                await asyncio.sleep(1)
        assert chat.statistics().rooms == 1


@virtual
async def test_many_who_come_at_once_at_the_bound_all_get_their_room_or_an_answer() -> None:
    stored = Stored()
    stored.wait_ms = 10
    async with Chat(persistence=stored, idle_rooms_limit=3, delivery_tick_ms=1, middlewares=()) as chat:
        sends = [chat.send_message(f"room {number % 12}", f"user {number}", "hello") for number in range(120)]
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
        assert {type(each).__name__ for each in outcomes} <= {"Message", "RoomOverloaded"}
        assert sum(not isinstance(each, ChatError) for each in outcomes) >= 30
        await asyncio.sleep(60)
        assert await chat.send_message("room 11", "alice", "hello")


@virtual
async def test_a_room_whose_send_is_in_its_middlewares_is_not_let_go_of() -> None:
    gate = Gate()
    async with Chat(idle_rooms_limit=2, middlewares=(gate,)) as chat:
        waiting = asyncio.create_task(chat.send_message("waits", "alice", "hello"))
        await asyncio.sleep(0.01)
        for number in range(20):
            await chat.join(f"room {number}", "bob")
            await chat.leave(f"room {number}", "bob")
        assert "waits" in there(chat)
        gate.open()
        assert (await waiting).offset == 1


@virtual
async def test_rooms_that_crash_do_not_take_places_for_ever() -> None:
    chat = CrashingChat(idle_rooms_limit=2)
    async with chat:
        for number in range(10):
            room_id = f"room {number}"
            chat.crash("publish: before", room_id, times=4)
            for _ in range(4):
                with pytest.raises(ChatError):
                    await chat.send_message(room_id, "alice", "hello")
        assert (await chat.send_message("fine", "alice", "hello")).offset == 1
