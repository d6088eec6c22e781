"""A client of a chat: one connection, made anew whenever it is lost, and the rooms on it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from chatx.client.line import Line
from chatx.client.options import Options
from chatx.client.room import Room
from chatx.client.storage import OutboxStorage
from chatx.client.websocket import open_websocket
from chatx.client.wire import Wire

T = TypeVar("T")
Given: TypeAlias = T | Callable[[], T | Awaitable[T]]
"""A value, or a function that gives a fresh one for each connection, plain or async."""


class Client:
    """A client of a chat; `async with` connects it, and closes it at the end.

    It keeps one WebSocket. When that is lost it is made anew, after a pause that grows and is random; the rooms go on
    where they stood, and what waits to be sent goes again under its key. It never gives up by itself, but where the
    user is revoked.

    Not for more than one event loop, nor from other threads.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Given[str] | None = None,
        params: Given[Mapping[str, str]] | None = None,
        headers: Given[Mapping[str, str]] | None = None,
        storage: OutboxStorage | None = None,
        **options: Any,
    ) -> None:
        """Build a client; nothing is connected yet.

        Args:
            url: Where the socket is mounted, such as `wss://example.org/socket`; `http` and `https` stand for `ws` and
                `wss`.
            token: Who this is. A function, plain or async, is asked for each connection, so that a token is never an
                old one.
            params: Of the query, likewise. They reach logs: prefer the token.
            headers: Of the handshake, likewise.
            storage: Keeps what waits to be sent across restarts of the program, such as `SQLiteOutbox`. What is
                restored goes when its room is entered, and `Sent` or `NotSent` tells of it.
            options: As in `Options`.

        Raises:
            ValueError: The URL or an option cannot be used.
        """
        self._url = _socket_url(url)
        self._token = token
        self._params = params
        self._headers = headers
        known = set(Options.__struct_fields__)
        if unknown := sorted(set(options) - known):
            raise ValueError(f"There is no option {', '.join(unknown)}; there are {', '.join(sorted(known))}.")
        self.options: Options = Options(**options)
        self._line = Line(self.options, self._dial, storage)

    async def __aenter__(self) -> Self:
        """Begin to connect. It does not wait for the server: entering a room does. Errors as the storage's."""
        await self._line.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """Leave all rooms and close the connection; twice is harmless.

        Whoever still awaits a send gets `ClientClosed`, or `SendUnknown` where it was on its way. What a storage has
        stays there, and goes when the program is started anew.
        """
        await self._line.close()

    def room(self, room_id: str, *, history: int = 0, after: Any = None, presence: bool = False) -> Room:
        """Return a room; `async with` joins it.

        Args:
            room_id: Its id.
            history: How many of the newest messages it begins with; at most `queue_events`.
            after: In place of a history, where to go on: a `Message`, a `Gap` or `(epoch, offset)`, such as the last
                that was handled before the program was started anew. What was missed follows, or a `Gap`.
            presence: Whether it tells who is there.

        Raises:
            ValueError: One of these cannot be.
        """
        return Room(self._line, room_id, history=history, after=after, presence=presence)

    async def _dial(self) -> Wire:
        params = await _given(self._params) or {}
        token = await _given(self._token)
        headers = await _given(self._headers) or {}
        url = urlsplit(self._url)
        query = urlencode([*parse_qsl(url.query), ("vsn", "2.0.0"), *params.items()])
        return await open_websocket(urlunsplit(url._replace(query=query)), token, headers, self.options.open_s)


async def _given(value: Any) -> Any:
    if callable(value):
        value = value()
        if inspect.isawaitable(value):
            value = await value
    return value


def _socket_url(url: str) -> str:
    parts = urlsplit(url)
    schemes = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a socket; give one such as 'wss://example.org/socket'.")
    path = parts.path.rstrip("/")
    if not path.endswith("/websocket"):
        path += "/websocket"
    return urlunsplit(parts._replace(scheme=schemes[parts.scheme], path=path, fragment=""))
