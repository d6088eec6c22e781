"""The API as an ASGI application, for `chatx serve` and for any framework that can mount one.

    app.mount("/api", chat.api(authenticate=may_use_it))

Rules:
1. Whoever may use it may say anything in anybody's name, so it has no default of who may, and is asked at each request.
2. What a request costs is bounded before it is looked into: `MAX_UNDER_WAY` of them at a time, and its path, its query,
   its headers and its body in bytes. At a bound it is refused, and told when to come back.
3. What was read whole goes its way also where the client goes: a message is not half said. It holds its place among
   those under way until it is done.
4. Every refusal is a problem of RFC 9457 with what the table of errors says.
5. No page of another origin may read an answer, unless it is listed. A request that changes something needs more than a
   page can send without asking first: JSON, or DELETE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.json import encode

from chatx.chat import Chat
from chatx.errors import ChatError, ConfigError
from chatx.gateway.api.access import ApiAuthenticate, check_access, check_authenticate
from chatx.gateway.api.incoming import Gone, Incoming, Receive
from chatx.gateway.api.openapi import encoded
from chatx.gateway.api.problems import Refusal, headers_of, problem_of, refusal_of
from chatx.gateway.api.request import (
    body_of,
    check_headers,
    check_type,
    key_of,
    query_of,
    target_of,
)
from chatx.gateway.api.routes import DESCRIPTION, ROUTES, Asked, Operation, methods_of, route_of
from chatx.gateway.entry.handshake import fields_of
from chatx.gateway.entry.origins import ALL, origins_of
from chatx.gateway.entry.problems import CONTENT_TYPE
from chatx.gateway.entry.refusal import RefusalLog, Refused
from chatx.gateway.session.progress import taken_within, transport_of

logger: logging.Logger = logging.getLogger("chatx")

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

MAX_UNDER_WAY: Final = 128
"""Requests of one application under way at a time, those included whose client has gone."""

WRITE_STALL_S: Final = 10.0
"""Seconds in which a client must take a kilobyte of an answer, where that can be seen; else all of it."""

_JSON: Final = b"application/json"
_PROBLEM: Final = CONTENT_TYPE.encode()


class ApiApp:
    """The ASGI application.

    Args:
        chat: The chat; it need not run yet.
        authenticate: `authenticate(headers)` → True for a request that may say anything in anybody's name, and False
            for any other; plain or async. The headers are by lower-case name.
        origins: Origins whose pages may read the answers, such as `https://example.org`; `*` is all. None by default.

    Raises:
        ConfigError: `authenticate` is not given or cannot be called so, or an origin is not one.
    """

    def __init__(self, chat: Chat, *, authenticate: ApiAuthenticate | None = None, origins: Iterable[str] = ()) -> None:
        check_authenticate(authenticate)
        assert authenticate is not None
        self._chat = chat
        self._authenticate = authenticate
        self._origins = origins_of(origins)
        self._refusals = RefusalLog()
        self._left: set[asyncio.Task[Struct | None]] = set()  # whose client has gone
        self._with_client = 0

    @property
    def under_way(self) -> int:
        """Requests under way, those included whose client has gone before the answer."""
        return self._with_client + len(self._left)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000, "reason": "there is no socket here"})
            return
        if scope["type"] != "http":
            raise ConfigError("Mount this application; run the chat with chat.lifespan in the outer application.")
        self._with_client += 1
        try:
            await self._exchange(scope, receive, send)
        finally:
            self._with_client -= 1

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = fields_of(scope.get("headers", ()))
        incoming = Incoming(scope, fields, receive)
        try:
            status, headers, body = await self._answered(scope, fields, incoming)
        except Gone:
            # Nobody reads this; but a middleware around takes a request without a response for a failure.
            status, headers, body = HTTPStatus.BAD_REQUEST.value, [], b""
        headers += self._cors(fields)
        if incoming.left and scope.get("http_version", "1.1").startswith("1"):
            # Servers hang up on what they have not read; a client is told, or its next request would meet that.
            headers.append((b"connection", b"close"))
        # What a client does not take is no failure.
        with suppress(OSError, TimeoutError):
            async with taken_within(WRITE_STALL_S, transport_of(receive)):
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answered(
        self, scope: Scope, fields: Mapping[str, str], incoming: Incoming
    ) -> tuple[int, Headers, bytes]:
        try:
            return await self._answer(scope, fields, incoming)
        except (Refusal, ChatError) as error:
            refusal = error if isinstance(error, Refusal) else refusal_of(error)
        except (Gone, asyncio.CancelledError):
            raise
        except Exception:
            logger.exception("A request to the API failed.", extra={"code": "api_failed"})
            refusal = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "It failed here; the log says why.")
        if refusal.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.SERVICE_UNAVAILABLE):
            self._tell(refusal, scope)
        body = encode(problem_of(refusal))
        return refusal.status, [*_headers(_PROBLEM, body), *headers_of(refusal)], body

    async def _answer(self, scope: Scope, headers: Mapping[str, str], incoming: Incoming) -> tuple[int, Headers, bytes]:
        method: str = scope["method"]
        if self.under_way > MAX_UNDER_WAY:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MAX_UNDER_WAY} requests are under way, which is the bound. Come back.",
            )
        check_headers(scope)
        target = target_of(scope)
        found = route_of(target.parts)
        if found is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                "There is nothing at this path. An id in it is percent-encoded, a slash in one as %2F; "
                f"{target.mounted}{DESCRIPTION} has all paths.",
            )
        path, within_path = found
        methods = methods_of(path)
        allow = (b"allow", ", ".join(methods).encode())
        if method not in methods:
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"This path has {', '.join(methods)}.", allow)
        if method == "OPTIONS":
            return HTTPStatus.NO_CONTENT.value, [allow, *self._preflight(allow[1])], b""
        if path == DESCRIPTION:
            return _ok(HTTPStatus.OK, encoded(target.mounted or "/"))
        operation = ROUTES[path]["GET" if method == "HEAD" else method]
        engine = self._chat.engine
        await check_access(engine, self._authenticate, headers)
        query = query_of(scope, operation.query)
        key = key_of(scope) if operation.key else None
        body = None
        if operation.body is not None:
            check_type(headers)
            body = body_of(await incoming.read(), operation.body)
        answer = await self._to_its_end(operation, Asked(self._chat, within_path, query, body, key))
        if answer is None:
            return operation.status.value, [(b"cache-control", b"no-store")], b""
        return _ok(operation.status, encode(answer))

    async def _to_its_end(self, operation: Operation, asked: Asked) -> Struct | None:
        """Answer a request, and go on with a message where the client goes meanwhile."""
        if operation.body is None:
            return await operation.answer(asked)
        task = asyncio.get_running_loop().create_task(operation.answer(asked), name="chatx api")
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            self._left.add(task)
            task.add_done_callback(self._ended)
            raise
        return task.result()

    def _ended(self, task: asyncio.Task[Struct | None]) -> None:
        self._left.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, ChatError):
            logger.info(
                "What a client of the API had asked for before it went was refused: %s",
                error.reason,
                extra={"code": error.code},
            )
        else:
            logger.error("A request to the API failed.", exc_info=error, extra={"code": "api_failed"})

    def _tell(self, refusal: Refusal, scope: Scope) -> None:
        kind = HTTPStatus(refusal.status).name.lower() if refusal.error is None else refusal.error.code
        refused = Refused(refusal.status, f"api_{kind}", f"its request to the API: {refusal.detail}")
        self._refusals.tell(refused, scope, asyncio.get_running_loop().time())

    def _cors(self, headers: Mapping[str, str]) -> Headers:
        if not self._origins:
            return []
        origin = headers.get("origin")
        if origin is None or not ({ALL, origin} & self._origins):
            return [(b"vary", b"origin")]
        return [
            (b"vary", b"origin"),
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"retry-after"),
        ]

    def _preflight(self, methods: bytes) -> Headers:
        if not self._origins:
            return []
        return [
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", b"authorization, content-type, idempotency-key"),
            (b"access-control-max-age", b"3600"),
        ]


def _ok(status: HTTPStatus, body: bytes) -> tuple[int, Headers, bytes]:
    return status.value, _headers(_JSON, body), body


def _headers(kind: bytes, body: bytes) -> Headers:
    return [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
