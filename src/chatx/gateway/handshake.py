"""Who may open a socket: what a handshake says, and where it may come from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct

BEARER = "base64url.bearer.phx."
"""The subprotocol in which phoenix.js carries its `authToken`; it is never echoed."""


class Handshake(Struct, frozen=True):
    """What a client sent when it opened its socket; given to `authenticate`.

    Attributes:
        params: The query's parameters. They reach logs: no long-lived secrets.
        headers: By lower-case name; of a repeated one, the last.
        cookies: By name.
        token: The bearer token of the subprotocol, or None.
        subprotocols: Those offered.
        scope: The ASGI scope, for whatever else is needed.
    """

    params: Mapping[str, str]
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    token: str | None
    subprotocols: tuple[str, ...]
    scope: Mapping[str, Any]


Authenticate: TypeAlias = Callable[[Handshake], "str | Awaitable[str | None] | None"]
"""Returns the user's id, or None to refuse; plain or async."""


def handshake_of(scope: Mapping[str, Any]) -> Handshake:
    """Return the handshake of an ASGI websocket scope."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
    query = scope.get("query_string", b"").decode("latin-1")
    subprotocols = tuple(scope.get("subprotocols", ()))
    return Handshake(
        params=dict(parse_qsl(query, keep_blank_values=True, max_num_fields=100)),
        headers=headers,
        cookies=_cookies(headers.get("cookie", "")),
        token=_token(subprotocols),
        subprotocols=subprotocols,
        scope=scope,
    )


def origin_allowed(handshake: Handshake, origins: tuple[str, ...]) -> bool:
    """Return whether a page of this origin may open a socket.

    Same origin always may, the listed ones too (`*` lists all). Without an Origin it is no browser; that is fine unless
    it sends cookies, which are what a foreign page would abuse.
    """
    origin = handshake.headers.get("origin")
    if origin is None:
        return not handshake.cookies
    if "*" in origins or origin in origins:
        return True
    try:
        page = urlsplit(origin)
        here = urlsplit("//" + handshake.headers.get("host", ""))
        secure = handshake.scope.get("scheme") in ("wss", "https")
        return (
            page.scheme == ("https" if secure else "http")
            and page.hostname is not None
            and page.hostname == here.hostname
            and (page.port or (443 if page.scheme == "https" else 80)) == (here.port or (443 if secure else 80))
        )
    except ValueError:
        return False


def chosen_subprotocol(handshake: Handshake) -> str | None:
    """Return the subprotocol to accept: `phoenix` where it is offered; never the one that carries a token."""
    return "phoenix" if "phoenix" in handshake.subprotocols else None


def _token(subprotocols: tuple[str, ...]) -> str | None:
    for offered in subprotocols:
        if offered.startswith(BEARER):
            text = offered.removeprefix(BEARER)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except (binascii.Error, ValueError):
                return None
    return None


def _cookies(header: str) -> dict[str, str]:
    if not header:
        return {}
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(header)
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}
