"""The native server: WebSockets without a web framework between a room and its sockets.

    server = NativeServer(chat, authenticate=who_is_it)
    await server.start([listening_socket])
    ...
    await server.drain(10.0)
    await server.close()

Clients connect to `/socket/websocket?vsn=2.0.0`, or poll at `/socket/longpoll`; the one for browsers is at
`/socket/chatx.js`. It speaks the same protocol as the ASGI application, by the same sessions; only the frames go from
the room straight to the transports. It starts and stops no chat.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, socket
from ssl import SSLContext
from typing import Any

from chatx.chat import Chat
from chatx.errors import ConfigError, Problems
from chatx.gateway.entry.admission import PENDING_HANDSHAKES
from chatx.gateway.entry.forwarded import Proxies
from chatx.gateway.entry.handshake import NO_WEBSOCKET_ASKED, Authenticate, fields_of
from chatx.gateway.entry.script import PATH as SCRIPT_PATH
from chatx.gateway.entry.script import script
from chatx.gateway.entry.shares import Shares
from chatx.gateway.entry.target import path_of
from chatx.gateway.longpoll.app import PATH, LongPoll
from chatx.gateway.native.exchanges import Exchanges
from chatx.gateway.native.greeting import Greeting
from chatx.gateway.native.http import AsgiApp, Receive, Scope, Send
from chatx.gateway.native.listener import TcpListener
from chatx.gateway.native.stream import Stream
from chatx.gateway.native.tls import TlsListener
from chatx.gateway.session.entrance import Client, Entrance
from chatx.gateway.wire.bounds import IDLE_TIMEOUT_S
from chatx.gateway.wire.closes import CLOSE_RESTART

BACKLOG = 4096
"""Connections that the kernel holds until they are accepted."""

_STEP_S = 0.05
"""Seconds between two batches of a drain, on average."""


class NativeServer:
    """Serves one chat on listening sockets.

    Args:
        chat: The chat; it need not run yet.
        authenticate: `authenticate(handshake)` → the user id or an `Identity`, or None to refuse; plain or async.
        origins: Origins besides the page's own that may connect, such as `https://example.org`; `*` is all.
        path: Where the socket is; clients connect to `<path>/websocket`, or poll at `<path>/longpoll`.
        http: An ASGI application for every other request.
        health: Paths of it that are answered however many other requests are under way.
        ssl: TLS, or None.
        forwarded_allow_ips: Addresses and networks of proxies whose `X-Forwarded-For` and `-Proto` are believed.
        idle_timeout_s: Seconds of silence after which a socket is closed.

    Attributes:
        draining: Whether new sockets are refused.
        refused: How many connections were refused before they were served, by HTTP status.
        closed: Whether every connection is.

    Raises:
        ConfigError: An argument is not what it should be.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        authenticate: Authenticate,
        origins: Iterable[str] = (),
        path: str = "/socket",
        http: Callable[[Any, Any, Any], Awaitable[None]] | None = None,
        health: tuple[str, ...] = (),
        ssl: SSLContext | None = None,
        forwarded_allow_ips: tuple[str, ...] = (),
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        problems = Problems()
        with problems.gathered():
            if not path.startswith("/") or path.endswith("/"):
                raise ConfigError(f"path is {path!r}; it begins with a slash and does not end with one, as '/socket'.")
        with problems.gathered():
            self.entrance: Entrance = Entrance(chat, authenticate, origins, idle_timeout_s)
        with problems.gathered():
            self._proxies = Proxies(tuple(forwarded_allow_ips))
        problems.tell()
        self.path: str = path
        self.http: AsgiApp = http if http is not None else _nothing_here
        self.draining: bool = False
        self.refused: Counter[int] = Counter()
        self.closed: bool = False
        self.greetings: dict[Greeting, None] = {}
        self.silent: Shares[Greeting] = Shares()  # those of them that wait for a head, or for their end
        self.exchanges: Exchanges = Exchanges(self.answer, self.scope_of, self.is_poll, self.is_health)
        self.longpoll: LongPoll = LongPoll(self.entrance)
        self.streams: dict[Stream, Client] = {}
        self._health = frozenset(health)
        self._ssl = ssl
        self._listeners: list[TcpListener | TlsListener] = []
        self._empty = asyncio.Event()

    @property
    def connections(self) -> int:
        """How many WebSockets are open."""
        return len(self.streams)

    @property
    def polling(self) -> int:
        """How many clients poll instead."""
        return len(self.longpoll)

    @property
    def sockets_closed(self) -> Mapping[int, int]:
        """How many WebSockets were closed from this side since the chat was started, by close code."""
        return self.entrance.closed

    def greet(self, address: str | None) -> Greeting:
        """Return the greeting of one more connection, which waits for its head; at their bound one gives way."""
        self._make_room(PENDING_HANDSHAKES - 1)
        greeting = Greeting(self, address)
        self.greetings[greeting] = None
        self.silent.add(greeting, address)
        return greeting

    def speaks(self, greeting: Greeting) -> None:
        """Its head has come: it is a handshake under way now, which the `Entrance` counts."""
        self.silent.discard(greeting)

    def refuses(self, greeting: Greeting, status: int) -> None:
        """Count a refusal; its connection is as good as silent until it is gone."""
        self.refused[status] += 1
        self.silent.add(greeting, greeting.address)
        self._make_room(PENDING_HANDSHAKES)

    def part(self, greeting: Greeting) -> None:
        """Count it no longer."""
        self.greetings.pop(greeting, None)
        self.silent.discard(greeting)

    def _make_room(self, most: int) -> None:
        """Where more are silent, cut one off: the oldest of the address that has most of them."""
        if len(self.silent) <= most:
            return
        oldest = self.silent.first_to_go()
        if oldest is not None:
            self.part(oldest)
            if not oldest.answered:
                self.refused[HTTPStatus.REQUEST_TIMEOUT.value] += 1
            oldest.abort()

    def exchange(self, transport: asyncio.Transport, target: str, data: bytes) -> bool:
        """Serve a request that opens no WebSocket, unless there are too many; return whether it is served."""
        return self.exchanges.take(transport, target, data)

    def opened(self, stream: Stream, client: Client) -> None:
        """Take over a WebSocket that has opened, and its place."""
        self.streams[stream] = client

    async def start(self, sockets: Sequence[socket], *, gives_way: Callable[[int], bool] | None = None) -> None:
        """Serve these listening sockets, until `close`.

        Args:
            sockets: They listen already.
            gives_way: Where other processes serve them too: called with the number of connections here when somebody
                comes, it says whether to leave that one to them for a moment.
        """
        ask = None if gives_way is None else lambda: gives_way(len(self.streams) + len(self.greetings))
        for each in sockets:
            if each.family in (AF_INET, AF_INET6):
                # Connections inherit it. Without it a broadcast behind a reply waits for the client's acknowledgement,
                # which clients put off for 40 ms.
                each.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            if self._ssl is None:
                self._listeners.append(TcpListener(self.greet, each, BACKLOG, ask))
            else:
                self._listeners.append(TlsListener(self.greet, each, BACKLOG, self._ssl, ask))

    async def drain(self, timeout_s: float) -> None:
        """Let no one in, and send everyone away: their frames first, then a close with 1012, a batch at a time.

        Half of the time is for sending them away, so that they do not all come back to the next server at once; who is
        still there after all of it is cut off.
        """
        self.draining = self.longpoll.draining = True
        self.entrance.drain()
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        waiting = [client.session for client in self.streams.values()] + self.longpoll.sessions
        random.shuffle(waiting)
        steps = max(1, min(math.ceil(len(waiting) / 50), int(timeout_s / 2 / _STEP_S)))
        size = max(1, math.ceil(len(waiting) / steps))
        for start in range(0, len(waiting), size):
            if start and loop.time() >= ends:
                break
            self.entrance.flush()
            for session in waiting[start : start + size]:
                session.cut(CLOSE_RESTART, "restarting")
            await asyncio.sleep(random.uniform(0.5, 1.5) * _STEP_S)
        while self.streams and loop.time() < ends:
            self._empty.clear()
            try:
                async with asyncio.timeout_at(ends):
                    await self._empty.wait()
            except TimeoutError:
                break
        for session in self.longpoll.sessions:
            session.cut(CLOSE_RESTART, "restarting")
        for stream in list(self.streams):
            stream.abort()

    async def listen_no_more(self) -> None:
        """Accept no more: who comes waits for whoever else listens on these sockets."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.close()

    async def close(self) -> None:
        """Listen no more, and end every connection that is left."""
        self.draining = self.longpoll.draining = self.closed = True
        await self.listen_no_more()
        for greeting in list(self.greetings):
            greeting.abort()
        for session in self.longpoll.sessions:
            session.cut(CLOSE_RESTART, "restarting")
        for exchange in self.exchanges:
            exchange.abort()
        for stream in list(self.streams):
            stream.abort()
        # What an abort ends is told in the loop's next rounds; it is no matter of time.
        while self.streams or self.exchanges or self.greetings:  # noqa: ASYNC110
            await asyncio.sleep(0)

    def lost(self, stream: Stream) -> None:
        """Forget a WebSocket whose connection is gone."""
        client = self.streams.pop(stream)
        client.forget()
        client.place.end()
        if not self.streams:
            self._empty.set()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that opens no WebSocket."""
        path = scope["path"]
        if path.rstrip("/") == f"{self.path}/websocket":
            await _say(send, HTTPStatus.UPGRADE_REQUIRED, NO_WEBSOCKET_ASKED, (b"upgrade", b"websocket"))
            return
        if path == self.path + SCRIPT_PATH:
            await script(scope, receive, send)
            return
        app = self.longpoll if path == self.path + PATH else self.http
        await app(scope, receive, send)

    def is_poll(self, target: str) -> bool:
        """Return whether a request is one of long-polling."""
        return path_of(target)[0] == self.path + PATH

    def is_health(self, target: str) -> bool:
        """Return whether a request asks for the server's health."""
        return path_of(target)[0] in self._health

    def scope_of(
        self, transport: asyncio.Transport, target: str, headers: list[tuple[bytes, bytes]], kind: str
    ) -> dict[str, Any]:
        """Return the ASGI scope of a request; `kind` is `http` or `websocket`."""
        texts = fields_of([each for each in headers if each[0].startswith(b"x-forwarded-")])
        path, query = path_of(target)
        peer = transport.get_extra_info("peername")
        peer_address = peer[0] if isinstance(peer, tuple) else None
        address = self._proxies.client(peer_address, texts)
        scheme = self._proxies.scheme(peer_address, texts, "https" if self._ssl is not None else "http")
        if kind == "websocket":
            scheme = "wss" if scheme == "https" else "ws"
        server = transport.get_extra_info("sockname")
        offered = [
            text.strip()
            for name, value in headers
            if name == b"sec-websocket-protocol"
            for text in value.decode("latin-1").split(",")
        ]
        return {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": scheme,
            "path": path,
            "raw_path": target.partition("?")[0].encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": headers,
            "client": (address, peer[1]) if isinstance(peer, tuple) else None,
            "server": server[:2] if isinstance(server, tuple) else None,
            "subprotocols": offered if kind == "websocket" else [],
        }


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    await _say(send, HTTPStatus.NOT_FOUND, b"There is nothing here but a WebSocket.\n")


async def _say(send: Send, status: HTTPStatus, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    headers = ((b"content-type", b"text/plain; charset=utf-8"), *headers)
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
