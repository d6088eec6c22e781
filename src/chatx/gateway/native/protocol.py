"""The websockets library's side of a connection: it reads the frames, answers pings and closes as RFC 6455 says."""

from __future__ import annotations

import logging

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from chatx.gateway.wire.bounds import MAX_FRAME_BYTES

_logger = logging.getLogger("chatx.websocket")
# It tells each opening and each close, without saying whose.
_logger.setLevel(logging.WARNING)


class _Frames(ServerProtocol):
    """The library's side of an open socket; what it has against a close amid a message is set aside.

    A close is a control frame, and control frames may come between the fragments of a message. Source: RFC 6455,
    section 5.4.
    """

    def recv_frame(self, frame: Frame) -> None:
        """Take a frame that was read."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


def wire_protocol(*, opened: bool) -> ServerProtocol:
    """Return the library's side of a connection, before or after its handshake.

    The one that reads a handshake keeps its request for as long as it lives, so an open socket gets a new one.
    """
    if opened:
        return _Frames(state=OPEN, max_size=MAX_FRAME_BYTES, logger=_logger)
    return ServerProtocol(max_size=MAX_FRAME_BYTES, logger=_logger)
