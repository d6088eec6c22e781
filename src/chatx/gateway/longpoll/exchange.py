"""One request of long-polling, what it shows of a session, and its response."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace

from chatx.gateway.entry.handshake import Handshake, handshake_of
from chatx.gateway.entry.stopping import bounded_when_stopping, told_when_stopping
from chatx.gateway.session.progress import taken_within, transport_of
from chatx.gateway.wire.closes import CLOSE_TOO_LARGE
from chatx.gateway.wire.excess import Excess
from chatx.gateway.wire.posts import MAX_POST_BYTES

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WRITE_STALL_S: Final = 10.0
"""Seconds in which a client must take `LEAST_TAKEN` bytes of a response, where that can be seen; else all of it."""

_FAILED: Final = 500

# No user's own parameter `token` looks like this.
_TOKEN = re.compile(r"chatx-lp\.(?:([0-9a-z]{16,32})\.)?([A-Za-z0-9_-]{43})\.(0|[1-9][0-9]{0,14})")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9, _-]{0,1024}")


class Polled(Struct, frozen=True):
    """The body of the response to a poll."""

    status: int
    token: str | None
    messages: list[str]


class Posted(Struct, frozen=True):
    """The body of any other response."""

    status: int


class Gone(Exception):
    """The client went away while it was read from."""


class Token(NamedTuple):
    """What a client shows of its session.

    Attributes:
        boot: The node that holds it; empty where there is one node.
        secret: The session.
        number: That of the last batch that the client has.
    """

    boot: str
    secret: str
    number: int

    @property
    def text(self) -> str:
        """What travels."""
        return ".".join(("chatx-lp", *((self.boot,) if self.boot else ()), self.secret, str(self.number)))


class Exchange:
    """One request, and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._cors: list[tuple[bytes, bytes]] = [(b"vary", b"origin")]
        handshake = handshake_of(scope)
        self.handshake: Handshake = replace(handshake, token=_auth_token(handshake))
        self.token: Token | None = _session_token(handshake)

    @property
    def address(self) -> str | None:
        """The client's address."""
        client = self.scope.get("client")
        return client[0] if client else None

    def cors(self) -> None:
        """Let the page of this origin, which is allowed, read the response."""
        origin = self.handshake.headers.get("origin")
        if origin is not None:
            self._cors.append((b"access-control-allow-origin", origin.encode("latin-1")))

    async def preflight(self) -> None:
        """Say that a page of another origin may send what it asks about; the page's own never asks."""
        # Whatever headers: instrumentation adds some of its own to each request, and none of them decides here.
        wanted = self.handshake.headers.get("access-control-request-headers", "")
        names = wanted if _HEADER_NAMES.fullmatch(wanted) else ""
        await self.respond(
            200,
            b"",
            (b"access-control-allow-headers", names.encode()),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-max-age", b"3600"),
        )

    async def wait(self, waiter: asyncio.Future[bool], seconds: float) -> bool | None:
        """Wait for a result for so long, and while the server does not stop; return None where there is none.

        Raises:
            Gone: The client went away.
        """
        gone = asyncio.create_task(self._until_gone(), name="chatx poll")
        try:
            # Whoever cancels it ends the waiting.
            with told_when_stopping(self.scope, waiter.cancel):
                await asyncio.wait((waiter, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                raise Gone
            return waiter.result() if waiter.done() and not waiter.cancelled() else None
        finally:
            gone.cancel()
            waiter.cancel()

    async def body(self) -> bytes:
        """Return the body; one that comes slowly holds up no server that stops.

        Raises:
            Excess: It is too large.
            Gone: The client went away.
        """
        body = bytearray()
        async with bounded_when_stopping(self.scope):
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > MAX_POST_BYTES:
                    raise Excess(CLOSE_TOO_LARGE, f"post of more than {MAX_POST_BYTES} bytes")
                if not message.get("more_body", False):
                    return bytes(body)

    async def say(self, answer: Polled | Posted) -> None:
        """Respond with a status of the protocol's."""
        await self.respond(200, encode(answer))

    async def put_off(self, status: int, seconds: float) -> None:
        """Respond with a status of HTTP, at which the client is to come back after so many seconds."""
        await self.respond(status, encode(Posted(_FAILED)), (b"retry-after", b"%d" % math.ceil(seconds)))

    async def respond(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Respond.

        Raises:
            OSError: The client is gone; some servers say so by other exceptions, or not at all.
            TimeoutError: It takes nothing.
        """
        every = [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *self._cors,
            *headers,
        ]
        async with taken_within(WRITE_STALL_S, transport_of(self._receive)):
            await self._send({"type": "http.response.start", "status": status, "headers": every})
            await self._send({"type": "http.response.body", "body": body})

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _session_token(handshake: Handshake) -> Token | None:
    """Return what a client shows of a session, known or not; newer clients send it as a header."""
    said = handshake.headers.get("x-phoenix-longpoll-token", handshake.params.get("token", ""))
    found = _TOKEN.fullmatch(said)
    return Token(found[1] or "", found[2], int(found[3])) if found is not None else None


def _auth_token(handshake: Handshake) -> str | None:
    """Return the `authToken` of phoenix.js, which travels as a header here."""
    said = handshake.headers.get("x-phoenix-authtoken")
    try:
        return said.encode("latin-1").decode() if said is not None else None
    except UnicodeDecodeError:
        return None
