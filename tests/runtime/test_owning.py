"""Who may place a room's entries over a log, what keys it knows, and what a log that fails leaves of both."""

import asyncio
from typing import Any

import pytest

from chatx import AdapterError, Chat, ChatError, Gap, Message, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Opened
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.process import RESTARTS
from chatx.runtime.rooms import FENCED_S
from chatx.testing.faulty_log import FaultyLog, Script
from tests.faults import CrashingChat
from tests.logs import chat_on
from tests.virtual import turns, virtual


def contents(log: MemoryLog, room_id: str) -> list[str]:
    return [each.entry.content for each in log.records(room_id)]


@virtual
async def test_what_waited_behind_a_stored_message_is_written_with_it_and_not_again() -> None:
    log = MemoryLog()
    slow = FaultyLog(log, Script(append=["slow"]), slow_s=0.1)
    async with chat_on(slow) as chat:
        sends = [chat.send_message("a", "ann", "0", durability="stored")]
        sends += [chat.send_message("a", f"u{each}", str(each)) for each in range(1, 4)]
        await asyncio.gather(*sends)
        await asyncio.sleep(5)
        assert chat.statistics().delivery_waiting == 0
        await chat.send_message("a", "ann", "4")
    assert contents(log, "a") == ["0", "1", "2", "3", "4"]
    assert chat.dead_letters == ()


@virtual
async def test_a_proof_that_stands_is_withdrawn_before_anything_unstored_is_seen_in_an_epoch_begun_here_too() -> None:
    log = MemoryLog()
    chat = chat_on(FaultyLog(log, Script(unproven=["unavailable"])))
    await chat.start()
    first = await chat.send_message("a", "ann", "1", durability="stored")
    with pytest.raises(AdapterError):
        await chat.send_message("a", "ann", "refused")
    second = await chat.send_message("a", "ann", "2")
    assert second.offset == 2
    # It is killed.
    async with chat_on(log) as again:
        assert (await again.send_message("a", "ann", "3")).epoch != first.epoch
    await chat.stop(drain_timeout_ms=1)


@pytest.mark.parametrize("durability", ["stored", "sequenced"])
@virtual
async def test_a_key_answers_across_a_crash_where_the_log_was_away_when_the_room_was_opened(durability: Any) -> None:
    log = MemoryLog()
    chat = chat_on(log, durability="stored")
    await chat.start()
    first = await chat.send_message("a", "ann", "hi", idempotency_key="k")
    async with chat_on(FaultyLog(log, Script(look=["unavailable"]))) as again:
        await again.join("a", "bob")  # begins a new stream, since nobody knows where the room stood
        await again.send_message("a", "bob", "new", durability="stored")
        repeat = await again.send_message("a", "ann", "hi", idempotency_key="k", durability=durability)
        assert (repeat.id, repeat.duplicate) == (first.id, True)
    assert contents(log, "a") == ["hi", "new"]
    await chat.stop(drain_timeout_ms=1)


@pytest.mark.parametrize("durability", ["stored", "sequenced"])
@virtual
async def test_what_is_to_be_stored_begins_no_new_stream_for_a_log_that_is_away(durability: Any) -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as chat:
        first = await chat.send_message("a", "ann", "1")
    async with chat_on(FaultyLog(log, Script(look=["unavailable", "unavailable"])), durability=durability) as chat:
        with pytest.raises(RoomUnavailable, match="nothing was sent"):
            await chat.send_message("a", "ann", "2", durability="stored")
        if durability == "stored":
            with pytest.raises(AdapterError):
                await chat.join("a", "bob")
        else:
            with pytest.raises(RoomUnavailable, match="nothing was sent"):
                await chat.send_message("a", "ann", "2", idempotency_key="k")
        second = await chat.send_message("a", "ann", "2", durability="stored")
    assert (second.epoch, second.offset) == (first.epoch, 2)


def kept_of_rooms(chat: Chat) -> dict[str, Any]:
    """Return what the chat keeps of rooms for its log."""
    engine = chat._engine
    assert engine is not None
    assert isinstance(engine.storage, LogStorage)
    kept = {name: value for name, value in vars(engine.storage).items() if isinstance(value, dict) and value}
    return kept | ({"_left": engine.rooms._left} if engine.rooms._left else {})


@virtual
async def test_nothing_is_kept_of_a_room_that_crashed_too_often_once_the_log_has_what_was_said_there() -> None:
    log = MemoryLog()
    faulty = FaultyLog(log)
    chat = CrashingChat(persistence=faulty, middlewares=(), idempotency_bytes=10**6)
    async with chat:
        first = await chat.send_message("room", "ann", "1", idempotency_key="k")
        await asyncio.sleep(1)
        faulty.choose = lambda method: "unavailable"
        await chat.send_message("room", "ann", "2")
        chat.crash("publish: before", times=RESTARTS + 1)
        for _ in range(RESTARTS + 1):
            with pytest.raises(RoomUnavailable):
                await chat.send_message("room", "ann", "crash")
        assert chat.statistics().rooms_closed_by_crashes == 1
        await asyncio.sleep(30)
        assert "_terms" in kept_of_rooms(chat)  # what was said there is to be written under it
        faulty.choose = lambda method: "ok"
        await asyncio.sleep(30)
        assert contents(log, "room") == ["1", "2"]
        assert kept_of_rooms(chat) == {}
        again = await chat.send_message("room", "ann", "3")
        assert (again.epoch != first.epoch, again.offset) == (True, 1)
        await asyncio.sleep(90)  # it is forgotten
        assert kept_of_rooms(chat) == {}
    assert contents(log, "room") == ["1", "2", "3"]


@virtual
async def test_nothing_is_kept_of_a_room_that_was_gone_when_it_was_taken_over() -> None:
    faulty = FaultyLog(MemoryLog(), slow_s=2.0)
    chat = CrashingChat(persistence=faulty, middlewares=())
    async with chat:
        await chat.send_message("room", "ann", "1")
        await asyncio.sleep(90)  # it is forgotten
        faulty.choose = lambda method: "slow" if method == "take_over" else "ok"
        await chat.join("room", "ann")
        sending = asyncio.ensure_future(chat.send_message("room", "ann", "2"))
        await asyncio.sleep(1)
        chat.crash("join: before", times=RESTARTS + 1)
        for _ in range(RESTARTS + 1):
            with pytest.raises(RoomUnavailable):
                await chat.join("room", "bob")
        assert chat.statistics().rooms_closed_by_crashes == 1
        with pytest.raises(RoomUnavailable):
            await sending
        await asyncio.sleep(10)
        assert kept_of_rooms(chat) == {}


@virtual
async def test_a_room_that_somebody_else_has_is_closed_when_its_proof_is_to_be_withdrawn() -> None:
    log = MemoryLog()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "1", durability="stored")
        await log.take_over("a")
        with pytest.raises(RoomUnavailable, match="somebody else's"):
            await chat.send_message("a", "ann", "2")
        await asyncio.sleep(FENCED_S)
        assert (await chat.send_message("a", "ann", "2")).offset == 2


@virtual
async def test_a_stop_tries_a_log_that_is_away_at_once_and_then_in_its_time() -> None:
    log = FaultyLog(MemoryLog(), lambda method: "unavailable" if method == "append" else "ok")
    async with chat_on(log, drain_timeout_ms=20_000) as chat:
        await chat.send_message("a", "ann", "1")
        await asyncio.sleep(1)
        tried = len(log.calls)
    assert 1 <= len(log.calls) - tried <= 30
    assert [each.reason for each in chat.dead_letters] == ["stopped"]


@virtual
async def test_a_withdrawal_of_which_nothing_is_known_is_made_good_by_a_clean_stop() -> None:
    log = MemoryLog()
    async with chat_on(FaultyLog(log, Script(unproven=["lost answer"]))) as chat:
        first = await chat.send_message("a", "ann", "1", durability="stored")
        with pytest.raises(AdapterError):
            await chat.send_message("a", "ann", "refused")
    async with chat_on(log) as again:
        assert (await again.send_message("a", "ann", "2")).epoch == first.epoch


@pytest.mark.parametrize("written", [False, True])
@virtual
async def test_a_batch_is_not_written_again_where_another_chat_may_have_shown_its_places(written: bool) -> None:
    log = MemoryLog()
    script = Script()
    line = FaultyLog(log, script)
    chat = chat_on(line)
    await chat.start()
    await chat.send_message("a", "ann", "1", durability="stored")
    script.then("append", "lost answer" if written else "lost")
    script.then("take_over", "unavailable", "unavailable", "unavailable")
    sending = asyncio.ensure_future(chat.send_message("a", "ann", "2", durability="stored"))
    await turns(30)
    slow = FaultyLog(log, Script(append=["hang"]))
    async with chat_on(slow) as other:
        shown = await other.send_message("a", "bob", "3")
        assert shown.offset == (3 if written else 2)
        await asyncio.wait((sending,))
        await slow.release()
        await asyncio.sleep(FENCED_S)
        if written:
            assert (await sending).offset == 2
        else:
            assert isinstance(sending.exception(), RoomUnavailable)
        places = [(each.entry.epoch, each.entry.offset) for each in log.records("a")]
        assert (shown.epoch, shown.offset) not in places or shown.content in contents(log, "a")
        later = await chat.send_message("a", "ann", "4")
        assert (later.epoch, later.offset) != (shown.epoch, shown.offset)
    await chat.stop()


@virtual
async def test_a_stream_that_another_chat_has_begun_since_a_room_was_opened_is_the_one_to_go_on_in() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as one, chat_on(log, durability="stored") as other:
        await other.join("a", "bob")
        first = await one.send_message("a", "ann", "1")
        closed: list[ChatError] = []
        seen: list[Any] = []
        async with one.subscribe_callback("a", seen.append, after=(first.epoch, 0), on_closed=closed.append):
            with pytest.raises(RoomUnavailable):
                await other.send_message("a", "bob", "2")
            await asyncio.sleep(FENCED_S)
            second = await other.send_message("a", "bob", "2")
        assert (second.epoch, second.offset) == (first.epoch, 2)
        assert [each for each in seen if isinstance(each, Message | Gap)] == [first]


@virtual
async def test_a_key_that_only_the_log_knows_is_asked_for_although_nothing_has_to_be_awaited() -> None:
    log = MemoryLog()
    chat = chat_on(log, durability="stored")
    await chat.start()
    first = await chat.send_message("a", "ann", "hi", idempotency_key="k")
    async with chat_on(FaultyLog(log, Script(look=["unavailable"]))) as again:
        await again.send_message("a", "bob", "new")  # in a new stream, at once
        repeat = await again.send_message("a", "ann", "hi", idempotency_key="k")
        assert (repeat.id, repeat.duplicate) == (first.id, True)
    assert contents(log, "a") == ["hi", "new"]
    await chat.stop(drain_timeout_ms=1)


@virtual
async def test_a_key_under_which_another_chat_has_written_since_the_room_was_opened_answers() -> None:
    log = MemoryLog()
    line = FaultyLog(log, Script(append=["hang"]))
    chat = chat_on(line)
    await chat.start()
    first = await chat.send_message("a", "ann", "hi", idempotency_key="k")
    await asyncio.sleep(1)  # it is on its way to the log
    async with chat_on(log) as again:
        await again.join("a", "bob")
        await line.release()
        repeat = await again.send_message("a", "ann", "hi", idempotency_key="k")
        assert (repeat.id, repeat.duplicate) == (first.id, True)
    assert contents(log, "a") == ["hi"]
    await chat.stop(drain_timeout_ms=1)


@virtual
async def test_a_room_whose_proof_another_chat_has_withdrawn_since_it_was_opened_is_not_gone_on_in() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as before:
        await before.send_message("a", "ann", "1")
    slow = FaultyLog(log, Script(append=["hang"]))
    async with chat_on(log) as other, chat_on(slow) as one:
        await other.join("a", "bob")
        shown = await one.send_message("a", "ann", "2")  # seen, and not in the log yet
        with pytest.raises(RoomUnavailable):
            await other.send_message("a", "bob", "3", durability="stored")
        await slow.release()
        await asyncio.sleep(FENCED_S)
        later = await other.send_message("a", "bob", "3", durability="stored")
        assert (later.epoch, later.offset) != (shown.epoch, shown.offset)


@virtual
async def test_a_batch_that_another_chat_has_gone_on_behind_is_acknowledged_and_then_the_room_is_theirs() -> None:
    log = MemoryLog()
    script = Script(append=["ok", "lost answer"], take_over=["ok", "unavailable", "unavailable"])
    async with chat_on(FaultyLog(log, script), durability="stored") as chat:
        await chat.send_message("a", "ann", "1")
        sending = asyncio.ensure_future(chat.send_message("a", "ann", "2"))
        await turns(30)
        async with chat_on(log, durability="stored") as other:
            assert (await other.send_message("a", "bob", "3")).offset == 3
        assert (await sending).offset == 2
        with pytest.raises(RoomUnavailable, match="somebody else's"):
            await chat.send_message("a", "ann", "4")
    assert contents(log, "a") == ["1", "2", "3"]


@virtual
async def test_a_new_stream_is_not_begun_behind_what_another_chat_has_written_meanwhile() -> None:
    log = MemoryLog()
    script = Script(append=["lost"], take_over=["ok", "unavailable", "unavailable"])
    async with chat_on(FaultyLog(log, script)) as chat:
        first = await chat.send_message("a", "ann", "hi", idempotency_key="k")
        await asyncio.sleep(0.15)
        async with chat_on(log, durability="stored") as other:
            second = await other.send_message("a", "ann", "hi", idempotency_key="k")
            assert second.epoch != first.epoch
            await asyncio.sleep(5)
        assert [each.reason for each in chat.dead_letters] == ["fenced"]
    assert contents(log, "a") == ["hi"]


class LateTakeOver(MemoryLog):
    """A log whose first take-over is answered by nobody and done all the same, when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.late = asyncio.Event()
        self.calls = 0

    async def take_over(self, room_id: str, /) -> Opened:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionResetError("perhaps")
        return await super().take_over(room_id)

    async def lands(self, room_id: str) -> None:
        await super().take_over(room_id)


@pytest.mark.parametrize("durability", ["stored", "sequenced"])
@virtual
async def test_a_take_over_of_ours_that_comes_late_closes_no_room(durability: Any) -> None:
    log = LateTakeOver()
    async with chat_on(log) as chat:
        if durability == "stored":
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "0", durability=durability)
            assert (await chat.send_message("a", "ann", "1", durability=durability)).offset == 1
        else:
            assert (await chat.send_message("a", "ann", "1")).offset == 1
        await asyncio.sleep(10)
        assert log.calls > 1
        await log.lands("a")
        if durability == "stored":
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "2", durability=durability)
        assert (await chat.send_message("a", "ann", "2", durability=durability)).offset == 2
        await asyncio.sleep(10)
        assert chat.dead_letters == ()
        assert [each.entry.content for each in log.records("a")] == ["1", "2"]
        # It is doubted once: whoever takes the room over then is somebody else.
        await log.lands("a")
        with pytest.raises(RoomUnavailable, match="somebody else"):
            await chat.send_message("a", "ann", "3", durability="stored")


@virtual
async def test_a_room_that_somebody_has_taken_over_closes_before_anything_unstored_is_said() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "1")
        closed: list[ChatError] = []
        async with chat.subscribe_callback("a", print, on_closed=closed.append):
            await log.take_over("a")
            with pytest.raises(ChatError):
                await chat.send_message("a", "ann", "2", durability="sequenced")
            assert [each.code for each in closed] == ["room_unavailable"]
        await asyncio.sleep(6)
        assert (await chat.send_message("a", "ann", "3", durability="sequenced")).offset == 2


@virtual
async def test_ten_thousand_rooms_that_another_chat_takes_are_closed_within_linear_work() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as chat:
        rooms = chat.engine.rooms
        for each in range(10_000):
            rooms._fenced[str(each)] = asyncio.get_running_loop().time() + 5
        await chat.send_message("a", "ann", "1")
        process = rooms.find("a")
        assert process is not None

        class Counted(dict[str, float]):
            looked = 0

            def items(self) -> Any:
                for each in super().items():
                    Counted.looked += 1
                    yield each

        rooms._fenced = Counted(rooms._fenced)
        rooms.fenced(process)
        assert Counted.looked <= 2
        await asyncio.sleep(6)
        await chat.send_message("b", "ann", "1")
        other = rooms.find("b")
        assert other is not None
        rooms.fenced(other)
        assert list(rooms._fenced) == ["b"]
