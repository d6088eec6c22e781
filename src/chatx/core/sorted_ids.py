"""A set of ids in order: what is behind an id is found without looking at the others.

Rules:
1. The ids stand in blocks of a bounded size, so an id that comes or goes moves at most a block of others, and a page
   costs what is on it.
2. Two neighbours that fit into half a block become one, so there are about as few blocks as there can be.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Final

BLOCK: Final = 1024
"""Ids in a block, at most: what is moved for one costs less than all else that is done for it."""


class SortedIds:
    """The ids. Bounded by whoever adds them.

    Args:
        block: Ids in a block, at most; at least 2.
    """

    __slots__ = ("_block", "_blocks", "_firsts")

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._blocks: list[list[str]] = []
        self._firsts: list[str] = []  # the first id of each block

    def add(self, new: str) -> None:
        """Add an id that is not there."""
        if not self._blocks:
            self._blocks.append([new])
            self._firsts.append(new)
            return
        at = self._block_of(new)
        block = self._blocks[at]
        insort(block, new)
        self._firsts[at] = block[0]
        if len(block) > self._block:
            half = block[self._block // 2 :]
            del block[self._block // 2 :]
            self._blocks.insert(at + 1, half)
            self._firsts.insert(at + 1, half[0])

    def remove(self, known: str) -> None:
        """Remove an id that is there."""
        at = self._block_of(known)
        block = self._blocks[at]
        del block[bisect_left(block, known)]
        if block and at + 1 < len(self._blocks) and len(block) + len(self._blocks[at + 1]) <= self._block // 2:
            block += self._blocks.pop(at + 1)
            del self._firsts[at + 1]
        if block:
            self._firsts[at] = block[0]
        else:
            del self._blocks[at], self._firsts[at]

    def after(self, place: str, limit: int) -> list[str]:
        """Return the first ids behind a place, at most `limit`; no id needs to stand at the place itself."""
        found: list[str] = []
        at = self._block_of(place)
        begin = bisect_right(self._blocks[at], place) if self._blocks else 0
        while at < len(self._blocks) and len(found) < limit:
            found += self._blocks[at][begin : begin + limit - len(found)]
            at, begin = at + 1, 0
        return found

    def _block_of(self, place: str) -> int:
        return max(0, bisect_right(self._firsts, place) - 1)
