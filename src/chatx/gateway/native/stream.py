"""One WebSocket over a transport of the event loop, for the native server.

The websockets library's protocol reads the frames, answers pings and closes as RFC 6455 says; what goes to many sockets
is framed once, by `Bundle.wire`, and written past it.

Rules:
1. While the transport takes what it is given, `direct` is the way past it. From `pause_writing` to `resume_writing` the
   frames wait here, in order and bounded by `mailbox_bytes`; over the bound, or when the peer takes nothing for
   `WRITE_STALL_S`, however slowly it took the rest, they are dropped and the socket is closed as slow, with 1013.
2. A peer is read no further while its session is busy. A piece of input is parsed in each turn of the loop, so that a
   flood from one peer does not hold up the others.
3. Whatever closes it, the transport is gone `CLOSE_S` later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import cast

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from chatx.gateway.native.limits import ControlFrameRate, MessageBound
from chatx.gateway.native.tcp import TcpTransport, direct_of
from chatx.gateway.session.progress import LOOKS, untaken
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Bundle, Flow
from chatx.gateway.wire.bounds import MAX_FRAME_BYTES
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY, CLOSE_MALFORMED, CLOSE_TRY_LATER
from chatx.gateway.wire.excess import Excess

WRITE_STALL_S = 10.0
"""Seconds in which a peer must take something of what waits for it."""

CLOSE_S = 5.0
"""Seconds between a close frame and the end of the connection, at most."""

PIECE_BYTES = 8192
"""Bytes of input parsed in one turn of the loop."""

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


class Stream(asyncio.Protocol):
    """A WebSocket after its handshake. A session writes to it as to any socket.

    Args:
        transport: The connection; the response to the handshake is written already.
        limit_bytes: Of what may wait here.
        flow: Counts each change of `direct`.
        on_lost: Called once, with the stream, when the connection is gone.
    """

    __slots__ = (
        "_backlog",
        "_closing",
        "_control",
        "_drained",
        "_flow",
        "_frames",
        "_limit_bytes",
        "_lost",
        "_message",
        "_on_lost",
        "_parts",
        "_paused",
        "_protocol",
        "_session",
        "_size",
        "_text",
        "_timer",
        "_transport",
        "_unparsed",
        "direct",
    )

    def __init__(
        self, transport: asyncio.Transport, limit_bytes: int, flow: Flow, on_lost: Callable[[Stream], object]
    ) -> None:
        self._transport = transport
        self._flow = flow
        self._limit_bytes = limit_bytes
        self._on_lost = on_lost
        self._protocol = wire_protocol(opened=True)
        self._session: Session | None = None
        self.direct: Callable[[bytes], int | None] | None = direct_of(transport)
        # Out:
        self._backlog: deque[bytes] | None = None
        self._size = 0
        self._paused = False
        self._closing: tuple[int, str] | None = None
        self._lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        # In; None while there is nothing of it, since most sockets are idle:
        self._message = MessageBound()
        self._control: ControlFrameRate | None = None
        self._parts: list[bytes] | None = None
        self._text = True
        self._frames: deque[Frame] | None = None
        self._unparsed = b""

    def begin(self, session: Session, data: bytes) -> None:
        """Serve a session; `data` is what followed the handshake already."""
        self._session = session
        if data:
            self.data_received(data)

    # What the session and the hubs ask.

    @property
    def unread(self) -> int:
        """How many writes wait for the peer to take what is before them."""
        return len(self._backlog) if self._backlog else 0

    def write(self, bundle: Bundle) -> None:
        """Send these messages, in order; over the bound close as slow instead."""
        if self._closing is None:
            self._send(bundle.wire)

    def rest(self, data: bytes) -> None:
        """Send what `direct` has not taken, before anything else."""
        assert isinstance(self._transport, TcpTransport)  # the others take all
        self._transport.rest(data)

    async def drained(self) -> None:
        """Wait until the transport takes more; returns at once when the socket is closed."""
        if self._paused and self._closing is None and not self._lost:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def close(self, code: int, reason: str) -> None:
        """Close it, after what was written; the first call stands."""
        if self._closing is None and not self._lost:
            self._shut(code, reason)
            if not self._backlog:
                self._say_goodbye()

    def abort(self) -> None:
        """End the connection now."""
        self._shut(CLOSE_GOING_AWAY, "")
        self._transport.abort()

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        if self._frames is not None:
            self._unparsed += data
        else:
            self._parse(data)

    def eof_received(self) -> bool:
        """The peer sends no more: half-open connections are not kept."""
        self._over()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._lost = True
        self._shut(CLOSE_GOING_AWAY, "")
        if self._timer is not None:
            self._timer.cancel()
        self._backlog = None
        session, self._session = self._session, None
        if session is not None:
            session.end()
        self._on_lost(self)

    def pause_writing(self) -> None:
        """The transport holds enough: what comes now waits here."""
        self._paused = True
        self._turn_to(None)
        if self._closing is None:
            self._look_again(untaken(self._transport), 0)

    def resume_writing(self) -> None:
        """The peer took what the transport held."""
        self._paused = False
        if self._closing is None and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._backlog:
            if self._paused:  # again, by what was just written: the rest stays where it is counted
                return
            data = self._backlog.popleft()
            self._size -= len(data)
            self._transport.write(data)
        self._backlog = None
        if self._closing is not None:
            self._say_goodbye()
        elif not self._paused:
            self._turn_to(direct_of(self._transport))
            self._release()

    # Out.

    def _turn_to(self, direct: Callable[[bytes], int | None] | None) -> None:
        self.direct = direct
        self._flow.changes += 1

    def _send(self, data: bytes) -> None:
        if self._lost or self._transport.is_closing():
            return
        if not self._paused:
            self._transport.write(data)
            return
        if self._backlog is None:
            self._backlog = deque()
        self._size += len(data)
        if self._backlog and self._size > self._limit_bytes:
            self._slow()
            return
        self._backlog.append(data)

    def _look_again(self, left: int, quiet: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(WRITE_STALL_S / LOOKS, self._look, left, quiet)

    def _look(self, before: int, quiet: int) -> None:
        """Close it as slow where nothing was taken since `LOOKS` looks, of which `quiet` are past."""
        left = untaken(self._transport)
        if left < before:
            self._look_again(left, 0)
        elif quiet + 1 < LOOKS:
            self._look_again(left, quiet + 1)
        else:
            self._slow()

    def _slow(self) -> None:
        # What it has not taken is dropped: it comes back and resumes from the last message it did take.
        self._backlog = None
        self._size = 0
        if self._closing is not None:
            self._transport.abort()
        elif self._session is not None:
            self._session.cut(CLOSE_TRY_LATER, "too slow: resume from the last message")

    def _shut(self, code: int, reason: str) -> None:
        """Write nothing further from here on but the close frame."""
        if self._closing is None:
            self._closing = (code, reason)
            self._turn_to(None)
            self._release()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort)

    def _say_goodbye(self) -> None:
        code, reason = self._closing or (CLOSE_GOING_AWAY, "")
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason)
        self._pass_on()
        # It was not read while its session was busy; now the answer to the close is to be seen.
        self._go_on()

    def _pass_on(self) -> None:
        """Write what the library wants written."""
        for data in self._protocol.data_to_send():
            if self._lost or self._transport.is_closing():
                return
            if data:
                self._send(data) if self._closing is None else self._transport.write(data)
            elif self._transport.can_write_eof():
                try:
                    self._transport.write_eof()
                except OSError:  # the peer has reset the connection, of which nothing was told yet
                    self._transport.abort()
            else:
                self._transport.close()

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # In.

    def _parse(self, data: bytes) -> None:
        if not data or self._lost or self._transport.is_closing():
            return
        rest = b""
        if len(data) > PIECE_BYTES:
            data, rest = data[:PIECE_BYTES], data[PIECE_BYTES:]
        self._protocol.receive_data(data)
        frames = deque(cast("list[Frame]", self._protocol.events_received()))
        if self._protocol.state is OPEN:
            self._pass_on()  # pongs, which are not to wait for what the messages before them ask for
        self._take(frames)
        if frames:
            self._wait(frames, rest)
            self._go_on_when_idle()
            return
        self._taken()
        if rest:
            self._wait(frames, rest)
            asyncio.get_running_loop().call_soon(self._go_on)

    def _taken(self) -> None:
        """Every frame that was parsed is dealt with: do what the library wants done."""
        if self._protocol.state is not OPEN:
            self._over()
        self._pass_on()

    def _over(self) -> None:
        """The peer closed, is gone or broke a rule: what waits is for nobody, and nothing follows the answer."""
        self._backlog = None
        self._shut(CLOSE_GOING_AWAY, "")
        if self._session is None:
            return
        sent = self._protocol.close_sent
        if sent is not None and self._protocol.parser_exc is not None:
            self._session.cut(sent.code, sent.reason)  # by the library, for a rule that was broken: it counts as ours
        else:
            self._session.end()

    def _take(self, frames: deque[Frame]) -> None:
        """Do what frames say, until none is left or the session is busy."""
        while frames:
            session = self._session
            if session is None:
                frames.clear()
            elif session.busy and self._closing is None:
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
            elif frame.opcode is not Opcode.CLOSE and self._closing is None:
                self._message.add(len(frame.data), final=frame.fin)
                self._data(frame, session)
        except Excess as excess:
            self._fault(session, excess.code, excess.reason)
        except UnicodeDecodeError:
            self._fault(session, CLOSE_MALFORMED, "text that is not UTF-8")

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
        if self._closing is not None:
            # Not at once: asyncio's TLS may be handing on what it read before its end, and cannot be aborted there.
            asyncio.get_running_loop().call_soon(self._transport.abort)
        else:
            session.cut(code, reason)

    def _wait(self, frames: deque[Frame], unparsed: bytes) -> None:
        """Read no further until this is done; whoever sent it is not silent meanwhile."""
        if self._session is not None:
            self._session.seen()
        self._frames = frames
        self._unparsed = unparsed
        self._transport.pause_reading()

    def _go_on_when_idle(self) -> None:
        if self._session is not None:
            waiting = self._session.engine.loop.create_task(self._session.wait_idle(), name="chatx socket reader")
            waiting.add_done_callback(lambda _: self._go_on())

    def _go_on(self) -> None:
        frames, self._frames = self._frames, None
        unparsed, self._unparsed = self._unparsed, b""
        if frames is None or self._lost:
            return
        self._take(frames)
        if frames:
            self._frames, self._unparsed = frames, unparsed
            self._go_on_when_idle()
            return
        self._taken()
        self._parse(unparsed)
        if self._frames is None and not self._transport.is_closing():
            self._transport.resume_reading()
