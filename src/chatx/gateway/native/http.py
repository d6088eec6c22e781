"""One HTTP request to the native server, answered by an ASGI application: health, metrics, a list of rooms.

It is no general web server: one request for each connection, which ends with the answer, and a body of at most
`BODY_BYTES`, which must come within `BODY_S`. h11 reads and writes HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, TypeAlias

import h11

from chatx.gateway.entry.target import origin_form

logger: logging.Logger = logging.getLogger("chatx")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
ScopeOf: TypeAlias = Callable[[asyncio.Transport, str, list[tuple[bytes, bytes]], str], dict[str, Any]]

BODY_BYTES = 262_144
BODY_PIECES = 4096
"""Reads and chunks that a body may come in: each costs about as much as 100 bytes do."""

BODY_S = 10.0
"""Seconds in which a request must have come."""

LOGGED_PATH = 256
"""Characters of a request's path that a line of the log tells, at most."""

EXCHANGE_S = 60.0
"""Seconds in which it must have been answered, and the answer taken."""


class HttpExchange(asyncio.Protocol):
    """A connection with one request.

    Args:
        transport: The connection.
        app: Who answers.
        scope_of: Makes the ASGI scope.
    """

    def __init__(self, transport: asyncio.Transport, app: AsgiApp, scope_of: ScopeOf) -> None:
        self._transport = transport
        self._app = app
        self._scope_of = scope_of
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._pieces = 0
        self._read = False
        self._told_gone = False
        self._target: str | None = None
        self._gone = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(BODY_S, self._late)
        self._end = loop.call_later(BODY_S + EXCHANGE_S, transport.abort)
        self.on_lost: Callable[[HttpExchange], object] | None = None
        self.on_read: Callable[[HttpExchange, str], object] | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """The connection: an application may look at how much of an answer was taken."""
        return self._transport

    @property
    def whole(self) -> bool:
        """Whether the request has come."""
        return self._task is not None

    @property
    def address(self) -> str | None:
        """The client's address, as trusted proxies tell it; the peer's own as long as no head has been understood."""
        headers = (
            [] if self._request is None else [(bytes(name), bytes(value)) for name, value in self._request.headers]
        )
        client = self._scope_of(self._transport, self._target or "/", headers, "http")["client"]
        return client[0] if client is not None else None

    def data_received(self, data: bytes) -> None:
        """Read the request; when it is whole, have it answered."""
        if self._task is not None or self._transport.is_closing():
            return  # there is one request
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
                    if self._http.they_are_waiting_for_100_continue:
                        self._write(h11.InformationalResponse(status_code=100, headers=[]))
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    self._pieces += 1
                    if len(self._body) > BODY_BYTES or self._pieces > BODY_PIECES:
                        self._refuse(413, f"A body has at most {BODY_BYTES} bytes in {BODY_PIECES} pieces.")
                        return
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, "This is no HTTP request that is understood here.")
            return
        self._timer.cancel()
        if self.on_read is not None and self._target is not None:
            self.on_read(self, self._target)
            if self._transport.is_closing():
                return  # it was turned away
        self._task = asyncio.get_running_loop().create_task(self._answer(), name="chatx http")

    def pause_writing(self) -> None:
        """The transport holds enough: the application waits."""
        self._flowing.clear()

    def resume_writing(self) -> None:
        """The peer took what the transport held."""
        self._flowing.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._timer.cancel()
        self._end.cancel()
        self._gone.set()
        if self._task is not None:
            self._task.cancel()
        if self.on_lost is not None:
            self.on_lost(self)

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    def turn_away(self) -> None:
        """Answer that it is to come back, instead of reading on."""
        self._refuse(503, "Too many requests are under way. Come back.")

    def _late(self) -> None:
        self._refuse(408, f"A request must have come within {BODY_S:g} s.")

    async def _answer(self) -> None:
        request = self._request
        assert request is not None
        assert self._target is not None
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        scope = self._scope_of(self._transport, self._target, headers, "http")
        scope["http_version"] = request.http_version.decode("latin-1")
        scope["method"] = request.method.decode("latin-1").upper()
        try:
            await self._app(scope, self._receive, self._send)
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
                logger.exception("A request to %r failed.", scope["path"][:LOGGED_PATH])
            if self._http.our_state is h11.SEND_RESPONSE:
                self._refuse(500, "It failed here; the log says why.")
        if not self._transport.is_closing():
            self._transport.close()

    async def _receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": bytes(self._body), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._transport.is_closing():
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
        body = (text + "\n").encode()
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            self._write(h11.Response(status_code=status, headers=headers, reason=_reason(status)))
            if self._request is None or self._request.method != b"HEAD":
                self._write(h11.Data(data=body))
            self._write(h11.EndOfMessage())
        if not self._transport.is_closing():
            self._transport.close()


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""  # one that nobody has named


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
