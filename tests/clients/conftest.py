"""Clients in Node and in Chromium, for tests that hold for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_asyncio

from tests.clients.peers import OpenPeer, Tabs, chromium, in_chromium, in_node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tabs() -> AsyncIterator[Tabs]:
    """Chromium. Not for longer than a module: its event loop would be in the way of other tests."""
    async with chromium() as tabs:
        yield tabs


@pytest.fixture(params=["node", pytest.param("chromium", marks=pytest.mark.browser)])
def opened(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[OpenPeer]:
    """Where the clients run."""
    return in_node() if request.param == "node" else in_chromium(request.getfixturevalue("tabs"))


@pytest_asyncio.fixture(loop_scope="module")
async def open_peer(opened: AbstractAsyncContextManager[OpenPeer]) -> AsyncIterator[OpenPeer]:
    """A function that opens a client."""
    async with opened as opening:
        yield opening
