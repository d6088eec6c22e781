"""Pages of history of a short room and of a long one, in turn, at places drawn at random. One process, one figure.

python -m benchmarks.log.pages STORE SHORT LONG PAGES
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import statistics
import sys
import time

from benchmarks.fanout import CONTENT
from benchmarks.log.stores import closed, log_at
from chatx import Chat, Message
from chatx.adapters.room_log import Append, Record
from chatx.core.message import Position

LIMIT = 50
"""Messages in a page: the default of `chat.history`."""

_COPY = """INSERT INTO chatx_entries (room_id, rank, "offset", id, user_id, content, inserted_at, kind, stored)
SELECT e.room_id, e.rank, n, {id}, e.user_id, e.content, e.inserted_at + n, e.kind, e.stored
FROM chatx_entries AS e, {series} WHERE e.room_id = '{room_id}' AND e."offset" = 1"""

_HEAD = "UPDATE chatx_rooms SET head = {length} WHERE room_id = '{room_id}'"


async def _first(log: object, room_id: str) -> None:
    """Put a room's first message into the log."""
    opening = log.take_over(room_id)  # type: ignore[attr-defined]
    opened = await opening if asyncio.iscoroutine(opening) else opening
    message = Message(f"{room_id}-1", room_id, "user-0001", CONTENT, 1_700_000_000_000, "epoch", 1, False, True)
    append = Append(room_id, opened.term, Position("epoch", 0), (Record(message),), True)
    appending = log.append([append])  # type: ignore[attr-defined]
    answers = await appending if asyncio.iscoroutine(appending) else appending
    if answers != [None]:
        sys.exit(f"benchmarks: the log answered {answers!r} to a room's first message.")


async def _copy(url: str, room_id: str, length: int) -> None:
    """Copy a room's first message until the room has this length."""
    head = _HEAD.format(length=length, room_id=room_id)
    if url.startswith("postgresql:"):
        import asyncpg  # type: ignore[import-untyped,unused-ignore]

        series = f"generate_series(2, {length}) AS n"
        db = await asyncpg.connect(url)
        await db.execute(_COPY.format(id=f"'{room_id}-' || n", series=series, room_id=room_id))
        await db.execute(head)
        await db.execute("VACUUM ANALYZE chatx_entries")
        await db.close()
        return
    numbers = f"(WITH RECURSIVE s (n) AS (VALUES (2) UNION ALL SELECT n + 1 FROM s WHERE n < {length}) SELECT n FROM s)"
    connection = sqlite3.connect(url)
    connection.execute(_COPY.format(id=f"'{room_id}-' || n", series=numbers, room_id=room_id))
    connection.execute(head)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


async def measure(url: str, lengths: tuple[int, int], pages: int) -> dict[str, float]:
    """Return the quantiles of both rooms."""
    log = log_at(url)
    rooms = {"short": lengths[0], "long": lengths[1]}
    for room_id, length in rooms.items():
        await _first(log, room_id)
        await _copy(url, room_id, length)
    drawn = random.Random(1)
    waited: dict[str, list[float]] = {room_id: [] for room_id in rooms}
    async with Chat(persistence=log, durability="stored") as chat:
        for number in range(-100, pages):
            for room_id, length in rooms.items():
                place = ("epoch", drawn.randint(LIMIT + 1, length))
                began = time.perf_counter()
                page = await chat.history(room_id, before=place, limit=LIMIT)
                if number >= 0:
                    waited[room_id].append(time.perf_counter() - began)
                if [each.offset for each in page] != list(range(place[1] - LIMIT, place[1])):
                    sys.exit(f"benchmarks: the page ahead of {place} is not the one that belongs there.")
    await closed(log)
    found = {}
    for room_id, times in waited.items():
        cuts = statistics.quantiles(times, n=100)
        found.update({f"{room_id} p50_ms": cuts[49] * 1000, f"{room_id} p99_ms": cuts[98] * 1000})
    return found


def main() -> None:
    """Measure and print JSON."""
    url, short, long, pages = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(url, (int(short), int(long)), int(pages)))))


if __name__ == "__main__":
    main()
