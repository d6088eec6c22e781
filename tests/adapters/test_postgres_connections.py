"""What waits for a connection to PostgreSQL, without one: attempts are shared, a lock can be let go of meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from chatx.adapters.postgres_connections import Attempt, WriterLock
from chatx.adapters.room_log import LogUnavailable


class Connection:
    """A connection on which every lock is free."""

    def __init__(self) -> None:
        self.closed = False

    async def fetchval(self, _statement: str) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.closed

    async def close(self, timeout: float) -> None:
        self.closed = True

    def terminate(self) -> None:
        self.closed = True


async def test_who_waits_for_an_attempt_gets_its_failure_and_who_comes_later_makes_another() -> None:
    tries = 0

    async def fails() -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0)
        raise LogUnavailable("away")

    attempt = Attempt()
    calls = [attempt.make(lambda: False, fails) for _ in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(each) for each in answers] == ["away"] * 5
    assert tries == 1
    with pytest.raises(LogUnavailable):
        await attempt.make(lambda: False, fails)
    assert tries == 2


async def test_a_lock_that_is_let_go_of_while_it_is_taken_again_is_not_held_afterwards() -> None:
    connections: list[Connection] = []
    reached = asyncio.Event()
    reached.set()

    async def connect() -> Connection:
        await reached.wait()
        connections.append(Connection())
        return connections[-1]

    lock = WriterLock(connect)
    assert await lock.take(0)
    connections[0].closed = True
    reached.clear()
    checking = asyncio.ensure_future(lock.check())
    await asyncio.sleep(0)
    await lock.let_go()
    reached.set()
    await asyncio.wait([checking])
    assert isinstance(checking.exception(), LogUnavailable)
    assert all(each.closed for each in connections)
