"""Readers that come back to a room with a log: from memory, then from the log, across a crash, below what is kept."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chatx import AdapterError, Chat, Event, Gap, Position
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append
from chatx.gateway.session.gateway import Gateway
from chatx.testing.faulty_log import FaultyLog
from tests.gateway.fakes import Client
from tests.logs import chat_on, sent
from tests.virtual import turns, virtual


@asynccontextmanager
async def stored(log: Any, count: int, *, crashes: bool = False, **options: Any) -> AsyncIterator[tuple[Chat, Any]]:
    """A chat, and what was stored in it; where it crashes, a new one over the same log, while the old one is there."""
    async with chat_on(log, durability="stored", **options) as chat:
        messages = await sent(chat, count)
        if not crashes:
            yield chat, messages
            return
        async with chat_on(log, durability="stored", **options) as another:
            yield another, messages


async def read(chat: Chat, after: Any, count: int) -> list[Event]:
    async with chat.subscribe("room", after=after) as subscription:
        return [await anext(subscription) for _ in range(count)]


async def resumed(chat: Chat, place: Position) -> tuple[dict[str, Any], list[int]]:
    """Join over the wire from a place; return the answer, and the offsets that followed it."""
    client = Client(Gateway(chat.engine), "bob")
    answer = await client.join("room:room", epoch=place.epoch, offset=place.offset)
    await asyncio.sleep(1)
    client.session.end()
    return answer, client.offsets()


@pytest.mark.parametrize("crashes", [False, True], ids=["runs on", "crashes"])
@virtual
async def test_what_was_stored_is_caught_up_with_whole(crashes: bool) -> None:
    async with stored(MemoryLog(), 200, crashes=crashes, history_size=5) as (chat, messages):
        for place in (0, 1, 70, 194, 195, 199):
            at = Position(messages[0].epoch, place)
            assert await read(chat, at, 200 - place) == messages[place:]
            answer, offsets = await resumed(chat, at)
            assert (answer["recovered"], answer["epoch"]) == (True, at.epoch)
            assert offsets == list(range(place + 1, 201))


@pytest.mark.parametrize("crashes", [False, True], ids=["runs on", "crashes"])
@virtual
async def test_what_the_log_no_longer_keeps_is_too_old_and_what_it_keeps_follows(crashes: bool) -> None:
    log = MemoryLog()
    async with stored(log, 20, crashes=crashes, history_size=5) as (chat, messages):
        epoch = messages[0].epoch
        log.forget("room", Position(epoch, 8))
        gap = Gap("room", "too_old", epoch, 7, 5)
        assert await read(chat, Position(epoch, 2), 14) == [gap, *messages[7:]]
        assert await read(chat, Position(epoch, 7), 13) == messages[7:]
        for place, recovered in ((6, False), (7, True)):
            answer, offsets = await resumed(chat, Position(epoch, place))
            assert (answer["recovered"], answer.get("reason")) == (recovered, None if recovered else "too_old")
            assert offsets == (list(range(8, 21)) if recovered else [])


@virtual
async def test_a_log_that_keeps_nothing_leaves_what_memory_has_and_after_a_crash_nothing() -> None:
    log = MemoryLog()
    async with stored(log, 20, crashes=False, history_size=5) as (chat, messages):
        epoch = messages[0].epoch
        log.forget("room", Position(epoch, 21))
        assert await read(chat, Position(epoch, 2), 6) == [Gap("room", "too_old", epoch, 15, 13), *messages[15:]]
        assert await chat.history("room", before=messages[17]) == messages[15:17]
        async with chat_on(log, durability="stored") as another:
            gap = Gap("room", "too_old", epoch, 20, 18)
            async with another.subscribe("room", after=Position(epoch, 2)) as subscription:
                assert await anext(subscription) == gap
                (live,) = await sent(another, 1)
                assert (live.epoch, live.offset) == (epoch, 21)
                assert await anext(subscription) == live
            answer, _ = await resumed(another, Position(epoch, 19))
            assert (answer["recovered"], answer["reason"]) == (False, "too_old")
            assert (await resumed(another, Position(epoch, 20)))[0]["recovered"] is True


@virtual
async def test_a_log_that_cannot_be_read_is_an_error_to_try_again_and_no_gap() -> None:
    log = FaultyLog(MemoryLog())
    async with stored(log, 20, history_size=5) as (chat, messages):
        log.choose = lambda method: "unavailable" if method == "read" else "ok"
        with pytest.raises(AdapterError):
            await read(chat, messages[2], 1)
        client = Client(Gateway(chat.engine), "bob")
        joining = client.push("room:room", "phx_join", {"epoch": messages[0].epoch, "offset": 3})
        await asyncio.sleep(1)
        (refused,) = client.replies(joining)
        assert (refused["status"], refused["response"]["code"]) == ("error", "adapter_error")
        assert refused["response"]["retryable"] is True
        # What memory has needs no log.
        assert await read(chat, messages[15], 4) == messages[16:]
        log.choose = lambda method: "ok"
        assert await read(chat, messages[2], 17) == messages[3:]
        client.session.end()


class AnswersLate(MemoryLog):
    """Has what was appended before it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        answers = await super().append(appends)
        await self.gate.wait()
        return answers


@pytest.mark.parametrize("crashes", [False, True], ids=["runs on", "crashes"])
@virtual
async def test_what_is_in_the_log_ahead_of_its_answer_is_given_to_nobody_early_or_twice(crashes: bool) -> None:
    log = AnswersLate()
    async with stored(log, 10, crashes=crashes, history_size=2) as (chat, messages):
        await chat.join("room", "ada")
        log.gate.clear()
        sending = asyncio.ensure_future(chat.send_message("room", "ada", "late"))
        await turns(20)
        assert len(log.records("room")) == 11
        assert await chat.history("room") == messages
        assert await chat.history("room", before=(messages[0].epoch, 99)) == messages
        assert await chat.history("room", after=messages[3]) == messages[4:]
        client = Client(Gateway(chat.engine), "bob")
        place = {"epoch": messages[0].epoch, "offset": 2}
        assert (await client.join("room:room", **place))["recovered"] is True
        await turns(20)
        assert client.offsets() == list(range(3, 11))
        async with chat.subscribe("room", after=messages[1]) as subscription:
            assert [await anext(subscription) for _ in range(8)] == messages[2:]
            log.gate.set()
            late = await sending
            assert await anext(subscription) == late
        await asyncio.sleep(1)
        assert client.offsets() == list(range(3, 12))
        client.session.end()
