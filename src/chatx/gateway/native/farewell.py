"""The end of a connection behind its answer, such that the peer gets the answer.

A connection that is closed while input is unread, or on its way, is reset, and the peer may see the reset in place of
the answer. So what still comes is read and dropped, within bounds. Source: RFC 9112, section 9.6.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

from chatx.gateway.native.limits import LINGER_BYTES, LINGER_S
from chatx.gateway.native.patience import Patience
from chatx.gateway.session.progress import untaken

LOOK_S: Final = 0.01
"""Seconds until it is looked whether an answer is taken by TLS; twice as many each time, up to a second."""

UNKNOWN: Final = 1 << 62
"""Bytes: more than any length that is read."""

_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r", re.IGNORECASE)


def to_come(head: bytes, behind: int) -> int:
    """Return how many bytes of a request may be on their way still; `UNKNOWN` where its head does not tell.

    Args:
        head: The whole head.
        behind: The bytes behind it that have been read.
    """
    lower = head.lower()
    if b"transfer-encoding:" not in lower and b"content-length:" not in lower:
        return 0
    found = None if b"transfer-encoding:" in lower else _LENGTH.search(head)
    return UNKNOWN if found is None else max(0, int(found[1]) - behind)


class Farewell(asyncio.Protocol):
    """A connection whose answer is written: it ends when the peer has taken that and sends no more.

    The peer is told of the end behind the answer where the transport can; TLS ends both ways at once. The connection is
    closed when `most` or `LINGER_BYTES` bytes have come, or after `LINGER_S`; one whose peer does not take the answer
    is aborted as `Patience` has it.

    Args:
        transport: The connection; it is this protocol's from now on.
        most: Bytes of input that may be on their way; 0 closes at once.
        on_lost: Called once, when the connection is gone.
    """

    def __init__(self, transport: asyncio.Transport, most: int, on_lost: Callable[[Exception | None], object]) -> None:
        self._transport = transport
        self._most = min(most, LINGER_BYTES)
        self._on_lost = on_lost
        self._timer: asyncio.TimerHandle | None = None
        self._patience = Patience(transport)
        self._loop = asyncio.get_running_loop()
        transport.set_protocol(self)
        self._patience.begin()
        if most <= 0:
            self._close()
            return
        self._timer = self._loop.call_later(LINGER_S, self._close)
        try:
            if transport.can_write_eof():
                transport.write_eof()
        except OSError:  # the peer has reset it
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Drop what comes."""
        self._most -= len(data)
        if self._most <= 0:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._patience.end()
        if self._timer is not None:
            self._timer.cancel()
        self._on_lost(exc)

    def _close(self, wait_s: float = LOOK_S) -> None:
        """Close it, by TLS when the answer is taken: from then on it gives the peer no longer than to say goodbye."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport.can_write_eof() or not untaken(self._transport):
            self._transport.close()
        else:
            self._timer = self._loop.call_later(wait_s, self._close, min(2 * wait_s, 1.0))
