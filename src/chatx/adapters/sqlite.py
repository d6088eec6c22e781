"""Persistence in one SQLite file, with the standard library: a log of each room, history, proof of where it stands.

Rules:
1. (room, epoch, offset) names a message: saving it again changes nothing. Another message in its place is an error,
   for then two processes publish in one stream.
2. A batch is one transaction: all of it is saved, or none. Of an append to many rooms those that are refused are not
   written, and the others are.
3. Epochs have no order of their own, so each gets a rank in its room when it is first seen, by its mark or by its
   first message. A room is read by rank, then offset.
4. The last position is answered for the newest epoch only, and only while its proof stands.
5. What is to be durable survives a power cut; the rest survives the end of the process, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from sqlite3 import Connection

from chatx.adapters import sqlite_log, sqlite_outbox, sqlite_retention
from chatx.adapters.outbox import Claimed, Notification, NotificationState, Outcome
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import Answer, Append, Found, LogUnavailable, Opened
from chatx.adapters.sqlite_file import SQLiteFile
from chatx.core.message import Entry, Message, Position


class SQLitePersistence(SQLiteFile):
    """A persistence adapter over one file: a log with an outbox. Its methods block; the engine calls them in threads.

    It keeps every message for ever, or as `retention_days` and `retention_messages` have it. The tables have names of
    their own, so the file may be one of the application's. A file of an earlier version is taken up to this one's
    tables when it is opened, in one transaction.

    One chat at a time writes: a start takes the lock for that, or waits; others may read beside it.

    Whoever built it closes it, after the chat has stopped.

    Attributes:
        path: The file, as it was given.
    """

    def __init__(self, path: str | os.PathLike[str] = ":memory:") -> None:
        """Open the file, and make the tables where they are not there yet.

        Whoever opens a file that others are opening waits for them, for 10 s; and so does whoever finds tables of an
        earlier version to which a chat writes.

        Args:
            path: The file, made if it is not there; its folder must be. `:memory:` keeps everything in memory, for as
                long as this object lives.

        Raises:
            ConfigError: The path is not one, cannot be opened or written, is no SQLite database, was made by a later
                version, or stays locked.
            StoreInUse: That chat does not end.
            LogUnavailable: The disk is full, or fails.
        """
        super().__init__(path)

    # As a log

    def hold(self, wait_ms: int, /) -> bool:
        """Become the one who writes, waiting for at most so long for another to end; return whether that is so.

        The lock is that of a file beside the database, its name with `.lock` behind it, which stays there. It ends with
        the process, however that ends. Reading beside its holder is always allowed. In memory nobody else is. On
        systems without such locks (Windows) everybody is the one who writes: run one process there.

        Raises:
            ConfigError: The file cannot be written, or the one beside it cannot be made, opened or locked.
        """
        held_before = self._holds
        holds = super().hold(wait_ms)
        if self._holds and not held_before:
            # Rooms that are only joined and read would add up for ever, and nobody has one of them now. Those that
            # cannot be let go of today are the next time.
            with suppress(LogUnavailable):
                self._written(sqlite_log.forget_silent)
        return holds

    def look(self, room_id: str, /) -> Opened:
        """Return what is known of a room, and write nothing.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        with self._snapshot() as db:
            return sqlite_log.look(db, room_id)

    def take_over(self, room_id: str, /) -> Opened:
        """Take a room over: from here on an append under an earlier term is fenced.

        Raises:
            LogUnavailable: The file cannot be written.
        """
        return self._written(lambda db: sqlite_log.take_over(db, room_id))

    def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        """Withdraw the proof of the room's head, which survives a power cut; False: fenced.

        Raises:
            LogUnavailable: The file cannot be written, and surely was not.
            sqlite3.Error: Perhaps it was.
        """
        return self._written(lambda db: sqlite_log.withdraw(db, room_id, term), durable=True)

    def append(self, appends: Sequence[Append], /) -> list[Answer]:
        """Append to many rooms in one transaction, and answer for each in their order.

        Raises:
            LogUnavailable: The file cannot be written, and surely was not.
            sqlite3.Error: Perhaps it was.
        """
        durable = any(each.durable for each in appends)
        return self._written(lambda db: sqlite_log.append_all(db, appends), durable=durable)

    def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Read entries, oldest first, at most `limit`; see `RoomLog`.

        Raises:
            LogUnavailable: The file cannot be read.
        """
        return self._read(lambda db: sqlite_log.read(db, room_id, after, before, limit))

    def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> dict[str, bool]:
        """Prove the heads of rooms, and answer for each; one that is fenced, or ends elsewhere, proves nothing.

        Raises:
            LogUnavailable: The file cannot be written, and surely was not.
            sqlite3.Error: Perhaps it was.
        """
        return self._written(
            lambda db: {room_id: sqlite_log.prove(db, room_id, term, head) for room_id, (term, head) in ends.items()}
        )

    def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        """Return the entry that was stored under an idempotency key, or None; keys are kept for `KEYS_KEPT_MS`.

        Raises:
            LogUnavailable: The file cannot be read.
        """
        return self._read(lambda db: sqlite_log.find(db, room_id, user_id, key))

    # As an outbox

    def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        """Claim until `until_ms` rows that are due, at most `limit`, those first that have been due longest.

        Raises:
            LogUnavailable: The file cannot be written.
        """
        # Whoever looks in vain keeps nobody from writing.
        if not self._read(lambda db: sqlite_outbox.is_due(db, now_ms)):
            return []
        return self._written(lambda db: sqlite_outbox.claim(db, claimer, limit, now_ms, until_ms))

    def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        """Write down what became of rows; those that are not this claimer's any more stay as they are.

        Raises:
            LogUnavailable: The file cannot be written.
        """
        self._written(lambda db: sqlite_outbox.settle(db, claimer, outcomes))

    def list_notifications(
        self, state: NotificationState | None, after: str | None, limit: int, /
    ) -> list[Notification]:
        """Return rows of one state, or of all, in the order of their ids and behind one, at most `limit`.

        Raises:
            LogUnavailable: The file cannot be read.
        """
        return self._read(lambda db: sqlite_outbox.listed(db, state, after, limit))

    def retry_notifications(self, ids: Sequence[str], /) -> int:
        """Let dead rows be tried again, as if for the first time; return how many of these were dead.

        Raises:
            LogUnavailable: The file cannot be written.
        """
        return self._written(lambda db: sqlite_outbox.retry(db, ids))

    def drop_notifications(self, ids: Sequence[str], /) -> int:
        """Take rows out, whatever their state; return how many there were.

        Raises:
            LogUnavailable: The file cannot be written.
        """
        return self._written(lambda db: sqlite_outbox.drop(db, ids))

    def count_notifications(self) -> tuple[int, int]:
        """Return how many rows are not dead, and how many are.

        Raises:
            LogUnavailable: The file cannot be read.
        """
        return self._read(sqlite_outbox.count)

    def list_rooms(self, after: str, limit: int, /) -> list[str]:
        """Return the ids of rooms that have entries, or had, in order and behind one, at most `limit`.

        Raises:
            LogUnavailable: The file cannot be read.
        """
        return self._read(lambda db: sqlite_retention.list_rooms(db, after, limit))

    def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        """Let go of the oldest entries of rooms, at most `limit` over all of them, and return how many went.

        The file does not become smaller: SQLite writes new entries where the old ones were.

        Raises:
            LogUnavailable: The file cannot be read or written, and surely was not written.
            sqlite3.Error: Perhaps it was.
        """
        cuts, more = self._read(
            lambda db: (
                sqlite_retention.find_cuts(db, room_ids, retention, limit),
                sqlite_retention.has_old_keys(db, retention),
            )
        )
        if not (cuts or more):
            return 0
        return self._written(lambda db: sqlite_retention.cut(db, cuts, retention, limit))

    # As persistence that saves

    def save_messages(self, messages: Sequence[Message], /) -> None:
        """Save all of the messages or none; one that is saved already stays as it is.

        Raises:
            ValueError: Another message has the place of one of these.
            sqlite3.Error: The file cannot be written.
        """
        with self._transaction() as db:
            by_stream = groupby(sorted(messages, key=_stream), key=_stream)
            # Epochs are ranked as they are first seen, so the streams are in the order of their first messages.
            streams = {stream: list(each) for stream, each in by_stream}
            for room_id, epoch in dict.fromkeys(map(_stream, messages)):
                _save(db, room_id, epoch, streams[room_id, epoch])

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
        with self._snapshot() as db:
            found = sqlite_log.load(db, room_id, after, before, limit, kind="message")
        return [each for each in found if isinstance(each, Message)]

    def last_position(self, room_id: str, /) -> tuple[str, int] | None:
        """Return where the room's newest stream ended, if it was marked as closed and not opened since.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        with self._snapshot() as db:
            row: tuple[str, int] | None = db.execute(
                "SELECT epoch, head FROM chatx_rooms WHERE room_id = ? AND proven AND rank IS NOT NULL", (room_id,)
            ).fetchone()
        return row

    def mark_open(self, room_id: str, epoch: str, /) -> None:
        """Withdraw the proof of where the stream ended, before anything more is published in it.

        Raises:
            sqlite3.Error: The file cannot be written.
        """
        with self._transaction() as db:
            rank = sqlite_log.rank_made(db, room_id, epoch)
            db.execute("UPDATE chatx_rooms SET proven = 0 WHERE room_id = ? AND rank = ?", (room_id, rank))

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
            for room_id, epoch, offset in ends:
                rank = sqlite_log.rank_made(db, room_id, epoch)
                # A place that has a message is never given out again, whatever the mark says.
                db.execute(
                    "UPDATE chatx_rooms SET proven = 1, head = max(head, ?) WHERE room_id = ? AND rank = ?",
                    (offset, room_id, rank),
                )


def _stream(message: Message) -> tuple[str, str]:
    return message.room_id, message.epoch


def _save(db: Connection, room_id: str, epoch: str, messages: Sequence[Message]) -> None:
    rank = sqlite_log.rank_made(db, room_id, epoch)
    before = db.total_changes
    sqlite_log.insert(db, room_id, rank, messages, again=True)
    if db.total_changes - before < len(messages):
        for each in messages:
            _check_place(db, each, rank)
    db.execute(
        "UPDATE chatx_rooms SET head = max(head, ?) WHERE room_id = ? AND rank = ?",
        (max(each.offset for each in messages), room_id, rank),
    )


def _check_place(db: Connection, message: Message, rank: int) -> None:
    (message_id,) = db.execute(
        'SELECT id FROM chatx_entries WHERE room_id = ? AND rank = ? AND "offset" = ?',
        (message.room_id, rank, message.offset),
    ).fetchone()
    if message_id != message.id:
        raise ValueError(
            f"Room {message.room_id!r} has another message at offset {message.offset} of epoch {message.epoch!r}: "
            f"{message_id}, not {message.id}. Two processes publish in one stream; let one process serve a room."
        )
