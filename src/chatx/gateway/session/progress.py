"""Whether a peer takes what is written to it: however slowly, as long as it does.

A transport says only that it is full and that it is not. Between the two a slow peer may take longer than one that
takes nothing is waited for, since the kernel holds megabytes. So it is looked at how much is left.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

if sys.platform.startswith("linux"):
    import fcntl
    import termios

LOOKS: Final = 4
"""How often it is looked within the time in which a peer must take something; a stall is noticed a quarter late at
most."""


def untaken(transport: asyncio.Transport) -> int:
    """Return how many bytes the peer has not taken yet: those that wait here and, on Linux, those in the kernel.

    A transport is told of room in the kernel only when a third of its buffer is free, for which a slow peer may take
    longer than it may take nothing.
    """
    waiting = transport.get_write_buffer_size()
    if not sys.platform.startswith("linux"):
        return waiting
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, AttributeError, ValueError):  # it is gone, or is no connection of TCP
        return waiting
    return waiting + int.from_bytes(queued, sys.byteorder)


def transport_of(receive: Any) -> asyncio.Transport | None:
    """Return the transport of the connection that an ASGI `receive` belongs to, where the server lets it be seen.

    No server promises to have it, so what is found is looked at and no more.
    """
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    return transport if callable(getattr(transport, "get_write_buffer_size", None)) else None


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound a block in time, as `asyncio.timeout` does, but so that no single turn of the loop uses the time up.

    What a client sent or took in such a turn is not known before the next one.

    Raises:
        TimeoutError: The block took longer.
    """
    async with taken_within(seconds, None):
        yield


@asynccontextmanager
async def taken_within(seconds: float, transport: asyncio.Transport | None) -> AsyncIterator[None]:
    """Bound a block that writes to a peer, who must take something in so many seconds, counted anew from each byte.

    Without a transport to look at, all of it must be taken in that time. A single turn of the loop uses up a quarter of
    the time at most, however long it takes.

    Raises:
        TimeoutError: The peer took nothing.
    """
    async with asyncio.timeout(None) as bound:
        looks = _Looks(transport, bound, seconds)
        try:
            yield
        finally:
            looks.end()


class _Looks:
    """Looks at a transport now and then, and ends a time after `LOOKS` looks at which its peer had taken nothing."""

    def __init__(self, transport: asyncio.Transport | None, bound: asyncio.Timeout, seconds: float) -> None:
        self._transport = transport
        self._bound = bound
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._again(0, 0)

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _again(self, left: int, quiet: int) -> None:
        self._timer = self._loop.call_later(self._seconds / LOOKS, self._look, left, quiet)

    def _look(self, before: int, quiet: int) -> None:
        left = untaken(self._transport) if self._transport is not None else 0
        if left < before:
            self._again(left, 0)
        elif quiet + 1 < LOOKS:
            self._again(left, quiet + 1)
        else:
            self._bound.reschedule(self._loop.time())
