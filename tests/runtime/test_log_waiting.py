"""What waits for a log: bounded in bytes, and nobody waits for ever behind others."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import Message, RoomOverloaded, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append
from chatx.core.message import Position
from chatx.runtime import delivery
from tests.logs import Gated, chat_on
from tests.virtual import turns, virtual


class Slow(MemoryLog):
    """A log whose appends take a second, and whose withdrawals take longer."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        await asyncio.sleep(1)
        return await super().append(appends)

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        await asyncio.sleep(1.5)
        return await super().unproven(room_id, term, head)


@virtual
async def test_what_waits_for_a_commit_is_bounded_in_bytes_and_counted_out_however_it_ends() -> None:
    log = Gated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "SAVING_BYTES", 20_000)
        async with chat_on(log, durability="stored", adapter_timeout_ms=500) as chat:
            committing = chat.engine.delivery.committing
            assert committing is not None
            await chat.send_message("a", "ann", "first")
            ends: list[Any] = []
            for fails in (False, True):
                log.gate.clear()
                log.fails = fails
                sends = [
                    asyncio.ensure_future(
                        chat.send_message(f"r{n % 2}", f"u{n}", "x" * 4000, durability="sequenced" if n > 3 else None)
                    )
                    for n in range(5)
                ]
                await turns(30)
                with pytest.raises(RoomOverloaded, match="wait to be saved"):
                    await chat.send_message("a", "ann", "x")
                sends[2].cancel()
                await turns(30)
                log.gate.set()
                ends += await asyncio.gather(*sends, return_exceptions=True)
                await asyncio.sleep(5)
                log.fails = False
                await asyncio.sleep(10)
                assert committing.bytes == committing.size == 0
            log.gate.clear()
            sends = [asyncio.ensure_future(chat.send_message("a", f"u{n}", "x" * 4000)) for n in range(3)]
            await asyncio.wait(sends)
            await turns(30)
            log.gate.set()
            await asyncio.sleep(5)
            assert committing.bytes == 0
            kinds = {type(each) for each in ends}
            assert kinds == {Message, asyncio.CancelledError, RoomUnavailable}


@virtual
async def test_what_nobody_waits_for_is_written_however_many_rooms_somebody_waits_for() -> None:
    log = Gated()
    async with chat_on(log) as chat:
        over = False

        async def keeps_sending(room: str) -> None:
            while not over:
                await chat.send_message(room, "ann", "x", durability="stored")

        sending = [asyncio.ensure_future(keeps_sending(f"busy {each}")) for each in range(600)]
        await turns(50)
        await chat.send_message("quiet", "ann", "hi")
        for _ in range(60):
            await turns(10)
        kept = [each.entry.content for each in log.records("quiet")]
        over = True
        await asyncio.gather(*sending)
        assert kept == ["hi"]


@virtual
async def test_a_sequenced_message_comes_through_where_stored_ones_never_pause() -> None:
    async with chat_on(Slow()) as chat:
        await chat.send_message("a", "ann", "first", durability="stored")
        over = False

        async def keeps_sending(user: str) -> None:
            while not over:
                await chat.send_message("a", user, "x", durability="stored")

        sending = [asyncio.ensure_future(keeps_sending(f"u{each}")) for each in range(3)]
        await asyncio.sleep(3.5)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(60):
                await chat.send_message("a", "bob", "hi")
        finally:
            over = True
            await asyncio.gather(*sending)
        assert loop.time() - began < 5
