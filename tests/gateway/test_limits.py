"""What frames may cost before they are a message."""

from __future__ import annotations

import random

import pytest

from chatx.gateway.native.limits import ControlFrameRate, MessageBound
from chatx.gateway.wire.bounds import CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_S, MAX_FRAGMENTS, MAX_FRAME_BYTES
from chatx.gateway.wire.closes import MAX_CLOSE_REASON
from chatx.gateway.wire.excess import Excess


def test_a_message_may_have_its_bytes_in_one_frame_or_in_many_and_not_one_more() -> None:
    for fragments in (1, 2, MAX_FRAGMENTS):
        bound = MessageBound()
        for _ in range(3):  # each message anew
            for number in range(fragments):
                last = number == fragments - 1
                bound.add(MAX_FRAME_BYTES // fragments, final=last)
        for _ in range(fragments - 1):
            bound.add(MAX_FRAME_BYTES // fragments, final=False)
        with pytest.raises(Excess) as excess:
            bound.add(MAX_FRAME_BYTES // fragments + 1, final=True)
        assert excess.value.code == 1009


def test_a_length_that_is_only_announced_is_refused() -> None:
    with pytest.raises(Excess) as excess:
        MessageBound().add(2**63 - 1, final=False)
    assert excess.value.code == 1009
    assert len(excess.value.reason) <= MAX_CLOSE_REASON


@pytest.mark.parametrize("size", [0, 1, 2])
def test_tiny_and_empty_fragments_are_counted_over_the_whole_message(size: int) -> None:
    bound = MessageBound()
    for _ in range(MAX_FRAGMENTS):
        bound.add(size, final=False)
    with pytest.raises(Excess) as excess:
        bound.add(size, final=True)
    assert excess.value.code == 1008
    assert len(excess.value.reason) <= MAX_CLOSE_REASON


def test_a_long_run_of_allowed_messages_never_adds_up() -> None:
    draw = random.Random(7)
    bound = MessageBound()
    for _ in range(2000):
        fragments = draw.randint(1, MAX_FRAGMENTS)
        for number in range(fragments):
            bound.add(draw.randint(0, MAX_FRAME_BYTES // MAX_FRAGMENTS), final=number == fragments - 1)


def test_control_frames_may_come_at_their_rate_for_ever_and_in_a_burst() -> None:
    rate = ControlFrameRate()
    for _ in range(CONTROL_FRAMES_BURST):
        rate.add(1000.0)
    now = 1000.0
    for _ in range(500):
        now += 1.01 / CONTROL_FRAMES_PER_S
        rate.add(now)


def test_a_flood_of_control_frames_is_refused() -> None:
    rate = ControlFrameRate()
    passed = 0
    with pytest.raises(Excess) as excess:
        for number in range(100_000):
            rate.add(50 + number / 1000)
            passed += 1
    assert excess.value.code == 1008
    assert passed <= CONTROL_FRAMES_BURST + 1
    rate.add(60)  # it was not made worse by what was refused
