"""Clients in Node and in Chromium, for tests that hold for both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients.peers import OpenPeer, Runtime, chromium, node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_node() -> AsyncIterator[Runtime]:
    async with node() as runtime:
        yield runtime


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_chromium() -> AsyncIterator[Runtime]:
    """Chromium. Not for longer than a module: its event loop would be in the way of other tests."""
    async with chromium() as runtime:
        yield runtime


@pytest.fixture(params=["node", pytest.param("chromium", marks=pytest.mark.browser)])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Where the clients run."""
    runtime: Runtime = request.getfixturevalue(f"in_{request.param}")
    return runtime


@pytest_asyncio.fixture(loop_scope="module")
async def open_peer(runtime: Runtime) -> AsyncIterator[OpenPeer]:
    """A function that opens a client."""
    yield runtime.open_peer
    await runtime.leave_all()
