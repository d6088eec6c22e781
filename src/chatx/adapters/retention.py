"""Retention: what a log lets go of, oldest first, and what it keeps whatever its age.

A log need not know it; then it keeps everything. What goes is always the beginning of what a room has, so a reader sees
one oldest place and no hole behind it. The head of a room stays where it is, also where nothing is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from chatx.adapters.boundary import check_method

ROOMS_AT_ONCE = 64
"""Rooms in one call, at most."""

TRIMMED_AT_ONCE = 256
"""Entries that one call lets go of, at most: whoever appends waits for no more than that."""


class Retention(Struct, frozen=True, gc=False):
    """What a log is to keep. Times are in ms since the Unix epoch.

    Attributes:
        before_ms: Entries placed before that go; None: none goes for its age.
        keep: The newest places of a room that stay, those of earlier epochs included; None: none goes for its number.
        spared_ms: Entries placed since then stay, whatever the number: whether they were written may not be known yet.
        keys_spared_ms: Entries with an idempotency key that were placed since then stay, since the key must answer.
    """

    before_ms: int | None
    keep: int | None
    spared_ms: int
    keys_spared_ms: int

    def lets_go(self, inserted_at: int, newer: int, *, keyed: bool) -> bool:
        """Return whether an entry goes.

        Args:
            inserted_at: When it was placed.
            newer: How many places of its room are newer.
            keyed: Whether it has an idempotency key.
        """
        too_many = self.keep is not None and newer >= self.keep
        too_old = self.before_ms is not None and inserted_at < self.before_ms
        spared = inserted_at >= (self.keys_spared_ms if keyed else self.spared_ms)
        return (too_many or too_old) and not spared


class TrimsRooms(Protocol):
    """What a log has that knows retention, beside the methods of a `RoomLog`. Methods may be plain or async."""

    def list_rooms(self, after: str, limit: int, /) -> Sequence[str] | Awaitable[Sequence[str]]:
        """Return the ids of rooms that have entries, in order and behind one, at most `limit`; "" is ahead of all."""
        ...

    def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int | Awaitable[int]:
        """Let go of the oldest entries of rooms, at most `limit` over all of them, and return how many went.

        What goes of a room ends ahead of the first entry that stays: by `retention`, or since the outbox has somebody
        still to tell of it. No head moves.
        """
        ...


def trims(log: Any) -> bool:
    """Return whether a log knows retention."""
    return hasattr(log, "list_rooms") and hasattr(log, "trim")


def check_retention(log: object) -> None:
    """Check that the methods can be called as the engine calls them, where there is one of them.

    Raises:
        ConfigError: They cannot, or one of them is missing.
    """
    if hasattr(log, "list_rooms") or hasattr(log, "trim"):
        check_method("persistence", log, "list_rooms", "after", 1)
        check_method("persistence", log, "trim", "room_ids", "retention", 1)
