"""Who is in a room, as nodes say it to each other."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from chatx.cluster.fields import Count, Id, Part, check_ids
from chatx.core.message import PresenceMeta

MEMBERSHIPS_AT_ONCE: Final = 1_000
"""Memberships in one record, at most; more are told in several."""


class Membership(Part, frozen=True, gc=False):
    """One membership of a user in a room.

    Attributes:
        user_id: The user.
        ref: Its own over all nodes.
        online_at: When it began, in ms since the Unix epoch.
    """

    user_id: Id
    ref: Id
    online_at: Count

    @property
    def meta(self) -> PresenceMeta:
        """The membership as a room knows it."""
        return PresenceMeta(self.ref, self.online_at)

    def check(self) -> None:
        """Check the ids."""
        check_ids(user_id=self.user_id, ref=self.ref)


Memberships = Annotated[tuple[Membership, ...], Meta(max_length=MEMBERSHIPS_AT_ONCE)]
