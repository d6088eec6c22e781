"""Whether the schedules find what they are for: engines that break one promise each, and the seeds until it shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.nothing_lost.evidence import Violation
from tests.nothing_lost.play import play
from tests.nothing_lost.sabotage import PLACES
from tests.nothing_lost.test_schedules import SUITE
from tests.nothing_lost.world import run


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def assert_found() -> None:
    """Fail unless a seed of the suite's shows the fault, and says how to see it again."""
    for seed in range(SUITE):
        try:
            run(seed, play)
        except Violation as violation:
            found = violation
        else:
            continue
        assert f"TEST_SEED={seed} " in found.__notes__[-1]
        return
    pytest.fail(f"{SUITE} seeds did not show the fault.")


@pytest.mark.parametrize("fault", PLACES)
def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch, fault: type) -> None:
    monkeypatch.setattr(PLACES[fault], fault)
    assert_found()
