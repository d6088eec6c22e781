"""A page of rooms, put together of what several nodes have listed."""

from __future__ import annotations

from collections.abc import Callable

from chatx.cluster.operating import Listed, RoomSummary


class RoomsPage:
    """The first rooms of several nodes behind an id.

    Args:
        limit: How many, at most. One more than these is kept, whatever the nodes answer.

    Attributes:
        total: Rooms of all nodes that were added.
    """

    def __init__(self, limit: int) -> None:
        self.total: int = 0
        self._limit = limit
        self._upto: str | None = None  # what lies behind it some node has not looked at
        self._found: dict[str, tuple[str, RoomSummary]] = {}

    def add(self, boot: str, listed: Listed, owner: Callable[[str], str]) -> None:
        """Add what a node has answered; `owner` returns the boot id of the node that has a room."""
        self.total += listed.total
        if listed.upto is not None:
            self._upto = listed.upto if self._upto is None else min(self._upto, listed.upto)
        for each in listed.rooms:
            if each.room_id not in self._found or owner(each.room_id) == boot:
                self._found[each.room_id] = boot, each
        for room_id in sorted(self._found)[self._limit + 1 :]:
            del self._found[room_id]

    def cut(self) -> tuple[list[tuple[str, RoomSummary]], str | None]:
        """Return the rooms of the page, and the id behind which the next one begins."""
        room_ids = sorted(each for each in self._found if self._upto is None or each <= self._upto)
        shown = room_ids[: self._limit]
        return [self._found[each] for each in shown], shown[-1] if len(room_ids) > len(shown) else self._upto
