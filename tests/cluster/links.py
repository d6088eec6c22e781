"""What tests of the link between nodes share: nodes on one broker, and what one of them was told."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from chatx.cluster.backplane import Backplane, BackplaneAway, LinkState

# A loaded machine takes long; nothing here takes that long by itself.
WITHIN_S = 30.0

Make = Callable[[str], Backplane]


def new_boot() -> str:
    """Return a boot id."""
    return secrets.token_hex(10)


class Told:
    """What a link told: its states, and what it may have missed."""

    def __init__(self, link: Backplane) -> None:
        self.states: list[LinkState] = []
        self.missed: list[str | None] = []
        link.watch(self.states.append, self.missed.append)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        await until(condition)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own timeout bounds it."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  # what is waited for is told by no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def linked(make: Make, count: int) -> AsyncIterator[list[Backplane]]:
    """Have so many nodes connected within the block."""
    async with AsyncExitStack() as stack:
        links = [make(new_boot()) for _ in range(count)]
        for each in links:
            stack.push_async_callback(each.close)
            await each.connect(WITHIN_S)
        yield links


async def hears(publisher: Backplane, topic: str, heard: list[bytes]) -> None:
    """Wait until something that this node publishes from here on arrives."""
    mark = secrets.token_bytes(8)
    async with asyncio.timeout(WITHIN_S):
        while mark not in heard:
            try:
                publisher.publish(topic, mark)
            except BackplaneAway:
                pass
            await asyncio.sleep(0.05)
