"""One WebSocket over a transport of the event loop, for the native server: its way in and its way out, joined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chatx.gateway.native.protocol import wire_protocol
from chatx.gateway.native.reading import Reading
from chatx.gateway.native.writing import Writing
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Flow


class Stream(asyncio.Protocol):
    """A WebSocket after its handshake, as its transport knows it.

    Args:
        transport: The connection; the response to the handshake is written already.
        limit_bytes: Of what may wait to be written.
        flow: Counts each change of `direct`.
        on_lost: Called once, with the stream, when the connection is gone.

    Attributes:
        reading: The way in.
        writing: The way out, which is the session's socket.
    """

    __slots__ = ("_on_lost", "reading", "writing")

    def __init__(
        self, transport: asyncio.Transport, limit_bytes: int, flow: Flow, on_lost: Callable[[Stream], object]
    ) -> None:
        protocol = wire_protocol(opened=True)
        self._on_lost = on_lost
        self.writing: Writing = Writing(transport, protocol, limit_bytes, flow)
        self.reading: Reading = Reading(transport, protocol, self.writing)

    def begin(self, session: Session, data: bytes) -> None:
        """Serve a session; `data` is what followed the handshake already."""
        self.writing.begin(session)
        self.reading.begin(session)
        if data:
            self.reading.feed(data)

    def abort(self) -> None:
        """End the connection now."""
        self.writing.abandon()

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        self.reading.feed(data)

    def eof_received(self) -> bool:
        """The peer sends no more: half-open connections are not kept."""
        self.reading.peer_ended()
        return False

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self.writing.hold()

    def resume_writing(self) -> None:
        """The peer took what the transport held."""
        self.writing.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.writing.end()
        self.reading.end()
        self._on_lost(self)
