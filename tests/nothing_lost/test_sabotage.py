"""Whether the schedules find what they are for: engines that break one promise each, and the seeds until it shows."""

from __future__ import annotations

import pytest

from tests.nothing_lost.play import play
from tests.nothing_lost.sabotage import PLACES
from tests.nothing_lost.test_schedules import SUITE
from tests.nothing_lost.world import run
from tests.seeds import assert_found

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("schedules")]


@pytest.mark.parametrize("fault", PLACES)
def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch, fault: type) -> None:
    monkeypatch.setattr(PLACES[fault], fault)
    assert_found(lambda seed: run(seed, play), SUITE)
