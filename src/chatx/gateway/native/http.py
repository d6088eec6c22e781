"""One HTTP request to the native server, answered by an ASGI application: health, metrics, a list of rooms.

It is no general web server: one request for each connection, which ends with the answer, and a body of at most
`BODY_BYTES`, which must come within `BODY_S`. h11 reads and writes HTTP. How long an answer may take to be taken is
`Patience`'s matter, and the end of the connection is `Farewell`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol, TypeAlias

import h11

from chatx.gateway.entry.admission import COME_BACK_S
from chatx.gateway.entry.problems import CONTENT_TYPE, encoded_problem
from chatx.gateway.entry.target import origin_form
from chatx.gateway.native.farewell import UNKNOWN, Farewell, to_come
from chatx.gateway.native.limits import LINGER_BYTES
from chatx.gateway.native.patience import Patience
from chatx.gateway.native.tcp import address_of

logger: logging.Logger = logging.getLogger("chatx")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
ScopeOf: TypeAlias = Callable[[asyncio.Transport, str, list[tuple[bytes, bytes]], str], dict[str, Any]]

BODY_BYTES = 262_144
BODY_PIECES = 4096
"""Reads and chunks that a body may come in: each costs about as much as 100 bytes do."""

_TOO_LARGE = f"A body has at most {BODY_BYTES} bytes in {BODY_PIECES} pieces."

BODY_S = 10.0
"""Seconds in which a request must have come."""

LOGGED_PATH = 256
"""Characters of a request's path that a line of the log tells, at most."""

EXCHANGE_S = 60.0
"""Seconds in which the application must have answered it, but for those in which the client takes nothing more."""


class Register(Protocol):
    """Who counts requests, and is told what becomes of each."""

    def read(self, exchange: HttpExchange, target: str) -> None:
        """It has come whole, and asks for this."""
        ...

    def stalls(self, exchange: HttpExchange) -> None:
        """Its answer is not taken."""
        ...

    def flows(self, exchange: HttpExchange) -> None:
        """Its answer is taken again."""
        ...

    def leaves(self, exchange: HttpExchange) -> None:
        """Its answer is written."""
        ...

    def lost(self, exchange: HttpExchange) -> None:
        """Its connection is gone."""
        ...


class HttpExchange(asyncio.Protocol):
    """A connection with one request.

    Args:
        transport: The connection.
        app: Who answers.
        scope_of: Makes the ASGI scope.
        register: Told what becomes of it.

    Attributes:
        address: The client's address, as trusted proxies tell it; the peer's own until a head is understood.
    """

    def __init__(self, transport: asyncio.Transport, app: AsgiApp, scope_of: ScopeOf, register: Register) -> None:
        self._transport = transport
        self._app = app
        self._scope_of = scope_of
        self._http = h11.Connection(h11.SERVER)
        self._register = register
        self._request: h11.Request | None = None
        self._scope: dict[str, Any] = {}
        self._body = bytearray()
        self._pieces = 0
        self._to_come: int | None = None  # what is announced of the body and has not come
        self._behind = 0  # bytes that came behind it
        self._read = False
        self._told_gone = False
        self._target: str | None = None
        self._gone = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._task: asyncio.Task[None] | None = None
        self._leaving = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(BODY_S, self._late)
        self._left_s = 0.0  # of the application's time, while the client is waited for
        self._patience = Patience(transport)
        self.address: str | None = address_of(transport.get_extra_info("peername"))

    @property
    def transport(self) -> asyncio.Transport:
        """The connection: an application may look at how much of an answer was taken."""
        return self._transport

    @property
    def reading(self) -> bool:
        """Whether more of the request is waited for."""
        return self._task is None and not self._leaving

    def data_received(self, data: bytes) -> None:
        """Read the request; when it is whole, have it answered."""
        if self._transport.is_closing():
            return
        if self._task is not None:  # there is one request, and nothing else is read
            self._behind += len(data)
            if self._behind > LINGER_BYTES:
                self.abort()
            return
        if self._to_come is None:
            end = data.find(b"\r\n\r\n") + 4
            self._to_come = to_come(data[:end], len(data) - end)
        elif self._to_come != UNKNOWN:
            self._to_come = max(0, self._to_come - len(data))
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                    self._target = _target_of(event)
                    if self._target is None:
                        self._refuse(400, "A request has one Host, a target on it, and one way to tell its length.")
                        return
                    self._understood(event, self._target)
                    if _announced(event) > BODY_BYTES:  # nobody is to send it first, nor be told to go on
                        self._refuse(413, _TOO_LARGE)
                        return
                    if self._http.they_are_waiting_for_100_continue:
                        self._write(h11.InformationalResponse(status_code=100, headers=[]))
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    self._pieces += 1
                    if len(self._body) > BODY_BYTES or self._pieces > BODY_PIECES:
                        self._refuse(413, _TOO_LARGE)
                        return
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, "This is no HTTP request that is understood here.")
            return
        self._timer.cancel()
        assert self._target is not None
        self._to_come = 0
        self._register.read(self, self._target)
        if not self._leaving:  # it was not turned away
            self._timer = self._loop.call_later(EXCHANGE_S, self._transport.abort)
            self._task = self._loop.create_task(self._answer(), name="chatx http")

    def pause_writing(self) -> None:
        """The transport holds enough: the application waits."""
        self._flowing.clear()
        if self._task is not None:
            self._left_s = self._timer.when() - self._loop.time()
            self._timer.cancel()
            self._patience.begin()
            self._register.stalls(self)

    def resume_writing(self) -> None:
        """The peer took what the transport held."""
        self._flowing.set()
        if self._task is not None:
            self._patience.end()
            self._timer = self._loop.call_later(self._left_s, self._transport.abort)
            self._register.flows(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._timer.cancel()
        self._patience.end()
        self._gone.set()
        if self._task is not None:
            self._task.cancel()
        self._register.lost(self)

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    def turn_away(self) -> None:
        """Answer that it is to come back, where it has no answer yet, and end the connection."""
        if self._task is not None:
            self._task.cancel()
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(503, "Too many requests are under way. Come back.")
        else:
            self.abort()

    def _late(self) -> None:
        self._refuse(408, f"A request must have come within {BODY_S:g} s.")

    def _understood(self, request: h11.Request, target: str) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        self._scope = self._scope_of(self._transport, target, headers, "http")
        self._scope["http_version"] = request.http_version.decode("latin-1")
        self._scope["method"] = request.method.decode("latin-1").upper()
        client = self._scope["client"]
        self.address = client[0] if client is not None else None

    async def _answer(self) -> None:
        path = self._scope["path"]
        try:
            await self._app(self._scope, self._receive, self._send)
            if self._http.our_state is h11.SEND_RESPONSE and not self._transport.is_closing():
                raise RuntimeError("the application gave no answer")
        except (KeyboardInterrupt, GeneratorExit):
            raise  # the process's own end
        except BaseException as error:
            # SystemExit too, which in a task would end the loop, and so everybody's connection.
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if not self._told_gone:  # a client that went is no failure, whatever the application made of it
                logger.exception(
                    "A request to %r failed.",
                    path[:LOGGED_PATH],
                    extra={"path": path[:LOGGED_PATH], "address": self.address},
                )
            if self._http.our_state is h11.SEND_RESPONSE:
                self._refuse(500, "It failed here; the log says why.")
        self._leave()

    async def _receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": bytes(self._body), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._leaving or self._transport.is_closing():
            self._told_gone = True
            raise OSError("the client is gone")
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            self._write(h11.Response(status_code=message["status"], headers=headers, reason=_reason(message["status"])))
            return
        head = self._request is not None and self._request.method == b"HEAD"
        body = message.get("body", b"")
        if body and not head:
            self._write(h11.Data(data=body))
        if not message.get("more_body", False):
            self._write(h11.EndOfMessage())
        await self._flowing.wait()

    def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _refuse(self, status: int, text: str) -> None:
        body = encoded_problem(status, text)
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", CONTENT_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                headers.append((b"retry-after", b"%d" % math.ceil(COME_BACK_S)))
            self._write(h11.Response(status_code=status, headers=headers, reason=_reason(status)))
            if self._request is None or self._request.method != b"HEAD":
                self._write(h11.Data(data=body))
            self._write(h11.EndOfMessage())
        self._leave()

    def _leave(self) -> None:
        if self._leaving or self._gone.is_set():
            return
        self._leaving = True
        self._timer.cancel()
        self._patience.end()
        most = UNKNOWN if self._to_come is None or self._behind else self._to_come
        Farewell(self._transport, most, self.connection_lost)
        self._register.leaves(self)


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""  # one that nobody has named


def _announced(request: h11.Request) -> int:
    """Return how many bytes a body is announced with; 0 where its head does not tell."""
    return max((int(value) for name, value in request.headers if name == b"content-length"), default=0)


def _target_of(request: h11.Request) -> str | None:
    """Return the target in origin form, or None where the request is not one to answer.

    One with both a length and chunks is what proxies and servers read differently. Source: RFC 9112, section 6.3.
    """
    names = {bytes(name) for name, _ in request.headers}
    if request.method == b"CONNECT" or {b"content-length", b"transfer-encoding"} <= names:
        return None
    hosts = [value.decode("latin-1") for name, value in request.headers if name == b"host"]
    if not hosts and request.http_version == b"1.0":
        hosts = [""]  # it may have none
    return origin_form(request.target.decode("latin-1"), hosts)
