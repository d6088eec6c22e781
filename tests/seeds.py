"""What runs share that are drawn from seeds: which seeds, chances, what happened, and how a run that failed is told."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from chatx.testing import run_seeded

X = TypeVar("X")

SEEDS = int(os.environ.get("TEST_SEEDS") or 0)
ONE = os.environ.get("TEST_SEED")
BRIEF = bool(os.environ.get("TEST_BRIEF"))
"""Whether a tenth is enough."""


def chunks(suite: int, at_a_time: int) -> list[range]:
    """Return the seeds to run, in chunks of a few seconds each at most; of `suite` where nothing else is asked for."""
    if ONE:
        return [range(int(ONE), int(ONE) + 1)]
    seeds = SEEDS or (suite // 10 if BRIEF else suite)
    return [range(first, min(first + at_a_time, seeds)) for first in range(0, seeds, at_a_time)]


class Violation(AssertionError):
    """A promise was broken."""


def promise(kept: object, broken: str, *about: object) -> None:
    """Raise `Violation` unless the promise was kept."""
    if not kept:
        raise Violation(" ".join([broken, *map(repr, about)]))


class Chance(random.Random):
    """A source of chances of its own for each actor, so that one's do not move another's."""

    def pick(self, choices: Sequence[X]) -> X:
        """Return one of them."""
        return choices[int(self.random() * len(choices))]

    def once_in(self, times: float) -> bool:
        """Return True once in so many times."""
        return self.random() * times < 1

    def upto(self, most: int) -> int:
        """Return a number from 1 to this one."""
        return 1 + int(self.random() * most)


class Traced:
    """A run that is drawn from a seed, and what happened in it.

    Attributes:
        broken: The first promise that was broken inside the engine.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trace: list[str] = []
        self.broken: Violation | None = None

    def chances(self, name: str) -> Chance:
        """Return a source of chances for one who is named so."""
        return Chance(f"{self.seed} {name}")

    def note(self, *what: object) -> None:
        """Write down what happened."""
        self.trace.append(f"{asyncio.get_running_loop().time():8.3f}  {' '.join(map(str, what))}")

    def told(self, what: Callable[..., object], *args: object) -> None:
        """Call this inside the engine, which would contain a `Violation`; the first one is kept for `check`."""
        try:
            what(*args)
        except Violation as violation:
            self.note("VIOLATION", violation)
            self.broken = self.broken or violation

    def check(self) -> None:
        """Raise what was found so far."""
        if self.broken is not None:
            raise self.broken

    def digest(self) -> str:
        """Return a hash of the trace."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def run(self, play: Coroutine[Any, Any, None], file: str, shown: int) -> None:
        """Run a play; what it raises tells the last that happened, so many lines, and how this file replays it."""
        try:
            run_seeded(self.seed, play)
        except BaseException as error:
            error.add_note("The last that happened:\n" + "\n".join(self.trace[-shown:]))
            error.add_note(f"Replay it: TEST_SEED={self.seed} python -m pytest {file}")
            raise


def assert_found(run: Callable[[int], object], suite: int) -> None:
    """Fail unless a seed of the suite's shows a fault, and says how to see it again."""
    for seed in range(suite):
        try:
            run(seed)
        except Violation as violation:
            found = violation
        else:
            continue
        assert f"TEST_SEED={seed} " in found.__notes__[-1]
        return
    pytest.fail(f"{suite} seeds did not show the fault.")
