"""What is here of rooms that have moved, until their new owners have it.

The state of a room is at one place at a time: in a room, here, or with whoever took it. Were it at two, both could go
on in the same epoch, each with entries of its own.

Rules:
1. One take has it, and gets it again where the answer was lost; nobody else does, this node neither.
2. A room that comes back here goes on from what was left, unless it was taken.
3. At most `LEFT_ROOMS` are kept, each for `LEFT_S`, but for as long as this node is away from the others. What goes
   without having been taken is told to the log.
4. At most `LEFT_BYTES` of entries are kept, but for the newest of each room: beyond that the rooms that were left first
   lose their older ones. Their streams go on; who stands further back is told of a gap.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from msgspec import Struct

from chatx.cluster.entries import Placed
from chatx.cluster.fields import Place
from chatx.runtime.nodes.fitting import size_of_all

logger: logging.Logger = logging.getLogger("chatx")

LEFT_S = 30.0
"""Seconds for which a room that has moved can be asked for here: a third of 100,000 rooms takes ten to be taken."""

LEFT_ROOMS = 100_000
"""Rooms that are kept for that, at most; the oldest are forgotten."""

LEFT_BYTES = 268_435_456
"""Bytes of the entries that are kept, at most but for one of each room."""


class Left(Struct):
    """What was here of a room.

    Attributes:
        head: The newest place.
        entries: The newest entries, with their keys.
        size: The bytes of the entries.
        until: When it is forgotten.
        taken: The take that has it, or None.
    """

    head: Place
    entries: Sequence[Placed]
    size: int
    until: float = 0.0
    taken: str | None = None

    def shorten(self) -> None:
        """Keep the newest entry alone: the stream goes on behind it."""
        self.entries = self.entries[-1:]
        self.size = size_of_all(self.entries)


class LeftRooms:
    """The rooms that have moved from here.

    Attributes:
        has_log: Whether a log has what was said in them, so that one that nobody takes goes on all the same.
        untaken: How many nobody has taken yet.
    """

    def __init__(self) -> None:
        self.has_log: bool = False
        self.untaken: int = 0
        self._rooms: OrderedDict[str, Left] = OrderedDict()  # the oldest first
        self._whole: dict[str, None] = {}  # those with more than one entry, the oldest first
        self._to_offer: dict[str, None] = {}  # those that nobody has taken, and whose owners have not been told
        self._bytes = 0

    def keep(self, room_id: str, head: Place, entries: Sequence[Placed], now: float) -> None:
        """Keep a room."""
        self._pop(room_id)
        left = self._rooms[room_id] = Left(head, entries, size_of_all(entries), now + LEFT_S)
        self._bytes += left.size
        self.untaken += 1
        self._to_offer[room_id] = None
        if len(entries) > 1:
            self._whole[room_id] = None
        while len(self._rooms) > LEFT_ROOMS:
            self._forget(next(iter(self._rooms)))
        while self._bytes > LEFT_BYTES and self._whole:
            self._cut(next(iter(self._whole)))

    def take(self, room_id: str, take: str) -> Left | None:
        """Return what a take has, from now on or since an answer that was lost; None where there is nothing for it."""
        left = self._rooms.get(room_id)
        if left is None or left.taken not in (None, take):
            return None
        if left.taken is None:
            self._no_longer_untaken(room_id)
        left.taken = take
        return left

    def take_back(self, room_id: str) -> Left | None:
        """Return what was here of a room that comes back; None where another node took it, or nothing is here."""
        left = self._pop(room_id)
        return None if left is None or left.taken is not None else left

    def to_offer(self, most: int) -> list[str]:
        """Return rooms of which their owners have not been told, and count them as told."""
        found = list(islice(self._to_offer, most))
        for room_id in found:
            del self._to_offer[room_id]
        return found

    def head(self, room_id: str) -> Place | None:
        """Return where a room stands that nobody has taken yet."""
        left = self._rooms.get(room_id)
        return None if left is None else left.head

    def offer_again(self, room_id: str) -> None:
        """Take note that an owner could not be told."""
        left = self._rooms.get(room_id)
        if left is not None and left.taken is None:
            self._to_offer[room_id] = None

    def look(self, now: float, *, away: bool) -> None:
        """Forget what was kept for long enough; while this node is `away` nobody could ask for it."""
        if away:
            for left in self._rooms.values():
                left.until = now + LEFT_S
        while self._rooms and next(iter(self._rooms.values())).until <= now:
            self._forget(next(iter(self._rooms)))

    def _pop(self, room_id: str) -> Left | None:
        left = self._rooms.pop(room_id, None)
        if left is not None:
            self._whole.pop(room_id, None)
            self._bytes -= left.size
            if left.taken is None:
                self._no_longer_untaken(room_id)
        return left

    def _no_longer_untaken(self, room_id: str) -> None:
        self.untaken -= 1
        self._to_offer.pop(room_id, None)

    def _cut(self, room_id: str) -> None:
        del self._whole[room_id]
        left = self._rooms[room_id]
        self._bytes -= left.size
        left.shorten()
        self._bytes += left.size

    def _forget(self, room_id: str) -> None:
        left = self._pop(room_id)
        if left is not None and left.taken is None and not self.has_log:
            text = "Room %r has moved, and its new owner has not asked for what was here: it begins in another epoch."
            logger.warning(text, room_id, extra={"room": room_id, "code": "not_taken_over"})
