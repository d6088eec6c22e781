"""The wheel: everybody is asked in time, and nobody costs a timer."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from chatx.gateway.session.expiry import AT_ONCE, FARTHEST_S, TICK_S, Wheel
from tests.virtual import virtual


class Deadline:
    """Notes when it was due; until then it asks to be asked again."""

    user_id = "ada"

    def __init__(self, wheel: Wheel, at: float) -> None:
        self.at = at
        self.asked = 0
        self.fired: list[float] = []
        wheel.watch(self, at)

    def due(self, now: float) -> float | None:
        self.asked += 1
        if now < self.at:
            return self.at
        self.fired.append(asyncio.get_running_loop().time())
        return None


def timers() -> int:
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # asyncio's own heap of timers
    return sum(not timer.cancelled() for timer in scheduled)


@virtual
async def test_each_is_due_once_and_no_later_than_a_tick() -> None:
    draw = random.Random(1)
    wheel = Wheel(asyncio.get_running_loop())
    deadlines = [Deadline(wheel, draw.uniform(0, 500)) for _ in range(300)]
    await asyncio.sleep(600)

    for deadline in deadlines:
        (fired,) = deadline.fired
        assert deadline.at <= fired <= deadline.at + TICK_S
        assert deadline.asked <= 1 + 500 / FARTHEST_S
    assert len(wheel) == 0


@virtual
async def test_there_is_one_timer_for_all_and_none_for_nobody() -> None:
    wheel = Wheel(asyncio.get_running_loop())
    assert timers() == 0
    deadlines = [Deadline(wheel, 1 + number / 10) for number in range(100)]
    assert timers() == 1
    await asyncio.sleep(5)
    assert timers() == 1
    for deadline in deadlines:
        wheel.forget(deadline)
    assert timers() == 0
    assert len(wheel) == 0


@virtual
async def test_a_deadline_that_moves_or_goes_is_not_due_when_it_was() -> None:
    wheel = Wheel(asyncio.get_running_loop())
    later, sooner, gone = Deadline(wheel, 5), Deadline(wheel, 50), Deadline(wheel, 5)
    later.at = 20
    wheel.watch(later, 20)
    sooner.at = 10
    wheel.watch(sooner, 10)
    wheel.forget(gone)
    wheel.forget(gone)
    await asyncio.sleep(100)

    assert (later.fired, sooner.fired, gone.fired) == ([20], [10], [])
    assert (later.asked, sooner.asked, gone.asked) == (1, 1, 0)


@virtual
async def test_a_deadline_in_the_past_is_due_at_once() -> None:
    await asyncio.sleep(100)
    wheel = Wheel(asyncio.get_running_loop())
    late = Deadline(wheel, 3)
    await asyncio.sleep(0.001)
    assert late.fired == [100]


@virtual
async def test_deadlines_far_ahead_take_no_slot_each_and_one_without_end_is_asked_now_and_then() -> None:
    wheel = Wheel(asyncio.get_running_loop())
    endless = Deadline(wheel, math.inf)
    for _ in range(5):
        for hour in range(1000):
            wheel.forget(Deadline(wheel, 3600.0 * hour + 100))
        await asyncio.sleep(100)
    assert endless.asked <= 1 + 500 / FARTHEST_S
    assert len(wheel._slots) <= 2
    assert len(wheel._ticks) <= 2


@virtual
async def test_one_that_fails_stops_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        user_id = "ada"

        def due(self, now: float) -> float | None:
            raise ZeroDivisionError("injected")

    wheel = Wheel(asyncio.get_running_loop())
    for _ in range(3):
        wheel.watch(Failing(), 1)
    after = Deadline(wheel, 1), Deadline(wheel, 2)
    await asyncio.sleep(5)

    assert [len(each.fired) for each in after] == [1, 1]
    assert caplog.text.count("A deadline failed") == 3
    assert len(wheel) == 0


@virtual
async def test_one_that_always_wants_to_be_asked_at_once_is_asked_once_a_tick() -> None:
    class Eager:
        user_id = "ada"
        asked = 0

        def due(self, now: float) -> float | None:
            self.asked += 1
            return now

    wheel = Wheel(asyncio.get_running_loop())
    eager = Eager()
    wheel.watch(eager, 0)
    await asyncio.sleep(10)
    assert eager.asked <= 10 / TICK_S + 1


@virtual
async def test_a_crowd_that_is_due_together_gives_everything_else_a_turn() -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    crowd = [Deadline(wheel, 1) for _ in range(3 * AT_ONCE)]
    seen: list[int] = []

    def look() -> None:
        seen.append(sum(len(each.fired) for each in crowd))
        if seen[-1] < len(crowd):
            loop.call_soon(look)

    loop.call_at(1, look)
    await asyncio.sleep(1.2)
    assert seen[-1] == 3 * AT_ONCE
    assert AT_ONCE in seen
    assert 2 * AT_ONCE in seen


@virtual
async def test_an_end_within_an_end_is_harmless() -> None:
    wheel = Wheel(asyncio.get_running_loop())
    others = [Deadline(wheel, 1), Deadline(wheel, 9)]

    class Ends:
        user_id = "ada"

        def due(self, now: float) -> float | None:
            for other in others:
                wheel.forget(other)
            wheel.forget(self)
            return None

    wheel.watch(Ends(), 1)
    last = Deadline(wheel, 20)
    await asyncio.sleep(30)
    assert len(last.fired) == 1
    assert others[1].fired == []
    assert len(wheel) == 0
