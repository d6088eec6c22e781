"""The reference: the rows of the same messages, written by hand in batches of what is waiting, and nothing else.

One transaction at a time takes all that waits, whatever room it is of, and who waited is told when it has committed.
Nothing is checked, placed, kept or fanned out; the tables are those that the log makes.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.fanout import CONTENT
from benchmarks.log.senders import Figures, run
from benchmarks.log.stores import log_at

Row = tuple[Any, ...]

_COLUMNS = 'room_id, rank, "offset", id, user_id, content, inserted_at, kind, stored'


class Rows:
    """Writes what is waiting, one transaction after the other.

    Args:
        write: Commits a batch of rows.
    """

    def __init__(self, write: Callable[[list[Row]], Awaitable[object]]) -> None:
        self._write = write
        self._waiting: list[tuple[Row, asyncio.Future[None]]] = []
        self._wanted = asyncio.Event()
        self._heads: dict[str, int] = {}

    async def send(self, room_id: str, user_id: str) -> None:
        """Return when a message of this user in this room is committed."""
        offset = self._heads[room_id] = self._heads.get(room_id, 0) + 1
        now_ms = time.time_ns() // 1_000_000
        row = (room_id, 1, offset, f"{now_ms:012x}-{offset:020x}", user_id, CONTENT, now_ms, "message", True)
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, committed))
        self._wanted.set()
        await committed

    async def work(self) -> None:
        """Write for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch, self._waiting = self._waiting, []
            await self._write([row for row, _ in batch])
            for _, committed in batch:
                committed.set_result(None)


async def measure(url: str, senders: int, rooms: int, seconds: float) -> Figures:
    """Return the figures of one cell, and the median time of a commit."""
    commits_s: list[float] = []
    if url.startswith("postgresql"):
        found = await _postgres(url, senders, rooms, seconds, commits_s)
    else:
        found = await _sqlite(url, senders, rooms, seconds, commits_s)
    return {**found, "commit_ms": statistics.median(commits_s) * 1000}


async def _sqlite(url: str, senders: int, rooms: int, seconds: float, commits_s: list[float]) -> Figures:
    log_at(url).close()  # makes the tables
    db = sqlite3.connect(url, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    insert = f"INSERT INTO chatx_entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

    def write(rows: list[Row]) -> None:
        began = time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        db.executemany(insert, rows)
        db.execute("COMMIT")
        commits_s.append(time.perf_counter() - began)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        return await _run(lambda rows: loop.run_in_executor(thread, write, rows), senders, rooms, seconds)


async def _postgres(url: str, senders: int, rooms: int, seconds: float, commits_s: list[float]) -> Figures:
    import asyncpg  # type: ignore[import-untyped,unused-ignore]

    log = log_at(url)
    await log.take_over("room-0")  # makes the tables
    await log.close()
    db = await asyncpg.connect(url)
    insert = await db.prepare(
        f"""INSERT INTO chatx_entries ({_COLUMNS}) SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[],
        $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::boolean[])"""
    )

    async def write(rows: list[Row]) -> None:
        began = time.perf_counter()
        await insert.fetch(*(list(column) for column in zip(*rows, strict=True)))
        commits_s.append(time.perf_counter() - began)

    try:
        return await _run(write, senders, rooms, seconds)
    finally:
        await db.close()


async def _run(write: Callable[[list[Row]], Awaitable[object]], senders: int, rooms: int, seconds: float) -> Figures:
    rows = Rows(write)
    worker = asyncio.create_task(rows.work())
    try:
        return await run(rows.send, senders, rooms, seconds)
    finally:
        worker.cancel()
