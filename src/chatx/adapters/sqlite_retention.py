"""Retention in a SQLite file: each function is what one call does within a transaction that somebody else began.

Rules:
1. What goes is looked for by those who only read, so that who writes is held up by no more than the rows that go.
2. What goes is the beginning of a room, up to a place. Nothing is ever written below a head, so that stays true.
3. An epoch of which nothing is left stays known: what is before it would else be everything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from chatx.adapters.retention import Retention

Cut = tuple[str, int, int, int]
"""(room id, rank, offset, how many entries): what goes of a room, up to that place."""


def list_rooms(db: sqlite3.Connection, after: str, limit: int) -> list[str]:
    """Return the ids of rooms that have entries, or had, in order and behind one."""
    rows = db.execute(
        "SELECT room_id FROM chatx_rooms WHERE room_id > ? AND rank IS NOT NULL ORDER BY room_id LIMIT ?",
        (after, limit),
    ).fetchall()
    return [each for (each,) in rows]


def find_cuts(db: sqlite3.Connection, room_ids: Sequence[str], retention: Retention, limit: int) -> list[Cut]:
    """Return what goes of rooms, at most `limit` entries over all of them."""
    cuts: list[Cut] = []
    for room_id in room_ids:
        if limit <= 0:
            break
        cut = _find_cut(db, room_id, retention, limit)
        if cut is not None:
            cuts.append(cut)
            limit -= cut[-1]
    return cuts


def has_old_keys(db: sqlite3.Connection, retention: Retention) -> bool:
    """Return whether there are keys that need not answer any more."""
    row = db.execute("SELECT 1 FROM chatx_keys WHERE inserted_at < ? LIMIT 1", (retention.keys_spared_ms,)).fetchone()
    return row is not None


def cut(db: sqlite3.Connection, cuts: Sequence[Cut], retention: Retention, limit: int) -> int:
    """Let go of what was found, and of keys that need not answer any more; return how many entries went."""
    gone = 0
    for room_id, rank, offset, _ in cuts:
        gone += db.execute(
            'DELETE FROM chatx_entries WHERE room_id = ? AND (rank, "offset") <= (?, ?)', (room_id, rank, offset)
        ).rowcount
    db.execute(
        """DELETE FROM chatx_keys WHERE number IN
        (SELECT number FROM chatx_keys WHERE inserted_at < ? ORDER BY inserted_at LIMIT ?)""",
        (retention.keys_spared_ms, limit),
    )
    return gone


def _find_cut(db: sqlite3.Connection, room_id: str, retention: Retention, limit: int) -> Cut | None:
    row = db.execute("SELECT rank, head FROM chatx_rooms WHERE room_id = ?", (room_id,)).fetchone()
    if row is None or row[0] is None:
        return None
    newer = _Newer(db, room_id, *row)
    # Most rooms have nothing that goes: their first entry tells.
    if _count(db, room_id, retention, newer, None, 1) == (0, None):
        return None
    keyed = db.execute(
        'SELECT rank, "offset" FROM chatx_keys WHERE room_id = ? AND inserted_at >= ? ORDER BY number LIMIT 1',
        (room_id, retention.keys_spared_ms),
    ).fetchone()
    count, place = _count(db, room_id, retention, newer, keyed, limit)
    return None if place is None else (room_id, *place, count)


def _count(
    db: sqlite3.Connection,
    room_id: str,
    retention: Retention,
    newer: _Newer,
    keyed: tuple[int, int] | None,
    limit: int,
) -> tuple[int, tuple[int, int] | None]:
    """Return how many of a room's entries go, and the place of the last; none at or behind the first key's place."""
    rows = db.execute(
        """SELECT e.rank, e."offset", e.inserted_at,
            EXISTS (SELECT 1 FROM chatx_outbox AS o WHERE o.id = e.id AND o.reason IS NULL)
        FROM chatx_entries AS e WHERE e.room_id = ? ORDER BY e.rank, e."offset" LIMIT ?""",
        (room_id, limit),
    )
    count, last = 0, None
    for rank, offset, inserted_at, to_be_told in rows:
        at = (rank, offset)
        if to_be_told or (keyed is not None and at >= keyed):
            break
        if not retention.lets_go(inserted_at, newer.than(rank, offset), keyed=False):
            break
        count, last = count + 1, at
    return count, last


class _Newer:
    """How many places of a room are newer than one; asked for the oldest first.

    It is read for each epoch once, from its first and its last.
    """

    def __init__(self, db: sqlite3.Connection, room_id: str, rank: int, head: int) -> None:
        self._db = db
        self._room_id = room_id
        self._newest = rank
        self._lasts = {rank: head}
        self._behind: dict[int, int] | None = None  # by rank: places in later epochs

    def than(self, rank: int, offset: int) -> int:
        """Return how many places are newer than this one."""
        if rank == self._newest:
            return self._lasts[rank] - offset
        if self._behind is None:
            self._behind = self._read(rank)
        return self._behind[rank] + self._lasts[rank] - offset

    def _read(self, oldest: int) -> dict[int, int]:
        behind: dict[int, int] = {}
        count = 0
        ranks = self._db.execute(
            "SELECT rank FROM chatx_streams WHERE room_id = ? AND rank >= ? ORDER BY rank DESC", (self._room_id, oldest)
        ).fetchall()
        for (rank,) in ranks:
            behind[rank] = count
            first, last = self._db.execute(
                """SELECT (SELECT min("offset") FROM chatx_entries WHERE room_id = ? AND rank = ?),
                (SELECT max("offset") FROM chatx_entries WHERE room_id = ? AND rank = ?)""",
                (self._room_id, rank) * 2,
            ).fetchone()
            last = self._lasts.setdefault(rank, last or 0)
            count += 0 if first is None else last - first + 1
        return behind
