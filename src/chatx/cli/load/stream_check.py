"""What one client of a room has seen of its stream: whether something was lost, doubled or out of order.

A room's offsets are contiguous in an epoch, so each client knows by itself what it has not seen.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

MOST_HOLES: Final = 100_000
"""Places that a client remembers as not seen; what is beyond counts as lost at once."""


class Totals(Struct):
    """What all clients together have seen wrong, in messages and clients.

    Attributes:
        lost: Messages that a client should have seen, and has not.
        doubled: Messages that a client has seen more than once.
        reordered: Messages that came behind a later one, or that are another one for somebody else.
        gaps: How often a client was told that something of what it had missed does not follow.
    """

    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    gaps: int = 0


class StreamCheck:
    """What one client has seen.

    Args:
        totals: Where what is wrong is counted.
    """

    __slots__ = ("_holes", "_totals", "epoch", "seen", "stands")

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self.epoch: str | None = None
        self.stands: int = 0  # the offset up to which it has seen, or given up, everything but the holes
        self.seen: int = 0
        self._holes: set[int] = set()

    def joined(self, epoch: str, offset: int, *, recovered: bool, head_before: int = 0) -> None:
        """Take the answer to a join.

        Args:
            epoch: The stream's.
            offset: Its head.
            recovered: Whether what was missed follows.
            head_before: The head of the stream that it stood in, where that is over.
        """
        if self.epoch is None:
            self.epoch, self.stands = epoch, offset
        elif epoch != self.epoch:
            self.end(head_before)
            self._totals.gaps += 1
            self.epoch, self.stands = epoch, offset
        elif not recovered:
            self._totals.gaps += 1
            self._totals.lost += max(0, offset - self.stands)
            self.stands = max(self.stands, offset)

    def saw(self, epoch: str, offset: int) -> None:
        """Take a message."""
        self.seen += 1
        ahead = offset - self.stands
        if epoch != self.epoch:
            self._totals.reordered += 1  # it was told of no other stream
        elif ahead == 1:
            self.stands = offset
        elif ahead > 1:
            if ahead + len(self._holes) > MOST_HOLES:
                self._totals.lost += ahead - 1
            else:
                self._holes.update(range(self.stands + 1, offset))
            self.stands = offset
        elif offset in self._holes:
            self._holes.discard(offset)
            self._totals.reordered += 1
        else:
            self._totals.doubled += 1

    def has_all(self, head: int) -> bool:
        """Return whether it has everything up to a place."""
        return self.stands >= head and not self._holes

    def end(self, head: int) -> None:
        """Count what it has not seen of a stream that ends at a place."""
        self._totals.lost += len(self._holes) + max(0, head - self.stands)
        self._holes.clear()
        self.stands = max(self.stands, head)
