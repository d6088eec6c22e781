"""How many entries go into one record: as many as the link takes, and at least one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from chatx.cluster.entries import ENTRIES_AT_ONCE, Placed
from chatx.core.message import Entry

ENTRIES_BYTES: Final = 700_000
"""Bytes of the entries in one record, at most but for a single one: a thousand memberships go beside them."""

TOLD_BYTES: Final = 262_144
"""The same of what is told: two thousand memberships go beside it."""

MEMBERSHIP_BYTES: Final = 512
"""What a membership has, at most, in bytes: a user's id, a ref and a time."""

_FIELDS_BYTES: Final = 1_024
# What an entry's epoch, ids, key and numbers have together, at most.


def size_of(entry: Entry) -> int:
    """Return the bytes that an entry has in a record, at most."""
    return _FIELDS_BYTES + _bytes_of(entry.content) + (0 if entry.data is None else _bytes_of(entry.data.text))


def size_of_placed(placed: Placed) -> int:
    """Return the bytes that an entry has in a record, at most."""
    data = placed.row.data
    return _FIELDS_BYTES + _bytes_of(placed.row.content) + (0 if data is None else _bytes_of(data))


def size_of_all(entries: Iterable[Placed]) -> int:
    """Return the bytes of entries, as `size_of_placed` has them."""
    return sum(map(size_of_placed, entries))


def placed_that_fit(entries: Sequence[Placed]) -> tuple[Placed, ...]:
    """Return the last of the entries that go into one record together, in their order."""
    size, count = 0, 0
    for each in reversed(entries[-ENTRIES_AT_ONCE:]):
        size += size_of_placed(each)
        if count and size > ENTRIES_BYTES:
            break
        count += 1
    return tuple(entries[len(entries) - count :])


def oldest_that_fit(entries: Iterable[Entry], most: int = ENTRIES_BYTES) -> list[Entry]:
    """Return the first of the entries that go into one record together."""
    size, found = 0, list[Entry]()
    for entry in islice(entries, ENTRIES_AT_ONCE):
        size += size_of(entry)
        if found and size > most:
            break
        found.append(entry)
    return found


def newest_that_fit(entries: Sequence[Entry]) -> list[Entry]:
    """Return the last of the entries that go into one record together, in their order."""
    return oldest_that_fit(reversed(entries))[::-1]


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
