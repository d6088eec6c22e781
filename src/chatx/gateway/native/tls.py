"""TLS for the native server: connections are accepted here, and each is taken through its handshake within bounds.

An event loop that accepts TLS connections by itself has no bound for the handshakes under way, each of which has
buffers of its own, and waits a minute for each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from socket import socket
from ssl import SSLContext

from chatx.gateway.native.greeting import HEAD_S, Greeting
from chatx.gateway.native.listener import GIVES_WAY_S, code_of
from chatx.gateway.native.tcp import LATER, PEERS_OWN, address_of
from chatx.gateway.native.writing import CLOSE_S

logger: logging.Logger = logging.getLogger("chatx")

HIGH_WATER = 65_536
"""Bytes that a connection holds before it pushes back, as one without TLS does; the loop's own default is eight times
as much."""

PAUSE_S = 1.0
"""Seconds until accepting is tried again after it failed: where the process has no more files, for one."""


class TlsListener:
    """Accepts connections on one socket, and hands each to a greeting when its TLS handshake is done.

    A connection counts among the server's greetings from the start. A connection whose handshake fails or takes longer
    than `HEAD_S` is closed without an answer.

    Args:
        greet: Counts one more connection, from an address, and returns its greeting.
        sock: Bound, and closed by `close`.
        backlog: Connections that the kernel holds until they are accepted.
        context: The TLS context, with the certificate.
        gives_way: Asked before one is accepted whether to leave it to another process for a moment.
    """

    def __init__(
        self,
        greet: Callable[[str | None], Greeting],
        sock: socket,
        backlog: int,
        context: SSLContext,
        gives_way: Callable[[], bool] | None = None,
    ) -> None:
        sock.setblocking(False)
        sock.listen(backlog)
        self._greet = greet
        self._socket = sock
        self._context = context
        self._gives_way = gives_way
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name="chatx accept")

    async def close(self) -> None:
        """Accept no more, and end the handshakes that are under way."""
        tasks = [self._accepting, *self._handshakes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._gives_way is not None:
                await self._somebody_comes()
                if self._gives_way():
                    await asyncio.sleep(GIVES_WAY_S)
            try:
                connection, peer = self._socket.accept() if self._gives_way else await loop.sock_accept(self._socket)
            except LATER:
                continue  # another process was quicker
            except OSError as error:
                if error.errno in PEERS_OWN:
                    await asyncio.sleep(0)
                else:
                    logger.warning(
                        "No connection is accepted for %g s: %s.", PAUSE_S, error, extra={"code": code_of(error)}
                    )
                    await asyncio.sleep(PAUSE_S)
                continue
            connection.setblocking(False)
            greeting = self._greet(address_of(peer))
            greeting.securing = task = loop.create_task(self._shake_hands(connection, greeting), name="chatx handshake")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
            await asyncio.sleep(0)  # a queue of them is not to keep the loop to itself

    async def _somebody_comes(self) -> None:
        loop = asyncio.get_running_loop()
        coming = loop.create_future()

        def comes() -> None:
            if not coming.done():
                coming.set_result(None)

        loop.add_reader(self._socket.fileno(), comes)
        try:
            await coming
        finally:
            loop.remove_reader(self._socket.fileno())

    async def _shake_hands(self, connection: socket, greeting: Greeting) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: greeting,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HEAD_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except OSError as error:  # the peer went, speaks no TLS, or none that is spoken here
            logger.debug("A TLS handshake failed: %s", error)
            greeting.connection_lost(error)
        except BaseException:
            greeting.connection_lost(None)
            raise
        else:
            if not transport.is_closing():
                transport.set_write_buffer_limits(HIGH_WATER)
