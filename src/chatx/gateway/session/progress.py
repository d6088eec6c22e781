"""Whether a peer takes what is written to it: however slowly, as long as it is `LEAST_TAKEN` bytes each time.

A transport says only that it is full and that it is not. Between the two a slow peer may take longer than one that
takes nothing is waited for, since the kernel holds megabytes. So it is looked at how much is left.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import IPPROTO_TCP
from typing import Any, Final

from chatx.gateway.wire.bounds import LEAST_TAKEN

if sys.platform.startswith("linux"):
    import fcntl
    import termios
    from socket import TCP_INFO

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


def acknowledged(transport: asyncio.Transport) -> int | None:
    """Return how many bytes the peer has taken since the connection was made, or None where the kernel does not say.

    By TLS there is a buffer between what a transport tells of and the kernel. While that empties into the kernel, as
    much is left as before. Source: tcp_info in linux/tcp.h, whose bytes from 120 are tcpi_bytes_acked.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        info = transport.get_extra_info("socket").getsockopt(IPPROTO_TCP, TCP_INFO, 128)
    except (OSError, AttributeError, ValueError):  # it is gone, or is no connection of TCP
        return None
    return int.from_bytes(info[120:], sys.byteorder) if len(info) == 128 else None


def _nothing() -> int:
    return 0


class Progress:
    """How a peer gets on with what waits for it, from the first look on.

    Args:
        transport: The connection.
        waiting: Returns how many bytes are to be given to the transport yet.
        least: Bytes that it must take to get on.
    """

    __slots__ = ("_acknowledged", "_least", "_left", "_taken", "_transport", "_waiting")

    def __init__(
        self, transport: asyncio.Transport, waiting: Callable[[], int] = _nothing, least: int = LEAST_TAKEN
    ) -> None:
        self._transport = transport
        self._waiting = waiting
        self._least = least
        # Not looked at yet: most writes are taken before the first look.
        self._left = 0
        self._acknowledged: int | None = None
        self._taken = 0  # since it was last seen to get on

    def look(self) -> bool:
        """Return whether the peer has taken `least` bytes since this was last so, or now the last that there was.

        What was written meanwhile, so that more is left than before, is not held against it.
        """
        left, self._left = self._left, self._waiting() + untaken(self._transport)
        before, self._acknowledged = self._acknowledged, acknowledged(self._transport)
        taken = left - self._left
        if before is not None and self._acknowledged is not None:
            taken = self._acknowledged - before
        if taken <= 0:
            return False
        self._taken += taken
        if self._taken < self._least and self._left:
            return False
        self._taken = 0
        return True


class StallClock:
    """Runs while a peer does not get on with what waits for it.

    Args:
        progress: How it gets on; with None nobody sees whether it does.
        give_up: Called once, unless `cancel` was.
        seconds: In which the peer must get on, and again in as many.
        at_most: Seconds in which it must have taken all of it.
    """

    __slots__ = ("_ends", "_give_up", "_loop", "_progress", "_quiet", "_seconds", "_timer")

    def __init__(
        self, progress: Progress | None, give_up: Callable[[], object], seconds: float, at_most: float = math.inf
    ) -> None:
        self._progress = progress
        self._give_up = give_up
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + at_most
        self._quiet = 0  # looks since it was last seen to get on
        self._again()

    def cancel(self) -> None:
        """Stop it."""
        self._timer.cancel()

    def _again(self) -> None:
        self._timer = self._loop.call_later(self._seconds / LOOKS, self._look)

    def _look(self) -> None:
        self._quiet = 0 if self._progress is not None and self._progress.look() else self._quiet + 1
        if self._quiet < LOOKS and self._loop.time() < self._ends:
            self._again()
        else:
            self._give_up()


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
    """Bound a block that writes to a peer, who must take `LEAST_TAKEN` bytes in so many seconds, and again in as many.

    Without a transport to look at, all of it must be taken in that time. A single turn of the loop uses up a quarter of
    the time at most, however long it takes.

    Raises:
        TimeoutError: The peer took less.
    """
    async with asyncio.timeout(None) as bound:
        loop = asyncio.get_running_loop()
        progress = None if transport is None else Progress(transport)
        clock = StallClock(progress, lambda: bound.reschedule(loop.time()), seconds)
        try:
            yield
        finally:
            clock.cancel()
