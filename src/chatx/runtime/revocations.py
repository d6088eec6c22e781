"""Who was revoked just now, for what was allowed before that and comes in behind it."""

from __future__ import annotations

from collections import OrderedDict

from chatx.errors import Revoked

REVOKED_KEPT = 10_000
"""Revoked users remembered, for what was under way when they were revoked; it all ends within some adapter timeouts."""


class Revocations:
    """The users revoked last in one chat, at most `REVOKED_KEPT`; the one revoked longest ago is forgotten first.

    Attributes:
        count: How often a user was revoked; see `check`.
    """

    __slots__ = ("_revoked", "count")

    def __init__(self) -> None:
        self._revoked: OrderedDict[str, int] = OrderedDict()  # user id -> the count at their last
        self.count: int = 0

    def add(self, user_id: str) -> None:
        """Remember that a user is revoked now."""
        self.count += 1
        self._revoked[user_id] = self.count
        self._revoked.move_to_end(user_id)
        if len(self._revoked) > REVOKED_KEPT:
            self._revoked.popitem(last=False)

    def check(self, user_id: str, since: int) -> None:
        """Raise `Revoked` if the user was revoked since `count` was this.

        Whoever asks on a user's behalf notes `count` before it awaits: a revocation that comes meanwhile undoes what
        was allowed.
        """
        if self._revoked.get(user_id, 0) > since:
            raise Revoked
