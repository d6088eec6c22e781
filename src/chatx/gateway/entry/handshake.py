"""Who may open a socket: what a handshake says, and where it may come from."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qsl, urlsplit

from msgspec import Struct

from chatx.core.validation import valid_id
from chatx.errors import ConfigError
from chatx.gateway.entry.origins import ALL
from chatx.gateway.entry.refusal import Refused, shortened
from chatx.gateway.wire.phoenix import BEARER

MAX_PARAMS = 100
"""Query parameters read; those behind them are not."""

NO_WEBSOCKET_ASKED = (
    b"This is a WebSocket endpoint, and the request asks for none: connect to .../websocket?vsn=2.0.0 with a client of "
    b"Phoenix Channels. A proxy on the way has to hand on Upgrade and Connection.\n"
)
"""What a request is told that opens no WebSocket where there is nothing else."""

_ESCAPED = re.compile(r"\\([0-3][0-7][0-7]|.)")


class Handshake(Struct, frozen=True):
    """What a client sent when it opened its socket; given to `authenticate`.

    Attributes:
        params: The query's parameters, the first 100. They reach logs: no long-lived secrets.
        headers: The headers by lower-case name. The fields of one name are joined by commas, those of `cookie` by
            semicolons, as HTTP has it; so a field that may come once only and comes twice has a value that nobody
            means.
        cookies: The cookies by name, of however many fields.
        token: The bearer token of the subprotocol, or None.
        subprotocols: The subprotocols that the client offers.
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
        if at is not None and (isinstance(at, bool) or not isinstance(at, (int, float)) or not finite(at)):
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
        InvalidMessage: The answer is neither an `Identity`, a valid user id, None nor False.
    """
    if answer is None or answer is False:
        return None
    return answer if isinstance(answer, Identity) else Identity(answer)  # type: ignore[arg-type]  # it is checked there


def handshake_of(scope: Mapping[str, Any]) -> Handshake:
    """Return the handshake of an ASGI websocket scope. Nothing that a client can send raises."""
    headers = fields_of(scope.get("headers", ()))
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


def fields_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the values of header fields by lower-case name, those of one name joined: RFC 9110, section 5.3."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in fields:
            value = f"{fields[name]}{'; ' if name == 'cookie' else ', '}{value}"
        fields[name] = value
    return fields


def check_origin(handshake: Handshake, origins: Collection[str]) -> None:
    """Check that a page of this origin may open a socket.

    The server's own origin always may, and so may the listed ones (`*` lists all). A request without an Origin is no
    browser's; that is fine unless it has cookies, which are what a foreign page would abuse.

    Args:
        handshake: The handshake.
        origins: From `origins_of`.

    Raises:
        Refused: It may not.
    """
    origin = handshake.headers.get("origin")
    if origin is not None:
        _check_listed(origin, handshake, origins)
    # The header, not what was read of it: an application may read cookies that this package cannot.
    elif "cookie" in handshake.headers:
        raise Refused(
            403,
            "cookies_without_origin",
            "it has cookies and no Origin, which no browser sends with a WebSocket. A client that is no browser "
            "connects without cookies, as with a token, or with an Origin that may connect.",
        )


def check_request_origin(handshake: Handshake, origins: Collection[str]) -> None:
    """Check that a page of this origin may send a request that opens no WebSocket.

    Browsers send no Origin with a GET to the page's own. They say by `Sec-Fetch-Site` whose page asks, but not over
    plain HTTP, and old ones never; then the page that it came from is named in `Referer`, unless it forbids that.

    Raises:
        Refused: It may not.
    """
    headers = handshake.headers
    if "origin" in headers:
        _check_listed(headers["origin"], handshake, origins)
    elif "sec-fetch-site" in headers:
        if headers["sec-fetch-site"] != "same-origin":
            raise Refused(
                403,
                "foreign_page",
                f"it is of another page (Sec-Fetch-Site is {shortened(headers['sec-fetch-site'])!r}, and not "
                f"'same-origin'), and has no Origin to look up in origins. {_WHAT_TO_LIST}",
            )
    elif "cookie" in headers:
        if "referer" not in headers and ALL not in origins:
            raise Refused(
                403,
                "cookies_without_origin",
                "it has cookies, and no Origin, Sec-Fetch-Site or Referer that would say whose page sends them. A "
                "client that is no browser polls without cookies, as with a token, or with an Origin that may connect.",
            )
        scheme, _, rest = headers.get("referer", "").partition("://")
        _check_listed(f"{scheme}://{rest.partition('/')[0]}", handshake, origins)


_WHAT_TO_LIST = "If its pages may connect, list it: origins=('https://example.org',), or --origin of chatx serve."


def _check_listed(origin: str, handshake: Handshake, origins: Collection[str]) -> None:
    named = sum(name.lower() == b"origin" for name, _ in handshake.scope.get("headers", ()))
    if named > 1:  # which of them counts is not for whoever sends them to choose
        raise Refused(403, "origin", f"it has {named} Origins, and a browser sends one.")
    if ALL in origins or origin in origins or _is_own(origin, handshake):
        return
    listed = ", ".join(sorted(origins)) or "nothing"
    raise Refused(
        403,
        "origin",
        f"its page's origin {shortened(origin)!r} is neither the socket's own, {shortened(_own(handshake))!r}, nor in "
        f"origins, which lists {shortened(listed)}. {_WHAT_TO_LIST} If it is the site's own, the proxy before it has "
        "to hand on Host, and X-Forwarded-Proto to a server that trusts it (--forwarded-allow-ips).",
    )


def _own(handshake: Handshake) -> str:
    secure = handshake.scope.get("scheme") in ("wss", "https")
    return f"http{'s' if secure else ''}://{handshake.headers.get('host', '')}"


def _is_own(origin: str, handshake: Handshake) -> bool:
    try:
        page, here = urlsplit(origin), urlsplit(_own(handshake))
        return (
            page.scheme == here.scheme
            and page.hostname is not None
            and page.hostname == here.hostname
            and _port(page) == _port(here)
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


def finite(number: float) -> bool:
    """Return whether a number is one that a clock may show."""
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond every float
        return False


def _port(address: SplitResult) -> int:
    return address.port if address.port is not None else (443 if address.scheme == "https" else 80)


def _cookies(header: str) -> dict[str, str]:
    # One pair at a time: the standard library's parser drops all of them for one that is odd, and any script on a
    # neighbouring domain can set an odd one. Starlette's would do, but the core knows this file and needs no Starlette.
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
