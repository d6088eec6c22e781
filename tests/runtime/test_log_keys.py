"""Idempotency keys over a log that is late or away: a repeat gets the first answer, and a key is free again."""

import asyncio

import pytest

from chatx import Message
from chatx.adapters.memory_log import MemoryLog
from tests.logs import Gated, chat_on
from tests.virtual import turns, virtual


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("steps", range(12))
@virtual
async def test_a_key_whose_sender_goes_at_any_moment_is_usable_again_and_leaves_nothing(
    steps: int, fails: bool
) -> None:
    log = Gated()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "first")
        log.gate.clear()
        log.fails = fails
        sending = asyncio.ensure_future(chat.send_message("a", "ann", "hi", idempotency_key="k"))
        await turns()
        log.gate.set()
        await turns(steps)
        sending.cancel()
        await asyncio.wait([sending])
        await asyncio.sleep(5)
        log.fails = False
        committing = chat.engine.delivery.committing
        assert committing is not None
        assert not committing.senders._left
        assert (await chat.send_message("a", "ann", "hi", idempotency_key="k")).offset == 2
        assert [each.entry.content for each in log.records("a")] == ["first", "hi"]


@virtual
async def test_a_repeat_is_answered_with_the_data_of_the_first() -> None:
    for log in (None, MemoryLog()):
        async with chat_on(log) as chat:
            first = await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
            same = await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
            other = await chat.send_message("a", "ann", "hi", data={"n": 2}, idempotency_key="k")
            bare = await chat.send_message("a", "ann", "hi", idempotency_key="k")
            assert {each.id for each in (same, other, bare)} == {first.id}
            assert [each.data for each in (first, same, other, bare)] == [{"n": 1}] * 4
    # Memory has let go of it.
    async with chat_on(MemoryLog(), history_size=1) as chat:
        await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
        await chat.send_message("a", "ann", "next")
        await asyncio.sleep(1)
        other = await chat.send_message("a", "ann", "hi", idempotency_key="k")
        assert other.data == {"n": 1}
    # A first one without data stays without.
    async with chat_on(None) as chat:
        await chat.send_message("a", "ann", "hi", idempotency_key="k")
        assert (await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")).data is None


@virtual
async def test_a_repeat_after_a_crash_is_found_also_behind_a_thousand_other_keys() -> None:
    log = MemoryLog()
    before = chat_on(log)
    await before.start()
    first = await before.send_message("a", "ann", "hi", idempotency_key="mine", durability="stored")
    for number in range(1100):
        await before.send_message("a", "bob", "x", idempotency_key=str(number))
    await asyncio.sleep(1)
    async with chat_on(log) as chat:
        await chat.join("a", "bob")
        await chat.send_message("a", "bob", "x")
        repeat = await chat.send_message("a", "ann", "hi", idempotency_key="mine")
        assert (repeat.id, repeat.duplicate) == (first.id, True)
        # Whatever was said before this life is past its window now: nothing needs to be asked any more.
        await asyncio.sleep(301)
        assert isinstance(chat.engine.send_at_once("a", "bob", "y", "new"), Message)
    await before.stop(drain_timeout_ms=1)


@virtual
async def test_a_repeat_that_says_something_else_gets_what_is_owed_beyond_the_history_too() -> None:
    log = Gated()
    log.fails = True
    async with chat_on(log, history_size=1) as chat:
        first = await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
        await chat.send_message("a", "ann", "next")
        other = await chat.send_message("a", "ann", "other", idempotency_key="k")
        assert (other.id, other.content, other.data) == (first.id, "hi", {"n": 1})
        log.fails = False
