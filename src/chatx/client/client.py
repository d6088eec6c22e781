"""A client of a chat: one connection, made anew whenever it is lost, and the rooms on it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from chatx.client.line import Line
from chatx.client.longpoll import open_longpoll
from chatx.client.options import Options
from chatx.client.room import Room
from chatx.client.storage import OutboxStorage
from chatx.client.websocket import WebSocket, open_websocket
from chatx.client.wire import NotOpened, Wire

T = TypeVar("T")
Given: TypeAlias = T | Callable[[], T | Awaitable[T]]
"""A value, or a function that gives a fresh one for each connection, plain or async."""

Transport: TypeAlias = Literal["auto", "websocket", "longpoll"]
"""What carries the frames."""

_BLOCKED: Final = 2
"""How often a WebSocket must not get through before it polls: a server that is restarted may look so once."""

_POLLS_FOR_S: Final = 600.0
"""How long it polls before it tries a WebSocket again."""


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
        transport: Transport = "auto",
        ssl: SSLContext | None = None,
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
            transport: `websocket`, `longpoll`, or `auto`: where something lets no WebSocket through, twice one after
                the other, it polls; a connection that is made ten minutes later tries a WebSocket again.
            ssl: What to trust, where that is not what the system does.
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
        if transport not in get_args(Transport):
            raise ValueError(f"transport is {transport!r}; give one of {', '.join(get_args(Transport))}.")
        for name, value, kind, wanted in (
            ("token", token, str, "a text"),
            ("params", params, Mapping, "a mapping"),
            ("headers", headers, Mapping, "a mapping"),
        ):
            if value is not None and not callable(value) and not isinstance(value, kind):
                raise ValueError(f"{name} is of type {type(value).__name__}; give {wanted}, or a function of one.")
        if ssl is not None and not isinstance(ssl, SSLContext):
            raise ValueError(f"ssl is of type {type(ssl).__name__}; give an ssl.SSLContext.")
        self._transport: Transport = transport
        self._ssl = ssl
        self._websocket: WebSocket | None = None  # the last one
        self._blocked = 0  # how often one after the other something let no WebSocket through
        self._polls_until = 0.0
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
        if token is not None and not isinstance(token, str):
            raise TypeError(f"the token is of type {type(token).__name__}, not a text")
        headers = await _given(self._headers) or {}
        within_s, tls = self.options.open_s, self._ssl
        refused: NotOpened | None = None
        if self._tries_websocket():
            try:
                address = _address(self._url, "websocket", params)
                self._websocket = await open_websocket(address, token, headers, within_s, tls)
                return self._websocket
            except NotOpened as error:
                self._blocked = self._blocked + 1 if error.blocked else 0
                if self._transport == "websocket" or self._blocked < _BLOCKED:
                    raise
                refused = error
        try:
            polls = await open_longpoll(_address(self._url, "longpoll", params), token, headers, within_s, tls)
        except NotOpened as error:
            raise refused or error from error
        if refused is not None:
            self._polls_until = self._line.now() + _POLLS_FOR_S
        return polls

    def _tries_websocket(self) -> bool:
        last, self._websocket = self._websocket, None
        if last is not None and last.heard:
            self._blocked = 0
        elif last is not None and last.aborted:
            self._blocked += 1  # it opened, and swallowed what was said
        if self._transport != "auto":
            return self._transport == "websocket"
        return self._line.now() >= self._polls_until


async def _given(value: Any) -> Any:
    if callable(value):
        value = value()
        if inspect.isawaitable(value):
            value = await value
    return value


def _address(url: str, transport: str, params: Mapping[str, str]) -> str:
    parts = urlsplit(url)
    scheme = parts.scheme if transport == "websocket" else parts.scheme.replace("ws", "http")
    query = urlencode([*parse_qsl(parts.query), ("vsn", "2.0.0"), *params.items()])
    return urlunsplit(parts._replace(scheme=scheme, path=f"{parts.path}/{transport}", query=query))


def _socket_url(url: str) -> str:
    if not isinstance(url, str):
        raise ValueError(f"The URL is {url!r}; give a text such as 'wss://example.org/socket'.")
    parts = urlsplit(url)
    schemes = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a socket; give one such as 'wss://example.org/socket'.")
    _ = parts.port  # raises a ValueError where it is none
    path = parts.path.rstrip("/").removesuffix("/websocket")
    return urlunsplit(parts._replace(scheme=schemes[parts.scheme], path=path, fragment=""))
