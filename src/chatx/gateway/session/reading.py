"""What clients have read for them from history: one page at a time a socket and a user, within a budget of bytes.

A request of 80 bytes can ask for ten thousand times as much. So each page is bounded, and is read only when the client
has taken what was written before it and it is its user's turn; what was read is charged to the user, over all of their
sockets and whatever their number.

Rules:
1. A push for history beyond the budget is refused, with the time after which it is not. A replay after a join waits
   instead: who comes back after an outage has done nothing wrong.
2. A user has one page read at a time, and at most `PAGES_AT_ONCE` are read over all users, so that reading is not what
   the store does all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from chatx.core.byte_budget import ByteBudget
from chatx.core.message import Entry
from chatx.errors import RateLimited
from chatx.runtime.catchup import Page

PAGE_MESSAGES: Final = 64
"""Messages read at once, and written before the client must have taken them."""

PAGE_BYTES: Final = 262_144
"""The same in bytes of content, and the bytes in one page of history."""

PAGES_AT_ONCE: Final = 4
"""Pages being read at a time, over all users."""

BURST_S: Final = 8
"""Seconds of `history_bytes_per_sec` that a user may have at once."""

OVERHEAD: Final = 256
"""Bytes that a message costs beside its content: its ids, its place, its frame."""


class Reading:
    """The pages of one gateway's users.

    Args:
        bytes_per_sec: What one user may have read, in the long run.
        largest: The most bytes of content that one message may have.
        mailbox_bytes: What may wait for a socket. A page is a quarter of it at most, so that the frames of one fit in
            beside what is live.
        loop: The event loop whose time counts.
    """

    def __init__(self, bytes_per_sec: int, largest: int, mailbox_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._budget = ByteBudget(bytes_per_sec, bytes_per_sec * BURST_S)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}  # by user: the lock, and who holds it or waits
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)
        self._loop = loop
        self.page_bytes: Final[int] = min(PAGE_BYTES, mailbox_bytes // 4)
        """Bytes of content in one page; one message may be more than that."""
        self.at_once: Final[int] = max(1, min(PAGE_MESSAGES, self.page_bytes // largest))
        """Messages of one read, so that their content is a page's bytes at most."""

    def __len__(self) -> int:
        """Return how many users are in memory."""
        return len(self._budget) + len(self._turns)

    def check(self, user_id: str) -> None:
        """Raise `RateLimited` where the user has had as much read as they may."""
        wait = self._budget.wait(user_id, self._loop.time())
        if wait:
            raise RateLimited("Too much history in too short a time.", retry_after=wait)

    async def wait(self, user_id: str) -> None:
        """Wait until the user may have more read."""
        wait = self._budget.wait(user_id, self._loop.time())
        if wait:
            await asyncio.sleep(wait)

    def charge(self, user_id: str, messages: Sequence[Entry]) -> None:
        """Charge the user for what was read for them."""
        size = OVERHEAD * (len(messages) or 1)
        for message in messages:
            size += size_of(message)
        self._budget.charge(user_id, size, self._loop.time())

    def charged(self, user_id: str, page: Page) -> Page:
        """Charge the user for a page, and return it; with data it may be too much, and the rest is left for later."""
        size = _size_of_all(page.entries)
        if size > self.page_bytes:
            page = self._cut(page)
            size = _size_of_all(page.entries)
        self._budget.charge(user_id, size + OVERHEAD * (len(page.entries) or 1), self._loop.time())
        return page

    def _cut(self, page: Page) -> Page:
        size = 0
        for place, entry in enumerate(page.entries):
            size += size_of(entry)
            if size > self.page_bytes and place:
                return Page(page.entries[:place], last=False)
        return page

    @asynccontextmanager
    async def turn(self, user_id: str) -> AsyncIterator[None]:
        """Wait for the user's turn, and for one of the pages that are read at a time."""
        lock, held = self._turns.get(user_id) or (asyncio.Lock(), 0)
        self._turns[user_id] = (lock, held + 1)
        try:
            async with lock, self._pages:
                yield
        finally:
            lock, held = self._turns.pop(user_id)
            if held > 1:
                self._turns[user_id] = (lock, held - 1)


def _size_of_all(entries: Sequence[Entry]) -> int:
    # As `size_of`, without a call for each: this is on the way of whoever comes back.
    size = 0
    for entry in entries:
        content, data = entry.content, entry.data
        size += len(content) if content.isascii() else len(content.encode())
        if data is not None:
            size += len(data.text.encode())
    return size


def size_of(message: Entry) -> int:
    """Return the bytes of UTF-8 in a message's content and data."""
    content, data = message.content, message.data
    size = len(content) if content.isascii() else len(content.encode())
    return size if data is None else size + len(data.text.encode())
