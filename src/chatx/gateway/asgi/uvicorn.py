"""A way past uvicorn's `send`, for whole frames: what a turn of the loop leaves for a socket goes out as one write.

ASGI takes messages one by one, and a server frames each anew and writes it by itself. That is most of what a delivery
costs, and none of it is needed: a server's frames are the same bytes for every client. uvicorn's protocol for
WebSockets has everything at hand, and is what `receive` belongs to, also where a framework has wrapped `send`.

Rules:
1. It is used only where everything that it relies on is there; any other server, and a uvicorn that has changed, gets
   its messages by `send`.
2. Nothing is written here before the handshake is answered or after a close, nor while the transport has enough. Those
   are uvicorn's own conditions.
3. A frame is written whole or not at all, so that pings and closes, which are uvicorn's, never come into one.
4. A client is asked whether it is there by uvicorn's own ping, sent before its time, since no other's answer is told.
   While the application does not read, nothing is asked: uvicorn does not read the answers either, and would take
   whoever gave them for dead.
5. An application that refuses a handshake with a status of its own is to uvicorn, as of 0.54, one that answered
   nothing, and each time it logs an error; `refused` tells it otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

try:
    from websockets.protocol import OPEN
except ModuleNotFoundError:  # then it is not the protocol that is known here
    OPEN = None  # type: ignore[assignment]


_PINGS = ("pending_ping_payload", "ping_timer", "send_keepalive_ping", "start_keepalive", "stop_keepalive")
"""What asking a client, and not asking it, relies on."""


class Uvicorn:
    """One socket of uvicorn's.

    Args:
        protocol: The connection as uvicorn knows it: a `WebSocketsSansIOProtocol`.
    """

    __slots__ = ("_pings", "_protocol", "_writable")

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._writable: asyncio.Event = protocol.writable
        self._pings = all(hasattr(protocol, name) for name in _PINGS)

    @property
    def open(self) -> bool:
        """Whether frames may be written at all."""
        protocol = self._protocol
        return (
            protocol.handshake_complete
            and not protocol.close_sent
            and protocol.conn.state is OPEN
            and not protocol.transport.is_closing()
        )

    @property
    def writable(self) -> bool:
        """Whether the transport takes more."""
        return self._writable.is_set()

    async def wait_writable(self) -> None:
        """Wait until the transport takes more."""
        await self._writable.wait()

    def write(self, wire: bytes) -> None:
        """Write whole frames; they go out uncompressed, also where compression was agreed on, as RFC 7692 allows."""
        self._protocol.transport.write(wire)

    def ask(self) -> Callable[[], bool] | None:
        """Have uvicorn's next ping sent now, unless it is under way; return what tells whether it is answered.

        None is where uvicorn sends no pings, or the client takes nothing now.
        """
        protocol = self._protocol
        if not (self._pings and self.open and self.writable):
            return None
        if protocol.pending_ping_payload is None:
            if protocol.ping_timer is None:
                return None
            protocol.ping_timer.cancel()
            protocol.send_keepalive_ping()
        return lambda: protocol.pending_ping_payload is None

    @contextmanager
    def while_not_read(self) -> Iterator[None]:
        """Keep uvicorn from asking for an answer in a block in which the application does not read."""
        if not self._pings:
            yield
            return
        self._protocol.stop_keepalive()
        try:
            yield
        finally:
            if self.open:
                self._protocol.start_keepalive()

    def refused(self) -> None:
        """Note that the handshake is answered, by a response of the application's."""
        self._protocol.handshake_complete = True

    def abort(self) -> None:
        """End the connection now; uvicorn's own close waits for a peer that takes nothing, without a bound."""
        self._protocol.transport.abort()


def uvicorn_of(receive: Callable[..., Any]) -> Uvicorn | None:
    """Return the way past uvicorn's `send` for the connection that this `receive` belongs to, or None."""
    protocol: Any = getattr(receive, "__self__", None)
    if type(protocol).__name__ != "WebSocketsSansIOProtocol" or not type(protocol).__module__.startswith("uvicorn."):
        return None
    try:
        way = Uvicorn(protocol)
        # Each is asked once, so that whatever is not there shows here and not amid a room's fan-out.
        known = isinstance(protocol.writable, asyncio.Event) and not way.open and callable(protocol.transport.write)
    except AttributeError:
        return None
    return way if known else None
