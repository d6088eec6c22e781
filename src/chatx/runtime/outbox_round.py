"""One round of a row of the outbox: who was told, with whom that failed, who is left."""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from chatx.adapters.outbox import OUTBOX_USERS, Notification
from chatx.core.message import Message


class Round(Struct, eq=False):
    """A claimed row that is worked at.

    Attributes:
        row: As it was claimed.
        message: What its users are told of.
        left: Users that were not told yet; None until `recipients` was asked.
        under_way: Those who are being told.
        failed: Those with whom that failed.
        postponed: Those whose earlier calls have not ended.
        unnamed: Whether `recipients` failed.
        reason: How it failed last.
    """

    row: Notification
    message: Message
    left: deque[str] | None
    under_way: set[str]
    failed: list[str]
    postponed: list[str]
    unnamed: bool = False
    reason: str = "raised"

    @property
    def users(self) -> tuple[str, ...] | None:
        """The users who are to be told still, as a row keeps them; None where `recipients` is to name them again."""
        if self.left is None or self.unnamed:
            return self.row.users
        users = (*self.failed, *self.postponed, *sorted(self.under_way), *self.left)
        # Too many for a row came from `recipients`, which is asked again.
        return users if len(users) <= OUTBOX_USERS else None
