"""`FaultyLog`: each fault does to the log and to the caller what its table says."""

import asyncio
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import has_outbox
from chatx.adapters.retention import Retention, trims
from chatx.adapters.room_log import FENCED, Append, LogUnavailable, Recipients, Record
from chatx.core.message import Message, Position
from chatx.testing import check_room_log
from chatx.testing.faulty_log import Chance, FaultyLog, LogBroken, Script
from tests.logs import Bare
from tests.virtual import virtual

FIRST = Message("id", "room", "alice", "hello", 1, "e", 1)
APPEND = [Append("room", 1, Position("e", 0), (Record(FIRST, "key"),), True)]


async def there(log: MemoryLog) -> int:
    return len((await log.read("room", limit=9)).entries)


@virtual
async def test_a_log_without_faults_does_what_it_is_asked() -> None:
    log = FaultyLog(MemoryLog())
    assert (await log.take_over("room")).term == 1
    assert await log.unproven("room", 1, Position("e", 0))
    assert await log.append(APPEND) == [None]
    assert (await log.read("room", limit=1)).entries == (FIRST,)
    assert await log.find("room", "alice", "key") == FIRST
    assert await log.close_rooms({"room": (1, Position("e", 1))}) == {"room": True}
    assert [method for method, fault in log.calls if fault == "ok"] == [
        *("take_over", "unproven", "append", "read", "find", "close_rooms")
    ]


@virtual
async def test_each_fault_does_what_the_table_says() -> None:
    inner = MemoryLog()
    await inner.take_over("room")
    script = Script(append=["unavailable", "lost"])
    log = FaultyLog(inner, script)
    with pytest.raises(LogUnavailable):
        await log.append(APPEND)
    with pytest.raises(LogBroken):
        await log.append(APPEND)
    assert await there(inner) == 0
    script.then("append", "lost answer", "slow", "fenced")
    with pytest.raises(LogBroken):
        await log.append(APPEND)
    assert await there(inner) == 1
    began = asyncio.get_running_loop().time()
    assert await log.append(APPEND) == [None]
    assert asyncio.get_running_loop().time() == began + 1
    assert await log.append(APPEND) == [FENCED]
    assert (await inner.take_over("room")).term == 3


@virtual
async def test_it_has_an_outbox_and_retention_where_the_log_has_them_and_they_fail_likewise() -> None:
    await check_room_log(lambda: FaultyLog(MemoryLog()))
    log: Any = FaultyLog(MemoryLog(), Script(trim=["fenced"], claim_notifications=["unavailable", "lost answer"]))
    assert has_outbox(log)
    assert trims(log)
    assert (await log.take_over("room")).term == 1
    assert await log.append([replace(APPEND[0], records=(Record(FIRST, None, Recipients(("bob",))),))]) == [None]
    with pytest.raises(LogUnavailable):
        await log.claim_notifications("me", 9, 1, 2)
    assert [each.state for each in await log.list_notifications(None, None, 9)] == ["waiting"]
    with pytest.raises(LogBroken):
        await log.claim_notifications("me", 9, 1, 2)
    assert [each.state for each in await log.list_notifications(None, None, 9)] == ["claimed"]
    assert await log.list_rooms("", 9) == ["room"]
    assert await log.trim(["room"], Retention(None, 1, 0, 0), 9) == 0
    assert (await log.take_over("room")).term == 3
    assert ("trim", "fenced") in log.calls

    bare: Any = FaultyLog(Bare(MemoryLog()))  # type: ignore[arg-type]  # its methods are set, not written
    assert not has_outbox(bare)
    assert not trims(bare)
    with pytest.raises(AttributeError, match="'FaultyLog' object has no attribute 'trim'"):
        _ = bare.trim


@virtual
async def test_what_hangs_is_done_when_it_is_released_though_nobody_waits_any_more() -> None:
    inner = MemoryLog()
    await inner.take_over("room")
    log = FaultyLog(inner, Script(append=["hang", "hang"]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(log.append(APPEND), 1)
    waiting = asyncio.ensure_future(log.append(APPEND))
    await asyncio.sleep(5)
    assert (await there(inner), log.waiting) == (0, 2)
    await log.release()
    assert (await there(inner), log.waiting, await waiting) == (1, 0, [None])
    await log.release()


def test_a_seed_draws_the_same_faults_and_about_as_many_as_it_should() -> None:
    one, other = (Chance(Random(7), 30, ["lost", "slow"]) for _ in range(2))
    assert [one("read") for _ in range(100)] == [other("read") for _ in range(100)]
    chance = Chance(Random(1), 30, ["lost", "slow"])
    faults = [chance("append") for _ in range(1000)]
    assert 200 < sum(each != "ok" for each in faults) < 400
    assert {*faults} == {"ok", "lost", "slow"}
