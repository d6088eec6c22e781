"""Everything at once, in the order of each seed: 500 of them, TEST_SEEDS=n for more, TEST_SEED=n for one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interleavings.play import play
from tests.interleavings.world import run
from tests.seeds import chunks

SUITE = 500

pytestmark = pytest.mark.usefixtures("schedules")


@pytest.mark.parametrize("chunk", chunks(SUITE, 50), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
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


@pytest.mark.slow
def test_the_runs_reach_what_they_are_for() -> None:
    codes = ("slow_consumer", "room_unavailable", "room_overloaded", "rate_limited", "adapter_error", "unauthorized")
    due = {*codes, "blocked", "closed", "again", "for good", "calm", "goes away", "disconnected", "left"}
    for seed in range(100):
        trace = "\n".join(run(seed, play).trace)
        due -= {what for what in due if what in trace}
    assert not due
