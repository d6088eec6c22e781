"""A SQLite file that is open: one connection that writes, one that reads, a lock for each, and who may write at all.

Rules:
1. Reading and writing have a connection and a lock each, so a write does not wait for those who read, however many they
   are. Only without a write-ahead log, as in memory, they take turns.
2. With a write-ahead log and `synchronous=NORMAL` what was written survives the end of the process, however it ends. A
   power cut may take back the newest transactions, but never leaves half of one. A transaction that must survive it is
   written with `FULL`, which takes all that was written before with it.
3. Until COMMIT has begun nothing was written, surely. What fails later may have been, but where the file was locked or
   the disk full: there the transaction is rolled back.
4. One writer at a time holds the lock of the file beside it, for as long as it lives.
5. Tables of an earlier version are taken up under that lock: never under the hands of a chat that writes to them.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from chatx.adapters.room_log import LogUnavailable
from chatx.adapters.sqlite_schema import SCHEMA_VERSION, take_up, version_of
from chatx.adapters.writer_lock import WriterLock
from chatx.errors import ConfigError, StoreInUse

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("chatx")

# Shorter than the default `adapter_timeout_ms`, so that a locked file is a failure and not a thread that hangs.
BUSY_S = 2.0

# What opening takes at most while other processes open the same file, or one has it locked.
OPENING_S = 10.0

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


MAKE_ROOM = "make room on its disk, or see whether that fails"
"""What to do where a disk takes nothing."""


class SQLiteFile:
    """A file with the tables of chatx.

    Attributes:
        path: The file, as it was given.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, and make the tables, or take them up to the newest version, where that is to be done.

        Whoever opens a file that others are opening waits for them, for 10 s; and so does whoever finds tables of an
        earlier version to which a chat writes.

        Raises:
            ConfigError: The path is not one, cannot be opened or written, is no SQLite database, was made by a later
                version, or stays locked.
            StoreInUse: That chat does not end.
            LogUnavailable: Its disk is full, or fails.
        """
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise ConfigError(f"The path of SQLitePersistence is {path!r}; give the name of a file, or ':memory:'.")
        self.path: str = os.fsdecode(path)
        self._writer = None if self.path == ":memory:" else WriterLock(f"{os.path.realpath(self.path)}.lock")
        self._lock = threading.Lock()
        self._reading_lock = self._lock
        self._closing = False
        self._in_use = False  # while it was opened, by a chat of an earlier version
        self._durable: bool | None = None  # as the connection is set now
        self._db: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None  # the same as `_db` where there is no write-ahead log
        until = time.monotonic() + OPENING_S
        try:
            while not self._open():
                if time.monotonic() > until:
                    if self._in_use:
                        raise StoreInUse(
                            f"Another chat writes to {self.path!r}, in tables of an earlier version, which are not "
                            "taken up under its hands; end it first."
                        )
                    raise ConfigError(
                        f"SQLitePersistence cannot use {self.path!r}: another process has had it locked for "
                        f"{OPENING_S:g} s; end that process or its transaction, or give another file."
                    )
                time.sleep(0.01)
        except sqlite3.Error as error:
            self.close()
            if is_full(error):
                raise LogUnavailable(f"The file {self.path!r} cannot be used now: {error}; {MAKE_ROOM}.") from error
            raise ConfigError(
                f"SQLitePersistence cannot use {self.path!r}: {error}; "
                + way_out(self.path, "give a SQLite database, or a new file in a folder that exists and can be written")
                + "."
            ) from error

    def hold(self, wait_ms: int, /) -> bool:
        """Take the lock of the file beside the database; return whether it is held.

        Raises:
            ConfigError: The database may only be read, or the file beside it cannot be made or locked.
        """
        held = self._writer is None or self._writer.hold(wait_ms)
        if held and self._writer is not None and not os.access(self.path, os.W_OK):
            # SQLite opens such a file to be read, and would fail with each write.
            self.let_go()
            raise ConfigError(f"The file {self.path!r} cannot be written; {way_out(self.path, 'see whose it is')}.")
        if held and self._closing:  # it was closed while this one waited
            self.let_go()
            return False
        return held

    @property
    def _holds(self) -> bool:
        """Whether nobody else can write."""
        return self._writer is not None and self._writer.held

    def let_go(self) -> None:
        """Let another one write; twice is harmless."""
        if self._writer is not None:
            self._writer.let_go()

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
        self.let_go()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A block whose writes survive the end of the process."""
        with self._lock, _begun(self._to_write(durable=False), "BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A block whose reads are all of one moment: a save that comes meanwhile is not seen in half."""
        with self._reading_lock, _begun(self._opened_to_read(), "BEGIN") as db:
            yield db

    def _written(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Return the answer of `work`, which writes in one transaction.

        Raises:
            LogUnavailable: Surely nothing was written.
            sqlite3.Error: Perhaps it was.
        """
        with self._lock:
            try:
                db = self._to_write(durable=durable)
                db.execute("BEGIN IMMEDIATE")
                try:
                    answer = work(db)
                except BaseException:
                    _roll_back(db)
                    raise
            except (sqlite3.Error, FileClosed) as error:
                raise self._unavailable(error) from error
            try:
                db.execute("COMMIT")
            except sqlite3.Error as error:
                _roll_back(db)
                if error.sqlite_errorcode & 0xFF in (*_BUSY, sqlite3.SQLITE_FULL):
                    raise self._unavailable(error) from error
                raise
            return answer

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the answer of `work`, whose reads are all of one moment.

        Raises:
            LogUnavailable: The file cannot be read.
        """
        try:
            with self._snapshot() as db:
                return work(db)
        except (sqlite3.Error, FileClosed) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> LogUnavailable:
        return LogUnavailable(f"The log in {self.path!r} cannot be used now: {error}")

    def _open(self) -> bool:
        """Open the file; return False, with nothing open, where somebody else is at it just now."""
        try:
            # Explicit transactions, one at a time: the lock keeps the threads of the engine apart.
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            # Going over to a write-ahead log does not wait where two do it at once: it is busy at once.
            (mode,) = self._db.execute("PRAGMA journal_mode=WAL").fetchone()
            # Where a write to the disk waits in the disk's own memory otherwise, as on macOS; elsewhere nothing.
            self._db.execute("PRAGMA fullfsync=1")
            if not self._make_tables():
                self._close_all()
                return False
            self._reader = self._db
            if mode == "wal":
                self._reader = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
                self._reading_lock = threading.Lock()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY:
                raise
            self._close_all()
            return False
        return True

    def _close_all(self) -> None:
        for db in (self._db, self._reader):
            if db is not None:
                db.close()
        self._db = self._reader = self._durable = None

    def _make_tables(self) -> bool:
        """Make the tables, or take them up; return False where another chat writes to them as they were."""
        older = 0 < version_of(self._opened()) < SCHEMA_VERSION
        if older and self._writer is not None and not self._writer.hold(0):
            if not self._in_use:
                self._in_use = True
                logger.warning(
                    "Another chat writes to %s, in tables of an earlier version; waiting up to %g s for it to end.",
                    self.path,
                    OPENING_S,
                    extra={"store": self.path, "code": StoreInUse.code},
                )
            return False
        try:
            with self._transaction() as db:
                version = take_up(db)
        finally:
            if older:
                self.let_go()
        if version > SCHEMA_VERSION:
            self.close()
            raise ConfigError(
                f"The tables in {self.path!r} have version {version}, and this version of chatx reads up to "
                f"{SCHEMA_VERSION}; use the chatx that made them, or another file."
            )
        return True

    def _to_write(self, *, durable: bool) -> sqlite3.Connection:
        db = self._opened()
        if self._durable is not durable:
            db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        return db

    def _opened(self) -> sqlite3.Connection:
        return self._still_open(self._db)

    def _opened_to_read(self) -> sqlite3.Connection:
        return self._still_open(self._reader)

    def _still_open(self, db: sqlite3.Connection | None) -> sqlite3.Connection:
        if db is None or self._closing:
            raise FileClosed(f"The persistence in {self.path!r} is closed; close it after the chat has stopped.")
        return db


def is_full(error: Exception) -> bool:
    """Return whether SQLite says so of the disk, or cannot use it: without room for its own files it says only that."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def way_out(path: str | os.PathLike[str], otherwise: str) -> str:
    """Return what to do where a file cannot be used, as far as its path tells; else what is said otherwise."""
    try:
        file = Path(path).absolute()
        if file.is_dir():
            return "it is a folder, so name a file in it"
        if not file.parent.is_dir():
            return f"the folder '{file.parent}' is not there, so make it, or see whether the path is right"
        if file.exists() and not os.access(file, os.R_OK | os.W_OK):
            return "this process may not read and write it, so run it as the user whose it is"
        if not os.access(file.parent, os.W_OK):
            return f"this process may not write in the folder '{file.parent}', and SQLite needs files beside it"
    except OSError as error:
        return f"its folder cannot be looked into ({error.strerror})"
    return otherwise


class FileClosed(RuntimeError):
    """The file was closed before it was used."""


@contextmanager
def _begun(db: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    db.execute(begin)
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:  # some errors, such as a full disk, have ended it already
        db.execute("ROLLBACK")
