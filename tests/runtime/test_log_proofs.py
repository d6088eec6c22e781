"""The proof of a head over a log: none stands while something unstored may be seen, and what it proves survives."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append
from chatx.core.message import Position
from tests.logs import Gated, chat_on
from tests.virtual import turns, virtual


class Raced(MemoryLog):
    """A log that withdraws a proof at once and answers late, or the other way round, and so with appends."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: dict[str, asyncio.Event] = {}

    async def wait(self, what: str) -> None:
        if (event := self.waits.get(what)) is not None:
            await event.wait()

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        await self.wait("unproven")
        answer = await super().unproven(room_id, term, head)
        await self.wait("unproven answered")
        return answer

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        await self.wait("append")
        answers = await super().append(appends)
        await self.wait("append answered")
        return answers


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "order", list(itertools.permutations(["unproven", "unproven answered", "append", "append answered"]))
)
@virtual
async def test_no_proof_stands_when_something_unstored_is_seen_whoever_comes_first(
    order: tuple[str, ...], earlier: bool
) -> None:
    log = Raced()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "0", durability="stored")
        if earlier:
            await chat.send_message("a", "ann", "0", durability="sequenced")
            await asyncio.sleep(11)
            await chat.send_message("a", "ann", "0", durability="stored")
            await asyncio.sleep(11)
        log.waits = {each: asyncio.Event() for each in order}
        stored = asyncio.ensure_future(chat.send_message("a", "ann", "1", durability="stored"))
        await turns()
        sequenced = asyncio.ensure_future(chat.send_message("a", "bob", "2"))
        await turns()
        proven: list[bool] = []

        def seen(event: Any) -> None:
            if not event.stored:
                there = log._rooms["a"]
                in_log = there.head is not None and there.head.offset >= event.offset
                proven.append(there.proven and not in_log)

        async with chat.subscribe_callback("a", seen):
            for each in order:
                log.waits[each].set()
                await turns(10)
            await asyncio.gather(stored, sequenced)
            if not earlier:
                await chat.send_message("a", "bob", "3")
        assert proven == [False] * len(proven)
        assert proven
    # A clean stop proves it, whatever came first.
    assert log._rooms["a"].proven


@virtual
async def test_what_is_appended_where_the_head_is_proven_survives_a_power_cut() -> None:
    log = Gated()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "0", durability="stored")
        log.gate.clear()
        first = asyncio.ensure_future(chat.send_message("a", "ann", "1", durability="stored"))
        await turns()
        second = asyncio.ensure_future(chat.send_message("a", "bob", "2"))
        await turns(20)
        log.gate.set()
        await asyncio.gather(first, second)
        proven, kept = True, 0
        for each in log.appended:
            proven = each.proven or proven
            assert each.durable or not proven
            kept += len(each.records)
        assert kept == 3


@virtual
async def test_a_room_in_which_only_stored_messages_were_said_of_late_goes_on_after_a_crash() -> None:
    log = MemoryLog()
    chat = chat_on(log)
    await chat.start()
    for room in ("long ago", "of late"):
        await chat.send_message(room, "ann", "0", durability="stored")
    await chat.send_message("long ago", "ann", "1")
    await asyncio.sleep(11)
    await chat.send_message("of late", "ann", "1")
    await asyncio.sleep(1)
    before = {room: await chat.send_message(room, "ann", "2", durability="stored") for room in ("long ago", "of late")}
    # It is killed: nothing more is written.
    async with chat_on(log) as again:
        after = {room: await again.send_message(room, "ann", "3", durability="stored") for room in before}
        assert after["long ago"].epoch == before["long ago"].epoch
        assert after["of late"].epoch != before["of late"].epoch
    await chat.stop(drain_timeout_ms=1)
