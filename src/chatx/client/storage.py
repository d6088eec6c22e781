"""What keeps the sends of a client across restarts of its program: a protocol, and a file of SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, json

_SCHEMA = """
create table if not exists outbox (
    place integer primary key,
    room text not null,
    key text not null,
    send blob not null,
    unique (room, key)
)
"""


class StoredSend(Struct, frozen=True):
    """A send that has no outcome yet.

    Attributes:
        room: The room's id.
        key: Its idempotency key.
        content: What it says.
        data: The JSON object that travels with it, or None.
        created_ms: When it was taken, in ms since the Unix epoch.
        doubtful_ms: When it was written first without an answer, likewise, or None where it surely was not published.
        epoch: The room's epoch at that time.
    """

    room: str
    key: str
    content: str
    data: dict[str, Any] | None
    created_ms: int
    doubtful_ms: int | None = None
    epoch: str | None = None


class OutboxStorage(Protocol):
    """Keeps sends. One client at a time has it, which calls one method at a time."""

    async def load(self) -> list[StoredSend]:
        """Return what is kept, in the order in which each was put first."""
        ...

    async def put(self, send: StoredSend) -> None:
        """Keep a send, in the place of the one with its room and key. It is on the disk when this returns."""
        ...

    async def remove(self, room: str, key: str) -> None:
        """Let go of a send; one that is not there is no error."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
        ...


class SQLiteOutbox:
    """Keeps sends in a file of SQLite, for one client of one user at a time.

    Idempotency keys belong to a user, so the file does too.
    """

    def __init__(self, path: str | Path) -> None:
        """Build it; the file is opened, or made, when a client is entered.

        Args:
            path: Of the file. Its folder exists.
        """
        self._path = Path(path)
        self._database: sqlite3.Connection | None = None

    async def load(self) -> list[StoredSend]:
        """Open the file, and return what is kept.

        Raises:
            sqlite3.Error: The file cannot be opened, is no database, or another client has it.
        """
        return await asyncio.to_thread(self._open)

    async def put(self, send: StoredSend) -> None:
        """Keep a send, in the place of the one with its room and key."""
        await self._do(
            "insert into outbox (room, key, send) values (?, ?, ?) "
            "on conflict (room, key) do update set send = excluded.send",
            (send.room, send.key, json.encode(send)),
        )

    async def remove(self, room: str, key: str) -> None:
        """Let go of a send."""
        await self._do("delete from outbox where room = ? and key = ?", (room, key))

    async def close(self) -> None:
        """Close the file."""
        database, self._database = self._database, None
        if database is not None:
            await asyncio.to_thread(database.close)

    def _open(self) -> list[StoredSend]:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            # Held until the file is closed, so that no other program sends the same.
            database.execute("pragma locking_mode = exclusive")
            database.execute("pragma synchronous = full")
            database.execute("begin exclusive")
            database.execute(_SCHEMA)
            database.execute("commit")
            rows = database.execute("select send from outbox order by place").fetchall()
        except sqlite3.OperationalError as error:
            database.close()
            raise sqlite3.OperationalError(
                f"{self._path}: {error}; an outbox is a file of its own, and one client at a time has it."
            ) from error
        except BaseException:
            database.close()
            raise
        self._database = database
        return [json.decode(send, type=StoredSend) for (send,) in rows]

    async def _do(self, statement: str, values: tuple[object, ...]) -> None:
        database = self._database
        if database is None:
            raise sqlite3.ProgrammingError("The outbox is not open; give it to a client, and enter that.")
        await asyncio.to_thread(_execute, database, statement, values)


def _execute(database: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    database.execute(statement, values)
