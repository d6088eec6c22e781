"""A connection of plain TCP to the native server, as a transport that owns its socket.

It is here for one reason: what a room publishes goes to each of its sockets by the socket's own `send`, a C function
and the quickest way there is. That is safe only where nobody else closes the socket: a descriptor that a loop's own
transport has closed may be another client's by the time that it is written to.

Rules:
1. While nothing waits in a transport, `direct` may be called in its place. What that does not take is given to
   `write_rest`.
2. The protocol is paused as soon as anything waits, and resumed when nothing does: more than the rest of one write
   never waits here unless the protocol writes on regardless.
3. A socket is closed in the step in which its protocol is told, and no longer read or written from the step before.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
from collections.abc import Callable
from socket import SHUT_WR, SO_ERROR, SOL_SOCKET, socket
from typing import Any, Final

logger: logging.Logger = logging.getLogger("chatx")

READ_BYTES: Final = 65_536
"""Bytes read at once."""

PEERS_OWN: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
    )
    if hasattr(errno, name)
)
"""What `accept` fails with for the one connection it was to return, and for no other. Source: accept(2)."""

LATER: Final = (BlockingIOError, InterruptedError)
"""What a socket raises where it is to be asked again later."""


_NOBODY: Final = asyncio.Protocol()


class TcpTransport(asyncio.Transport):
    """One connection.

    Args:
        loop: A loop that watches descriptors.
        sock: Connected; the transport closes it.
        peer: The peer's address.
        protocol: Told that the connection is made, before this returns.

    Attributes:
        direct: The socket's own `send`: returns how many bytes it took, or raises `BlockingIOError` where that is none,
            and another `OSError` where the connection is gone.
    """

    __slots__ = (
        "_closing",
        "_eof",
        "_gone",
        "_loop",
        "_peer",
        "_protocol",
        "_reading",
        "_socket",
        "_waiting",
        "direct",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket, peer: object, protocol: asyncio.Protocol) -> None:
        super().__init__()
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._peer = peer
        self._protocol = protocol
        self._waiting: bytearray | None = None
        self._closing = False
        self._gone = False
        self._eof = False
        self._reading = False
        self.direct: Callable[[bytes], int] = sock.send
        protocol.connection_made(self)
        self.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `peername`, `sockname` or `socket`."""
        match name:
            case "peername":
                return self._peer
            case "sockname":
                return self._socket.getsockname()
            case "socket":
                return self._socket
            case _:
                return default

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who is told."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell somebody else from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    # In.

    def is_reading(self) -> bool:
        """Return whether the peer is read."""
        return self._reading

    def pause_reading(self) -> None:
        """Read no further."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def resume_reading(self) -> None:
        """Read on."""
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except LATER:
            return
        except OSError as error:
            self._fail(error)
            return
        try:
            if data:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()
            else:
                self.pause_reading()
        except Exception as error:
            # A protocol's fault ends its connection, and no other.
            logger.exception("A connection failed.", extra={"address": address_of(self._peer)})
            self._fail(error)
            return
        # A reset behind what was read: uvloop tells of it once, together with what there is to read, and then no more.
        if not self._gone and (code := self._socket.getsockopt(SOL_SOCKET, SO_ERROR)):
            self._fail(OSError(code, os.strerror(code)))

    # Out.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send this, behind what waits.

        Raises:
            RuntimeError: The end was written already.
        """
        if self._eof:
            raise RuntimeError("Nothing is written behind the end of a connection.")
        if self._gone or not data:
            return
        if self._waiting is not None:
            self._waiting += data
            return
        try:
            taken = self._socket.send(data)
        except LATER:
            taken = 0
        except OSError as error:
            self._fail(error)
            return
        if taken != len(data):
            self.write_rest(memoryview(data)[taken:])

    def write_rest(self, data: bytes | memoryview) -> None:
        """Send what `direct` has not taken, as soon as the peer takes more; nothing may wait here yet."""
        if self._gone:
            return
        self._waiting = bytearray(data)
        self._loop.add_writer(self._socket.fileno(), self._flush)
        self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait."""
        return 0 if self._waiting is None else len(self._waiting)

    def can_write_eof(self) -> bool:
        """Return True: TCP can be closed one way."""
        return True

    def write_eof(self) -> None:
        """Write no more; the peer is told behind what waits.

        Raises:
            OSError: The peer has reset the connection.
        """
        if not (self._eof or self._gone):
            self._eof = True
            if self._waiting is None:
                self._socket.shutdown(SHUT_WR)

    def is_closing(self) -> bool:
        """Return whether it is closed, or about to be."""
        return self._closing

    def close(self) -> None:
        """Read no more, and end the connection behind what waits."""
        if not self._closing:
            self.pause_reading()
            self._closing = True
            if self._waiting is None:
                self._end(None)

    def abort(self) -> None:
        """End the connection now."""
        self._fail(None)

    def _flush(self) -> None:
        waiting = self._waiting
        if waiting is None:
            return
        try:
            del waiting[: self._socket.send(waiting)]
        except LATER:
            return
        except OSError as error:
            self._fail(error)
            return
        if waiting:
            return
        self._waiting = None
        self._loop.remove_writer(self._socket.fileno())
        try:
            self._protocol.resume_writing()
        except Exception as error:
            # A protocol's fault ends its connection, and no other.
            logger.exception("A connection failed.", extra={"address": address_of(self._peer)})
            self._fail(error)
            return
        if self._waiting is not None:  # by what was just written
            return
        if self._closing:
            self._end(None)
        elif self._eof:
            try:
                self._socket.shutdown(SHUT_WR)
            except OSError as error:
                self._fail(error)

    def _fail(self, error: Exception | None) -> None:
        self.pause_reading()
        self._closing = True
        if self._waiting is not None:
            self._waiting = None
            self._loop.remove_writer(self._socket.fileno())
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self._gone:
            self._gone = True
            if isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED):
                error = None  # the peer went, which is no failure
            self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        # The two know each other, and would otherwise wait together for the garbage collector.
        protocol, self._protocol = self._protocol, _NOBODY
        try:
            protocol.connection_lost(error)
        finally:
            self._socket.close()


def address_of(peer: object) -> str | None:
    """Return the address of a peer's name; a Unix socket's peer has none."""
    return peer[0] if isinstance(peer, tuple) else None


def direct_of(transport: asyncio.Transport) -> Callable[[bytes], int | None]:
    """Return the quickest way to write where nothing waits: `TcpTransport.direct`, or the transport's own `write`."""
    if isinstance(transport, TcpTransport):
        return transport.direct
    return transport.write


def is_reset(transport: asyncio.Transport) -> bool:
    """Return whether the peer has reset the connection, also where nothing is read or written that would tell of it.

    No loop watches a descriptor of which neither reading nor writing is asked for.
    """
    descriptor = transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return False  # its end is about to be told
    polled = select.poll()
    polled.register(descriptor, 0)  # these two are told in any case
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in polled.poll(0))
