"""A log that answers late, wrongly or at the worst moment, and senders that go: nothing is stuck, lost or doubled."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import Chat
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append, LogUnavailable
from tests.virtual import turns, virtual


class Gated(MemoryLog):
    """A log whose appends wait for a gate, and fail then where they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        await self.gate.wait()
        if self.fails:
            raise LogUnavailable("away")
        return await super().append(appends)


def chat_on(log: Any, **options: Any) -> Chat:
    return Chat(persistence=log, middlewares=(), **options)


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
        assert not committing._left
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
