"""All nodes of a chat as an operator sees them from one of them; nothing at all where there is one node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from chatx.cluster.memberships import Membership
from chatx.cluster.operating import RoomSummary
from chatx.core.message import Presences
from chatx.runtime.process import RoomProcess

Readiness: TypeAlias = Literal["ok", "away", "deaf", "draining"]
"""Whether new clients are to come to a node.

Not where it is `away` from the others, where some of what is said to it does not come (`deaf`), or where it hands its
rooms over.
"""


class RoomsOfNodes(Struct):
    """A page of the rooms of all nodes.

    Attributes:
        total: Rooms of all nodes that answered.
        rooms: Rooms in the order of their ids, each with the name of its owner.
        after: The id behind which the next page begins; None where this is the last.
        missing: Names of the nodes that did not answer, and whose rooms are not among these.
    """

    total: int
    rooms: list[tuple[str, RoomSummary]]
    after: str | None
    missing: list[str]


class RoomOfNode(Struct):
    """One room.

    Attributes:
        node: The name of its owner.
        room: The room.
        present: The memberships that began first.
    """

    node: str
    room: RoomSummary
    present: tuple[Membership, ...]


class Overview(Protocol):
    """The nodes of one chat, for whoever operates them."""

    @property
    def readiness(self) -> Readiness:
        """Whether this node serves now."""
        ...

    async def rooms(self, after: str, limit: int) -> RoomsOfNodes:
        """Return rooms behind an id, at most so many."""
        ...

    async def room(self, room_id: str) -> RoomOfNode | None:
        """Return a room, or None where its owner does not have it in memory.

        Raises:
            RoomUnavailable: Its owner cannot be asked.
        """
        ...

    def figures(self) -> Mapping[str, Any]:
        """Return the fields of `Statistics` that are about nodes; may be called from any thread."""
        ...


def summary_of(process: RoomProcess) -> RoomSummary:
    """Return a room as it is listed."""
    head = process.head
    return RoomSummary(
        process.room_id,
        process.members_count,
        process.subscribers,
        head.epoch,
        head.offset,
        process.admitted,
        process.crashes,
    )


def first_of(presences: Presences) -> tuple[Membership, ...]:
    """Return memberships as they travel, a user's own beside each other."""
    return tuple(
        Membership(user_id, meta.ref, meta.online_at) for user_id, metas in presences.items() for meta in metas
    )
