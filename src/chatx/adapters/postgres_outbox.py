"""The outbox of a log in PostgreSQL: its table, its statements, its calls.

Rules:
1. A row is written by the statement that appends its entry, and names its place: what it says is read from there.
2. A row is dead where it has a reason. Else it may be claimed when it is due: a claim sets that to its lease's end.
   Claims pass over the rows that another one has locked, so they wait for nobody.
3. What a claimer settles is written only where the row still has its name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from chatx.adapters.entry_rows import entry_of
from chatx.adapters.outbox import FARTHEST_MS, Claimed, Notification, NotificationState, Outcome
from chatx.adapters.outbox_rows import notification_of, text_of
from chatx.adapters.room_log import Record

TABLE = """
CREATE TABLE chatx_outbox (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    room_id text COLLATE "C" NOT NULL,
    rank bigint NOT NULL,
    "offset" bigint NOT NULL,
    users text,
    attempts integer NOT NULL DEFAULT 0,
    due_at bigint NOT NULL,
    claimer text,
    reason text
);
CREATE INDEX chatx_outbox_due ON chatx_outbox (due_at, number) WHERE reason IS NULL;
CREATE INDEX chatx_outbox_dead ON chatx_outbox (id) WHERE reason IS NOT NULL;
"""

_LATEST = 2**63 - 1

_ROW = "o.id, o.room_id, o.users, o.attempts, o.due_at, o.reason, o.claimer"

# Put together from constants, as those below are.
_CLAIM = f"""
WITH due AS MATERIALIZED (
    SELECT number, due_at AS since FROM chatx_outbox WHERE reason IS NULL AND due_at > $4 AND due_at <= $5
    ORDER BY due_at, number LIMIT $2 FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE chatx_outbox AS o SET claimer = $1, due_at = $3 FROM due WHERE o.number = due.number
    RETURNING {_ROW}, o.rank, o."offset", o.number, due.since
)
SELECT o.id, o.room_id, o.users, o.attempts, o.due_at, o.reason, o.claimer, s.epoch, e."offset",
    e.id, e.user_id, e.content, e.inserted_at, e.kind, e.target, e.data, e.stored
FROM claimed AS o
LEFT JOIN chatx_entries AS e USING (room_id, rank, "offset") LEFT JOIN chatx_streams AS s USING (room_id, rank)
ORDER BY o.since, o.number
"""  # noqa: S608

_DONE = "DELETE FROM chatx_outbox WHERE claimer = $1 AND id = ANY ($2::text[])"

_KEPT = """
UPDATE chatx_outbox AS o SET users = n.users, attempts = n.attempts, due_at = n.due_at, reason = n.reason,
    claimer = CASE WHEN n.held THEN o.claimer END
FROM unnest($2::text[], $3::text[], $4::integer[], $5::bigint[], $6::text[], $7::boolean[])
    AS n (id, users, attempts, due_at, reason, held)
WHERE o.id = n.id AND o.claimer = $1
"""

_LISTED = {
    state: f"SELECT {_ROW} FROM chatx_outbox AS o WHERE o.id > $1 AND {where} ORDER BY o.id LIMIT $2"  # noqa: S608
    for state, where in {
        None: "true",
        "waiting": "o.reason IS NULL AND o.claimer IS NULL",
        "claimed": "o.reason IS NULL AND o.claimer IS NOT NULL",
        "dead": "o.reason IS NOT NULL",
    }.items()
}

_RETRY = """
UPDATE chatx_outbox SET reason = NULL, attempts = 0, due_at = 0 WHERE id = ANY ($1::text[]) AND reason IS NOT NULL
"""

# Each by the index of what it counts.
_COUNT = """
SELECT (SELECT count(*) FROM chatx_outbox WHERE reason IS NULL),
    (SELECT count(*) FROM chatx_outbox WHERE reason IS NOT NULL)
"""

_DROP = "DELETE FROM chatx_outbox WHERE id = ANY ($1::text[])"


def columns_of(numbered: Sequence[tuple[int, Record]]) -> tuple[list[Any], ...]:
    """Return (n, offset, id, users, due_at) as columns, of those records of which somebody is to be told."""
    rows = [
        (n, each.entry.offset, each.entry.id, text_of(each.notify.users), each.notify.due_at)
        for n, each in numbered
        if each.notify is not None
    ]
    return tuple([row[column] for row in rows] for column in range(5))


class PostgresOutbox:
    """What a log in PostgreSQL can do with its outbox."""

    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        """Claim until `until_ms` rows that are due, at most `limit`, those first that have been due longest."""

        async def claim(db: Any) -> list[Any]:
            rows: list[Any] = await db.fetch(_CLAIM, claimer, limit, until_ms, -1, now_ms)
            if len(rows) < limit:
                rows += await db.fetch(_CLAIM, claimer, limit - len(rows), until_ms, now_ms + FARTHEST_MS, _LATEST)
            return rows

        return [_claimed(tuple(row)) for row in await self._asked(claim)]

    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        """Write down what became of rows; those that are not this claimer's any more stay as they are."""
        done = [each.id for each in outcomes if each.state == "done"]
        kept = [each for each in outcomes if each.state != "done"]

        async def settle(db: Any) -> None:
            if done:
                await db.execute(_DONE, claimer, done)
            if kept:
                await db.execute(
                    _KEPT,
                    claimer,
                    [each.id for each in kept],
                    [text_of(each.users) for each in kept],
                    [each.attempts for each in kept],
                    [each.due_at for each in kept],
                    [each.reason for each in kept],
                    [each.state == "claimed" for each in kept],
                )

        await self._asked(settle)

    async def list_notifications(
        self, state: NotificationState | None, after: str | None, limit: int, /
    ) -> list[Notification]:
        """Return rows of one state, or of all, in the order of their ids and behind one, at most `limit`."""
        rows = await self._asked(lambda db: db.fetch(_LISTED[state], after or "", limit))
        return [notification_of(tuple(row)) for row in rows]

    async def retry_notifications(self, ids: Sequence[str], /) -> int:
        """Let dead rows be tried again, as if for the first time; return how many of these were dead."""
        return _count(await self._asked(lambda db: db.execute(_RETRY, list(ids))))

    async def drop_notifications(self, ids: Sequence[str], /) -> int:
        """Take rows out, whatever their state; return how many there were."""
        return _count(await self._asked(lambda db: db.execute(_DROP, list(ids))))

    async def count_notifications(self) -> tuple[int, int]:
        """Return how many rows are not dead, and how many are."""
        alive, dead = await self._asked(lambda db: db.fetchrow(_COUNT))
        return alive, dead

    async def _asked(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """Ask on a connection, perhaps twice."""
        raise NotImplementedError


def _claimed(row: tuple[Any, ...]) -> Claimed:
    notification, (epoch, offset), fields = notification_of(row[:7]), row[7:9], row[9:]
    return Claimed(notification, None if offset is None else entry_of(notification.room_id, epoch, offset, fields))


def _count(status: str) -> int:
    """Return how many rows a statement has changed, as its status says: `UPDATE 3`."""
    return int(status.rpartition(" ")[2])
