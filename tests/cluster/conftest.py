"""The brokers that the tests of the link between nodes run against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from chatx.cluster.memory_backplane import MemoryBackplane, MemoryHub
from chatx.cluster.nats import NatsBackplane
from tests.cluster.links import Make
from tests.nats import NatsServer, server


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], NatsServer]]:
    """Gives one of each server, for tests that do it no harm."""
    running: dict[str, NatsServer] = {}
    with ExitStack() as stack:

        def one(which: str) -> NatsServer:
            if which not in running:
                running[which] = stack.enter_context(server(which, tmp_path_factory.mktemp("nats")))
            return running[which]

        yield one


@pytest.fixture(params=["debian", "current"])
def own_nats(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NatsServer]:
    """Each server, one after the other, for a test that does it harm."""
    with server(request.param, tmp_path) as running:
        yield running


@pytest.fixture
def current_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """The current server, for a test that does it harm."""
    with server("current", tmp_path) as running:
        yield running


_NATS = [pytest.param(which, marks=pytest.mark.process) for which in ("debian", "current")]


@pytest.fixture(params=["memory", *_NATS])
def make(request: pytest.FixtureRequest, shared_nats: Callable[[str], NatsServer]) -> Make:
    """Makes a link of a new node, to one broker for all of the test."""
    if request.param == "memory":
        hub = MemoryHub()
        return lambda boot: MemoryBackplane(hub, boot)
    options = shared_nats(request.param).options()
    return lambda boot: NatsBackplane(boot, options)


@pytest.fixture(params=_NATS)
def make_nats(request: pytest.FixtureRequest, shared_nats: Callable[[str], NatsServer]) -> Make:
    """Makes a link of a new node over NATS."""
    options = shared_nats(request.param).options()
    return lambda boot: NatsBackplane(boot, options)
