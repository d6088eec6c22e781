"""The record of a room's log: all that is known of the room once it is the newest, and the way to those before it.

Rules:
1. The newest record of a room says everything about it but its entries: whoever has read it knows the room.
2. A record names up to `TRAIL` records with entries before it, newest first. The list of the one behind begins anew
   where this one's is full, so the oldest in any list leads on; reading far back skips a whole list in one step.
   Records with idempotency keys are linked in the same way, by a list of their own.
3. Whoever may read the log at all may read it anew: nothing here says where a reader is.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from chatx.cluster.entries import ENTRIES_AT_ONCE, EntryRow
from chatx.cluster.fields import Boot, Count, Id, Part, Place, check_ids
from chatx.core.message import Entry, Position

TRAIL: Final = 32
"""Records that one record names, at most."""

EPOCHS: Final = 32
"""Earlier epochs that a room knows of, at most; the oldest is forgotten. Here a room hardly ever has a second one."""

Trail: TypeAlias = Annotated[tuple[Count, ...], Meta(max_length=TRAIL)]
"""Numbers of records, newest first: the first as it is, each other as its distance from the one before it."""


class Logged(Part, frozen=True, gc=False, tag="log"):
    """What is appended to the log of one room.

    Attributes:
        room_id: The room itself; a subject has only its token.
        boot: Which life of which node has appended it.
        term: The term under which it has the room.
        after: The head before its entries; None where nothing was ever said. Offset 0 begins an epoch.
        proven: Whether nobody can have seen a place behind the head that it makes.
        oldest: The oldest place that is kept; None where all is.
        epochs: Where earlier epochs end, oldest first.
        trail: The records with entries before it.
        keyed: The records with idempotency keys before it.
        entries: At the places behind `after`, in order.
    """

    room_id: Id
    boot: Boot
    term: Count
    after: Place | None
    proven: bool
    oldest: Place | None
    epochs: Annotated[tuple[Place, ...], Meta(max_length=EPOCHS)]
    trail: Trail
    keyed: Trail
    entries: Annotated[tuple[EntryRow, ...], Meta(max_length=ENTRIES_AT_ONCE)] = ()

    def placed(self) -> list[Entry]:
        """Return the entries at their places."""
        if self.after is None:
            return []
        epoch = self.after.epoch
        return [
            row.entry(self.room_id, epoch, offset) for offset, row in enumerate(self.entries, self.after.offset + 1)
        ]

    def check(self) -> None:
        """Check the room's id; entries are given back as they were appended, as by any store.

        Raises:
            ValueError: There are entries and no place for them.
        """
        check_ids(room_id=self.room_id)
        if self.entries and self.after is None:
            raise ValueError("It has entries, and says of none where it is.")


class RoomState(Struct, frozen=True, gc=False):
    """What the newest record of a room says.

    Attributes:
        number: The record's own; 0 where there is none.
        term: The term of whoever has the room; 0 where nobody ever had.
        head: The newest place, or None.
        proven: Whether nobody can have seen a place behind the head.
        oldest: The oldest place that is kept, or None where all is.
        epochs: Where earlier epochs end, oldest first.
        trail: The numbers of the newest records with entries, newest first.
        keyed: The numbers of the newest records with idempotency keys, newest first.
    """

    number: int = 0
    term: int = 0
    head: Position | None = None
    proven: bool = True
    oldest: Position | None = None
    epochs: tuple[Position, ...] = ()
    trail: tuple[int, ...] = ()
    keyed: tuple[int, ...] = ()

    @classmethod
    def after(cls, record: Logged, number: int) -> RoomState:
        """Return the state of a room whose newest record has this number."""
        head = None if record.after is None else Position(record.after.epoch, record.after.offset + len(record.entries))
        trail, keyed = numbers(record.trail), numbers(record.keyed)
        return cls(
            number,
            record.term,
            head,
            record.proven,
            None if record.oldest is None else Position(record.oldest.epoch, record.oldest.offset),
            tuple(Position(each.epoch, each.offset) for each in record.epochs),
            _with(trail, number) if record.entries else trail,
            _with(keyed, number) if any(each.key is not None for each in record.entries) else keyed,
        )

    @property
    def oldest_offset(self) -> int:
        """The oldest offset that is kept in the head's epoch; one past the head where nothing is left of it."""
        return self.oldest.offset if self.oldest and self.head and self.oldest.epoch == self.head.epoch else 1

    def rank(self, epoch: str) -> int | None:
        """Return how many epochs were before this one, or None where it is not known."""
        if self.head is not None and self.head.epoch == epoch:
            return len(self.epochs)
        return next((rank for rank, each in enumerate(self.epochs) if each.epoch == epoch), None)

    def keeps(self, place: Position) -> bool:
        """Return whether a place is not gone by retention."""
        if self.oldest is None:
            return True
        rank, oldest = self.rank(place.epoch), self.rank(self.oldest.epoch)
        return rank is not None and (oldest is None or (rank, place.offset) >= (oldest, self.oldest.offset))

    def oldest_of(self, epoch: str) -> Position | None:
        """Return the oldest place that is kept of an epoch; None where it is not known, or nothing is left of it."""
        rank = self.rank(epoch)
        if rank is None:
            return None
        if rank == len(self.epochs):
            return Position(epoch, self.oldest_offset)
        oldest = None if self.oldest is None else self.rank(self.oldest.epoch)
        if oldest is None or self.oldest is None or rank > oldest:
            return Position(epoch, 1)
        return self.oldest if rank == oldest else None

    def newer(self, place: Position) -> int:
        """Return how many places of the room are behind one of them."""
        rank = self.rank(place.epoch)
        if rank is None or self.head is None:
            return 0
        ends = [*self.epochs, self.head]
        return ends[rank].offset - place.offset + sum(each.offset for each in ends[rank + 1 :])


def trail_of(given: tuple[int, ...]) -> Trail:
    """Return numbers, newest first, as a record has them."""
    return given[:1] + tuple(newer - older for newer, older in pairwise(given))


def numbers(trail: Trail) -> tuple[int, ...]:
    """Return the numbers that `trail_of` has made a trail of."""
    found: list[int] = []
    for each in trail:
        found.append(found[-1] - each if found else each)
    return tuple(found)


def _with(trail: tuple[int, ...], number: int) -> tuple[int, ...]:
    return (number,) if len(trail) >= TRAIL else (number, *trail)


def place_of(position: Position | None) -> Place | None:
    """Return a position as records have it."""
    return None if position is None else Place(position.epoch, position.offset)
