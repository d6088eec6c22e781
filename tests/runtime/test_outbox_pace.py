"""How soon and how often the outbox looks, claims, tries again and settles."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx.adapters.outbox import Outcome
from chatx.runtime.outbox import CALLS, CLAIMED_AT_ONCE, LEASE_MS
from tests.faults import AsyncFaultyNotifier, Hang, HangDeaf, awaited, raises
from tests.runtime.test_outbox import Log, Names, Told, join, telling
from tests.virtual import virtual


class SlowLog(Log):
    """A log whose next settling takes a while, after it was done or before."""

    slow_s = 0.0

    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        slow_s, self.slow_s = self.slow_s, 0.0
        await asyncio.sleep(slow_s)
        await super().settle_notifications(claimer, outcomes)


class Paced(Told):
    """A notifier that takes its time for one user."""

    seconds = 0.0

    async def notify(self, user_id: str, message: Any) -> None:
        await asyncio.sleep(self.seconds)
        await super().notify(user_id, message)


@virtual
async def test_what_comes_within_a_moment_is_claimed_together() -> None:
    log = Log()
    async with telling(log, Told(), delivery_tick_ms=100) as chat:
        await join(chat, "bob")
        for number in range(100):
            await chat.send_message("room", "alice", str(number))
            await asyncio.sleep(0.01)
        assert log.calls["claim"] + log.calls["settle"] < 40


@virtual
async def test_who_failed_is_told_again_when_the_backoff_is_over_and_what_was_left_right_after_the_start() -> None:
    log = Log()
    notifier = AsyncFaultyNotifier(awaited(raises), victim="bob")
    async with telling(log, notifier, delivery_retry_base_ms=1000, delivery_max_retries=2) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(4)
        assert len(notifier.attempts) == 3, "at most 1 s and 2 s, and a little"
    log.away = {"claim"}
    async with telling(log, Told(), drain_timeout_ms=1) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "left")
    log.away.clear()
    told = Told()
    async with telling(log, told):
        await asyncio.sleep(0.5)
        assert told.told == {("bob", "left"): 1}


@pytest.mark.parametrize("timeout_ms,most", [(5_000, 45), (200_000, 10)])
@virtual
async def test_while_a_call_hangs_its_row_is_looked_at_now_and_then_only(timeout_ms: int, most: int) -> None:
    log, deaf = Log(), HangDeaf()
    notifier = AsyncFaultyNotifier(deaf, victim="bob")
    async with telling(log, notifier, adapter_timeout_ms=timeout_ms, drain_timeout_ms=1) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(201)
        before = log.calls["settle"]
        await asyncio.sleep(200)
        assert deaf.begun == 1
        assert log.calls["settle"] - before < most
        (row,) = await log.rows()
        assert (row.attempts, row.users) == (1, ("bob",)), "one that waits for its call to end is not tried"
        deaf.release()


@virtual
async def test_so_many_rows_are_worked_at_that_the_users_in_memory_are_bounded() -> None:
    log, notifier = Log(), Names("bob")
    notifier.notify = AsyncFaultyNotifier(Hang(), victim="bob").notify  # type: ignore[method-assign]
    async with telling(log, notifier, adapter_timeout_ms=100_000, drain_timeout_ms=1) as chat:
        for number in range(CLAIMED_AT_ONCE):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(50)
        assert notifier.asked == CALLS


@virtual
async def test_a_round_that_stops_midway_counts_as_an_attempt_where_it_has_failed() -> None:
    log = Log()
    notifier = AsyncFaultyNotifier(Hang(), victim="bob")

    async def fails_or_hangs(user_id: str, message: Any) -> None:
        if user_id == "carol":
            raise RuntimeError("no")
        await asyncio.sleep(3600)

    notifier.notify = fails_or_hangs  # type: ignore[method-assign]
    async with telling(log, notifier, adapter_timeout_ms=100_000, drain_timeout_ms=1) as chat:
        await join(chat, "bob", "carol")
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(1)
    (row,) = await log.rows()
    assert (row.state, row.attempts, set(row.users or ())) == ("waiting", 1, {"bob", "carol"})


@virtual
async def test_a_round_that_ends_while_its_lease_is_made_longer_is_not_told_again() -> None:
    log, notifier = SlowLog(), Paced()
    notifier.seconds = LEASE_MS / 3000 + 2
    async with telling(log, notifier, adapter_timeout_ms=100_000) as chat:
        await join(chat, "bob")
        log.slow_s = 4
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(3 * LEASE_MS / 1000)
        assert notifier.told == {("bob", "hello"): 1}
        assert await log.rows() == []


@virtual
async def test_a_round_whose_lease_could_not_be_made_longer_in_time_is_not_begun_twice() -> None:
    log, notifier = SlowLog(), Paced()
    notifier.seconds = 50
    async with telling(log, notifier, adapter_timeout_ms=100_000) as chat:
        await join(chat, "bob")
        log.slow_s = LEASE_MS / 1000 + 5
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(100)
        assert notifier.told == {("bob", "hello"): 1}
        assert await log.rows() == []
