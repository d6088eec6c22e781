"""Chats that live, are killed and follow one another over one log that fails: 2,000 seeds, TEST_SEEDS=n for more.

TEST_SEED=n runs one of them. A share of them has a notifier, and another a log that lets go of what is not to be kept.
"""

import pytest

from tests.nothing_lost.play import play
from tests.nothing_lost.world import run
from tests.seeds import chunks

SUITE = 2000

pytestmark = pytest.mark.usefixtures("schedules")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", chunks(SUITE, 100), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
def test_nothing_is_lost_in_any_schedule(chunk: range) -> None:
    for seed in chunk:
        run(seed, play)


def test_a_seed_replays_the_same_run() -> None:
    for seed in range(10):
        assert run(seed, play).digest() == run(seed, play).digest()


@pytest.mark.slow
def test_the_runs_reach_what_they_are_for() -> None:
    due = {"again", "is killed", "stops", "finds no log", "calm", "is somebody else's", "has not answered"}
    due |= {"took nothing", "could not take this", "could not be told", "cannot say where", "goes on in epoch"}
    due |= {"is to crash", "is told again of", "are let go of"}
    seen: set[str] = set()
    faults: set[str] = set()
    for seed in range(150):
        world = run(seed, play)
        trace = "\n".join(world.trace)
        seen |= {what for what in due if what in trace}
        faults |= {fault for life in world.lives for _, fault in life.line.calls}
    assert seen == due
    assert faults == {"ok", "unavailable", "lost", "lost answer", "slow", "hang", "fenced"}
