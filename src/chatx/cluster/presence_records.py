"""What a node says of who is in a room through it: changes with a version, and all of it to whoever missed one.

A membership is told by its own node only, so a version puts that node's changes in order: a change of version n follows
what version n - 1 made, and whoever has another one asks for all of it.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from chatx.cluster.fields import Boot, Count, Id, Part, check_ids
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


class _OfRoom(Part, frozen=True, gc=False):
    room_id: Id
    boot: Boot
    version: Count

    def check(self) -> None:
        """Check the room's id."""
        check_ids(room_id=self.room_id)


class PresenceChange(_OfRoom, frozen=True, gc=False, tag="pchg"):
    """Memberships of one node in a room began or ended.

    Attributes:
        room_id: The room.
        boot: Which life of which node.
        version: What this makes of `version - 1`.
        joins: What began.
        leaves: What ended.
    """

    joins: Memberships = ()
    leaves: Memberships = ()

    def check(self) -> None:
        """Check all ids."""
        _OfRoom.check(self)
        for each in (*self.joins, *self.leaves):
            each.check()


class PresenceSnapshot(_OfRoom, frozen=True, gc=False, tag="psnap"):
    """All memberships of one node in a room, or a part of them.

    Attributes:
        room_id: The room.
        boot: Which life of which node.
        version: The version that they are of; parts of two versions do not belong together.
        part: Which part this is, from 0.
        parts: How many there are, at least 1.
        present: The memberships of this part.
    """

    part: Annotated[int, Meta(ge=0, le=9_999)] = 0
    parts: Annotated[int, Meta(ge=1, le=10_000)] = 1
    present: Memberships = ()

    def check(self) -> None:
        """Check all ids, and that the part is one of the parts.

        Raises:
            ValueError: It is not.
        """
        _OfRoom.check(self)
        if self.part >= self.parts:
            raise ValueError(f"Part {self.part} is none of {self.parts} parts, which are counted from 0.")
        for each in self.present:
            each.check()
