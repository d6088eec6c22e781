"""The stores that are measured: a file for SQLite, and a PostgreSQL of the measurement's own."""

from __future__ import annotations

from typing import Any

from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.sqlite import SQLitePersistence


def log_at(url: str) -> Any:
    """Return the log at `memory`, at a PostgreSQL's URL, or in the file of this path."""
    if url == "memory":
        return MemoryLog()
    if url.startswith("postgresql:"):
        from chatx.adapters.postgres_log import PostgresLog

        return PostgresLog(url)
    return SQLitePersistence(url)


async def closed(log: Any) -> None:
    """Close a log that is to be closed."""
    closing = log.close() if hasattr(log, "close") else None
    if closing is not None:
        await closing
