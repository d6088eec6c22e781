"""Turns of the event loop: what is published within one leaves together, and a tight loop of sends gives way.

Rules:
1. Whatever a room publishes within a turn is flushed once, when the turn ends. No timer, so nothing waits longer.
2. After `BURST` messages without a turn, a send yields once, so that readers get theirs.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

BURST = 64
"""Messages published without a turn of the loop before a send yields."""


class Flushes(Protocol):
    """What is flushed when a turn ends."""

    def flush(self) -> None:
        """Send out what this turn has left pending. Must not raise."""
        ...


class Turn:
    """The current turn of one chat's loop.

    Attributes:
        number: Rises by one with each turn in which something was published.
        published: Messages published in this turn.
    """

    __slots__ = ("_handle", "_loop", "_touched", "number", "published")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._touched: dict[Flushes, None] = {}
        self._handle: asyncio.Handle | None = None
        self.number = 0
        self.published = 0

    def touch(self, what: Flushes) -> None:
        """Flush this when the turn ends."""
        self._touched[what] = None
        if self._handle is None:
            self._handle = self._loop.call_soon(self.end)

    def end(self) -> None:
        """End the turn now."""
        handle = self._handle
        # What is flushed may touch what is built on top of it, which belongs to the same turn.
        while self._touched:
            touched, self._touched = self._touched, {}
            for what in touched:
                what.flush()
        if handle is not None:
            handle.cancel()
        self._handle = None
        self.number += 1
        self.published = 0
