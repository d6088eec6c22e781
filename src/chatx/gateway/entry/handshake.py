"""Who may open a socket: what a handshake says, and where it may come from."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qsl, urlsplit

from msgspec import Struct

from chatx.core.validation import valid_id
from chatx.errors import ConfigError
from chatx.gateway.wire.phoenix import BEARER

MAX_PARAMS = 100
"""Query parameters read; those behind them are not."""

_ESCAPED = re.compile(r"\\([0-3][0-7][0-7]|.)")


class Handshake(Struct, frozen=True):
    """What a client sent when it opened its socket; given to `authenticate`.

    Attributes:
        params: The query's parameters, the first 100. They reach logs: no long-lived secrets.
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


class Identity(Struct, frozen=True):
    """Who opened a socket, until when, and for which rooms; `authenticate` may return one instead of a user id.

    Attributes:
        user_id: The user.
        expires_at: Unix time in seconds after which the socket is closed, or None: it does not expire.
        rooms: The rooms that may be joined, each an id or a `prefix*`; None is all. The auth adapter is asked as well.

    Raises:
        InvalidMessage: The user id is not valid.
        ConfigError: `expires_at` is no finite number, or `rooms` is no tuple of texts.
    """

    user_id: str
    expires_at: float | None = None
    rooms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check every field: one that was passed over would let somebody in for too long, or into too much."""
        valid_id(self.user_id, "the user id that authenticate returned")
        at = self.expires_at
        if at is not None and (isinstance(at, bool) or not isinstance(at, (int, float)) or not _finite(at)):
            raise ConfigError("Identity.expires_at is no finite number; give seconds of Unix time, or None.")
        if self.rooms is not None and not (
            isinstance(self.rooms, tuple) and all(isinstance(each, str) for each in self.rooms)
        ):
            raise ConfigError("Identity.rooms is no tuple of texts; give ('general', 'team-*'), or None for all rooms.")

    def may_join(self, room_id: str) -> bool:
        """Return whether the room is among `rooms`."""
        return self.rooms is None or any(
            room_id.startswith(each[:-1]) if each.endswith("*") else room_id == each for each in self.rooms
        )


Answer: TypeAlias = "Identity | str | None"
"""What `authenticate` says: who it is, or None to refuse."""

Authenticate: TypeAlias = Callable[[Handshake], "Answer | Awaitable[Answer]"]
"""Returns an `Identity` or the user's id, or None to refuse; plain or async."""


def identity_of(answer: object) -> Identity | None:
    """Return the identity that an answer of `authenticate` stands for, or None where it refuses.

    Raises:
        InvalidMessage: It is neither an `Identity`, a valid user id, None nor False.
    """
    if answer is None or answer is False:
        return None
    return answer if isinstance(answer, Identity) else Identity(answer)  # type: ignore[arg-type]  # it is checked there


def handshake_of(scope: Mapping[str, Any]) -> Handshake:
    """Return the handshake of an ASGI websocket scope. Nothing that a client can send raises."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
    query = scope.get("query_string", b"").decode("latin-1").split("&", MAX_PARAMS)[:MAX_PARAMS]
    subprotocols = tuple(scope.get("subprotocols", ()))
    return Handshake(
        params=dict(parse_qsl("&".join(query), keep_blank_values=True)),
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
        # The header, not what was read of it: an application may read cookies that this package cannot.
        return "cookie" not in handshake.headers
    return _allowed(origin, handshake, origins)


def request_allowed(handshake: Handshake, origins: tuple[str, ...]) -> bool:
    """Return whether a page of this origin may send a request that opens no WebSocket.

    Browsers send no Origin with a GET to the page's own. They say by `Sec-Fetch-Site` whose page asks, but not over
    plain HTTP, and old ones never; then the page that it came from is named in `Referer`, unless it forbids that.
    """
    headers = handshake.headers
    if "origin" in headers:
        return _allowed(headers["origin"], handshake, origins)
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] == "same-origin"
    if "cookie" not in headers:
        return True
    scheme, _, rest = headers.get("referer", "").partition("://")
    return _allowed(f"{scheme}://{rest.partition('/')[0]}", handshake, origins)


def _allowed(origin: str, handshake: Handshake, origins: tuple[str, ...]) -> bool:
    if sum(name.lower() == b"origin" for name, _ in handshake.scope.get("headers", ())) > 1:
        return False  # which of them counts is not for whoever sends them to choose
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
            and _port(page, secure) == _port(here, secure)
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


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond every float
        return False


def _port(address: SplitResult, secure: bool) -> int:
    return address.port if address.port is not None else (443 if secure else 80)


def _cookies(header: str) -> dict[str, str]:
    # One pair at a time: the standard library's parser drops all of them for one that is odd, and any script on a
    # neighbouring domain can set an odd one.
    cookies = {}
    for pair in header.split(";"):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            cookies[name.strip()] = _unquoted(value.strip())
    return cookies


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)) if len(found[1]) == 3 else found[1], value[1:-1])
