"""The way into one WebSocket of the native server: from bytes to the messages that a session receives.

Rules:
1. A piece of input is parsed in each turn of the loop, so that a flood from one peer does not hold up the others.
2. A peer is read no further while its session is busy, or a piece waits for its turn. Meanwhile no loop tells that it
   has reset the connection, so it is looked at every `RESET_MS`.
3. Once the socket is being closed, frames are looked at for the peer's own close only; nothing else comes of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import Final, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from chatx.gateway.native.limits import ControlFrameRate, MessageBound
from chatx.gateway.native.tcp import is_reset
from chatx.gateway.native.writing import Phase, Writing
from chatx.gateway.session.session import Session
from chatx.gateway.wire.closes import CLOSE_MALFORMED
from chatx.gateway.wire.excess import Excess

PIECE_BYTES = 8192
"""Bytes of input parsed in one turn of the loop."""

RESET_MS = 500
"""Milliseconds between two looks at whether a peer that is not read has reset the connection."""


class Pace(Enum):
    """What the input of a socket waits for."""

    READING = "for the peer: all that came is dealt with"
    NEXT_TURN = "for the loop's next turn: the next piece is parsed then"
    BUSY = "for the session, which has as many pushes under way as may be"


# A member of an enumeration is looked up by a call, in Python 3.11; these are looked at for each message.
_READING: Final = Pace.READING
_OPEN: Final = Phase.OPEN


class Reading:
    """The input of a WebSocket after its handshake.

    Args:
        transport: The connection.
        protocol: The library's side of it.
        writing: The way out, which the library's answers take.

    Attributes:
        pace: What the input waits for.
    """

    __slots__ = (
        "_control",
        "_frames",
        "_message",
        "_parts",
        "_protocol",
        "_session",
        "_text",
        "_transport",
        "_unparsed",
        "_writing",
        "pace",
    )

    def __init__(self, transport: asyncio.Transport, protocol: ServerProtocol, writing: Writing) -> None:
        self._transport = transport
        self._protocol = protocol
        self._writing = writing
        self._session: Session | None = None
        self.pace: Pace = Pace.READING
        self._unparsed = b""
        # Each is None while there is nothing of it, since most sockets are idle:
        self._frames: deque[Frame] | None = None  # parsed, and not dealt with
        self._control: ControlFrameRate | None = None
        self._message: MessageBound | None = None  # of one that comes in fragments
        self._parts: list[bytes] | None = None  # of the message that is being received
        self._text = True  # whether that is one of text

    def begin(self, session: Session) -> None:
        """Give this session what is received."""
        self._session = session

    def feed(self, data: bytes) -> None:
        """Deal with what was read, now or when its turn has come."""
        if self.pace is not _READING:
            self._unparsed += data
            return
        if not data or self._session is None or self._transport.is_closing():
            return
        left = b""
        if len(data) > PIECE_BYTES:
            data, left = data[:PIECE_BYTES], data[PIECE_BYTES:]
        self._protocol.receive_data(data)
        frames = deque(cast("list[Frame]", self._protocol.events_received()))
        if self._protocol.state is OPEN:
            self._writing.pass_on()  # pongs, which are not to wait for what the messages before them ask for
        self._act_on(frames)
        if frames:
            self._pause(Pace.BUSY, left)
            self._session.gateway.wheel.watch(self, self._session.engine.loop.time() + RESET_MS / 1000)
            self._wait_for_session(frames)
            return
        self._settle()
        if left:
            self._pause(Pace.NEXT_TURN, left)
            asyncio.get_running_loop().call_soon(self._go_on)

    def peer_ended(self) -> None:
        """Take note that nothing follows: the peer closed, is gone or broke a rule."""
        self._writing.drop()
        if self._session is None:
            return
        sent = self._protocol.close_sent
        if sent is not None and self._protocol.parser_exc is not None:
            self._session.cut(sent.code, sent.reason)  # by the library, for a rule that was broken: it counts as ours
        else:
            self._session.end()

    @property
    def user_id(self) -> str | None:
        """The user whose socket it is, while the connection is there."""
        return self._session.user_id if self._session is not None else None

    def due(self, now: float) -> float | None:
        """End the connection where the peer has reset it while its session was busy; return when to look again."""
        if self.pace is not Pace.BUSY or self._session is None:
            return None
        if is_reset(self._transport):
            self._transport.abort()
            return None
        return now + RESET_MS / 1000

    def end(self) -> None:
        """Forget the connection, which is gone."""
        session, self._session = self._session, None
        self._frames = None
        self._unparsed = b""
        if session is not None:
            if self.pace is Pace.BUSY:
                session.gateway.wheel.forget(self)
            session.end()

    def _act_on(self, frames: deque[Frame]) -> None:
        """Do what frames say, until none is left or the session is busy."""
        while frames:
            session = self._session
            if session is None:
                frames.clear()
            elif session.busy and self._writing.phase is _OPEN:
                return
            else:
                self._frame(frames.popleft(), session)

    def _frame(self, frame: Frame, session: Session) -> None:
        try:
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                if self._control is None:
                    self._control = ControlFrameRate()
                self._control.add(session.engine.loop.time())
                session.seen()
            elif frame.opcode is not Opcode.CLOSE and self._writing.phase is _OPEN:
                if self._message is not None or not frame.fin:  # a whole one the library has bounded
                    self._count(frame)
                self._data(frame, session)
        except Excess as excess:
            self._fault(session, excess.code, excess.reason)
        except UnicodeDecodeError:
            self._fault(session, CLOSE_MALFORMED, "text that is not UTF-8")

    def _count(self, frame: Frame) -> None:
        if self._message is None:
            self._message = MessageBound()
        self._message.add(len(frame.data), final=frame.fin)
        if frame.fin:
            self._message = None

    def _data(self, frame: Frame, session: Session) -> None:
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        if not frame.fin:
            session.seen()
            if self._parts is None:
                self._parts = []
            self._parts.append(bytes(frame.data))
            return
        data = bytes(frame.data)
        if self._parts is not None:
            data = b"".join((*self._parts, data))
            self._parts = None
        session.receive(data.decode() if self._text else data)

    def _fault(self, session: Session, code: int, reason: str) -> None:
        if self._writing.phase is not Phase.OPEN:
            # Not at once: asyncio's TLS may be handing on what it read before its end, and cannot be aborted there.
            asyncio.get_running_loop().call_soon(self._transport.abort)
        else:
            session.cut(code, reason)

    def _settle(self) -> None:
        """Do what the library wants done, behind every frame that was parsed."""
        if self._protocol.state is not OPEN:
            self.peer_ended()
        self._writing.pass_on()

    def _pause(self, pace: Pace, unparsed: bytes) -> None:
        """Read no further for this reason; whoever sent it is not silent meanwhile."""
        if self._session is not None:
            self._session.seen()
        self.pace = pace
        self._unparsed = unparsed
        self._transport.pause_reading()

    def _wait_for_session(self, frames: deque[Frame]) -> None:
        self._frames = frames
        if self._session is not None:
            waiting = self._session.engine.loop.create_task(self._session.wait_idle(), name="chatx socket reader")
            waiting.add_done_callback(lambda _: self._go_on())

    def _go_on(self) -> None:
        """Deal with what waited, and read on."""
        frames, self._frames = self._frames, None
        if self._session is None:
            return
        if frames is not None:
            self._act_on(frames)
            if frames:
                self._wait_for_session(frames)
                return
            self._session.gateway.wheel.forget(self)
            self._settle()
        self.pace = Pace.READING
        unparsed, self._unparsed = self._unparsed, b""
        self.feed(unparsed)
        if self.pace is Pace.READING and not self._transport.is_closing():
            self._transport.resume_reading()
