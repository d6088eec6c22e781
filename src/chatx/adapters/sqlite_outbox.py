"""The outbox in a SQLite file: each function is what one call does within a transaction that somebody else began.

Rules:
1. A row is written in the transaction of its entry, and names its place: what it says is read from there.
2. A row is dead where it has a reason. Else it may be claimed when it is due: a claim sets that to its lease's end.
3. What a claimer settles is written only where the row still has its name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from chatx.adapters.entry_rows import entry_of
from chatx.adapters.outbox import FARTHEST_MS, Claimed, Notification, NotificationState, Outcome
from chatx.adapters.outbox_rows import notification_of, text_of
from chatx.adapters.room_log import Record

_LATEST = 2**63 - 1

_STATES = {
    None: "1",
    "waiting": "reason IS NULL AND claimer IS NULL",
    "claimed": "reason IS NULL AND claimer IS NOT NULL",
    "dead": "reason IS NOT NULL",
}


def keep(db: sqlite3.Connection, placed: Sequence[tuple[int, Record]]) -> None:
    """Write a row for each entry, given with its rank, of which somebody is to be told."""
    rows = [
        (each.entry.id, each.entry.room_id, rank, each.entry.offset, text_of(each.notify.users), each.notify.due_at)
        for rank, each in placed
        if each.notify is not None
    ]
    if rows:
        db.executemany(
            'INSERT INTO chatx_outbox (id, room_id, rank, "offset", users, due_at) VALUES (?, ?, ?, ?, ?, ?)', rows
        )


def is_due(db: sqlite3.Connection, now_ms: int) -> bool:
    """Return whether a row may be claimed; for those who only read."""
    return any(_due(db, low, high, 1) for low, high in _spans(now_ms))


def claim(db: sqlite3.Connection, claimer: str, limit: int, now_ms: int, until_ms: int) -> list[Claimed]:
    """Claim until `until_ms` rows that are due, at most `limit`, those first that have been due longest."""
    ids: list[str] = []
    for low, high in _spans(now_ms):
        if len(ids) < limit:
            ids += _due(db, low, high, limit - len(ids))
    db.executemany(
        "UPDATE chatx_outbox SET claimer = ?, due_at = ? WHERE id = ?", [(claimer, until_ms, each) for each in ids]
    )
    return [_claimed(db, each) for each in ids]


def settle(db: sqlite3.Connection, claimer: str, outcomes: Sequence[Outcome]) -> None:
    """Write down what became of rows; those that are not this claimer's any more stay as they are."""
    done = [(each.id, claimer) for each in outcomes if each.state == "done"]
    db.executemany("DELETE FROM chatx_outbox WHERE id = ? AND claimer = ?", done)
    db.executemany(
        """UPDATE chatx_outbox SET users = ?, attempts = ?, due_at = ?, reason = ?, claimer = ?
        WHERE id = ? AND claimer = ?""",
        [
            (
                text_of(each.users),
                each.attempts,
                each.due_at,
                each.reason,
                claimer if each.state == "claimed" else None,
                each.id,
                claimer,
            )
            for each in outcomes
            if each.state != "done"
        ],
    )


def listed(
    db: sqlite3.Connection, state: NotificationState | None, after: str | None, limit: int
) -> list[Notification]:
    """Return rows of one state, or of all, in the order of their ids."""
    rows = db.execute(
        f"""SELECT id, room_id, users, attempts, due_at, reason, claimer FROM chatx_outbox
        WHERE id > ? AND {_STATES[state]} ORDER BY id LIMIT ?""",  # noqa: S608  # put together from constants
        (after or "", limit),
    ).fetchall()
    return [notification_of(row) for row in rows]


def retry(db: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Let dead rows be tried again; return how many there were."""
    return db.executemany(
        "UPDATE chatx_outbox SET reason = NULL, attempts = 0, due_at = 0 WHERE id = ? AND reason IS NOT NULL",
        [(each,) for each in ids],
    ).rowcount


def drop(db: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Take rows out; return how many there were."""
    return db.executemany("DELETE FROM chatx_outbox WHERE id = ?", [(each,) for each in ids]).rowcount


def count(db: sqlite3.Connection) -> tuple[int, int]:
    """Return how many rows are not dead, and how many are; each by the index of what it counts."""
    alive, dead = db.execute(
        """SELECT (SELECT count(*) FROM chatx_outbox WHERE reason IS NULL),
        (SELECT count(*) FROM chatx_outbox WHERE reason IS NOT NULL)"""
    ).fetchone()
    return alive, dead


def _spans(now_ms: int) -> tuple[tuple[int, int], ...]:
    """Return between which times a row is due, the first of each left out."""
    return (-1, now_ms), (now_ms + FARTHEST_MS, _LATEST)


def _due(db: sqlite3.Connection, low: int, high: int, limit: int) -> list[str]:
    rows = db.execute(
        """SELECT id FROM chatx_outbox WHERE reason IS NULL AND due_at > ? AND due_at <= ?
        ORDER BY due_at, number LIMIT ?""",
        (low, high, limit),
    ).fetchall()
    return [each for (each,) in rows]


def _claimed(db: sqlite3.Connection, id_: str) -> Claimed:
    row = db.execute(
        """SELECT o.id, o.room_id, o.users, o.attempts, o.due_at, o.reason, o.claimer, s.epoch, e."offset",
            e.id, e.user_id, e.content, e.inserted_at, e.kind, e.target, e.data, e.stored
        FROM chatx_outbox AS o
        LEFT JOIN chatx_entries AS e USING (room_id, rank, "offset") LEFT JOIN chatx_streams AS s USING (room_id, rank)
        WHERE o.id = ?""",
        (id_,),
    ).fetchone()
    notification, (epoch, offset), fields = notification_of(row[:7]), row[7:9], row[9:]
    return Claimed(notification, None if offset is None else entry_of(notification.room_id, epoch, offset, fields))
