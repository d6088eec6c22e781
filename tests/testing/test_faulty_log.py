"""`FaultyLog`: each fault does to the log and to the caller what its table says."""

import asyncio
from random import Random

import pytest

from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import FENCED, Append, LogUnavailable, Record
from chatx.core.message import Message, Position
from chatx.testing.faulty_log import Chance, FaultyLog, LogBroken, Script
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
