"""Everything at once, in the order of each seed: 500 of them, TEST_SEEDS=n for more, TEST_SEED=n for one of them."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interleavings.play import play
from tests.interleavings.world import run

SUITE = 500
SEEDS = int(os.environ.get("TEST_SEEDS") or SUITE)
AT_A_TIME = 50
ONE = os.environ.get("TEST_SEED")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep the faults that are ordered here out of the log: formatting them costs more than the runs."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def seeds() -> list[range]:
    """Return the seeds to run, in chunks of a few seconds each at most."""
    if ONE:
        return [range(int(ONE), int(ONE) + 1)]
    return [range(first, min(first + AT_A_TIME, SEEDS)) for first in range(0, SEEDS, AT_A_TIME)]


@pytest.mark.parametrize("chunk", seeds(), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
def test_every_promise_holds_in_every_order(chunk: range) -> None:
    for seed in chunk:
        run(seed, play)


def test_a_seed_replays_the_same_run() -> None:
    for seed in range(5):
        assert run(seed, play).digest() == run(seed, play).digest()


@pytest.mark.process
def test_a_seed_replays_the_same_run_in_another_process() -> None:
    code = (
        "import logging; logging.disable(logging.CRITICAL); "
        "from tests.interleavings.play import play; from tests.interleavings.world import run; "
        "print(*(run(seed, play).digest() for seed in range(20)))"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(answer.stdout)
    assert len(digests) == 1


def test_the_runs_reach_what_they_are_for() -> None:
    codes = ("slow_consumer", "room_unavailable", "room_overloaded", "rate_limited", "adapter_error", "unauthorized")
    due = {*codes, "blocked", "closed", "again", "for good", "calm", "goes away", "disconnected", "left"}
    for seed in range(100):
        trace = "\n".join(run(seed, play).trace)
        due -= {what for what in due if what in trace}
    assert not due
