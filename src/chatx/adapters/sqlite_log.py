"""A room's log in SQLite: each function is what one call does within a transaction that somebody else began.

Rules:
1. The room's row is the fence: its term and its head are looked at before anything of the room is written. The
   transaction has the file for itself, so nobody changes them between the look and the writing.
2. (room, rank, offset) names an entry. One that is there under the same id is not written again.
3. An epoch gets its rank when it begins. One in which nothing was said is forgotten when the next begins.
4. An append changes the room's row, also where all of it is there already (`writes`), and so does withdrawing a proof:
   a transaction that changes nothing does not wait until what is there is on the disk.
5. A room that was taken over and in which nothing was said leaves a row, until somebody becomes the one who writes.
6. Keys are let go of a day after their entries were placed, twice as many at a time as come in.
7. However many rooms and entries are appended at once, the statements are few: around each the other threads of the
   process may run, and where the event loop is busy it takes long until this one may again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from chatx.adapters import sqlite_outbox
from chatx.adapters.entry_rows import entry_of, row_of
from chatx.adapters.room_log import (
    FENCED,
    KEYS_AT_ONCE,
    KEYS_KEPT_MS,
    Answer,
    Append,
    Found,
    Keyed,
    Opened,
    Record,
    misplaced,
)
from chatx.core.message import Entry, Position

_ENTRY = 'e.id, e.user_id, e.content, e.inserted_at, e.kind, e.target, e.data, e.stored, s.epoch, e."offset"'

_ENTRIES = 'INTO chatx_entries (id, user_id, content, inserted_at, kind, target, data, stored, room_id, rank, "offset")'

_KEYS = 'INSERT OR IGNORE INTO chatx_keys (room_id, user_id, key, rank, "offset", inserted_at)'

# Of rooms that are there; their other columns stay as they are.
_HEADS = "INSERT INTO chatx_rooms (room_id, term, head, proven)"
_MOVES = """ON CONFLICT (room_id) DO UPDATE SET head = excluded.head, proven = max(proven, excluded.proven),
    writes = writes + 1"""

# Values of one row times these are less than the 999 that older libraries of SQLite allow in one statement.
_ROWS_AT_ONCE = 64

# What a value of an entry is refused with; anything else is of the whole transaction.
_OF_AN_ENTRY = (ValueError, OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)


def take_over(db: sqlite3.Connection, room_id: str) -> Opened:
    """Raise a room's term, and return what is known of the room."""
    db.execute("UPDATE chatx_terms SET newest = newest + 1")
    db.execute(
        """INSERT INTO chatx_rooms (room_id, term, head, proven) SELECT ?, newest, 0, 1 FROM chatx_terms WHERE true
        ON CONFLICT (room_id) DO UPDATE SET term = excluded.term""",
        (room_id,),
    )
    return look(db, room_id)


def look(db: sqlite3.Connection, room_id: str) -> Opened:
    """Return what is known of a room."""
    row = db.execute("SELECT term, rank, epoch, head, proven FROM chatx_rooms WHERE room_id = ?", (room_id,)).fetchone()
    if row is None:
        return Opened(0, None, 1, True)
    term, rank, epoch, head, proven = row
    if rank is None:
        return Opened(term, None, 1, True)
    oldest = _oldest(db, room_id, rank)
    keyed = db.execute(
        f"""SELECT {_ENTRY}, k.key FROM chatx_keys AS k
        JOIN chatx_entries AS e USING (room_id, rank, "offset") JOIN chatx_streams AS s USING (room_id, rank)
        WHERE k.room_id = ? ORDER BY k.number DESC LIMIT ?""",  # noqa: S608  # put together from constants
        (room_id, KEYS_AT_ONCE),
    ).fetchall()
    return Opened(
        term,
        Position(epoch, head),
        head + 1 if oldest is None else oldest,
        bool(proven),
        tuple(Keyed(row[-1], _entry(room_id, row[:-1])) for row in reversed(keyed)),
    )


def forget_silent(db: sqlite3.Connection) -> None:
    """Let go of the rooms in which nothing was ever said; whoever had one is fenced, for no term is given twice."""
    db.execute("DELETE FROM chatx_rooms WHERE rank IS NULL")


def withdraw(db: sqlite3.Connection, room_id: str, term: int) -> bool:
    """Withdraw the proof of a room's head; False: fenced."""
    changed = db.execute(
        "UPDATE chatx_rooms SET proven = 0, writes = writes + 1 WHERE room_id = ? AND term = ?", (room_id, term)
    )
    return changed.rowcount == 1


def prove(db: sqlite3.Connection, room_id: str, term: int, head: Position) -> bool:
    """Prove a room's head; False: fenced, or its head is elsewhere."""
    changed = db.execute(
        "UPDATE chatx_rooms SET proven = 1 WHERE room_id = ? AND term = ? AND epoch = ? AND head = ?",
        (room_id, term, *head),
    )
    return changed.rowcount == 1


def append_all(db: sqlite3.Connection, appends: Sequence[Append]) -> list[Answer]:
    """Append to many rooms, each all or nothing, and answer for each in their order.

    Rooms that are where their owners think are written together; each other one is looked at alone.
    """
    together: dict[str, tuple[int, Append]] = {}
    db.execute("SAVEPOINT chatx_appends")
    try:
        if len({each.room_id for each in appends}) == len(appends):
            rows = _rooms(db, [each.room_id for each in appends])
            for each in appends:
                term, rank, epoch, head = rows.get(each.room_id, (None, None, None, None))
                if (term, epoch, head) == (each.term, *each.after) and misplaced(each) is None:
                    together[each.room_id] = rank, each
        if together:
            _write(db, [(room_id, rank, each.records, each.proven) for room_id, (rank, each) in together.items()])
    except (*_OF_AN_ENTRY, sqlite3.IntegrityError):
        # It is one room's, and that one's answer has the reason.
        db.execute("ROLLBACK TO chatx_appends")
        together.clear()
    db.execute("RELEASE chatx_appends")
    return [None if each.room_id in together else append(db, each) for each in appends]


def append(db: sqlite3.Connection, wanted: Append) -> Answer:
    """Append to one room all or nothing, and answer what became of it; what cannot be stored harms nobody else."""
    wrong = misplaced(wanted)
    if wrong is not None:
        return wrong
    db.execute("SAVEPOINT chatx_append")
    try:
        answer = _appended(db, wanted)
    except _OF_AN_ENTRY as error:
        answer = f"An entry cannot be stored: {error}"
    except sqlite3.IntegrityError as error:
        answer = f"An entry cannot be stored, for the file has another one where the room's head says nothing: {error}"
    if answer is not None:
        db.execute("ROLLBACK TO chatx_append")
    db.execute("RELEASE chatx_append")
    return answer


def find(db: sqlite3.Connection, room_id: str, user_id: str, key: str) -> Entry | None:
    """Return the entry that was stored under a key."""
    row = db.execute(
        f"""SELECT {_ENTRY} FROM chatx_keys AS k
        JOIN chatx_entries AS e USING (room_id, rank, "offset") JOIN chatx_streams AS s USING (room_id, rank)
        WHERE k.room_id = ? AND k.user_id = ? AND k.key = ?""",  # noqa: S608  # put together from constants
        (room_id, user_id, key),
    ).fetchone()
    return None if row is None else _entry(room_id, row)


def read(db: sqlite3.Connection, room_id: str, after: Position | None, before: Position | None, limit: int) -> Found:
    """Read entries, as `RoomLog.read`."""
    if after is None and before is None:
        row = db.execute("SELECT rank, epoch FROM chatx_rooms WHERE room_id = ?", (room_id,)).fetchone()
        rank, epoch = (None, "") if row is None else row
    else:
        epoch = (after or before or ("", 0))[0]
        rank = rank_of(db, room_id, epoch)
    oldest = None if rank is None else _oldest(db, room_id, rank)
    entries = load(db, room_id, after, before, limit)
    return Found(tuple(entries), None if oldest is None else Position(epoch, oldest))


def load(
    db: sqlite3.Connection,
    room_id: str,
    after: tuple[str, int] | None,
    before: tuple[str, int] | None,
    limit: int,
    *,
    kind: str | None = None,
) -> list[Entry]:
    """Return a room's entries, oldest first, at most `limit`, of all kinds or of one.

    An epoch that is not known has nothing after any place in it, and everything is before it.
    """
    where = "e.room_id = ?"
    values: list[str | int | None] = [room_id]
    if after is not None:
        # No rank is equal to the NULL of an epoch that is not known.
        where += ' AND e.rank = ? AND e."offset" > ?'
        values += [rank_of(db, room_id, after[0]), after[1]]
    rank = rank_of(db, room_id, before[0]) if before is not None else None
    if before is not None and rank is not None:
        where += ' AND (e.rank, e."offset") < (?, ?)'
        values += [rank, before[1]]
    if kind is not None:
        where += " AND e.kind = ?"
        values.append(kind)
    order = "ASC" if after is not None else "DESC"
    rows = db.execute(
        # The text is put together from the constants above; what comes from outside is bound.
        f"""SELECT {_ENTRY} FROM chatx_entries AS e JOIN chatx_streams AS s USING (room_id, rank)
        WHERE {where} ORDER BY e.rank {order}, e."offset" {order} LIMIT ?""",  # noqa: S608
        [*values, limit],
    ).fetchall()
    if after is None:
        rows.reverse()
    return [_entry(room_id, row) for row in rows]


def insert(db: sqlite3.Connection, room_id: str, rank: int, entries: Sequence[Entry], *, again: bool = False) -> None:
    """Write entries at their places; where some may be there already (`again`) those stay as they are."""
    rows = [(*row_of(each), room_id, rank, each.offset) for each in entries]
    _insert(db, f"INSERT {'OR IGNORE ' if again else ''}{_ENTRIES}", rows)


def rank_of(db: sqlite3.Connection, room_id: str, epoch: str) -> int | None:
    """Return the rank of an epoch, or None where the room does not have it."""
    row = db.execute("SELECT rank FROM chatx_streams WHERE room_id = ? AND epoch = ?", (room_id, epoch)).fetchone()
    return None if row is None else row[0]


def rank_made(db: sqlite3.Connection, room_id: str, epoch: str, *, proven: bool = False) -> int:
    """Return the rank of an epoch; one that the room does not have begins as its newest."""
    rank = rank_of(db, room_id, epoch)
    if rank is not None:
        return rank
    # Lives of the room in which nothing was said would otherwise add up for ever.
    db.execute(
        """DELETE FROM chatx_streams WHERE room_id = ? AND rank =
        (SELECT r.rank FROM chatx_rooms AS r WHERE r.room_id = ? AND r.head = 0)""",
        (room_id, room_id),
    )
    (rank,) = db.execute(
        "SELECT coalesce(max(rank), 0) + 1 FROM chatx_streams WHERE room_id = ?", (room_id,)
    ).fetchone()
    db.execute("INSERT INTO chatx_streams (room_id, rank, epoch) VALUES (?, ?, ?)", (room_id, rank, epoch))
    db.execute(
        """INSERT INTO chatx_rooms (room_id, term, rank, epoch, head, proven) VALUES (?, 0, ?, ?, 0, ?)
        ON CONFLICT (room_id) DO UPDATE SET rank = excluded.rank, epoch = excluded.epoch, head = 0,
            proven = excluded.proven""",
        (room_id, rank, epoch, proven),
    )
    return int(rank)


def _appended(db: sqlite3.Connection, wanted: Append) -> Answer:
    room_id, after = wanted.room_id, wanted.after
    row = db.execute("SELECT term, rank, epoch, head FROM chatx_rooms WHERE room_id = ?", (room_id,)).fetchone()
    if row is None or row[0] != wanted.term:
        return FENCED
    _, rank, epoch, head = row
    if epoch != after.epoch:
        if after.offset or rank_of(db, room_id, after.epoch) is not None:
            return FENCED
        rank, head = rank_made(db, room_id, after.epoch, proven=wanted.proven), 0
    if after.offset > head:
        return FENCED
    again, new = wanted.records[: head - after.offset], wanted.records[head - after.offset :]
    if again and not _are_there(db, room_id, rank, again):
        return FENCED
    if new:
        _write(db, [(room_id, rank, new, wanted.proven)])
    else:
        db.execute("UPDATE chatx_rooms SET writes = writes + 1 WHERE room_id = ?", (room_id,))
    return None


def _are_there(db: sqlite3.Connection, room_id: str, rank: int, records: Sequence[Record]) -> bool:
    first, last = records[0].entry.offset, records[-1].entry.offset
    there = db.execute(
        """SELECT id FROM chatx_entries WHERE room_id = ? AND rank = ? AND "offset" BETWEEN ? AND ?
        ORDER BY "offset" """,
        (room_id, rank, first, last),
    ).fetchall()
    return [each for (each,) in there] == [each.entry.id for each in records]


def _rooms(db: sqlite3.Connection, room_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return (term, rank, epoch, head) of those rooms that have a row."""
    found: dict[str, tuple[Any, ...]] = {}
    for some in _split(room_ids):
        marks = ", ".join(["?"] * len(some))
        rows = db.execute(
            f"SELECT room_id, term, rank, epoch, head FROM chatx_rooms WHERE room_id IN ({marks})",  # noqa: S608  # ditto
            some,
        )
        found.update((row[0], row[1:]) for row in rows)
    return found


def _write(db: sqlite3.Connection, rooms: Sequence[tuple[str, int, Sequence[Record], bool]]) -> None:
    """Write the records of rooms, each with its rank, behind their heads, and move the heads; prove some."""
    placed = [(room_id, rank, each) for room_id, rank, records, _ in rooms for each in records]
    _insert(
        db,
        f"INSERT {_ENTRIES}",
        [(*row_of(each.entry), room_id, rank, each.entry.offset) for room_id, rank, each in placed],
    )
    keyed = [
        (room_id, each.entry.user_id, each.key, rank, each.entry.offset, each.entry.inserted_at)
        for room_id, rank, each in placed
        if each.key is not None
    ]
    if keyed:
        _insert(db, _KEYS, keyed)
        db.execute(
            """DELETE FROM chatx_keys WHERE number IN
            (SELECT number FROM chatx_keys WHERE inserted_at < ? ORDER BY inserted_at LIMIT ?)""",
            (keyed[-1][-1] - KEYS_KEPT_MS, 2 * len(keyed)),
        )
    sqlite_outbox.keep(db, [(rank, each) for _, rank, each in placed])
    _insert(
        db, _HEADS, [(room_id, 0, records[-1].entry.offset, proven) for room_id, _, records, proven in rooms], _MOVES
    )


def _insert(db: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]], otherwise: str = "") -> None:
    for some in _split(rows):
        db.execute(_insertion(into, len(some), len(some[0]), otherwise), list(chain.from_iterable(some)))


@cache
def _insertion(into: str, rows: int, columns: int, otherwise: str) -> str:
    row = f"({', '.join(['?'] * columns)})"
    return f"{into} VALUES {', '.join([row] * rows)} {otherwise}"


def _split(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Split rows into parts of 1, 2, 4, ... of them, the largest first: of few sizes, so that statements are kept."""
    first = 0
    while first < len(rows):
        count = min(_ROWS_AT_ONCE, 1 << ((len(rows) - first).bit_length() - 1))
        yield rows[first : first + count]
        first += count


def _oldest(db: sqlite3.Connection, room_id: str, rank: int) -> int | None:
    """Return the oldest offset kept of an epoch; of the newest one past its head where nothing is, of others None."""
    (oldest,) = db.execute(
        """SELECT coalesce((SELECT min("offset") FROM chatx_entries WHERE room_id = ? AND rank = ?),
        (SELECT head + 1 FROM chatx_rooms WHERE room_id = ? AND rank = ?))""",
        (room_id, rank) * 2,
    ).fetchone()
    return None if oldest is None else int(oldest)


def _entry(room_id: str, row: tuple[object, ...]) -> Entry:
    *fields, epoch, offset = row
    return entry_of(room_id, epoch, offset, tuple(fields))  # type: ignore[arg-type]  # as the tables have them
