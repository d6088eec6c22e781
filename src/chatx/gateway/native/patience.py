"""How long a peer is waited for that is to take an answer: from the last bytes that it took, and not for drops."""

from __future__ import annotations

import asyncio

from chatx.gateway.native.limits import ANSWER_STALL_BYTES, ANSWER_STALL_S
from chatx.gateway.session.progress import LOOKS, untaken


class Patience:
    """Looks at a connection for as long as its peer has something to take, and aborts it where the peer does not.

    The time runs anew whenever the peer has taken `ANSWER_STALL_BYTES`, or all that there was.

    Args:
        transport: The connection.
    """

    __slots__ = ("_left", "_loop", "_timer", "_transport", "_until")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0
        self._until = 0.0

    def begin(self) -> None:
        """Look from now on."""
        self.end()
        self._left = untaken(self._transport)
        self._until = self._loop.time() + ANSWER_STALL_S
        self._again()

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._timer = self._loop.call_later(ANSWER_STALL_S / LOOKS, self._look)

    def _look(self) -> None:
        left = untaken(self._transport)
        if self._left and left <= max(0, self._left - ANSWER_STALL_BYTES):
            self._left = left
            self._until = self._loop.time() + ANSWER_STALL_S
        elif left > self._left:
            self._left = left  # more was written
        if self._loop.time() >= self._until:
            self._timer = None
            self._transport.abort()
        else:
            self._again()
