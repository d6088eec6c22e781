"""Rooms: begun on first use, forgotten when idle, and contained when they crash."""

import asyncio
import functools
from typing import Any

import pytest

from chatx import Chat, Closed, Gap, Message, RoomUnavailable
from chatx.runtime.process import RESTART_WINDOW_S, RESTARTS
from tests.faults import CrashingChat, Listener, Stored
from tests.virtual import virtual

IDLE_S = 60.0
"""The default `room_idle_ms`, and a second for the sweep."""


def rooms(chat: Chat) -> int:
    return chat.statistics().rooms


# Begun and forgotten


@virtual
async def test_a_room_begins_on_first_use_and_reading_about_it_is_no_use() -> None:
    async with Chat() as chat:
        assert await chat.presence("room") == {}
        assert await chat.history("room") == []
        await chat.leave("room", "alice")
        assert rooms(chat) == 0
        await chat.join("room", "alice")
        await chat.send_message("other", "alice", "hello")
        async with chat.subscribe("third"):
            assert rooms(chat) == 3


@virtual
async def test_an_idle_room_is_forgotten_and_its_next_life_is_a_new_epoch() -> None:
    forgotten: list[Any] = []
    async with Chat() as chat:
        chat.telemetry.attach("room_forgotten", lambda event, measurements, metadata: forgotten.append(metadata))
        first = await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(IDLE_S - 2)
        assert rooms(chat) == 1
        await asyncio.sleep(4)
        assert rooms(chat) == 0
        assert forgotten == [{"room_id": "room"}]
        second = await chat.send_message("room", "alice", "again")
        assert second.epoch != first.epoch
        assert second.offset == 1


@virtual
async def test_every_message_begins_the_idle_time_anew() -> None:
    async with Chat() as chat:
        epochs = set()
        for _ in range(10):
            epochs.add((await chat.send_message("room", "alice", "hello")).epoch)
            await asyncio.sleep(IDLE_S - 2)
        assert len(epochs) == 1


@pytest.mark.parametrize("held_by", ["member", "connection", "subscriber", "callback"])
@virtual
async def test_a_room_is_not_forgotten_while_it_is_held_but_a_while_after(held_by: str) -> None:
    async with Chat() as chat:
        connection = await chat.connect("alice").__aenter__()
        subscription = chat.subscribe("room")
        callback = chat.subscribe_callback("room", Listener())
        if held_by == "member":
            await chat.join("room", "alice")
        elif held_by == "connection":
            await connection.join("room")
        elif held_by == "subscriber":
            _ = await subscription
        else:
            _ = await callback
        await asyncio.sleep(10 * IDLE_S)
        assert rooms(chat) == 1
        await chat.leave("room", "alice")
        subscription.close()
        callback.close()
        connection.close()
        await asyncio.sleep(IDLE_S - 2)
        assert rooms(chat) == 1
        await asyncio.sleep(4)
        assert rooms(chat) == 0


@virtual
async def test_a_room_is_not_forgotten_while_a_send_is_in_its_middlewares() -> None:
    async def slow(draft: Any) -> Any:
        await asyncio.sleep(4 * IDLE_S)
        return draft

    async with Chat(middlewares=(slow,), adapter_timeout_ms=10_000_000) as chat:
        sending = asyncio.create_task(chat.send_message("room", "alice", "hello"))
        await asyncio.sleep(2 * IDLE_S)
        assert rooms(chat) == 1
        await sending
        await asyncio.sleep(IDLE_S + 2)
        assert rooms(chat) == 0


@virtual
async def test_a_room_with_unsaved_messages_is_not_forgotten() -> None:
    stored = Stored()
    stored.fail.add("save_messages")
    chat = Chat(persistence=stored, room_idle_ms=1000, delivery_max_retries=100, delivery_retry_base_ms=5000)
    async with chat:
        first = await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(30)
        assert rooms(chat) == 1
        assert stored.proven == {}
        stored.fail.clear()
        await asyncio.sleep(60)
        assert rooms(chat) == 0
        assert stored.proven == {"room": (first.epoch, 1)}


@virtual
async def test_many_idle_rooms_are_forgotten_though_one_is_held() -> None:
    async with Chat() as chat:
        for number in range(500):
            await chat.send_message(f"room {number}", "alice", "hello")
        await chat.join("room 0", "alice")
        await asyncio.sleep(IDLE_S + 2)
        assert rooms(chat) == 1
        await asyncio.sleep(5 * IDLE_S)
        assert chat.statistics().token_buckets == 0


@virtual
async def test_a_busy_room_does_not_keep_others_from_being_forgotten() -> None:
    async with Chat() as chat:
        for room in ("busy", "quiet"):
            await chat.send_message(room, "alice", "hello")
        for _ in range(8):
            await asyncio.sleep(10)
            await chat.send_message("busy", "alice", "hello")
        assert rooms(chat) == 1


# Persistence that knows where the stream stood


@virtual
async def test_a_stream_goes_on_where_persistence_proves_its_place() -> None:
    stored = Stored()
    async with Chat(persistence=stored) as chat:
        first = await chat.send_message("room", "alice", "one")
        await asyncio.sleep(IDLE_S + 2)
        assert rooms(chat) == 0
        second = await chat.send_message("room", "alice", "two")
        assert (second.epoch, second.offset) == (first.epoch, 2)
        assert stored.proven == {}, "while the room is open its place is not proven"
    assert stored.proven == {"room": (first.epoch, 2)}
    async with Chat(persistence=stored) as chat:
        third = await chat.send_message("room", "alice", "three")
        assert (third.epoch, third.offset) == (first.epoch, 3)
        async with chat.subscribe("room", after=first) as subscription:
            assert [(await anext(subscription)).content for _ in range(2)] == ["two", "three"]  # type: ignore[union-attr]


@virtual
async def test_a_dead_letter_is_a_hole_so_the_stream_does_not_go_on() -> None:
    stored = Stored()
    async with Chat(persistence=stored, delivery_max_retries=0) as chat:
        first = await chat.send_message("room", "alice", "saved")
        await asyncio.sleep(1)
        stored.fail.add("save_messages")
        await chat.send_message("room", "alice", "lost")
        await asyncio.sleep(1)
        stored.fail.clear()
    assert [each.message.content for each in chat.dead_letters] == ["lost"]
    assert stored.proven == {}
    async with Chat(persistence=stored) as chat:
        assert (await chat.send_message("room", "alice", "next")).epoch != first.epoch


@pytest.mark.parametrize("method", ["last_position", "mark_open"])
@pytest.mark.parametrize("fault", ["fail", "hang"])
@virtual
async def test_a_room_opens_in_a_new_epoch_where_persistence_fails_or_hangs(method: str, fault: str) -> None:
    stored = Stored()
    stored.proven["room"] = ("before", 7)
    getattr(stored, fault).add(method)
    loop = asyncio.get_running_loop()
    async with Chat(persistence=stored, adapter_timeout_ms=2000) as chat:
        began = loop.time()
        sends = [asyncio.create_task(chat.send_message("room", "alice", str(number))) for number in range(5)]
        await asyncio.sleep(0)
        messages = await asyncio.gather(*sends)
        assert [(each.content, each.offset) for each in messages] == [(str(n), n + 1) for n in range(5)]
        assert messages[0].epoch != "before"
        assert loop.time() - began == pytest.approx(2 if fault == "hang" else 0)


@pytest.mark.parametrize("answer", [(), ("e",), ("", 1), ("e", -1), ("e", True), (1, 1), "e1", 5])
@virtual
async def test_a_wrong_answer_of_last_position_means_a_new_epoch(answer: Any) -> None:
    stored = Stored()
    stored.proven["room"] = answer
    async with Chat(persistence=stored) as chat:
        message = await chat.send_message("room", "alice", "hello")
        assert message.offset == 1
        assert message.epoch != "e"


@virtual
async def test_whoever_comes_while_a_room_opens_waits_in_order_and_others_do_not() -> None:
    stored = Stored()
    stored.wait_ms = 1000
    loop = asyncio.get_running_loop()
    async with Chat(persistence=stored) as chat:
        sends = [asyncio.create_task(chat.send_message("room", "alice", str(number))) for number in range(3)]
        join = asyncio.create_task(chat.join("room", "bob"))
        subscription = chat.subscribe("room")
        opening = asyncio.create_task(subscription.__aenter__())
        await asyncio.sleep(0.5)
        impatient = asyncio.create_task(chat.send_message("room", "carol", "impatient"))
        await asyncio.sleep(0)
        impatient.cancel()
        late = asyncio.create_task(chat.send_message("room", "alice", "3"))
        messages = await asyncio.gather(*sends, late)
        await asyncio.gather(join, opening)
        assert loop.time() == 2.0, "last_position and mark_open, a second each"
        assert [each.offset for each in messages] == [1, 2, 3, 4]
        assert stored.calls.count("last_position") == 1
        assert list(await chat.presence("room")) == ["bob"]
        with pytest.raises(asyncio.CancelledError):
            await impatient
        subscription.close()


@virtual
async def test_a_room_that_is_used_while_it_is_being_forgotten_begins_after_its_end_was_recorded() -> None:
    stored = Stored()
    async with Chat(persistence=stored, room_idle_ms=1000) as chat:
        first = await chat.send_message("room", "alice", "one")
        await asyncio.sleep(0.9)
        stored.wait_ms = 300
        for _ in range(40):
            if rooms(chat) == 0:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.01)
        assert stored.calls[-1] == "mark_closed"
        second = await chat.send_message("room", "alice", "two")
        assert stored.calls.index("mark_closed") < len(stored.calls) - stored.calls[::-1].index("last_position") - 1
        assert (second.epoch, second.offset) == (first.epoch, 2)


@virtual
async def test_stopping_while_a_room_opens_refuses_whoever_waits_for_it() -> None:
    stored = Stored()
    stored.hang.add("last_position")
    chat = Chat(persistence=stored, adapter_timeout_ms=60_000, drain_timeout_ms=500)
    await chat.start()
    waiting = [
        asyncio.create_task(chat.send_message("room", "alice", "hello")),
        asyncio.create_task(chat.join("room", "bob")),
        asyncio.create_task(chat.subscribe("room").__aenter__()),
    ]
    await asyncio.sleep(0.1)
    await chat.stop()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results] == [Closed] * 3
    assert len(asyncio.all_tasks()) == 1


# Crashes

PUBLISHED = ["publish: after", "publish: recorded only"]


@pytest.mark.parametrize("place", ["publish: before", *PUBLISHED])
@virtual
async def test_a_crash_fails_one_send_and_subscribers_miss_nothing_and_get_nothing_twice(place: str) -> None:
    chat = CrashingChat()
    async with chat:
        live, callback, other = chat.subscribe("room"), Listener(), Listener()
        _ = await live
        _ = await callback.listen(chat, "room")
        _ = await other.listen(chat, "other")
        await chat.join("room", "alice")
        first = await chat.send_message("room", "alice", "one")
        chat.crash(place)
        with pytest.raises(RoomUnavailable) as caught:
            await chat.send_message("room", "alice", "crash", idempotency_key="k")
        assert caught.value.retryable
        assert "hunter2" not in str(caught.value)
        # The advice is to retry with the key: exactly one such message comes of it.
        again = await chat.send_message("room", "alice", "crash", idempotency_key="k")
        assert again.duplicate == (place in PUBLISHED)
        last = await chat.send_message("room", "alice", "two")
        await chat.send_message("other", "alice", "elsewhere")
        assert (last.epoch, last.offset) == (first.epoch, 3)
        assert callback.contents == ["one", "crash", "two"]
        assert [(await anext(live)).content for _ in range(3)] == ["one", "crash", "two"]  # type: ignore[union-attr]
        assert [each.content for each in await chat.history("room")] == ["one", "crash", "two"]
        assert list(await chat.presence("room")) == ["alice"]
        assert other.contents == ["elsewhere"]
        assert chat.statistics().room_crashes == 1
        assert chat.statistics().sent == 4
        assert callback.closed == []
        await asyncio.sleep(0)
        assert live.unread == 0


@pytest.mark.parametrize("place", ["flush: before", "flush: after"])
@virtual
async def test_a_crash_while_flushing_loses_and_doubles_nothing(place: str) -> None:
    chat = CrashingChat()
    async with chat:
        live = await chat.subscribe("room", presence=True)
        await anext(live)
        await chat.join("room", "alice")
        await chat.send_message("room", "alice", "one")
        chat.crash(place)
        await asyncio.sleep(0.01)
        await chat.send_message("room", "alice", "two")
        await asyncio.sleep(0.01)
        events = [await anext(live) for _ in range(live.unread)]
        assert [each.content for each in events if isinstance(each, Message)] == ["one", "two"]
        assert len(events) == 3, "and one diff of presence"
        assert chat.statistics().room_crashes == 1


@pytest.mark.parametrize("place", ["join: before", "join: after"])
@virtual
async def test_a_join_that_crashes_leaves_no_ghost(place: str) -> None:
    chat = CrashingChat()
    async with chat, chat.connect("bob") as connection:
        for join in (functools.partial(chat.join, "room", "alice"), functools.partial(connection.join, "room")):
            chat.crash(place)
            with pytest.raises(RoomUnavailable):
                await join()
        assert await chat.presence("room") == {}
        await chat.join("room", "alice")
        await connection.join("room")
        assert {user: len(metas) for user, metas in (await chat.presence("room")).items()} == {"alice": 1, "bob": 1}
        await chat.leave("room", "alice")
        await connection.leave("room")
        assert await chat.presence("room") == {}


@pytest.mark.parametrize("place", ["leave: before", "leave: after"])
@virtual
async def test_a_leave_that_crashes_leaves_no_ghost(place: str) -> None:
    chat = CrashingChat()
    async with chat:
        async with chat.connect("bob") as connection:
            await chat.join("room", "alice")
            await connection.join("room")
            chat.crash(place)
            await chat.leave("room", "alice")
            chat.crash(place)
        assert await chat.presence("room") == {}


@virtual
async def test_a_presence_reader_sees_each_change_once_across_a_crash() -> None:
    chat = CrashingChat()
    async with chat:
        listener = Listener()
        _ = await listener.listen(chat, "room", presence=True)
        await chat.join("room", "alice")
        chat.crash("publish: before")
        with pytest.raises(RoomUnavailable):
            await chat.send_message("room", "alice", "crash")
        await asyncio.sleep(0.01)
        await chat.leave("room", "alice")
        await asyncio.sleep(0.01)
        diffs: Any = listener.events[1:]
        assert [(list(each.joins), list(each.leaves)) for each in diffs] == [(["alice"], []), ([], ["alice"])]


@virtual
async def test_beyond_the_restart_intensity_the_room_closes_and_others_do_not_notice() -> None:
    chat = CrashingChat()
    crashed: list[Any] = []
    chat.telemetry.attach("room_crash", lambda event, measurements, metadata: crashed.append(metadata["closed"]))
    async with chat:
        callback, other = Listener(), Listener()
        live = await chat.subscribe("room")
        _ = await callback.listen(chat, "room")
        _ = await other.listen(chat, "other")
        connection = await chat.connect("carol").__aenter__()
        await connection.subscribe("room")
        await connection.subscribe("other")
        before = await chat.send_message("room", "alice", "read this first")
        await asyncio.sleep(0.01)
        chat.crash("publish: before", times=RESTARTS + 1)
        for _ in range(RESTARTS + 1):
            with pytest.raises(RoomUnavailable):
                await chat.send_message("room", "alice", "crash")
        assert crashed == [False] * RESTARTS + [True]
        assert callback.closed == ["room_unavailable"]
        assert (await anext(live)).content == "read this first"  # type: ignore[union-attr]
        with pytest.raises(RoomUnavailable, match="subscribe and send again"):
            await anext(live)
        assert chat.statistics().rooms_closed_by_crashes == 1

        # The room of that name begins anew; the other went on all the while.
        after = await chat.send_message("room", "alice", "a new life")
        assert (after.offset, after.epoch != before.epoch) == (1, True)
        async with chat.subscribe("room", after=before) as again:
            gap = await anext(again)
            assert isinstance(gap, Gap)
            assert gap.reason == "epoch_changed"
        await chat.send_message("other", "alice", "elsewhere")
        assert other.contents == ["elsewhere"]
        assert other.closed == []
        events = [await anext(connection) for _ in range(3)]
        assert [type(each).__name__ for each in events] == ["Message", "SubscriptionEnded", "Message"]
        connection.close()


@virtual
async def test_crashes_further_apart_than_the_window_never_close_the_room() -> None:
    chat = CrashingChat()
    async with chat, chat.subscribe("room") as subscription:
        for _ in range(4 * RESTARTS):
            chat.crash("publish: before")
            with pytest.raises(RoomUnavailable):
                await chat.send_message("room", "alice", "crash")
            await asyncio.sleep(RESTART_WINDOW_S / RESTARTS + 0.01)
        await chat.send_message("room", "alice", "alive")
        assert (await anext(subscription)).content == "alive"  # type: ignore[union-attr]
        assert chat.statistics().rooms_closed_by_crashes == 0


@virtual
async def test_a_room_that_cannot_be_rebuilt_closes_at_once() -> None:
    chat = CrashingChat()
    async with chat:
        callback = Listener()
        _ = await callback.listen(chat, "room")
        chat.crash("publish: before")
        chat.crash("rebuilt: before")
        with pytest.raises(RoomUnavailable):
            await chat.send_message("room", "alice", "crash")
        assert callback.closed == ["room_unavailable"]
        assert (await chat.send_message("room", "alice", "a new life")).offset == 1


@virtual
async def test_subscribing_to_a_room_that_closes_just_then_leaves_nothing_behind() -> None:
    chat = CrashingChat()
    async with chat, chat.connect("bob") as connection:
        await chat.join("room", "alice")
        chat.crash("publish: before", times=RESTARTS)
        for _ in range(RESTARTS):
            with pytest.raises(RoomUnavailable):
                await chat.send_message("room", "alice", "crash")
        # A change of presence is untold, so that subscribing flushes, which crashes the room once too often.
        chat.crash("flush: before")
        await chat.join("room", "bob")
        with pytest.raises(RoomUnavailable):
            _ = await chat.subscribe("room")
        assert chat.statistics().connections == 1
        await connection.subscribe("room")
        await chat.send_message("room", "alice", "hello")
        assert (await anext(connection)).content == "hello"  # type: ignore[union-attr]


@virtual
async def test_a_closed_room_never_harms_the_room_that_takes_its_name() -> None:
    """The dead room has no members: nothing holds it, yet it must not be swept in the other's place."""
    stored = Stored()
    chat = CrashingChat(persistence=stored)
    forgotten: list[Any] = []
    chat.telemetry.attach("room_forgotten", lambda *event: forgotten.append(event))
    async with chat:
        chat.crash("publish: before", times=RESTARTS + 1)
        for _ in range(RESTARTS + 1):
            with pytest.raises(RoomUnavailable):
                await chat.send_message("room", "alice", "crash")
        await chat.join("room", "bob")
        listener = Listener()
        _ = await listener.listen(chat, "room")
        first = await chat.send_message("room", "alice", "one")
        await asyncio.sleep(2 * IDLE_S)
        assert forgotten == []
        assert stored.proven == {}
        assert list(await chat.presence("room")) == ["bob"]
        second = await chat.send_message("room", "alice", "two")
        assert (second.epoch, second.offset) == (first.epoch, 2)
        assert listener.contents == ["one", "two"]


@virtual
async def test_what_crashed_after_it_was_published_is_delivered_like_any_other() -> None:
    stored = Stored()
    chat = CrashingChat(persistence=stored)
    async with chat:
        chat.crash("publish: after")
        with pytest.raises(RoomUnavailable):
            await chat.send_message("room", "alice", "published")
        chat.crash("publish: before")
        with pytest.raises(RoomUnavailable):
            await chat.send_message("room", "alice", "not published")
    assert [each.content for each in stored.rows.values()] == ["published"]


@virtual
async def test_sends_in_their_middlewares_survive_a_crash_of_the_room_and_keep_their_order() -> None:
    async def slow(draft: Any) -> Any:
        await asyncio.sleep(0.1)
        return draft

    chat = CrashingChat(middlewares=(slow,))
    async with chat:
        chat.crash("publish: before")
        results = await asyncio.gather(
            *(chat.send_message("room", "alice", str(number)) for number in range(5)), return_exceptions=True
        )
        assert isinstance(results[0], RoomUnavailable)
        assert [each.content for each in await chat.history("room")] == ["1", "2", "3", "4"]
        assert chat.statistics().admitted == 0


@virtual
async def test_a_send_cancelled_while_its_room_opens_does_not_take_the_room_along() -> None:
    stored = Stored()
    stored.wait_ms = 100
    async with Chat(persistence=stored) as chat:
        only = asyncio.create_task(chat.send_message("room", "alice", "cancelled"))
        await asyncio.sleep(0.05)
        only.cancel()
        message = await chat.send_message("room", "bob", "hello")
        assert message.offset == 1
        assert stored.calls.count("last_position") == 1
        assert chat.statistics().admitted == 0
