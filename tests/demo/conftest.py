"""Chromium, a running demo and people who visit it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.demo.browsing import Channel, Live, Screen, Visitors, chromium
from tests.process import Demo, demo


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for a module's tests."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with demo(tmp_path_factory.mktemp("demo") / "demo.db") as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Demo]:
    """A demo that the test may stop."""
    with demo(tmp_path / "demo.db") as running:
        yield running


@pytest.fixture
def patient_server(tmp_path: Path) -> Iterator[Demo]:
    """A demo that takes twenty messages of a person, and then one in fifty seconds."""
    with demo(tmp_path / "demo.db", command=(sys.executable, "-m", "tests.demo.limited", "patient")) as running:
        yield running


@pytest.fixture
def stumbling_server(tmp_path: Path) -> Iterator[Demo]:
    """A demo that refuses the eighth message of a room once."""
    with demo(tmp_path / "demo.db", command=(sys.executable, "-m", "tests.demo.limited", "stumbling")) as running:
        yield running


OWN_SERVERS = ("server", "patient_server", "stumbling_server")


@pytest.fixture
def visitors(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Visitors]:
    """People at the module's demo, or at the test's own where it has one."""
    wanted = next((each for each in OWN_SERVERS if each in request.fixturenames), "shared_server")
    visitors = Visitors(browser, request.getfixturevalue(wanted))
    yield visitors
    visitors.close()
    assert visitors.errors == []


@pytest.fixture(params=[Channel, Live], ids=["channel", "live"])
def kind(request: pytest.FixtureRequest) -> type[Screen]:
    """Each of the two pages."""
    kind: type[Screen] = request.param
    return kind
