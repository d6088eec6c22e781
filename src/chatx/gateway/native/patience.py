"""How long a peer is waited for that is to take an answer: from the last bytes that it took, and not for drops."""

from __future__ import annotations

import asyncio
import socket
import sys

from chatx.gateway.native.limits import ANSWER_STALL_BYTES, ANSWER_STALL_S
from chatx.gateway.session.progress import LOOKS, untaken

_TCP_INFO_BYTES = 128
_BYTES_ACKED = slice(120, 128)
"""Where `tcp_info` of Linux has `tcpi_bytes_acked`. Source: linux/tcp.h."""


def acknowledged(transport: asyncio.Transport) -> int | None:
    """Return how many bytes the peer's system has taken since the connection began, or None where that is not told.

    What waits in a transport does not tell it: below TLS waits more, which no transport lets be seen.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, AttributeError, ValueError):  # it is gone, or is no connection of TCP
        return None
    return int.from_bytes(told[_BYTES_ACKED], sys.byteorder) if len(told) >= _TCP_INFO_BYTES else None


class Patience:
    """Looks at a connection for as long as its peer has something to take, and aborts it where the peer does not.

    The time runs anew whenever the peer has taken `ANSWER_STALL_BYTES`, or all that there was.

    Args:
        transport: The connection.
    """

    __slots__ = ("_left", "_loop", "_mark", "_taken", "_timer", "_transport", "_until")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0  # when it was looked last
        self._taken = 0
        self._mark = 0  # of what was taken when the time ran anew
        self._until = 0.0

    def begin(self) -> None:
        """Look from now on."""
        self.end()
        self._note()
        self._anew()
        self._again()

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _note(self) -> None:
        left = untaken(self._transport)
        taken = acknowledged(self._transport)
        # Where nothing better is known: what more is written hides what was taken meanwhile, which is seldom.
        self._taken = self._taken + max(0, self._left - left) if taken is None else taken
        self._left = left

    def _anew(self) -> None:
        self._mark = self._taken
        self._until = self._loop.time() + ANSWER_STALL_S

    def _again(self) -> None:
        self._timer = self._loop.call_later(ANSWER_STALL_S / LOOKS, self._look)

    def _look(self) -> None:
        self._note()
        if self._taken >= self._mark + ANSWER_STALL_BYTES or (not self._left and self._taken > self._mark):
            self._anew()
        if self._loop.time() >= self._until:
            self._timer = None
            self._transport.abort()
        else:
            self._again()
