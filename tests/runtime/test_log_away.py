"""A log that is away: it is tried again, ever less often, and nothing is lost meanwhile."""

import asyncio
from typing import Any

import pytest

from chatx import RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.testing.faulty_log import FaultyLog, Script
from tests.logs import chat_on
from tests.virtual import virtual


@virtual
async def test_a_stop_tries_a_log_that_is_away_now_and_then_and_once_more_at_once() -> None:
    log = FaultyLog(MemoryLog(), lambda method: "unavailable" if method == "append" else "ok")
    chat = chat_on(log, drain_timeout_ms=3000)
    loop = asyncio.get_running_loop()
    async with chat:
        await chat.send_message("a", "ann", "hi")
        await asyncio.sleep(60)
        before = len(log.calls)
        began = loop.time()
    assert 2.5 < loop.time() - began < 4
    assert 1 <= len(log.calls) - before < 40
    assert [each.reason for each in chat.dead_letters] == ["stopped"]


@virtual
async def test_a_stop_writes_what_is_left_where_the_log_is_back() -> None:
    log = FaultyLog(MemoryLog(), lambda method: "unavailable" if method == "append" else "ok")
    chat = chat_on(log, drain_timeout_ms=1000)
    async with chat:
        await chat.send_message("a", "ann", "hi")
        await asyncio.sleep(60)
        log.choose = Script()
    assert chat.dead_letters == ()


@virtual
async def test_a_stream_of_which_all_was_stored_goes_on_although_the_log_was_away_at_the_first_send() -> None:
    log = FaultyLog(MemoryLog())
    async with chat_on(log, durability="stored") as chat:
        first = await chat.send_message("a", "ann", "1")
    async with chat_on(log, durability="stored", adapter_timeout_ms=1000) as chat:
        for fault in ("unavailable", "hang"):
            log.choose = lambda _, fault=fault: fault  # type: ignore[misc]
            began = asyncio.get_running_loop().time()
            with pytest.raises(RoomUnavailable) as caught:
                await chat.send_message("a", "ann", "away")
            assert caught.value.retryable
            assert asyncio.get_running_loop().time() - began <= 1.1
        log.choose = Script()
        await log.release()
        second = await chat.send_message("a", "ann", "2")
        assert (second.epoch, second.offset) == (first.epoch, 2)


@pytest.mark.parametrize("fault", ["lost", "unavailable"])
@virtual
async def test_a_log_that_reads_and_does_not_write_is_tried_ever_less_often(fault: Any) -> None:
    log = FaultyLog(MemoryLog(), lambda method: fault if method == "append" else "ok")
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "hi")
        await asyncio.sleep(60)
        assert 10 < len(log.calls) < 120
        stores = [chat.engine.store]
        log.choose = Script()
        await asyncio.sleep(6)
        stores.append(chat.engine.store)
        assert stores == ["away", "ok"]
        assert chat.dead_letters == ()
