"""A chat on PostgreSQL while the server fails: no stored acknowledgement is lost, and everything goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from chatx import AdapterError, Chat, ChatError, Gap, Message, RoomUnavailable
from chatx.adapters.postgres_log import PostgresLog
from tests.postgres import Postgres

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

ROOMS = ("first", "second", "third")
SENDERS = 12
WARM_UP = 20
"""Messages of each sender that are acknowledged before the fault, and at least as many after it."""


class Talk:
    """Senders who say one thing after another until each is acknowledged, and a reader in each room."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.acknowledged: dict[str, list[Message]] = {room_id: [] for room_id in ROOMS}
        self.refused: list[ChatError] = []
        self.read: dict[str, list[Message | Gap]] = {room_id: [] for room_id in ROOMS}
        self._said = [0] * SENDERS
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._readers: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        reading = [asyncio.Event() for _ in ROOMS]
        self._readers = [
            asyncio.ensure_future(self._read(room_id, ready)) for room_id, ready in zip(ROOMS, reading, strict=True)
        ]
        for each in reading:
            await each.wait()
        self._tasks = [asyncio.ensure_future(self._say(number)) for number in range(SENDERS)]

    async def more(self, count: int) -> None:
        """Wait until each sender has been acknowledged so many times more."""
        goals = [said + count for said in self._said]

        def reached() -> bool:
            for each in self._tasks:
                if each.done():
                    each.result()
            return all(said >= goal for said, goal in zip(self._said, goals, strict=True))

        await until(reached)

    async def end(self) -> None:
        self._ending.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)
        await until(lambda: all(len(self.read[each]) >= len(self.acknowledged[each]) for each in ROOMS))
        for reader in self._readers:
            reader.cancel()

    async def _say(self, number: int) -> None:
        room_id = ROOMS[number % len(ROOMS)]
        while not self._ending.is_set():
            content = f"{number}: {self._said[number]}"
            while True:
                try:
                    message = await self.chat.send_message(room_id, f"user {number}", content, idempotency_key=content)
                except ChatError as error:
                    self.refused.append(error)
                    await asyncio.sleep(0.05)
                    continue
                assert message.stored
                self.acknowledged[room_id].append(message)
                self._said[number] += 1
                break

    async def _read(self, room_id: str, ready: asyncio.Event) -> None:
        async with self.chat.subscribe(room_id) as subscription:
            ready.set()
            async for each in subscription:
                assert isinstance(each, (Message, Gap))
                self.read[room_id].append(each)


@asynccontextmanager
async def talking(url: str) -> AsyncIterator[Talk]:
    """Talk until the block has ended, and then compare what was acknowledged, read and stored."""
    log = PostgresLog(url, timeout_ms=700)
    chat = Chat(persistence=log, durability="stored", middlewares=(), adapter_timeout_ms=2000)
    async with chat:
        talk = Talk(chat)
        await talk.begin()
        await talk.more(WARM_UP)
        yield talk
        await talk.more(WARM_UP)
        await talk.end()
        stored = {}
        for room_id in ROOMS:
            stored[room_id] = [each for each in await all_of(log, room_id) if isinstance(each, Message)]
    await log.close()
    for room_id in ROOMS:
        kept = stored[room_id]
        assert [each.offset for each in kept] == list(range(1, len(kept) + 1))
        assert len({each.epoch for each in kept}) == 1
        assert len({each.content for each in kept}) == len(kept), "something is there twice under one key"
        by_offset = {each.offset: each for each in kept}
        for each in talk.acknowledged[room_id]:
            found = by_offset[each.offset]
            assert (found.id, found.content) == (each.id, each.content)
        # Every sender's messages are there in the order in which they were sent.
        for number in range(SENDERS):
            mine = [int(each.content.partition(": ")[2]) for each in kept if each.user_id == f"user {number}"]
            assert mine == list(range(len(mine)))
        assert talk.read[room_id] == kept[: len(talk.read[room_id])]
        assert len(talk.read[room_id]) >= len(talk.acknowledged[room_id])
    # A key that is not in memory is looked up in the log.
    assert {type(each) for each in talk.refused} <= {RoomUnavailable, AdapterError}


async def all_of(log: PostgresLog, room_id: str) -> list[object]:
    return list((await log.read(room_id, limit=1_000_000)).entries)


async def stopped_and_started(postgres: Postgres, talk: Talk) -> None:
    await asyncio.to_thread(postgres.stop)
    await refused(talk)
    await asyncio.to_thread(postgres.start)


async def killed_whole(postgres: Postgres, talk: Talk) -> None:
    await asyncio.to_thread(postgres.kill)
    await refused(talk)
    await asyncio.to_thread(postgres.start)


async def killed_at_its_head(postgres: Postgres, talk: Talk) -> None:
    await asyncio.to_thread(postgres.kill_postmaster)
    await asyncio.to_thread(postgres.start)


async def cut_again_and_again(postgres: Postgres, talk: Talk) -> None:
    for _ in range(10):
        await asyncio.to_thread(postgres.cut_connections)
        await talk.more(1)


async def frozen(postgres: Postgres, talk: Talk) -> None:
    with postgres.frozen():
        await refused(talk)
        await refused(talk)


async def refused(talk: Talk) -> None:
    """Wait until every sender that waits now has been refused."""
    before = len(talk.refused)
    await until(lambda: len(talk.refused) >= before + SENDERS)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", [stopped_and_started, killed_whole, killed_at_its_head, cut_again_and_again, frozen])
async def test_no_stored_acknowledgement_is_lost_while_the_server_is(
    postgres: Postgres, fault: Callable[[Postgres, Talk], Awaitable[None]]
) -> None:
    async with talking(postgres.new_database()) as talk:
        await fault(postgres, talk)


async def test_it_goes_on_where_it_was_after_the_chat_and_the_server_were_begun_anew(postgres: Postgres) -> None:
    url = postgres.new_database()
    async with talking(url) as talk:
        pass
    last = talk.acknowledged[ROOMS[0]][-1]
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    log = PostgresLog(url)
    async with Chat(persistence=log, durability="stored", middlewares=()) as chat:
        repeat = await chat.send_message(ROOMS[0], last.user_id, last.content, idempotency_key=last.content)
        assert (repeat.duplicate, repeat.id, repeat.offset) == (True, last.id, last.offset)
        message = await chat.send_message(ROOMS[0], "ann", "and on")
        assert message.epoch == last.epoch
        assert message.offset == len(await all_of(log, ROOMS[0]))
    await log.close()
