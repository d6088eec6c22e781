"""The machine's clock: when it is believed, and when it says nothing."""

from __future__ import annotations

from chatx.runtime.wall_clock import BELIEVED_S, STEP_MS, WallClock

HOUR_MS = 3_600_000


class Clocks:
    """Both clocks, turned by hand."""

    def __init__(self) -> None:
        self.loop_s = 1000.0
        self.ahead_ms = 1_700_000_000_000
        self.told: list[float] = []
        self.clock = WallClock(self.wall_ms, lambda: self.loop_s, self.told.append)

    def wall_ms(self) -> int:
        return round(self.loop_s * 1000) + self.ahead_ms

    def asked(self) -> bool:
        """Ask, and return whether there was an answer, which is the machine's own."""
        now_ms = self.clock.now_ms()
        assert now_ms in (None, self.wall_ms())
        return now_ms is not None


def test_it_is_believed_while_it_goes_on_evenly_however_far_it_drifts_or_is_slewed() -> None:
    clocks = Clocks()
    for _ in range(100):
        assert clocks.asked()
        clocks.loop_s += 60
        clocks.ahead_ms += STEP_MS
    assert clocks.told == []


def test_set_ahead_it_says_nothing_until_it_has_gone_on_evenly_for_long() -> None:
    clocks = Clocks()
    assert clocks.asked()
    clocks.ahead_ms += 24 * HOUR_MS
    assert not clocks.asked()
    clocks.loop_s += BELIEVED_S - 1
    assert not clocks.asked()
    clocks.ahead_ms += HOUR_MS  # again, so that it waits anew
    assert not clocks.asked()
    clocks.loop_s += BELIEVED_S - 1
    assert not clocks.asked()
    clocks.loop_s += 1
    assert clocks.asked()
    assert clocks.told == [24 * 3600.0, 3600.0]


def test_set_back_by_a_part_it_is_not_believed_and_set_right_it_is_at_once() -> None:
    clocks = Clocks()
    assert clocks.asked()
    clocks.ahead_ms += 24 * HOUR_MS
    assert not clocks.asked()
    clocks.ahead_ms -= 23 * HOUR_MS
    assert not clocks.asked()
    clocks.ahead_ms -= HOUR_MS
    assert clocks.asked()


def test_set_back_it_is_believed_and_then_set_right_only_later() -> None:
    clocks = Clocks()
    assert clocks.asked()
    clocks.ahead_ms -= 24 * HOUR_MS
    assert clocks.asked()
    clocks.ahead_ms += 24 * HOUR_MS
    assert not clocks.asked()
    clocks.loop_s += BELIEVED_S
    assert clocks.asked()
