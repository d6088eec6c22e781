"""Retention in PostgreSQL: the statements, and the calls of a log that keeps within it.

Rules:
1. What goes is looked for first, without a lock; then it goes in one statement, up to a place of each room. Nothing is
   ever written below a head, so what was found stays true.
2. No row of a room is locked, so no append waits.
3. An epoch of which nothing is left stays known: what is before it would else be everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from chatx.adapters.retention import Retention

_ROOMS = "SELECT room_id FROM chatx_rooms WHERE room_id > $1 AND epoch IS NOT NULL ORDER BY room_id LIMIT $2"

# Of most rooms nothing goes, which their first entry tells.
_FIRSTS = """
SELECT r.room_id, r.rank, r.head, e.rank AS first_rank, e."offset", e.inserted_at
FROM unnest($1::text[]) WITH ORDINALITY AS wanted (room_id, n) JOIN chatx_rooms AS r USING (room_id)
CROSS JOIN LATERAL (
    SELECT rank, "offset", inserted_at FROM chatx_entries AS f WHERE f.room_id = r.room_id
    ORDER BY rank, "offset" LIMIT 1
) AS e
ORDER BY wanted.n
"""

_SPANS = """
SELECT s.rank,
    (SELECT min(f."offset") FROM chatx_entries AS f WHERE f.room_id = s.room_id AND f.rank = s.rank) AS first,
    (SELECT max(l."offset") FROM chatx_entries AS l WHERE l.room_id = s.room_id AND l.rank = s.rank) AS last
FROM chatx_streams AS s WHERE s.room_id = $1 AND s.rank >= $2 ORDER BY s.rank DESC
"""

_OLDEST = """
SELECT e.rank, e."offset", e.inserted_at, e.key IS NOT NULL AS keyed,
    EXISTS (SELECT FROM chatx_outbox AS o WHERE o.id = e.id AND o.reason IS NULL) AS to_be_told
FROM chatx_entries AS e WHERE e.room_id = $1 ORDER BY e.rank, e."offset" LIMIT $2
"""

_CUT = """
DELETE FROM chatx_entries AS e USING unnest($1::text[], $2::bigint[], $3::bigint[]) AS cut (room_id, rank, "offset")
WHERE e.room_id = cut.room_id AND (e.rank, e."offset") <= (cut.rank, cut."offset")
"""


class PostgresRetention:
    """What a log in PostgreSQL has for retention."""

    async def _asked(self, ask: Callable[[Any], Awaitable[Any]], *, writes: bool = False, appends: bool = False) -> Any:
        """Ask on a connection; the log's own."""
        raise NotImplementedError

    async def list_rooms(self, after: str, limit: int, /) -> Sequence[str]:
        """Return the ids of rooms that have entries, or had, in order and behind one, at most `limit`."""
        rows = await self._asked(lambda db: db.fetch(_ROOMS, after, limit))
        return [room_id for (room_id,) in rows]

    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        """Let go of the oldest entries of rooms, at most `limit` over all of them, and return how many went.

        The table does not become smaller: what is free is used again when VACUUM has seen it, as autovacuum does.
        """

        async def ask(db: Any) -> int:
            cuts: list[tuple[str, int, int]] = []
            left = limit
            for first in await db.fetch(_FIRSTS, list(room_ids)):
                if left <= 0:
                    break
                gone, place = await _find_cut(db, first, retention, left)
                if place is not None:
                    cuts.append((first["room_id"], *place))
                    left -= gone
            if not cuts:
                return 0
            status = await db.execute(_CUT, *(list(column) for column in zip(*cuts, strict=True)))
            return int(status.rpartition(" ")[2])

        gone: int = await self._asked(ask, writes=True)
        return gone


async def _find_cut(db: Any, first: Any, retention: Retention, limit: int) -> tuple[int, tuple[int, int] | None]:
    """Return how many of a room's entries go, and the place of the last of them."""
    room_id, newest = first["room_id"], first["rank"]
    behind = {newest: first["head"]}  # by rank: what an offset is taken from to have the number of newer places
    if first["first_rank"] != newest:
        behind = await _behind(db, room_id, first["first_rank"], newest, first["head"])
    newer = behind[first["first_rank"]] - first["offset"]
    if not retention.lets_go(first["inserted_at"], newer, keyed=False):
        return 0, None
    count, place = 0, None
    for rank, offset, inserted_at, keyed, to_be_told in await db.fetch(_OLDEST, room_id, limit):
        if rank not in behind or to_be_told:
            break
        if not retention.lets_go(inserted_at, behind[rank] - offset, keyed=keyed):
            break
        count, place = count + 1, (rank, offset)
    return count, place


async def _behind(db: Any, room_id: str, oldest: int, newest: int, head: int) -> dict[int, int]:
    behind: dict[int, int] = {}
    later = 0
    for rank, first, last in await db.fetch(_SPANS, room_id, oldest):
        if rank > newest:
            continue  # it has begun since
        end = head if rank == newest else last or 0
        behind[rank] = later + end
        later += 0 if first is None else end - first + 1
    return behind
