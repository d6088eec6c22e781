"""Which version the tables of a store have, and taking them up to this one's; for who operates it.

Rules:
1. To look changes nothing, and makes no file: one beside the database would be the operator's, and the chat may be
   another user.
2. Tables are taken up as they are when a chat opens its store: all steps in one transaction, under the lock of the one
   who writes.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from chatx.adapters import sqlite_schema
from chatx.adapters.room_log import LogUnavailable
from chatx.adapters.sqlite import SQLitePersistence
from chatx.adapters.sqlite_file import MAKE_ROOM, is_full, way_out
from chatx.adapters.stores import IN_MEMORY, POSTGRES_MS, check_store, kind_of, path_of, shown
from chatx.errors import ConfigError

BUSY_S = 3.0
"""How long a look waits for a file that somebody else has locked, in s."""

State: TypeAlias = Literal["none", "older", "current", "newer"]
"""What the tables of a store are to this chatx; `none` where there are none."""


class Versions(Struct, frozen=True):
    """The versions of a store's tables.

    Attributes:
        found: What the store has; 0 where it has no tables.
        written: What this chatx reads and writes.
    """

    found: int
    written: int

    @property
    def state(self) -> State:
        """What the tables of the store are to this chatx."""
        if self.found == self.written:
            return "current"
        return "none" if not self.found else "older" if self.found < self.written else "newer"


def versions_of(url: str) -> Versions:
    """Return the versions of a store's tables; it blocks, and begins an event loop for PostgreSQL.

    Raises:
        ConfigError: There is no such store, or it cannot be looked at.
        LogUnavailable: It cannot be used now.
    """
    check_store(url)
    if kind_of(url) == "postgres":
        from chatx.adapters import postgres_schema

        return Versions(asyncio.run(_found_in_postgres(url)), postgres_schema.SCHEMA_VERSION)
    return Versions(_found_in_sqlite(url), sqlite_schema.SCHEMA_VERSION)


def upgrade(url: str) -> Versions:
    """Take the tables up to this chatx's, or make them; return what was found before. It blocks.

    Raises:
        ConfigError: As `versions_of`; or they were made by a later version.
        StoreInUse: A chat of an earlier version writes to a file of SQLite.
        LogUnavailable: It cannot be used now, or such a chat writes to PostgreSQL.
    """
    before = versions_of(url)
    if before.state != "current":
        if kind_of(url) == "sqlite":
            with closing(SQLitePersistence(path_of(url))):
                pass
        else:
            asyncio.run(_taken_up_in_postgres(url))
    return before


def _found_in_sqlite(url: str) -> int:
    if path_of(url) == IN_MEMORY:
        raise ConfigError("A store in memory ends with its chat, and is always of this version; name another.")
    path = Path(path_of(url)).absolute()
    try:
        if not path.exists() and path.parent.is_dir():
            return 0
        # To read a database with a write-ahead log makes the two files of that log, where they are not there.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=BUSY_S)) as db:
            return sqlite_schema.version_of(db)
    except (OSError, sqlite3.Error) as error:
        if is_full(error):
            raise LogUnavailable(f"The file cannot be read now: {error}; {MAKE_ROOM}.") from error
        todo = way_out(path, "give a database of SQLite")
        raise ConfigError(f"The store {shown(url)} cannot be read: {error}; {todo}.") from error


async def _found_in_postgres(url: str) -> int:
    from chatx.adapters import postgres_schema
    from chatx.adapters.postgres_connections import Connections, connected

    timeout_s = POSTGRES_MS / 1000
    connections = Connections(lambda: connected(url, timeout_s), 1, timeout_s)
    try:
        async with connections.one() as db:
            if not await db.fetchval(postgres_schema.IS_MADE):
                return 0
            version: int = await db.fetchval(postgres_schema.VERSION)
            return version
    finally:
        await connections.close()


async def _taken_up_in_postgres(url: str) -> None:
    from chatx.adapters.postgres_log import PostgresLog

    log = PostgresLog(url)
    try:
        await log.make_tables()
    finally:
        await log.close()
