"""The body of a request as it comes: within its bytes and its time, and whether some of it was left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from chatx.gateway.api.problems import Refusal
from chatx.gateway.entry.stopping import bounded_when_stopping
from chatx.gateway.session.progress import within

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]

BODY_BYTES: Final = 262_144
"""Bytes of a body, whatever the options allow."""

BODY_S: Final = 10.0
"""Seconds in which a body must have come."""


class Gone(Exception):
    """The client went away before its request was read."""


class Incoming:
    """The body of one request.

    Args:
        scope: The ASGI scope.
        headers: The headers by lower-case name.
        receive: ASGI's.

    Attributes:
        left: Whether there is some of it that was not read.
    """

    def __init__(self, scope: Mapping[str, Any], headers: Mapping[str, str], receive: Receive) -> None:
        self._scope = scope
        self._receive = receive
        self._announced = headers.get("content-length", "0")
        self.left: bool = self._announced != "0" or "transfer-encoding" in headers

    async def read(self) -> bytes:
        """Return all of it; one that comes slowly holds up no server that stops.

        Raises:
            Refusal: It is too large, which is told before it is read where its length is announced, or too slow.
            Gone: The client went away.
        """
        length = self._announced
        if length.isascii() and length.isdecimal() and (len(length) > 12 or int(length) > BODY_BYTES):
            raise _too_large()
        body = bytearray()
        try:
            async with within(BODY_S), bounded_when_stopping(self._scope):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    body += message.get("body", b"")
                    if len(body) > BODY_BYTES:
                        raise _too_large()
                    if not message.get("more_body", False):
                        self.left = False
                        return bytes(body)
        except TimeoutError:
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"A body must have come within {BODY_S:g} s.") from None


def _too_large() -> Refusal:
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {BODY_BYTES} bytes.")
