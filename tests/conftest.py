"""Hypothesis profiles, `ci` by default, `long` where TEST_LONG is set (`make test LONG=1`); the log as it was.

Where TEST_BRIEF is set, as on the other Pythons, it is `brief`, and fewer schedules are played.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest
from hypothesis import HealthCheck, settings

from chatx.runtime import committing, notifying, saving
from tests.postgres import Postgres, cluster
from tests.seeds import BRIEF

# No deadline: a shared machine's pauses are not findings. The examples are the same in each run, so that what is
# red was broken by a change; those of a long run are drawn by chance, and the blob lets anyone replay a failure.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile(
    "long",
    parent=settings.get_profile("ci"),
    derandomize=False,
    max_examples=5000,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("brief", parent=settings.get_profile("ci"), max_examples=20)
settings.load_profile("long" if os.environ.get("TEST_LONG") else "brief" if BRIEF else "ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that are given more time: one of them alone at the end would keep the others' cores idle."""
    given: dict[Path, float] = {}
    for item in items:
        own = item.get_closest_marker("timeout")
        given[item.path] = max(given.get(item.path, 0.0), own.args[0] if own else 0.0)
    items.sort(key=lambda item: -given[item.path])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what a process beside others has measured: it is killed where it takes ten seconds to end."""
    measured = coverage.Coverage.current()
    if measured is not None and hasattr(session.config, "workerinput"):
        measured.save()


class SeededRandom:
    """What `random` is to the workers whose backoffs are drawn: every one draws the same each time."""

    @staticmethod
    def Random() -> random.Random:  # the name that it stands for
        return random.Random(11)


@pytest.fixture(scope="session", autouse=True)
def seeded_backoffs() -> Iterator[None]:
    """Draw no test's backoffs by chance: how often an adapter is tried, and when, hangs on them."""
    with pytest.MonkeyPatch.context() as patch:
        for worker in (saving, notifying, committing):
            patch.setattr(worker, "random", SeededRandom)
        yield


@pytest.fixture
def quiet_logging() -> Iterator[None]:
    """Undo what a command that runs in this process does to the log and to the warnings."""
    root, own = logging.getLogger(), logging.getLogger("chatx")
    before = (root.handlers[:], root.level, own.level)
    with warnings.catch_warnings():
        yield
    root.handlers[:], root.level, own.level = before


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep the faults that a test orders out of the log: formatting them costs more than a run that is drawn."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def schedules(request: pytest.FixtureRequest, quiet: None) -> Iterator[None]:
    """Play many schedules at their own pace: silent, and with their coverage measured in the first chunk alone.

    Measuring takes three times what the run takes, and the next chunks go where the first one went.
    """
    callspec = getattr(request.node, "callspec", None)
    chunk = None if callspec is None else callspec.params.get("chunk")
    measured = coverage.Coverage.current()
    if measured is None or (chunk is not None and chunk.start == 0):
        yield
        return
    measured.stop()
    yield
    measured.start()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the tests' own; whoever stops it starts it again."""
    with cluster() as running:
        yield running
