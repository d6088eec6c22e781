"""What a connection to the server is to the client, whatever carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

SHIFT: Final = 3100
"""What some ASGI servers add to the close codes from 1000 on, which they cannot send as they are."""


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` says, or None where it says none; a date is none."""
    after = headers.get("Retry-After", "")
    return float(after) if after.isascii() and after.isdigit() else None


class Cut(Exception):
    """The connection has ended.

    Attributes:
        code: The close code; 1006 where none came.
        reason: Why, for a person.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code: int = code - SHIFT if 1000 + SHIFT < code < 1016 + SHIFT else code
        self.reason: str = reason


class NotOpened(Exception):
    """The connection could not be opened.

    Attributes:
        retry_after: Seconds to wait at least, where the server said so, or None.
        blocked: Whether something between may let no WebSocket through: there was no answer of a server that speaks it.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, blocked: bool = False) -> None:
        super().__init__(reason)
        self.retry_after: float | None = retry_after
        self.blocked: bool = blocked


class Wire(Protocol):
    """An open connection."""

    async def read(self) -> str | bytes:
        """Return the next frame; raise `Cut` where the connection has ended."""
        ...

    async def write(self, frames: Sequence[str]) -> None:
        """Write frames in their order; raise `Cut` where the connection has ended."""
        ...

    async def close(self) -> None:
        """Close it in good order, within seconds."""
        ...

    def abort(self) -> None:
        """End it at once: who reads is told."""
        ...
