"""Retention in PostgreSQL, beside the log in memory, which says what goes and what stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest

from chatx import Message, Position
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import Outcome
from chatx.adapters.postgres_log import PostgresLog
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import Append, Recipients, Record
from tests.postgres import Postgres

pytestmark = pytest.mark.process

NEVER = 2**62


@pytest.fixture
async def log(postgres: Postgres) -> AsyncIterator[PostgresLog]:
    log = PostgresLog(postgres.new_database(), timeout_ms=20_000)
    yield log
    await log.close()


def message(room_id: str, epoch: str, offset: int, at: int) -> Message:
    return Message(f"{room_id}-{epoch}-{offset}", room_id, "ada", "hello", at, epoch, offset)


@pytest.mark.parametrize("seed", range(30))
async def test_it_lets_go_of_what_memory_lets_go_of(log: PostgresLog, seed: int) -> None:
    random = Random(seed)
    memory = MemoryLog()
    rooms = ["a", "b", "ü"]
    at = 0
    for room_id in rooms:
        assert (await log.take_over(room_id)).term == (await memory.take_over(room_id)).term
        epoch = offset = 0
        for _ in range(random.randrange(14)):
            begins = not offset or random.random() < 0.2
            epoch, offset, at = (epoch + 1, 1, at) if begins else (epoch, offset + 1, at)
            at += random.randrange(8)
            record = Record(
                message(room_id, f"e{epoch}", offset, at), f"{at}-{offset}" if random.random() < 0.2 else None
            )
            append = Append(room_id, 1, Position(f"e{epoch}", offset - 1), (record,), durable=False)
            assert await log.append([append]) == await memory.append([append]) == [None]
    assert await log.list_rooms("", 10) == await memory.list_rooms("", 10)
    for _ in range(6):
        keys_spared = random.randrange(at + 2)
        retention = Retention(
            random.choice([None, random.randrange(at + 2)]),
            random.choice([None, random.randrange(1, 10)]),
            random.randrange(keys_spared, at + 2),
            keys_spared,
        )
        limit = random.randrange(1, 8)
        gone = await memory.trim(rooms, retention, limit)
        assert await log.trim([*rooms, "nobody"], retention, limit) == gone <= limit
        for room_id in rooms:
            assert await log.read(room_id, limit=100) == await memory.read(room_id, limit=100)
            opened, same = await log.look(room_id), await memory.look(room_id)
            assert (opened.head, opened.oldest, opened.proven) == (same.head, same.oldest, same.proven)
            for epoch in range(1, 8):
                places = {"after": Position(f"e{epoch}", 0)}, {"before": Position(f"e{epoch}", 3)}
                for place in places:
                    found = await log.read(room_id, limit=100, **place)
                    assert found == await memory.read(room_id, limit=100, **place)


async def test_what_the_notifier_is_still_to_be_told_of_stays_until_it_was(log: PostgresLog) -> None:
    retention = Retention(NEVER, None, NEVER, NEVER)
    await log.take_over("room")
    records = tuple(
        Record(message("room", "e", offset, 1), None, Recipients(("bob",), 0) if offset == 3 else None)
        for offset in range(1, 6)
    )
    assert await log.append([Append("room", 1, Position("e", 0), records, durable=False)]) == [None]
    assert await log.trim(["room"], retention, 100) == 2
    (claimed,) = await log.claim_notifications("worker", 10, 1, 2)
    assert claimed.entry == records[2].entry
    assert await log.trim(["room"], retention, 100) == 0
    await log.settle_notifications("worker", [Outcome(claimed.notification.id, "dead", ("bob",), 5, 0, "raised")])
    assert await log.trim(["room"], retention, 100) == 3


async def test_rooms_are_listed_in_the_order_of_their_bytes_without_those_in_which_nothing_was_said(
    log: PostgresLog,
) -> None:
    for room_id in ("b", "ä", "B", "silent", "\U0001f600", "a"):
        await log.take_over(room_id)
        if room_id != "silent":
            entry = message(room_id, "e", 1, 1)
            await log.append([Append(room_id, 1, Position("e", 0), (Record(entry),), durable=False)])
    assert await log.list_rooms("", 3) == ["B", "a", "b"]
    assert await log.list_rooms("b", 9) == ["ä", "\U0001f600"]
