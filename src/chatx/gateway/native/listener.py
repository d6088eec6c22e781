"""Where connections of plain TCP to the native server are accepted; each begins as a greeting."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from socket import socket
from typing import Final

from chatx.gateway.native.greeting import Greeting
from chatx.gateway.native.tcp import LATER, PEERS_OWN, TcpTransport, address_of

logger: logging.Logger = logging.getLogger("chatx")

ACCEPTED_AT_ONCE: Final = 64
"""Connections accepted before everything else in the loop gets a turn."""

GIVES_WAY_S: Final = 0.005
"""Seconds for which a newcomer is left to another process that listens on the same socket."""

PAUSE_S: Final = 1.0
"""Seconds until accepting is tried again where the process has no more files or memory."""


def code_of(error: OSError) -> str | None:
    """Return what the system calls an error, such as `EMFILE`, for a field of the log."""
    return errno.errorcode.get(error.errno or 0)


class TcpListener:
    """Accepts connections on one socket, and hands each to a greeting.

    Args:
        greet: Counts one more connection, from an address, and returns its greeting.
        sock: Bound, and closed by `close`.
        backlog: Connections that the kernel holds until they are accepted.
        gives_way: Asked before one is accepted whether to leave it to another process for a moment.
    """

    def __init__(
        self,
        greet: Callable[[str | None], Greeting],
        sock: socket,
        backlog: int,
        gives_way: Callable[[], bool] | None = None,
    ) -> None:
        self._greet = greet
        self._gives_way = gives_way
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(backlog)
        self._listen()

    async def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._socket.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._socket.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept_anybody(self) -> None:
        """Accept who is still there: nobody else had the time."""
        self._listen()
        self._accept(anybody=True)

    def _accept(self, *, anybody: bool = False) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if self._gives_way is not None and not anybody and self._gives_way():
                self._loop.remove_reader(self._socket.fileno())
                self._timer = self._loop.call_later(GIVES_WAY_S, self._accept_anybody)
                return
            try:
                connection, peer = self._socket.accept()
            except LATER:
                return
            except OSError as error:
                if error.errno in PEERS_OWN:
                    continue
                logger.warning(
                    "No connection is accepted for %g s: %s.", PAUSE_S, error, extra={"code": code_of(error)}
                )
                self._loop.remove_reader(self._socket.fileno())
                self._timer = self._loop.call_later(PAUSE_S, self._listen)
                return
            TcpTransport(self._loop, connection, peer, self._greet(address_of(peer)))
