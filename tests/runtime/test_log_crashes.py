"""A room that crashes over a log: what it owed is written, and nothing is told or stored twice."""

import asyncio
import contextlib

import pytest

from chatx import Message, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.testing.faulty_log import FaultyLog, Script
from tests.faults import CrashingChat
from tests.logs import Bare, Gated
from tests.virtual import virtual


class Told:
    """A notifier that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def notify(self, user_id: str, message: Message) -> None:
        self.told.append((user_id, message.content))


@virtual
async def test_what_a_room_owed_when_it_crashed_too_often_is_written_ahead_of_its_next_life() -> None:
    log = Gated()
    async with CrashingChat(persistence=log, middlewares=(), adapter_timeout_ms=500) as chat:
        log.fails = True
        sent = [await chat.send_message("a", "ann", str(each)) for each in range(5)]
        await asyncio.sleep(1)
        for _ in range(4):
            chat.crash("publish: before", "a")
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "crash")
        later = await chat.send_message("a", "ann", "later")
        assert later.epoch != sent[0].epoch
        await asyncio.sleep(1)
        log.fails = False
        await asyncio.sleep(10)
        assert chat.dead_letters == ()
        contents = [each.entry.content for each in log.records("a")]
        assert contents[:5] == [str(each) for each in range(5)]
        assert contents[-1] == "later"


@pytest.mark.parametrize("place", ["publish: before", "publish: recorded only", "publish: after"])
@pytest.mark.parametrize("times", [1, 2, 4])
@virtual
async def test_the_notifier_is_told_once_of_what_is_stored_although_the_room_crashed_on_it(
    place: str, times: int
) -> None:
    notifier = Told()
    log = Bare(MemoryLog())  # what it has no outbox for waits in memory
    async with CrashingChat(persistence=log, notifier=notifier, middlewares=(), durability="stored") as chat:
        await chat.join("a", "bob")
        await chat.send_message("a", "ann", "first")
        chat.crash(place, "a", times=times)
        with contextlib.suppress(RoomUnavailable):
            await chat.send_message("a", "ann", "hi", idempotency_key="k")
        await asyncio.sleep(5)
        assert (await chat.send_message("a", "ann", "hi", idempotency_key="k")).duplicate
        await asyncio.sleep(5)
    assert notifier.told == [("bob", "first"), ("bob", "hi")]


@virtual
async def test_a_repeat_of_what_is_not_settled_waits_for_that_also_where_the_room_was_closed_by_crashes() -> None:
    log = FaultyLog(MemoryLog())
    async with CrashingChat(persistence=log, middlewares=(), adapter_timeout_ms=500) as chat:
        await chat.send_message("a", "ann", "first", durability="stored")
        log.choose = Script(append=["hang"], take_over=["unavailable"] * 4)
        with pytest.raises(RoomUnavailable):
            await chat.send_message("a", "ann", "once", durability="stored", idempotency_key="k")
        chat.crash("join: before", "a", times=4)
        for _ in range(4):
            with pytest.raises(RoomUnavailable):
                await chat.join("a", "bob")
        await chat.join("a", "bob")
        await chat.send_message("a", "bob", "in the next life")
        with contextlib.suppress(RoomUnavailable):
            await chat.send_message("a", "ann", "once", idempotency_key="k")
        await log.release()
        await asyncio.sleep(30)
        with contextlib.suppress(RoomUnavailable):
            await chat.send_message("a", "ann", "once", idempotency_key="k")
        await asyncio.sleep(30)
        assert chat.dead_letters == ()
        kept = [each.entry.content for each in memory(log).records("a")]
        assert sorted(kept) == ["first", "in the next life", "once"]


def memory(log: FaultyLog) -> MemoryLog:
    """Return the log in memory that is behind one that fails."""
    assert isinstance(log._log, MemoryLog)
    return log._log
