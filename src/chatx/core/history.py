"""A ring of a room's newest entries, and what a reader who was away gets from it.

Rules:
1. The entries kept have contiguous offsets and end at the head of the stream.
2. A read is whole or it is refused with a reason: never a part.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Literal

from chatx.core.message import Entry, Position, Unrecovered


class History:
    """The newest `size` entries of one stream, and where the stream stands."""

    __slots__ = ("_ring", "epoch", "offset")

    def __init__(self, size: int, position: Position) -> None:
        self._ring: deque[Entry] = deque(maxlen=size)
        self.epoch: str = position.epoch
        self.offset: int = position.offset

    @property
    def position(self) -> Position:
        """The head of the stream: what was published up to, inclusive."""
        return Position(self.epoch, self.offset)

    @property
    def start(self) -> int:
        """The offset of the oldest entry kept; one past the head where none is."""
        return self.offset + 1 - len(self._ring)

    @property
    def size(self) -> int:
        """How many entries it keeps at most."""
        return self._ring.maxlen or 0

    def rebuilt(self) -> History:
        """Return a fresh one with the entries that end at the head in one unbroken run."""
        fresh = type(self)(self.size, self.position)
        run: deque[Entry] = deque(maxlen=self.size)
        for entry in reversed(self._ring):
            if entry.epoch != self.epoch or entry.offset != self.offset - len(run):
                break
            run.appendleft(entry)
        fresh._ring = run
        return fresh

    def append(self, entry: Entry) -> None:
        """Keep the stream's next entry; the oldest goes where the ring is full.

        Raises:
            ValueError: It is not the one behind the head.
        """
        offset = self.offset + 1
        if entry.offset != offset or entry.epoch != self.epoch:
            raise ValueError(
                f"Offset {entry.offset} of epoch {entry.epoch!r} does not follow {self.offset} of {self.epoch!r}; "
                "catch up from the log first."
            )
        self.offset = offset
        self._ring.append(entry)

    def after(self, position: Position, limit: int) -> list[Entry] | Unrecovered:
        """Return every entry after `position`, or the reason why that cannot be done whole.

        `too_old` says that the ring no longer reaches back so far: older storage may.
        """
        if position.epoch == self.epoch and self.offset - position.offset > limit:
            return "too_many"
        return self.page(position, limit)

    def page(self, position: Position, most: int) -> list[Entry] | Literal["epoch_changed", "too_old"]:
        """Return the oldest entries after `position`, at most `most`, or the reason why they cannot be had.

        `too_old` says that the ring no longer reaches back so far: older storage may.
        """
        if position.epoch != self.epoch or position.offset > self.offset:
            return "epoch_changed"
        if position.offset == self.offset:
            return []
        first = position.offset + 1 - self.start
        if first < 0:
            return "too_old"
        return list(islice(self._ring, first, first + most))

    def at(self, position: Position) -> Entry | None:
        """Return the entry at a place of the stream, or None where it is not kept."""
        found = self.before(position.offset + 1, 1) if position.epoch == self.epoch else []
        return found[0] if found and found[0].offset == position.offset else None

    def newest(self, limit: int) -> list[Entry]:
        """Return the newest entries kept, oldest first, at most `limit`."""
        return list(islice(self._ring, max(0, len(self._ring) - limit), None))

    def before(self, offset: int, limit: int) -> list[Entry]:
        """Return the newest entries kept below `offset`, oldest first, at most `limit`."""
        end = max(0, min(len(self._ring), offset - self.start))
        return list(islice(self._ring, max(0, end - limit), end))
