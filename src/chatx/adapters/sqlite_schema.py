"""The tables in a SQLite file, and the steps by which those of earlier versions become them.

| table | a row is |
|---|---|
| `chatx_schema` | the version of the tables, in one row |
| `chatx_rooms` | where a room stands: its term; its newest epoch with rank, head and proof; how often it was written |
| `chatx_terms` | the newest term of all rooms, in one row |
| `chatx_streams` | an epoch of a room with its rank: epochs have no order of their own |
| `chatx_entries` | an entry, at (room, rank, offset) |
| `chatx_outbox` | whom the notifier is still to tell of an entry |
| `chatx_keys` | an idempotency key, and the place of the first entry that came with it |

Rules:
1. A file is made by the same steps by which an older one is taken up, so both end with the same tables.
2. All steps that a file lacks are one transaction: it is at one version or at the other, whatever happens.
3. A step copies no entries: it takes as long on a file of many as on one of few, but for what it does for each room.
"""

from __future__ import annotations

import sqlite3

_FIRST = (
    """CREATE TABLE chatx_schema (version INTEGER NOT NULL)""",
    """INSERT INTO chatx_schema VALUES (1)""",
    """CREATE TABLE chatx_streams (
        room_id TEXT NOT NULL,
        rank INTEGER NOT NULL,
        epoch TEXT NOT NULL,
        closed_at INTEGER,
        PRIMARY KEY (room_id, rank),
        UNIQUE (room_id, epoch)
    ) WITHOUT ROWID""",
    """CREATE TABLE chatx_messages (
        room_id TEXT NOT NULL,
        rank INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        content TEXT NOT NULL,
        inserted_at INTEGER NOT NULL,
        PRIMARY KEY (room_id, rank, "offset")
    )""",
)

_LOG = (
    """ALTER TABLE chatx_messages RENAME TO chatx_entries""",
    """ALTER TABLE chatx_entries ADD COLUMN kind TEXT NOT NULL DEFAULT 'message'""",
    """ALTER TABLE chatx_entries ADD COLUMN target TEXT""",
    """ALTER TABLE chatx_entries ADD COLUMN data TEXT""",
    """ALTER TABLE chatx_entries ADD COLUMN stored INTEGER NOT NULL DEFAULT 0""",
    """CREATE TABLE chatx_rooms (
        room_id TEXT NOT NULL PRIMARY KEY,
        term INTEGER NOT NULL,
        rank INTEGER,
        epoch TEXT,
        head INTEGER NOT NULL,
        proven INTEGER NOT NULL,
        writes INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID""",
    # Where a stream was closed and a message behind that was saved nevertheless, no place is given out twice.
    """INSERT INTO chatx_rooms (room_id, term, rank, epoch, head, proven)
    SELECT s.room_id, 0, s.rank, s.epoch,
        max(coalesce(s.closed_at, 0), coalesce(
            (SELECT max(e."offset") FROM chatx_entries AS e WHERE e.room_id = s.room_id AND e.rank = s.rank), 0)),
        s.closed_at IS NOT NULL
    FROM chatx_streams AS s
    WHERE s.rank = (SELECT max(t.rank) FROM chatx_streams AS t WHERE t.room_id = s.room_id)""",
    # The proof is the room's now. Older libraries of SQLite drop no column, so the table is made anew.
    """CREATE TABLE chatx_streams_2 (
        room_id TEXT NOT NULL,
        rank INTEGER NOT NULL,
        epoch TEXT NOT NULL,
        PRIMARY KEY (room_id, rank),
        UNIQUE (room_id, epoch)
    ) WITHOUT ROWID""",
    """INSERT INTO chatx_streams_2 SELECT room_id, rank, epoch FROM chatx_streams""",
    """DROP TABLE chatx_streams""",
    """ALTER TABLE chatx_streams_2 RENAME TO chatx_streams""",
    """CREATE TABLE chatx_keys (
        number INTEGER PRIMARY KEY,
        room_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        key TEXT NOT NULL,
        rank INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        inserted_at INTEGER NOT NULL,
        UNIQUE (room_id, user_id, key)
    )""",
    """CREATE INDEX chatx_keys_of_room ON chatx_keys (room_id)""",
    """CREATE INDEX chatx_keys_by_age ON chatx_keys (inserted_at)""",
    """UPDATE chatx_schema SET version = 2""",
)

# One count for all rooms: a room's row can be let go of, and no term is given twice nevertheless.
_TERMS = (
    """CREATE TABLE chatx_terms (newest INTEGER NOT NULL)""",
    """INSERT INTO chatx_terms SELECT coalesce(max(term), 0) FROM chatx_rooms""",
    """CREATE INDEX chatx_rooms_silent ON chatx_rooms (term) WHERE rank IS NULL""",
    """UPDATE chatx_schema SET version = 3""",
)

# A number keeps the order of those that are due at one time; nothing looks for it.
_OUTBOX = (
    """CREATE TABLE chatx_outbox (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        room_id TEXT NOT NULL,
        rank INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        users TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        due_at INTEGER NOT NULL,
        claimer TEXT,
        reason TEXT
    )""",
    """CREATE INDEX chatx_outbox_due ON chatx_outbox (due_at) WHERE reason IS NULL""",
    """CREATE INDEX chatx_outbox_dead ON chatx_outbox (id) WHERE reason IS NOT NULL""",
    """UPDATE chatx_schema SET version = 4""",
)

STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _LOG, _TERMS, _OUTBOX)
"""The statements that lead to each version, from the one before it; the first from a file without tables."""

SCHEMA_VERSION = len(STEPS)
"""The version that this code reads and writes."""


def version_of(db: sqlite3.Connection) -> int:
    """Return the version of a file's tables, 0 where there are none.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'chatx_schema'").fetchone() is None:
        return 0
    version: int = db.execute("SELECT coalesce(max(version), 0) FROM chatx_schema").fetchone()[0]
    return version


def take_up(db: sqlite3.Connection) -> int:
    """Take the tables up to `SCHEMA_VERSION`, within the caller's transaction; return which version they were.

    Tables of a later version are left alone.

    Raises:
        sqlite3.Error: The file cannot be written.
    """
    version = version_of(db)
    for step in STEPS[version:]:
        for statement in step:
            db.execute(statement)
    return version
