"""A WebSocket to the server, by the library `websockets`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from ssl import SSLContext
from typing import Final

from chatx.client.wire import Cut, NotOpened, seconds_of
from chatx.extras import needs

with needs("client", "chatx.client"):
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
    from websockets.typing import Subprotocol

MOST_FRAME_BYTES: Final = 16 * 1_048_576
"""The largest message taken from the server. A page of history has 256 KiB, or one message of any size."""

_SAYS_NO: Final = frozenset({401, 403, 429, 503})
"""What the server itself answers to a handshake: it would answer the same to a poll."""

_CLOSE_S: Final = 2.0
"""How long the server has to answer a close."""


class WebSocket:
    """An open WebSocket.

    Attributes:
        heard: Whether anything has come.
        aborted: Whether it was ended since nothing came.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.heard: bool = False
        self.aborted: bool = False
        self._socket = socket

    async def read(self) -> str | bytes:
        """Return the next frame; raise `Cut` where the connection has ended."""
        try:
            frame: bytes = await self._socket.recv(decode=False)
            self.heard = True
            return frame
        except ConnectionClosed as error:
            raise _cut(error) from error

    async def write(self, frames: Sequence[str]) -> None:
        """Write frames, as fast as the server takes them; raise `Cut` where the connection has ended."""
        try:
            for frame in frames:
                await self._socket.send(frame)
        except ConnectionClosed as error:
            raise _cut(error) from error

    async def close(self) -> None:
        """Close it in good order, within seconds."""
        await self._socket.close()

    def abort(self) -> None:
        """End it at once: who reads is told."""
        self.aborted = True
        self._socket.transport.abort()


async def open_websocket(
    url: str, token: str | None, headers: Mapping[str, str], within_s: float, tls: SSLContext | None
) -> WebSocket:
    """Open one.

    Args:
        url: The whole of it, with its query.
        token: What travels as a subprotocol, as phoenix.js has it.
        headers: Further ones.
        within_s: How long it may take.
        tls: What to trust, or None for what the system does.

    Raises:
        NotOpened: It did not open; it says why.
    """
    subprotocols = None
    if token is not None:
        encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
        subprotocols = [Subprotocol("phoenix"), Subprotocol(f"base64url.bearer.phx.{encoded}")]
    try:
        socket = await connect(
            url,
            additional_headers=dict(headers),
            subprotocols=subprotocols,
            compression=None,  # frames are small, and each socket would cost the server its memory
            open_timeout=within_s,
            close_timeout=_CLOSE_S,
            ping_interval=None,  # the heartbeat says more: that the application answers
            max_size=MOST_FRAME_BYTES,
            ssl=(tls or True) if url.startswith("wss:") else None,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise NotOpened(
            f"the server answered {status}",
            retry_after=seconds_of(error.response.headers),
            blocked=status not in _SAYS_NO,
        ) from error
    except (TimeoutError, WebSocketException, asyncio.IncompleteReadError) as error:
        raise NotOpened(str(error) or type(error).__name__, blocked=True) from error
    except OSError as error:
        raise NotOpened(str(error) or type(error).__name__) from error
    return WebSocket(socket)


def _cut(error: ConnectionClosed) -> Cut:
    if error.rcvd is None:
        return Cut(1006, "the connection was cut")
    return Cut(error.rcvd.code, error.rcvd.reason or "the server closed the connection")
