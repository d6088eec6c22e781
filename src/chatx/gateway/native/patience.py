"""How long a peer is waited for that is to take an answer: from the last bytes that it took, and not for drops."""

from __future__ import annotations

import asyncio

from chatx.gateway.native.limits import ANSWER_STALL_BYTES, ANSWER_STALL_S
from chatx.gateway.session.progress import Progress, StallClock


class Patience:
    """Looks at a connection for as long as its peer has something to take, and aborts it where the peer does not.

    The time runs anew whenever the peer has taken `ANSWER_STALL_BYTES`, or all that there was.

    Args:
        transport: The connection.
    """

    __slots__ = ("_clock", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._clock: StallClock | None = None

    def begin(self) -> None:
        """Look from now on."""
        self.end()
        progress = Progress(self._transport, least=ANSWER_STALL_BYTES)
        progress.look()
        self._clock = StallClock(progress, self._transport.abort, ANSWER_STALL_S)

    def end(self) -> None:
        """Look no more."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
