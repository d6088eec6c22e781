"""Persistence in one SQLite file, with the standard library: messages, history across restarts, proof of a clean stop.

Rules:
1. (room, epoch, offset) names a message: saving it again changes nothing. Another message in its place is an error,
   for then two processes publish in one stream.
2. A batch is one transaction: all of it is saved, or none.
3. Epochs have no order of their own, so each gets a rank in its room when it is first seen, by its mark or by its
   first message. A room is read by rank, then offset.
4. The last position is answered for the newest epoch only, and only while its mark of a clean end stands.
5. With a write-ahead log and `synchronous=NORMAL` what was saved survives the end of the process, however it ends. A
   power cut may take back the newest transactions, but never leaves half of one.
6. Reading and saving have a connection and a lock each, so a save does not wait for those who read, however many they
   are. Only without a write-ahead log, as in memory, they take turns.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chatx.core.message import Message
from chatx.errors import ConfigError

SCHEMA_VERSION = 1

# Shorter than the default `adapter_timeout_ms`, so that a locked file is a failure and not a thread that hangs.
_BUSY_S = 2.0

# What opening takes at most while other processes open the same file, or one has it locked.
_OPENING_S = 10.0

_SCHEMA = (
    """CREATE TABLE chatx_schema (version INTEGER NOT NULL)""",
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


class SQLitePersistence:
    """A persistence adapter over one file. Its methods block; the engine calls them in threads.

    It keeps every message for ever. The tables have names of their own, so the file may be one of the application's.
    One process at a time should publish: several workers on one file keep all their messages, but each worker's rooms
    are other rooms, whose messages follow one another in the history epoch by epoch.

    Whoever built it closes it, after the chat has stopped.

    Attributes:
        path: The file, as it was given.
        identity: Which file that is, by whatever path: its device and its number there; None in memory.
    """

    def __init__(self, path: str | os.PathLike[str] = ":memory:") -> None:
        """Open the file, and make the tables where they are not there yet.

        Whoever opens a file that others are opening waits for them, for 10 s.

        Args:
            path: The file, made if it is not there; its folder must be. `:memory:` keeps everything in memory, for as
                long as this object lives.

        Raises:
            ConfigError: The path is not one, cannot be opened or written, is no SQLite database, was made by another
                version, or stays locked.
        """
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise ConfigError(f"The path of SQLitePersistence is {path!r}; give the name of a file, or ':memory:'.")
        self.path: str = os.fsdecode(path)
        self.identity: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._reading_lock = self._lock
        self._closing = False
        self._db: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None  # the same as `_db` where there is no write-ahead log
        until = time.monotonic() + _OPENING_S
        try:
            while not self._open():
                if time.monotonic() > until:
                    raise ConfigError(
                        f"SQLitePersistence cannot use {self.path!r}: another process has had it locked for "
                        f"{_OPENING_S:g} s; end that process or its transaction, or give another file."
                    )
                time.sleep(0.01)
        except sqlite3.Error as error:
            self.close()
            raise ConfigError(
                f"SQLitePersistence cannot use {self.path!r}: {error}; "
                "give a SQLite database, or a new file in a folder that exists and can be written."
            ) from error
        with suppress(OSError):  # a name such as ":memory:" is no file
            found = Path(self.path).stat()
            self.identity = (found.st_dev, found.st_ino)

    def save_messages(self, messages: Sequence[Message], /) -> None:
        """Save all of the messages or none; one that is saved already stays as it is.

        Raises:
            ValueError: Another message has the place of one of these.
            sqlite3.Error: The file cannot be written.
        """
        with self._transaction() as db:
            streams = dict.fromkeys((each.room_id, each.epoch) for each in messages)
            ranks = {stream: _rank_made(db, *stream) for stream in streams}
            saved = db.executemany(
                """INSERT INTO chatx_messages (room_id, rank, "offset", id, user_id, content, inserted_at)
                VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING""",
                [
                    (
                        each.room_id,
                        ranks[each.room_id, each.epoch],
                        each.offset,
                        each.id,
                        each.user_id,
                        each.content,
                        each.inserted_at,
                    )
                    for each in messages
                ],
            ).rowcount
            if saved < len(messages):
                for each in messages:
                    _check_place(db, each, ranks[each.room_id, each.epoch])

    def load_messages(
        self,
        room_id: str,
        /,
        *,
        after: tuple[str, int] | None = None,
        before: tuple[str, int] | None = None,
        limit: int,
    ) -> list[Message]:
        """Return messages in the room's order, oldest first, at most `limit`; see `ServesHistory`.

        An epoch that is not known has nothing after any place in it. It counts as newer than all that is stored, so
        everything is before it: it is one of which nothing has been saved yet.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        where = "m.room_id = ?"
        values: list[str | int | None] = [room_id]
        with self._snapshot() as db:
            if after is not None:
                # No rank is equal to the NULL of an epoch that is not known.
                where += ' AND m.rank = ? AND m."offset" > ?'
                values += [_rank(db, room_id, after[0]), after[1]]
            rank = _rank(db, room_id, before[0]) if before is not None else None
            if before is not None and rank is not None:
                where += ' AND (m.rank, m."offset") < (?, ?)'
                values += [rank, before[1]]
            order = "ASC" if after is not None else "DESC"
            rows = db.execute(
                # The text is put together from the constants above; what comes from outside is bound.
                f"""SELECT m.id, m.room_id, m.user_id, m.content, m.inserted_at, s.epoch, m."offset"
                FROM chatx_messages AS m JOIN chatx_streams AS s USING (room_id, rank)
                WHERE {where} ORDER BY m.rank {order}, m."offset" {order} LIMIT ?""",  # noqa: S608
                [*values, limit],
            ).fetchall()
        if after is None:
            rows.reverse()
        return [Message(*row) for row in rows]

    def last_position(self, room_id: str, /) -> tuple[str, int] | None:
        """Return where the room's newest stream ended, if it was marked as closed and not opened since.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        with self._snapshot() as db:
            row = db.execute(
                "SELECT epoch, closed_at FROM chatx_streams WHERE room_id = ? ORDER BY rank DESC LIMIT 1",
                (room_id,),
            ).fetchone()
        return None if row is None or row[1] is None else (row[0], row[1])

    def mark_open(self, room_id: str, epoch: str, /) -> None:
        """Withdraw the proof of where the stream ended, before anything more is published in it.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        with self._transaction() as db:
            # Lives of the room in which nothing was said would otherwise add up for ever.
            db.execute(
                """DELETE FROM chatx_streams AS s WHERE room_id = ? AND epoch <> ? AND NOT EXISTS
                (SELECT 1 FROM chatx_messages AS m WHERE m.room_id = s.room_id AND m.rank = s.rank)""",
                (room_id, epoch),
            )
            _rank_made(db, room_id, epoch)
            db.execute(
                "UPDATE chatx_streams SET closed_at = NULL WHERE room_id = ? AND epoch = ?",
                (room_id, epoch),
            )

    def mark_closed(self, room_id: str, epoch: str, offset: int, /) -> None:
        """Record that the stream ended at `offset` with everything saved.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        self.mark_all_closed([(room_id, epoch, offset)])

    def mark_all_closed(self, ends: Sequence[tuple[str, str, int]], /) -> None:
        """Record that these streams, (room id, epoch, offset), ended there with everything saved: all or none.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        with self._transaction() as db:
            for room_id, epoch, _ in ends:
                _rank_made(db, room_id, epoch)
            db.executemany(
                "UPDATE chatx_streams SET closed_at = ? WHERE room_id = ? AND epoch = ?",
                [(offset, room_id, epoch) for room_id, epoch, offset in ends],
            )

    def close(self) -> None:
        """Close the file; twice is harmless. Calls that come later fail, and so do calls that have not begun.

        It waits for the calls under way, one that reads and one that saves: 2 s where somebody else locks the file.
        """
        self._closing = True
        with self._reading_lock:
            reader, self._reader = self._reader, None
            if reader is not None and reader is not self._db:
                reader.close()
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    def _open(self) -> bool:
        """Open the file; return False, with nothing open, where somebody else is at it just now."""
        try:
            # Explicit transactions, one at a time: the lock keeps the threads of the engine apart.
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            # Going over to a write-ahead log does not wait where two do it at once: it is busy at once.
            (mode,) = self._db.execute("PRAGMA journal_mode=WAL").fetchone()
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._make_tables()
            self._reader = self._db
            if mode == "wal":
                self._reader = sqlite3.connect(
                    self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
                )
                self._reading_lock = threading.Lock()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_BUSY,
                sqlite3.SQLITE_LOCKED,
                sqlite3.SQLITE_PROTOCOL,
            ):
                raise
            for db in (self._db, self._reader):
                if db is not None:
                    db.close()
            self._db = self._reader = None
            return False
        return True

    def _make_tables(self) -> None:
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'chatx_schema'").fetchone() is None:
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO chatx_schema VALUES (?)", (SCHEMA_VERSION,))
            (version,) = db.execute("SELECT max(version) FROM chatx_schema").fetchone()
        if version != SCHEMA_VERSION:
            self.close()
            raise ConfigError(
                f"The tables in {self.path!r} have version {version}, and this version of chatx reads "
                f"{SCHEMA_VERSION}; use the chatx that made them, or another file."
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _begun(self._opened(), "BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A block whose reads are all of one moment: a save that comes meanwhile is not seen in half."""
        with self._reading_lock, _begun(self._opened_to_read(), "BEGIN") as db:
            yield db

    def _opened(self) -> sqlite3.Connection:
        return self._still_open(self._db)

    def _opened_to_read(self) -> sqlite3.Connection:
        return self._still_open(self._reader)

    def _still_open(self, db: sqlite3.Connection | None) -> sqlite3.Connection:
        if db is None or self._closing:
            raise RuntimeError(f"The persistence in {self.path!r} is closed; close it after the chat has stopped.")
        return db


@contextmanager
def _begun(db: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    db.execute(begin)
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors, such as a full disk, have ended it already
            db.execute("ROLLBACK")
        raise


def _rank(db: sqlite3.Connection, room_id: str, epoch: str) -> int | None:
    row = db.execute("SELECT rank FROM chatx_streams WHERE room_id = ? AND epoch = ?", (room_id, epoch)).fetchone()
    return None if row is None else row[0]


def _rank_made(db: sqlite3.Connection, room_id: str, epoch: str) -> int:
    rank = _rank(db, room_id, epoch)
    if rank is None:
        (rank,) = db.execute(
            "SELECT coalesce(max(rank), 0) + 1 FROM chatx_streams WHERE room_id = ?", (room_id,)
        ).fetchone()
        db.execute("INSERT INTO chatx_streams (room_id, rank, epoch) VALUES (?, ?, ?)", (room_id, rank, epoch))
    return rank


def _check_place(db: sqlite3.Connection, message: Message, rank: int) -> None:
    (message_id,) = db.execute(
        'SELECT id FROM chatx_messages WHERE room_id = ? AND rank = ? AND "offset" = ?',
        (message.room_id, rank, message.offset),
    ).fetchone()
    if message_id != message.id:
        raise ValueError(
            f"Room {message.room_id!r} has another message at offset {message.offset} of epoch {message.epoch!r}: "
            f"{message_id}, not {message.id}. Two processes publish in one stream; let one process serve a room."
        )
