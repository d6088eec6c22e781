"""Why a client is not let in, and the lines of a log that say so to an operator.

Rules:
1. A refusal is a warning in an ordinary log: a site whose every page is refused must not look healthy.
2. Of each reason and origin there is one line a minute, with how many were left out. What is remembered for that is
   bounded by `MAX_KINDS`; beyond it the origins of a reason share a line. So a flood of refusals is no flood of lines.
3. No line is longer than `MAX_LINE`, none is two, and none holds a token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from chatx.gateway.entry.admission import COME_BACK_S

logger: logging.Logger = logging.getLogger("chatx")

PAUSE_S: Final = 60.0
"""Seconds between two lines of one reason and origin."""

MAX_KINDS: Final = 64
"""Reasons with an origin that are told apart within `PAUSE_S`."""

MAX_LINE: Final = 1000
"""Characters of a line."""

MAX_QUOTED: Final = 200
"""Characters of what a client sent that a line has."""

OTHERS: Final = "other origins"
"""What the origins beyond `MAX_KINDS` are called together."""


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Refused(Exception):
    """A client is refused.

    Attributes:
        status: The HTTP status of the answer.
        code: The kind of reason, one of a few; what lines of the log are counted by.
        reason: For the log: what was compared with what, and what would allow it; the client is not told.
        level: The level of the line.
        user_id: Who it would have been, where that is known.
        retry_after: Seconds after which the client may come back, where the answer says so.
    """

    def __init__(
        self,
        status: int,
        code: str,
        reason: str,
        *,
        level: int = logging.WARNING,
        user_id: str | None = None,
        retry_after: float = COME_BACK_S,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.level = level
        self.user_id = user_id
        self.retry_after = retry_after


class RefusalLog:
    """Writes refusals to the log, each kind once a minute."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._left_out = 0

    def __len__(self) -> int:
        """Return how many kinds are remembered."""
        return len(self._kinds)

    def tell(self, refused: Refused, scope: Mapping[str, Any], now: float) -> None:
        """Write a refusal to the log, unless one of its kind was written within the last `PAUSE_S`.

        Args:
            refused: The refusal.
            scope: The ASGI scope of whom it is about.
            now: Seconds by any clock that only goes on.
        """
        origin = origin_of(scope)
        kind = self._kind(refused.code, origin or "", now)
        if now < kind.until:
            kind.left_out += 1
            return
        left_out = kind.left_out + self._left_out
        kind.until, kind.left_out, self._left_out = now + PAUSE_S, 0, 0
        client = scope.get("client")
        logger.log(
            refused.level,
            "A client was refused with %d: %s%s",
            refused.status,
            shortened(_CONTROLS.sub(_escaped, refused.reason), MAX_LINE - 150),
            f" ({left_out} more were refused since the last such line.)" if left_out else "",
            extra={
                "code": refused.code,
                "origin": origin,
                "address": client[0] if client else None,
                "user": refused.user_id,
            },
        )

    def _kind(self, code: str, origin: str, now: float) -> _Kind:
        key = (code, origin)
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            for old, kind in list(self._kinds.items()):
                if kind.until <= now:
                    self._left_out += kind.left_out
                    del self._kinds[old]
            if len(self._kinds) >= MAX_KINDS:
                key = (code, OTHERS)
        return self._kinds.setdefault(key, _Kind())


class _Kind:
    """When the next line of one kind is due, and how many were left out since the last."""

    __slots__ = ("left_out", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.left_out = 0


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def origin_of(scope: Mapping[str, Any]) -> str | None:
    """Return the first Origin of a request, shortened, or None."""
    for name, value in scope.get("headers", ()):
        if name.lower() == b"origin":
            return shortened(value[: MAX_QUOTED + 1].decode("latin-1"))
    return None


def shortened(text: str, limit: int = MAX_QUOTED) -> str:
    """Return a text, cut where it is longer than the limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
