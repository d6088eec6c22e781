"""Every close code of a socket: the table that the documentation and the description of the protocol are made of."""

from __future__ import annotations

from typing import Final, NamedTuple

CLOSE_GOING_AWAY: Final = 1001
CLOSE_MALFORMED: Final = 1007
CLOSE_POLICY: Final = 1008
CLOSE_TOO_LARGE: Final = 1009
CLOSE_INTERNAL: Final = 1011
CLOSE_RESTART: Final = 1012
CLOSE_TRY_LATER: Final = 1013
CLOSE_EXPIRED: Final = 4001
CLOSE_REVOKED: Final = 4003

MAX_CLOSE_REASON: Final = 123
"""Bytes of the reason: a WebSocket close frame holds 125, two of which are the code."""


class CloseCode(NamedTuple):
    """What a close code says.

    Attributes:
        when: When the server closes so.
        client: What the client does.
    """

    when: str
    client: str


CLOSES: Final[dict[int, CloseCode]] = {
    CLOSE_GOING_AWAY: CloseCode(
        "silent for `idle_timeout_s`, or when asked at the bound of its user; or the server goes away", "comes back"
    ),
    CLOSE_MALFORMED: CloseCode("what came is no frame", "comes back"),
    CLOSE_POLICY: CloseCode("too many frames waited for a join or leave, or too many fragments or pings", "comes back"),
    CLOSE_TOO_LARGE: CloseCode("a message over 65,536 bytes", "comes back"),
    CLOSE_INTERNAL: CloseCode("a fault of the server's; it is logged", "comes back"),
    CLOSE_RESTART: CloseCode("the chat stops", "comes back"),
    CLOSE_TRY_LATER: CloseCode("the client reads too slowly", "comes back and resumes"),
    CLOSE_EXPIRED: CloseCode("the identity has expired", "comes back, with a new token if it computes it anew"),
    CLOSE_REVOKED: CloseCode("the user was revoked", "comes back, and is refused if `authenticate` says so"),
}
"""By code. None is 1000, after which phoenix.js before 1.8.16 stays away for good."""
