"""The client for browsers, as both shells serve it beside the socket: the very file of `clients/js`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

PATH: Final = "/chatx.js"
"""What the path of a request ends in."""

BODY: Final = Path(__file__).with_name("chatx.js").read_bytes()

_TAG: Final = b'"%s"' % sha256(BODY).hexdigest()[:32].encode()

_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"content-type", b"text/javascript; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
    # A page that is served anew soon has the client that came with its server.
    (b"cache-control", b"public, max-age=300"),
    (b"etag", _TAG),
    # A page of another origin may import it: it is no secret, and which pages may connect is asked at the socket.
    (b"access-control-allow-origin", b"*"),
)


async def script(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer a request for the client, as an ASGI application."""
    status, body, headers = 200, BODY, _HEADERS
    if scope["method"] not in ("GET", "HEAD"):
        status, body, headers = 405, b"", ((b"allow", b"GET, HEAD"),)
    elif any(_matches(value) for name, value in scope["headers"] if name == b"if-none-match"):
        status, body = 304, b""
    if status != 304:
        headers = (*headers, (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _matches(value: bytes) -> bool:
    return any(each.strip().removeprefix(b"W/") in (_TAG, b"*") for each in value.split(b","))
