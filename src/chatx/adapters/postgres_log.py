"""A room's log in PostgreSQL, on asyncpg: the extra `postgres`.

Rules:
1. An append is one statement, so it is done as a whole or not at all, also where nobody waits for it any more. Rooms
   that it leaves out are looked at one by one: whether they are somebody else's, or have these entries already.
2. Only what the server has refused, or was never sent to it, is `LogUnavailable`. What took too long may have been
   done; the room's row then tells, which the next `take_over` locks. Where a connection broke the same is asked for
   again, once: whatever is asked here may be asked twice.
3. Appends have connections of their own, so that nobody who reads holds them up.
4. Everything is written before it is answered, what need not be durable too: the server can end without the chat, which
   has forgotten by then what it was told to be written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from chatx.adapters import postgres_schema as sql
from chatx.adapters.entry_rows import entry_of, row_of
from chatx.adapters.postgres_connections import (
    Attempt,
    Connection,
    ConnectionBroke,
    Connections,
    WriterLock,
    connected,
    is_about_what_was_given,
)
from chatx.adapters.postgres_outbox import PostgresOutbox, columns_of
from chatx.adapters.postgres_retention import PostgresRetention
from chatx.adapters.postgres_tables import make_tables
from chatx.adapters.room_log import (
    FENCED,
    KEYS_KEPT_MS,
    Answer,
    Append,
    Found,
    Keyed,
    LogUnavailable,
    Opened,
    Record,
    misplaced,
)
from chatx.adapters.stores import check_ports
from chatx.core.message import Entry, Position
from chatx.errors import ConfigError

_T = TypeVar("_T")

# Past every offset, where a read has no place to begin ahead of.
_EVERY = 2**63 - 1


class PostgresLog(PostgresOutbox, PostgresRetention):
    """A `RoomLog` with an outbox and retention in a PostgreSQL database, which must keep UTF-8; version 13 or newer.

    The tables are made where they are not there. Their names begin with `chatx_`, so the database may be the
    application's. It has `transactions` + `readers` + 1 connections at most, and they must be its own: behind a pooler
    that lends them for a transaction only, the lock of the one who writes would be anybody's.

    From its first use until it is closed it belongs to one event loop. Whoever built it closes it, after the chat has
    stopped.

    Attributes:
        transactions: How many appends are under way at a time, at most.
    """

    def __init__(self, url: str, *, transactions: int = 4, readers: int = 4, timeout_ms: int = 3000) -> None:
        """Take note of where the database is; nothing is connected before it is needed.

        Args:
            url: As libpq has it: `postgresql://user:password@host:port/database?sslmode=require`.
            transactions: Connections for appends, 1 to 64.
            readers: Connections for everything else, 1 to 64.
            timeout_ms: How long a call waits for a connection, and how long it may take then, in ms, each 1 to 600,000.
                Less than half of `adapter_timeout_ms` lets the log say that nothing was written, where it knows.

        Raises:
            ConfigError: An argument is none of these.
        """
        scheme = url.partition("://")[0].lower() if isinstance(url, str) else ""
        if scheme not in {"postgresql", "postgres"}:
            # Not the URL itself: it may have a password in it.
            raise ConfigError(
                "The URL of PostgresLog does not begin with postgresql://; give postgresql://user:password@host/database."
            )
        check_ports(url)
        for name, value, most in (
            ("transactions", transactions, 64),
            ("readers", readers, 64),
            ("timeout_ms", timeout_ms, 600_000),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(
                    f"The option {name} of PostgresLog is {value!r}; give a whole number from 1 to {most}."
                )
        self.transactions: int = transactions
        self._url = url
        self._readers = readers
        self._timeout_s = timeout_ms / 1000
        self._opened: _Opened | None = None

    async def look(self, room_id: str, /) -> Opened:
        """Return what is known of a room, and write nothing."""
        return await self._known(sql.LOOK, room_id, writes=False)

    async def take_over(self, room_id: str, /) -> Opened:
        """Take a room over: from here on an append under an earlier term is fenced."""
        return await self._known(sql.TAKE_OVER, room_id, writes=True)

    async def _known(self, statement: str, room_id: str, *, writes: bool) -> Opened:
        async def ask(db: Connection) -> tuple[Any, int | None, Sequence[Any]]:
            row = await db.fetchrow(statement, room_id)
            if row is None or row["epoch"] is None:
                return row, None, ()
            # To take over locks the row as an append does: what the one before wrote is there, or never will be.
            return row, await db.fetchval(sql.OLDEST, room_id, row["rank"]), await db.fetch(sql.KEYED, room_id)

        row, oldest, keyed = await self._asked(ask, writes=writes)
        if row is None:
            return Opened(0, None, 1, True)
        if row["epoch"] is None:
            return Opened(row["term"], None, 1, row["proven"])
        since = _keys_since()
        keys = tuple(Keyed(each[-1], _entry(room_id, each)) for each in reversed(keyed))
        return Opened(
            row["term"],
            Position(row["epoch"], row["head"]),
            row["head"] + 1 if oldest is None else oldest,
            row["proven"],
            tuple(each for each in keys if each.entry.inserted_at >= since),
        )

    async def unproven(self, room_id: str, term: int, _head: Position, /) -> bool:
        """Withdraw the proof of the room's head; False: fenced."""
        return await self._asked(lambda db: db.fetchval(sql.UNPROVEN, room_id, term), writes=True) is True

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        """Append to many rooms in one transaction, and answer for each in their order."""
        if all(misplaced(each) is not None for each in appends):
            return [misplaced(each) for each in appends]
        # The same again is not written twice, so it may be asked for twice.
        return await self._asked(lambda db: _append(db, appends), writes=True, appends=True)

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Read entries, oldest first, at most `limit`."""
        if after is not None:
            asked: tuple[Any, ...] = (sql.READ_AFTER, room_id, after.epoch, after.offset, limit)
        elif before is not None:
            asked = (sql.READ_BEFORE, room_id, before.offset, limit, before.epoch)
        else:
            asked = (sql.READ_NEWEST, room_id, _EVERY, limit)
        rows = await self._asked(lambda db: db.fetch(*asked))
        epoch, offset = rows[0]["asked"], rows[0]["oldest"]
        oldest = None if offset is None else Position(epoch, offset)
        return Found(tuple(_entry(room_id, row[2:]) for row in rows if row["id"] is not None), oldest)

    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        """Prove the heads of rooms, and answer for each; one that is fenced, or ends elsewhere, proves nothing."""
        if not ends:
            return {}
        terms = [term for term, _ in ends.values()]
        heads = [head for _, head in ends.values()]
        given = (list(ends), terms, [each.epoch for each in heads], [each.offset for each in heads])
        rows = await self._asked(lambda db: db.fetch(sql.CLOSE, *given), writes=True)
        proven = {room_id for (room_id,) in rows}
        return {room_id: room_id in proven for room_id in ends}

    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        """Return the entry that was stored under an idempotency key, or None."""
        row = await self._asked(lambda db: db.fetchrow(sql.FIND, room_id, user_id, key, _keys_since()))
        return None if row is None else _entry(room_id, row)

    async def hold(self, wait_ms: int, /) -> bool:
        """Become the one who writes to this database, waiting for at most so long; return whether that is so.

        Where the connection is lost with which it is held, nothing is written before it is held again; every call that
        writes sees to that.
        """
        return await (await self._open()).lock.take(wait_ms / 1000)

    async def share(self, wait_ms: int, /) -> bool:
        """Become one of the nodes of a chat that write to this database, each to rooms of its own; otherwise as `hold`.

        A room's term is the fence between them: who was taken over appends no more.
        """
        return await (await self._open()).lock.take(wait_ms / 1000, shared=True)

    async def let_go(self) -> None:
        """Let another one write; twice is harmless."""
        if self._opened is not None:
            await self._opened.lock.let_go()

    async def make_tables(self) -> None:
        """Make the tables, or take them up to this version, however long that takes.

        Every other call does that first, and gives up where a step takes longer than `timeout_ms`. A lock is waited for
        as long as that here too. Where it fails nothing was changed.

        Raises:
            ConfigError: They were made by a later version.
            LogUnavailable: The database cannot be used now, somebody else has a lock on the tables, or a chat of an
                earlier version writes to it.
        """
        patient = Connections(lambda: connected(self._url, self._timeout_s, patient=True), 1, self._timeout_s)
        try:
            await self._opened_here().make_tables(patient)
        finally:
            await patient.close()

    async def close(self) -> None:
        """Close all connections, those in use when their calls have ended; twice is harmless.

        What is called later opens new ones, on another event loop too.
        """
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    async def _asked(
        self, ask: Callable[[Connection], Awaitable[_T]], *, writes: bool = False, appends: bool = False
    ) -> _T:
        """Ask on a connection, and again on another one where that broke: whatever is asked here may be asked twice."""
        try:
            return await self._asked_once(ask, writes, appends)
        except ConnectionBroke as broke:
            try:
                return await self._asked_once(ask, writes, appends)
            except LogUnavailable:
                # This time nothing was done, which says nothing of the first time.
                raise broke from broke.__cause__

    async def _asked_once(self, ask: Callable[[Connection], Awaitable[_T]], writes: bool, appends: bool) -> _T:
        opened = await self._open()
        if writes:
            await opened.lock.check()
        async with (opened.appending if appends else opened.reading).one() as db:
            return await ask(db)

    async def _open(self) -> _Opened:
        """Return what is open on this loop, with the tables made."""
        opened = self._opened_here()
        await opened.make_tables()
        return opened

    def _opened_here(self) -> _Opened:
        """Return what is open on this loop."""
        loop = asyncio.get_running_loop()
        opened = self._opened
        if opened is None or (opened.loop is not loop and opened.loop.is_closed()):
            opened = self._opened = _Opened(
                loop, lambda: connected(self._url, self._timeout_s), self.transactions, self._readers, self._timeout_s
            )
        if opened.loop is not loop:
            raise RuntimeError("This PostgresLog is used on another event loop; close it there, or give each a log.")
        return opened


class _Partly(Exception):
    """A part of an append is there, and it is not known what became of the rest."""


class _Opened:
    """What a log has on one event loop.

    Attributes:
        loop: The loop.
        appending: The connections for appends.
        reading: Those for everything else.
        lock: The lock of the one who writes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], Awaitable[Connection]],
        transactions: int,
        readers: int,
        timeout_s: float,
    ) -> None:
        self.loop = loop
        self.appending = Connections(connect, transactions, timeout_s)
        self.reading = Connections(connect, readers, timeout_s)
        self.lock = WriterLock(connect)
        self._made = False
        self._making = Attempt()

    async def make_tables(self, through: Connections | None = None) -> None:
        """Make the tables, or take them up, where that was not done: on one of these connections, or on one to read.

        Raises:
            ConfigError: They were made by a later version of chatx.
            LogUnavailable: The database cannot be used now.
        """
        if not self._made:
            await self._making.make(lambda: self._made, lambda: self._make(through or self.reading))

    async def _make(self, through: Connections) -> None:
        async with through.one() as db:
            await make_tables(db)
        self._made = True

    async def close(self) -> None:
        """Close the connections; those in use when their calls have ended."""
        await self.lock.let_go()
        await self.appending.close()
        await self.reading.close()


async def _append(db: Connection, appends: Sequence[Append]) -> list[Answer]:
    """Append to each room what does not need to be looked at in one statement, and then the rest."""
    answers: list[Answer] = [misplaced(each) for each in appends]
    left = [n for n, answer in enumerate(answers) if answer is None]
    first: dict[str, int] = {}
    for n in left:
        first.setdefault(appends[n].room_id, n)
    together = list(first.values())
    done: set[int] = set()
    try:
        rows = await db.fetch(sql.APPEND, *_columns([appends[n] for n in together]))
        done = {together[n - 1] for (n,) in rows}
    except Exception as error:
        # One of the rooms has what cannot be kept: the others do not wait for it.
        if not is_about_what_was_given(error):
            raise
    left = [n for n in left if n not in done]
    if not left:
        return answers
    try:
        answered = await _one_by_one(db, [appends[n] for n in left])
    except Exception as error:
        if done and not db.is_closed():
            raise _Partly("PostgreSQL took a part of what it was given, and then failed.") from error
        raise
    for n, answer in zip(left, answered, strict=True):
        answers[n] = answer
    return answers


async def _one_by_one(db: Connection, appends: Sequence[Append]) -> list[Answer]:
    """Append in one transaction, room by room; one that cannot be kept takes no other along."""
    answers: list[Answer] = [None] * len(appends)
    # The locks of the rows are taken in the order in which every append takes them.
    order = sorted(range(len(appends)), key=lambda n: (appends[n].room_id.encode(errors="replace"), n))
    async with db.transaction():
        for n in order:
            try:
                async with db.transaction():
                    answers[n] = await _appended(db, appends[n])
            except Exception as error:
                if not is_about_what_was_given(error):
                    raise
                answers[n] = f"{type(error).__name__}: {error}"
    return answers


async def _appended(db: Connection, append: Append) -> Answer:
    row = await db.fetchrow(sql.LOCK_ROOM, append.room_id)
    if row is None or row["term"] != append.term:
        return FENCED
    after, records = append.after, append.records
    if row["epoch"] == after.epoch and after.offset < row["head"]:
        # Some of it is there already, if it is the same.
        there = records[: row["head"] - after.offset]
        last = after.offset + len(there)
        ids = dict(await db.fetch(sql.IDS, append.room_id, after.epoch, after.offset, last))
        if any(ids.get(each.entry.offset) != each.entry.id for each in there):
            return FENCED
        after, records = Position(after.epoch, last), records[len(there) :]
        if not records:
            return None
    rest = Append(append.room_id, append.term, after, records, append.durable, append.proven)
    return None if await db.fetch(sql.APPEND, *_columns([rest])) else FENCED


def _columns(appends: Sequence[Append]) -> tuple[Any, ...]:
    """Return appends as the columns that `APPEND` takes."""
    numbered = [(n, each.records, set[tuple[str, str]]()) for n, each in enumerate(appends, 1)]
    rows = [_row(n, record, keys) for n, records, keys in numbered for record in records]
    return (
        [each.room_id for each in appends],
        [each.term for each in appends],
        [each.after.epoch for each in appends],
        [each.after.offset for each in appends],
        [each.after.offset + len(each.records) for each in appends],
        [each.proven for each in appends],
        *(list(column) for column in zip(*rows, strict=True)),
        _keys_since(),
        *columns_of([(n, record) for n, records, _ in numbered for record in records]),
    )


def _row(n: int, record: Record, keys: set[tuple[str, str]]) -> tuple[Any, ...]:
    entry, key = record.entry, record.key
    if key is not None:
        named = (entry.user_id, key)
        key = None if named in keys else key  # the first entry of a key is its answer
        keys.add(named)
    return n, entry.offset, key, *row_of(entry)


def _entry(room_id: str, row: Any) -> Entry:
    """Return the entry in a row that begins as `ENTRY` has it."""
    epoch, offset = row[8:10]
    return entry_of(room_id, epoch, offset, row[:8])


def _keys_since() -> int:
    """Return since when keys are kept, in ms since the Unix epoch."""
    return time.time_ns() // 1_000_000 - KEYS_KEPT_MS
