"""A page of the rooms in memory, as it is listed: of this node, or of all nodes where there are several."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from chatx.cluster.operating import RoomSummary
from chatx.runtime.engine import Engine
from chatx.runtime.overview import summary_of

ROOMS_AT_ONCE = 1000
"""Rooms in one answer at most; 100 where no limit is given."""


class ListedRoom(Struct, frozen=True, gc=False):
    """A room, and how much is in it."""

    id: Annotated[str, Meta(description="The room.")]
    members: Annotated[int, Meta(description="Users in it.")]
    subscriptions: Annotated[int, Meta(description="Readers of it, on the node that owns it.")]
    epoch: Annotated[str, Meta(description="Opaque identity of its stream.")]
    offset: Annotated[int, Meta(description="Place of its newest message.")]
    admitted: Annotated[int, Meta(description="Messages admitted, and not sequenced yet.")]
    crashes: Annotated[int, Meta(description="How often it has failed and been rebuilt.")]
    node: Annotated[str | UnsetType, Meta(description="Who owns it; left out where there is one node.")] = UNSET


class ListedRooms(Struct, frozen=True):
    """A page of rooms."""

    total: Annotated[int, Meta(description="Rooms in all, of the nodes that answered.")]
    rooms: Annotated[list[ListedRoom], Meta(description="Sorted by id.")]
    after: Annotated[str | None, Meta(description="The id behind which the next page begins; null on the last one.")]
    missing: Annotated[
        list[str] | UnsetType,
        Meta(description="Nodes that did not answer, whose rooms are not here; left out where there is one node."),
    ] = UNSET


async def rooms_page(engine: Engine, after: str, limit: int) -> ListedRooms:
    """Return the rooms behind an id, at most so many."""
    if engine.overview is not None:
        page = await engine.overview.rooms(after, limit)
        return ListedRooms(page.total, [listed(room, node) for node, room in page.rooms], page.after, page.missing)
    found = engine.rooms.after(after, limit + 1)
    shown = found[:limit]
    following = shown[-1].room_id if len(found) > len(shown) else None
    return ListedRooms(len(engine.rooms), [listed(summary_of(process)) for process in shown], following)


def listed(room: RoomSummary, node: str | UnsetType = UNSET) -> ListedRoom:
    """Return a room as it is listed."""
    return ListedRoom(
        room.room_id, room.members, room.subscriptions, room.epoch, room.offset, room.admitted, room.crashes, node
    )
