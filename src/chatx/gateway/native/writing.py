"""The way out of one WebSocket of the native server: what a session writes to, in order, bounded in bytes and time.

What goes to many sockets is framed once, by `Bundle.wire`, and written past the library's protocol.

Rules:
1. While the transport takes what it is given, `direct` is the way past it. From `hold` to `resume` the frames wait
   here, in order and bounded by `mailbox_bytes`; over the bound, or when the peer takes less than `LEAST_TAKEN` bytes
   in `WRITE_STALL_S`, they are dropped and the socket is closed as slow, with 1013.
2. Nothing of a session's is written once a close was asked for, but what waited before it.
3. Closed from this side, the transport is gone when the peer has taken less than `LEAST_TAKEN` bytes in `CLOSE_S`, or
   has taken all and not answered for as long, and `CLOSING_S` after the close in any case. Closed by the peer, it is
   gone `CLOSE_S` later, whatever is left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from chatx.gateway.native.tcp import TcpTransport, direct_of
from chatx.gateway.session.progress import Progress, StallClock, untaken
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Bundle, Flow
from chatx.gateway.wire.bounds import CLOSING_S
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY, CLOSE_TRY_LATER

WRITE_STALL_S = 10.0
"""Seconds in which a peer must take `LEAST_TAKEN` bytes of what waits for it."""

CLOSE_S = 5.0
"""Seconds in which a peer must take as much of what waits before a close, and then in which it must answer."""


class Phase(Enum):
    """How far the way out of a socket is to its end; it only goes on, never back."""

    OPEN = "what is written goes out, or waits here while the transport is full"
    CLOSING = "a close was asked for, and goes out behind what waits here"
    CLOSED = "nothing is written any more but the library's close and its answers"
    GONE = "there is no connection"


# A member of an enumeration is looked up by a call, in Python 3.11; these are looked at for each message.
_OPEN: Final = Phase.OPEN
_GONE: Final = Phase.GONE


class Writing:
    """A WebSocket after its handshake, as a session writes to it.

    Args:
        transport: The connection; the response to the handshake is written already.
        protocol: The library's side of it.
        limit_bytes: Of what may wait here.
        flow: Counts each change of `direct`.

    Attributes:
        direct: The way past it, as `Socket` has it; set in the phase `OPEN`, while the transport is not full.
        phase: How far it is to its end.
    """

    __slots__ = (
        "_backlog",
        "_drained",
        "_farewell",
        "_flow",
        "_full",
        "_limit_bytes",
        "_protocol",
        "_resumed",
        "_session",
        "_size",
        "_timer",
        "_transport",
        "direct",
        "phase",
    )

    def __init__(self, transport: asyncio.Transport, protocol: ServerProtocol, limit_bytes: int, flow: Flow) -> None:
        self._transport = transport
        self._protocol = protocol
        self._flow = flow
        self._limit_bytes = limit_bytes
        self._session: Session | None = None
        self.phase: Phase = Phase.OPEN
        self.direct: Callable[[bytes], int | None] | None = direct_of(transport)
        self._full = False  # what the transport said last
        self._resumed = 0  # how often it was full and then was not
        self._backlog: deque[bytes] | None = None  # None while there is nothing of it, since most sockets are idle
        self._size = 0
        self._farewell = (CLOSE_GOING_AWAY, "")
        self._timer: asyncio.TimerHandle | StallClock | None = None
        self._drained: asyncio.Future[None] | None = None

    def begin(self, session: Session) -> None:
        """Cut this session off where its peer is slow."""
        self._session = session

    # What the session and the hubs ask.

    @property
    def unread(self) -> int:
        """How many writes wait for the peer to take what is before them."""
        return len(self._backlog) if self._backlog else 0

    def write(self, bundle: Bundle) -> None:
        """Send these messages, in order; over the bound close as slow instead."""
        if self.phase is _OPEN:
            self._send(bundle.wire)

    def write_rest(self, data: bytes) -> None:
        """Send what `direct` has not taken, before anything else."""
        assert isinstance(self._transport, TcpTransport)  # the others take all
        self._transport.write_rest(data)

    def abandon(self) -> None:
        """End the connection now: what waits is for nobody, and no close is said."""
        self.drop()
        self._transport.abort()

    def ask(self) -> Callable[[], bool] | None:
        """Ping the peer, whose pong its session hears of; None where the socket is being closed.

        A ping would lie behind what the transport holds. Where that is enough, taking any of it is the answer.
        """
        if self.phase is not Phase.OPEN or self._protocol.state is not OPEN:
            return None
        if self._full:
            before, resumed = untaken(self._transport), self._resumed
            return lambda: self._resumed != resumed or untaken(self._transport) < before
        self._protocol.send_ping(b"")
        self.pass_on()
        return bool  # False: there is no other answer

    async def drained(self) -> None:
        """Wait until the transport takes more; returns at once when the socket is closed."""
        if self._full and self.phase is Phase.OPEN:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def close(self, code: int, reason: str) -> None:
        """Close it, after what was written; the first call stands."""
        if self.phase is Phase.OPEN:
            self._farewell = (code, reason)
            self._shut(Phase.CLOSING, StallClock(self._progress(), self._transport.abort, CLOSE_S, CLOSING_S))
            if not self._backlog:
                self._say_goodbye()

    # What the stream tells.

    def hold(self) -> None:
        """Keep what comes now: the transport holds enough."""
        self._full = True
        self._turn_to(None)
        if self.phase is Phase.OPEN:
            self._timer = StallClock(self._progress(), self._slow, WRITE_STALL_S)

    def resume(self) -> None:
        """Write what waits: the peer took what the transport held."""
        self._full = False
        self._resumed += 1
        if self.phase is Phase.OPEN and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._backlog:
            if self._full:  # again, by what was just written: the others stay where they are counted
                return
            data = self._backlog.popleft()
            self._size -= len(data)
            self._transport.write(data)
        self._backlog = None
        if self.phase is Phase.CLOSING:
            self._say_goodbye()
        elif self.phase is Phase.OPEN and not self._full:
            self._turn_to(direct_of(self._transport))
            self._release()

    def pass_on(self) -> None:
        """Write what the library wants written."""
        for data in self._protocol.data_to_send():
            if self.phase is _GONE or self._transport.is_closing():
                return
            if data:
                self._send(data) if self.phase is _OPEN else self._transport.write(data)
            elif self._transport.can_write_eof():
                try:
                    self._transport.write_eof()
                except OSError:  # the peer has reset the connection, of which nothing was told yet
                    self._transport.abort()
            else:
                self._transport.close()

    def drop(self) -> None:
        """Write nothing any more: what waits is for nobody, since the peer closed, is gone or broke a rule."""
        self._backlog = None
        self._size = 0
        if self.phase is Phase.OPEN:
            self._shut(Phase.CLOSED, asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort))
        elif self.phase is Phase.CLOSING:
            self.phase = Phase.CLOSED

    def end(self) -> None:
        """Forget the connection, which is gone."""
        self._backlog = None
        self._size = 0
        self._shut(Phase.GONE, None)
        self._session = None

    def _turn_to(self, direct: Callable[[bytes], int | None] | None) -> None:
        self.direct = direct
        self._flow.changes += 1

    def _send(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if not self._full:
            self._transport.write(data)
            return
        if self._backlog is None:
            self._backlog = deque()
        self._size += len(data)
        if self._backlog and self._size > self._limit_bytes:
            self._slow()
            return
        self._backlog.append(data)

    def _progress(self) -> Progress:
        progress = Progress(self._transport, lambda: self._size)
        progress.look()
        return progress

    def _slow(self) -> None:
        # What it has not taken is dropped: it comes back and resumes from the last message it did take.
        self._backlog = None
        self._size = 0
        if self._session is not None:
            self._session.cut(CLOSE_TRY_LATER, "too slow: resume from the last message")

    def _shut(self, phase: Phase, end: asyncio.TimerHandle | StallClock | None) -> None:
        """Take nothing more from here on; `end` is what sees to it that the connection ends."""
        if self.phase is Phase.OPEN:
            self._turn_to(None)
            self._release()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = end
        self.phase = phase

    def _say_goodbye(self) -> None:
        self.phase = Phase.CLOSED
        if self._protocol.state is OPEN:
            self._protocol.send_close(*self._farewell)
        self.pass_on()

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
