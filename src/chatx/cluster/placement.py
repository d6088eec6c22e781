"""Which node owns a room: rendezvous hashing, so that every node answers alike without asking another.

Rules:
1. The answer follows from the room's id and from the names and weights of the view's nodes alone: not from their order,
   the machine, the Python, or which life of a node it is.
2. A node that leaves moves its own rooms only; one that joins takes only what becomes its own.
3. A node of weight w stands w times among the candidates, so it owns w shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from heapq import nsmallest
from itertools import pairwise
from typing import Final

from msgspec import Struct, msgpack

CACHED_ROOMS: Final = 16_384
"""Rooms whose owners a placement remembers, at most: about 5 MB with the longest ids. The oldest is forgotten, and
worked out again when it is asked for."""

LARGEST_WEIGHT: Final = 16
"""The largest weight of a node: each share costs as much as a node does."""

_MASK: Final = 2**64 - 1


class Seat(Struct, frozen=True, order=True, array_like=True):
    """A node as it counts for placement.

    Attributes:
        node: Its name, which is its own within a view.
        boot: Which life of it this is.
        weight: How many shares it has, 1 to `LARGEST_WEIGHT`.
    """

    node: str
    boot: str
    weight: int = 1


class View(Struct, frozen=True):
    """The nodes that may own rooms, as one node knows them.

    Attributes:
        seats: In the order of their names.
        hash: What two nodes compare to know that their views are one: 16 hexadecimal digits.
    """

    seats: tuple[Seat, ...]
    hash: str

    @classmethod
    def of(cls, seats: Iterable[Seat]) -> View:
        """Return the view of these nodes, in whatever order they come.

        Raises:
            ValueError: Two have one name, or a weight is out of range.
        """
        ordered = tuple(sorted(seats))
        for seat in ordered:
            if not 1 <= seat.weight <= LARGEST_WEIGHT:
                raise ValueError(
                    f"Node {seat.node!r} has the weight {seat.weight}; it must be 1 to {LARGEST_WEIGHT}, by its cores."
                )
        for one, other in pairwise(ordered):
            if one.node == other.node:
                raise ValueError(f"Two nodes are called {one.node!r}; give each node_name to one node only.")
        return cls(ordered, blake2b(msgpack.encode(ordered), digest_size=8).hexdigest())


class Placement:
    """The owners of rooms under one view. A new view is a new placement.

    Args:
        view: The nodes.
        cached: Rooms whose owners are remembered, at most; at least 1.
    """

    __slots__ = ("_cached", "_owners", "_shares", "view")

    def __init__(self, view: View, cached: int = CACHED_ROOMS) -> None:
        self.view: View = view
        self._cached = cached
        self._owners: dict[str, Seat] = {}
        self._shares = [(_seed(seat.node, share), seat) for seat in view.seats for share in range(seat.weight)]

    def owner(self, room_id: str) -> Seat | None:
        """Return the node that owns a room, or None where the view is empty."""
        owner = self._owners.get(room_id)
        if owner is None and self._shares:
            owner = self.ranked(room_id, 1)[0]
            if len(self._owners) >= self._cached:
                del self._owners[next(iter(self._owners))]
            self._owners[room_id] = owner
        return owner

    def ranked(self, room_id: str, count: int) -> tuple[Seat, ...]:
        """Return the owner and who would own the room without the ones before, at most `count` nodes."""
        key = _hash(room_id.encode())
        best: dict[Seat, int] = {}
        for seed, seat in self._shares:
            # splitmix64, written out: a call for each node is what this would cost most.
            mixed = ((key ^ seed) + 0x9E3779B97F4A7C15) & _MASK
            mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _MASK
            mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _MASK
            mixed ^= mixed >> 31
            if mixed >= best.get(seat, 0):
                best[seat] = mixed
        # Two of one score are told apart by name.
        return tuple(nsmallest(count, best, key=lambda seat: (-best[seat], seat.node)))


def _seed(node: str, share: int) -> int:
    return _hash(f"{node}\n{share}".encode())


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
