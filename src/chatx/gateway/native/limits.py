"""What a peer may cost a server of our own, which sees its frames and its connection.

Rules of a WebSocket's frames, before they are a message:
1. A message is counted over all its fragments, and by the length that a frame's header announces: nothing that is over
   a bound is waited for, and nothing is kept of it.
2. Empty fragments count. 500,000 fragments of two bytes are one megabyte on the wire, and were 31 in one server.

Source of the terms: RFC 6455, sections 5.4 and 5.5.
"""

from __future__ import annotations

from chatx.gateway.wire.bounds import CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_S, MAX_FRAGMENTS, MAX_FRAME_BYTES
from chatx.gateway.wire.closes import CLOSE_POLICY, CLOSE_TOO_LARGE
from chatx.gateway.wire.excess import Excess

ANSWER_STALL_S = 10.0
"""Seconds in which a peer must take `ANSWER_STALL_BYTES` of an answer, or all that is left of it."""

ANSWER_STALL_BYTES = 10_240
"""Bytes: who takes drops of an answer would otherwise hold a connection for as long as they like."""

LINGER_S = 5.0
"""Seconds behind an answer in which what is on its way of a request is still read, and dropped."""

LINGER_BYTES = 1_048_576
"""Bytes of that, at most."""


class MessageBound:
    """Counts the frames of the message that is being received on one socket.

    Args:
        max_bytes: Bytes of a whole message, unmasked.
        max_fragments: Fragments of a whole message.
    """

    __slots__ = ("_fragments", "_max_bytes", "_max_fragments", "_size")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES, max_fragments: int = MAX_FRAGMENTS) -> None:
        self._max_bytes = max_bytes
        self._max_fragments = max_fragments
        self._size = 0
        self._fragments = 0

    def add(self, size: int, *, final: bool) -> None:
        """Count a data frame as soon as its header is read.

        Args:
            size: Bytes that the header announces.
            final: Whether the frame ends its message.

        Raises:
            Excess: The message is too large, or in too many pieces. The socket is to be closed.
        """
        self._size += size
        self._fragments += 1
        if self._size > self._max_bytes:
            raise Excess(CLOSE_TOO_LARGE, f"message of more than {self._max_bytes} bytes")
        if self._fragments > self._max_fragments:
            raise Excess(CLOSE_POLICY, f"message of more than {self._max_fragments} fragments")
        if final:
            self._size = self._fragments = 0


class ControlFrameRate:
    """The control frames of one socket: a token bucket. Times are seconds of one monotonic clock."""

    __slots__ = ("_at", "_missing")

    def __init__(self) -> None:
        self._missing = 0.0
        self._at = 0.0

    def add(self, now: float) -> None:
        """Count one ping or pong.

        Raises:
            Excess: Pings and pongs come too fast. The socket is to be closed.
        """
        missing = max(0.0, self._missing - (now - self._at) * CONTROL_FRAMES_PER_S) + 1
        if missing > CONTROL_FRAMES_BURST:
            raise Excess(CLOSE_POLICY, f"more than {CONTROL_FRAMES_PER_S:g} control frames a second")
        self._missing, self._at = missing, now
