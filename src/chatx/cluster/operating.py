"""What an operator asks of a node, and what it answers: how it is, which rooms it has, and to drain.

The `chatx` command asks it from outside, and a node the others, for whoever asked that one.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from chatx.cluster.fields import Count, Epoch, Id, NodeName, Part, check_ids
from chatx.cluster.memberships import Memberships
from chatx.core.validation import ID_LIMIT

ROOMS_LISTED: Final = 1_000
"""Rooms in one answer, at most."""

NAMES: Final = 256
"""Names of nodes in one answer, at most."""

Behind: TypeAlias = Annotated[str, Meta(max_length=ID_LIMIT)]
"""The id of a room, or nothing: all rooms are behind that."""


class Drain(Part, frozen=True, gc=False, tag="drain"):
    """Hand the rooms over, send the clients away and end, as at SIGTERM; once it does, asking again changes nothing."""


class Look(Part, frozen=True, gc=False, tag="look"):
    """Say how the node is."""


class Looked(Part, frozen=True, gc=False, tag="looked"):
    """How a node is.

    Attributes:
        node: Its name.
        state: `up`, or what else its heartbeats say; `draining` also while it sends its clients away ahead of that;
            `away` where it serves nothing, since its heartbeats do not come back, `deaf` where other words of its own
            do not.
        rooms: Rooms that it owns.
        followed: Rooms of others of which it has a replica.
        behind: Replicas that do not have everything, as far as it knows.
        lag_ms: For how long the one of them has been behind that is so longest, in ms.
        left: Rooms that have moved from it, and that nobody has taken over yet.
        clients: Sockets, clients that poll, and mailboxes.
        isolations: How often it has not heard itself.
        suspects: Names of the nodes that have been silent for it.
    """

    node: NodeName
    state: Literal["joining", "up", "draining", "gone", "away", "deaf"]
    rooms: Count
    followed: Count
    behind: Count
    lag_ms: Count
    left: Count
    clients: Count
    isolations: Count
    suspects: Annotated[tuple[NodeName, ...], Meta(max_length=NAMES)] = ()


class List(Part, frozen=True, gc=False, tag="list"):
    """List rooms that the node owns.

    Attributes:
        after: The id behind which to begin, in the order of ids.
        limit: How many, at most.
    """

    after: Behind
    limit: Annotated[int, Meta(ge=1, le=ROOMS_LISTED)]


class RoomSummary(Part, frozen=True, gc=False):
    """A room as its owner has it.

    Attributes:
        room_id: The room.
        members: Users who are in it, on all nodes.
        subscriptions: Subscribers on its owner's node, of whom all nodes that follow it are one.
        epoch: Identity of its stream.
        offset: The newest place there.
        admitted: Messages admitted and not yet sequenced.
        crashes: Its crashes.
    """

    room_id: Id
    members: Count
    subscriptions: Count
    epoch: Epoch
    offset: Count
    admitted: Count
    crashes: Count

    def check(self) -> None:
        """Check the room's id."""
        check_ids(room_id=self.room_id)


class Listed(Part, frozen=True, gc=False, tag="listed"):
    """Rooms that a node owns, in the order of their ids.

    Attributes:
        total: How many it owns in all.
        rooms: Those that were asked for.
        upto: The id up to which these are all; None where there are none behind them.
    """

    total: Count
    rooms: Annotated[tuple[RoomSummary, ...], Meta(max_length=ROOMS_LISTED)]
    upto: Id | None

    def check(self) -> None:
        """Check the ids."""
        for each in self.rooms:
            each.check()


class Show(Part, frozen=True, gc=False, tag="show"):
    """Show one room that the node owns."""

    room_id: Id

    def check(self) -> None:
        """Check the room's id."""
        check_ids(room_id=self.room_id)


class Shown(Part, frozen=True, gc=False, tag="shown"):
    """One room.

    Attributes:
        room: The room; None where it is not in memory.
        present: The memberships that began first.
    """

    room: RoomSummary | None
    present: Memberships = ()

    def check(self) -> None:
        """Check the ids."""
        if self.room is not None:
            self.room.check()
        for each in self.present:
            each.check()


OperatorsAsk: TypeAlias = Drain | Look | List | Show

OperatorsAnswer: TypeAlias = Looked | Listed | Shown
