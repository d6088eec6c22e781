"""The first bytes of a connection to the native server: a request's head, read within bounds and then handed on.

A request to upgrade goes through the `Entrance` and becomes a `Stream`; any other goes to the application beside the
socket. The head is bounded in bytes, lines and time before anything looks into it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from http import HTTPStatus
from typing import Any, Protocol, cast

from websockets.http11 import Request

from chatx.errors import Closed
from chatx.gateway.entry.admission import COME_BACK_S
from chatx.gateway.entry.handshake import Handshake, chosen_subprotocol, handshake_of
from chatx.gateway.entry.problems import CONTENT_TYPE, encoded_problem
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.entry.target import origin_form
from chatx.gateway.native.farewell import UNKNOWN, Farewell, to_come
from chatx.gateway.native.protocol import wire_protocol
from chatx.gateway.native.stream import Stream
from chatx.gateway.session.entrance import Client, Entrance

logger: logging.Logger = logging.getLogger("chatx")

HEAD_S = 5.0
"""Seconds in which a request's head must have come."""

HEAD_BYTES = 8192
HEAD_LINES = 64

_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""Answers that say when to come back."""

_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)

_LENGTHS = re.compile(rb"\ncontent-length:(?:[^\n]*,|(?s:.*)\ncontent-length:)", re.IGNORECASE)
"""More than one length."""


class Host(Protocol):
    """A server, as far as a connection knows it that is being greeted.

    Attributes:
        closed: Whether every connection is to end.
        draining: Whether new sockets are refused.
        path: Where the socket is.
        entrance: The way in.
    """

    closed: bool
    draining: bool
    path: str
    entrance: Entrance

    def speaks(self, greeting: Greeting) -> None:
        """Its head has come, and somebody is asked about it: it gives way no longer."""
        ...

    def refuses(self, greeting: Greeting, status: int) -> None:
        """It was answered with this status, and gives way until it is gone."""
        ...

    def part(self, greeting: Greeting) -> None:
        """It is something else now, or gone."""
        ...

    def exchange(self, transport: asyncio.Transport, target: str, data: bytes) -> bool:
        """Serve a request that opens no socket; return whether it is served."""
        ...

    def opened(self, stream: Stream, client: Client) -> None:
        """Take over a socket that has opened, and its place."""
        ...

    def lost(self, stream: Stream) -> None:
        """Forget a socket whose connection is gone."""
        ...

    def scope_of(
        self, transport: asyncio.Transport, target: str, headers: list[tuple[bytes, bytes]], kind: str
    ) -> dict[str, Any]:
        """Return the ASGI scope of a request."""
        ...


class Greeting(asyncio.Protocol):
    """A connection until it is known what it is for.

    Args:
        server: Who counts it already.
        address: The peer's own.

    Attributes:
        address: The peer's own.
        answered: Whether it was refused: then it is about to end.
        securing: Its TLS handshake, where it has one.
    """

    def __init__(self, server: Host, address: str | None) -> None:
        self._server = server
        self.address: str | None = address
        self.answered: bool = False
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.securing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are, but for their class
        if self._server.closed:
            self.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(HEAD_S, self._late)

    def data_received(self, data: bytes) -> None:
        """Collect the head."""
        if self._transport is None or self._transport.is_closing():
            return
        self._head += data[: HEAD_BYTES + 1] if self._task is not None else data
        if self._task is not None:
            if len(self._head) > HEAD_BYTES:
                self.abort()  # it writes on before it is let in
            return
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) <= HEAD_BYTES:
            return
        if end < 0 or end > HEAD_BYTES or self._head.count(b"\n", 0, end) > HEAD_LINES:
            self._answer(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"A head has at most {HEAD_BYTES} bytes and {HEAD_LINES} headers.",
                UNKNOWN,
            )
            return
        head, rest = self._head[: end + 4], self._head[end + 4 :]
        self._head = b""
        if _unclear(head):
            self._answer(
                HTTPStatus.BAD_REQUEST,
                "A head has whole lines, none of them folded, and at most one length.",
                to_come(head, len(rest)),
            )
        elif _UPGRADE.search(head):
            self._upgrade(self._transport, head, rest)
        else:
            self._exchange(self._transport, head, rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """It went before it was served."""
        if self._task is not None:
            self._task.cancel()
        self._finish()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()
        elif self.securing is not None:
            self.securing.cancel()

    def _late(self) -> None:
        if self._task is None:
            self._answer(HTTPStatus.REQUEST_TIMEOUT, f"The head of a request must come within {HEAD_S:g} s.", UNKNOWN)

    def _finish(self) -> None:
        self._server.part(self)
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _answer(self, status: HTTPStatus, text: str, to_come: int = 0, retry_after: float = COME_BACK_S) -> None:
        body = encoded_problem(status.value, text)
        again = f"Retry-After: {math.ceil(retry_after)}\r\n" if status in _LATER else ""
        self._say(
            status.value,
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n{again}Connection: close\r\n\r\n".encode()
            + body,
            to_come,
        )

    def _say(self, status: int, answer: bytes, to_come: int) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._stop_timer()
        self.answered = True
        transport.write(answer)
        Farewell(transport, to_come, self.connection_lost)
        self._server.refuses(self, status)  # it counts until it is gone, which may take a while

    def _exchange(self, transport: asyncio.Transport, head: bytes, rest: bytes) -> None:
        target = head.split(b" ", 2)[1].decode("latin-1") if head.count(b" ") > 1 else ""
        if self._server.exchange(transport, target, head + rest):
            self._finish()
        else:
            self._answer(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Too many requests are under way. Come back.",
                to_come(head, len(rest)),
            )

    def _upgrade(self, transport: asyncio.Transport, head: bytes, rest: bytes) -> None:
        if self._server.draining:
            self._answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "This server is going away. Come back.", to_come(head, len(rest))
            )
            return
        protocol = wire_protocol(opened=False)
        protocol.receive_data(head)
        events = protocol.events_received()
        if protocol.handshake_exc is not None or not events or not isinstance(events[0], Request):
            self._answer(HTTPStatus.BAD_REQUEST, "This is no request to open a WebSocket.", to_come(head, len(rest)))
            return
        request = events[0]
        target = origin_form(request.path, request.headers.get_all("Host"))
        if target is None:
            self._answer(
                HTTPStatus.BAD_REQUEST, "A request has one Host, and a target on it.", to_come(head, len(rest))
            )
            return
        response = protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            response.headers["Sec-WebSocket-Version"] = "13"  # RFC 6455, section 4.4
            protocol.send_response(response)
            self._say(response.status_code, b"".join(protocol.data_to_send()), to_come(head, len(rest)))
            return
        headers = [
            (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in request.headers.raw_items()
        ]
        handshake = handshake_of(self._server.scope_of(transport, target, headers, "websocket"))
        subprotocol = chosen_subprotocol(handshake)
        if subprotocol is not None:
            response.headers["Sec-WebSocket-Protocol"] = subprotocol
        protocol.send_response(response)
        accept = b"".join(protocol.data_to_send())
        self._head = rest
        self._server.speaks(self)
        self._task = asyncio.get_running_loop().create_task(
            self._admit(transport, handshake, accept), name="chatx handshake"
        )

    async def _admit(self, transport: asyncio.Transport, handshake: Handshake, accept: bytes) -> None:
        server = self._server
        path, client = handshake.scope["path"], handshake.scope["client"]
        place = None
        try:
            gateway, place = server.entrance.begin(client[0] if client else None)
            if path.rstrip("/") != f"{server.path}/websocket":
                raise Refused(HTTPStatus.NOT_FOUND, "path", f"the socket is at {server.path}/websocket.")
            version, identity = await server.entrance.admit(gateway, place, handshake, path)
            if transport.is_closing():
                return
            if server.draining:  # since it was asked about
                raise Closed("The server is going away.")
            stream = Stream(transport, gateway.engine.config.mailbox_bytes, gateway.flow, server.lost)
            served = server.entrance.open(gateway, place, version, identity, handshake, stream.writing)
            server.opened(stream, served)
            place = None
            self._finish()
            transport.set_protocol(stream)
            transport.write(accept)
            rest, self._head = self._head, b""
            stream.begin(served.session, rest)
        except Refused as refused:
            server.entrance.tell(refused, handshake.scope)
            self._answer(HTTPStatus(refused.status), "refused", retry_after=refused.retry_after)
        except Closed:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "The chat is not running here. Come back.")
        except Exception:
            logger.exception("A handshake failed.", extra={"address": client[0] if client else None})
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "failed")
        finally:
            if place is not None:
                place.end()


def _unclear(head: bytes) -> bool:
    """Return whether proxies and servers may read a head differently.

    A line ends without its CR or its LF, one is folded, or there is more than one length. It is counted rather than
    matched, which for the head of a browser takes a tenth of the time. Source: RFC 9112, sections 2.2, 5.2 and 6.3.
    """
    ends = head.count(b"\r\n")
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\n " in head or b"\n\t" in head:
        return True
    return b"content-length:" in head.lower() and _LENGTHS.search(head) is not None
