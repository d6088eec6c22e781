"""The tables of a log in PostgreSQL, and the statements that use them.

Rules:
1. A room has one row, and whoever appends to it or takes it over locks that row first, in the order of the rooms' ids:
   so two appends of many rooms never wait for each other, and an append and a new term come one after the other.
2. An append of many rooms is one statement, which is one transaction and one round trip. A room of which the row does
   not say what its owner thinks is left out of it; the others are written.
3. Every text that is compared is collated as "C": its order is that of its bytes, whatever the database was made with.
4. Epochs of a room have ranks, in the order in which they began, since their names have no order.
5. Tables are made by the same steps by which older ones are taken up; all that are lacking are one transaction.
"""

from __future__ import annotations

from chatx.adapters import postgres_outbox
from chatx.adapters.room_log import KEYS_AT_ONCE

_LOG = """
CREATE TABLE chatx_rooms (
    room_id text COLLATE "C" PRIMARY KEY,
    term bigint NOT NULL,
    rank bigint NOT NULL DEFAULT 0,
    epoch text COLLATE "C",
    head bigint NOT NULL DEFAULT 0,
    oldest bigint NOT NULL DEFAULT 1,
    proven boolean NOT NULL DEFAULT true
) WITH (fillfactor = 50);
CREATE TABLE chatx_streams (
    room_id text COLLATE "C" NOT NULL,
    rank bigint NOT NULL,
    epoch text COLLATE "C" NOT NULL,
    PRIMARY KEY (room_id, rank),
    UNIQUE (room_id, epoch)
);
CREATE TABLE chatx_entries (
    room_id text COLLATE "C" NOT NULL,
    rank bigint NOT NULL,
    "offset" bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    content text NOT NULL,
    target text,
    data text,
    key text COLLATE "C",
    stored boolean NOT NULL,
    inserted_at bigint NOT NULL,
    PRIMARY KEY (room_id, rank, "offset")
);
CREATE INDEX chatx_entries_by_key ON chatx_entries (room_id, user_id, key) WHERE key IS NOT NULL;
CREATE INDEX chatx_entries_with_key ON chatx_entries (room_id, rank, "offset") WHERE key IS NOT NULL;
CREATE TABLE chatx_schema (version integer NOT NULL);
INSERT INTO chatx_schema VALUES (1);
"""

# The oldest place is told by the entries themselves. The index of what has a key also fitted the search for one key: a
# plan that was made while it was small read a whole room with it. Its condition does not follow from that search now.
_OLDEST_BY_ENTRIES = """
ALTER TABLE chatx_rooms DROP COLUMN oldest;
DROP INDEX chatx_entries_with_key;
CREATE INDEX chatx_entries_with_key ON chatx_entries (room_id, rank, "offset") WHERE key <> '';
"""

STEPS: tuple[str, ...] = (_LOG, postgres_outbox.TABLE, _OLDEST_BY_ENTRIES)
"""The statements that lead to each version, from the one before it; the first from a database without tables."""

SCHEMA_VERSION = len(STEPS)
"""The version that this code reads and writes."""

# Not by to_regclass(), which remembers for a while that there was none.
IS_MADE = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'chatx_schema' AND pg_table_is_visible(oid))"

VERSION = "SELECT coalesce(max(version), 0) FROM chatx_schema"
"""The version of the tables, where they are made."""

ENTRY = 'e.id, e.user_id, e.content, e.inserted_at, e.kind, e.target, e.data, e.stored, s.epoch, e."offset"'
"""What is read of an entry: the columns of `entry_rows`, and its place."""

APPEND = """
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::boolean[])
        WITH ORDINALITY AS w (room_id, term, epoch, after, head, proven, n)
), locked AS MATERIALIZED (
    SELECT room_id, term, epoch, rank, head FROM chatx_rooms
    WHERE room_id = ANY ($1::text[]) ORDER BY room_id FOR UPDATE
), able AS MATERIALIZED (
    SELECT w.room_id, w.epoch, w.head, w.proven, w.n, l.epoch IS DISTINCT FROM w.epoch AS begins,
        CASE WHEN l.epoch IS DISTINCT FROM w.epoch THEN l.rank + 1 ELSE l.rank END AS rank
    FROM wanted AS w JOIN locked AS l USING (room_id)
    WHERE w.term = l.term AND CASE
        WHEN l.epoch IS DISTINCT FROM w.epoch THEN w.after = 0 AND NOT EXISTS (
            SELECT FROM chatx_streams AS s WHERE s.room_id = w.room_id AND s.epoch = w.epoch)
        ELSE w.after = l.head END
), begun AS (
    INSERT INTO chatx_streams (room_id, rank, epoch) SELECT room_id, rank, epoch FROM able WHERE begins
), moved AS (
    UPDATE chatx_rooms AS r SET rank = a.rank, epoch = a.epoch, head = a.head,
        proven = a.proven OR (r.proven AND NOT a.begins)
    FROM able AS a WHERE r.room_id = a.room_id
), added AS (
    INSERT INTO chatx_entries
        (room_id, rank, "offset", id, user_id, content, inserted_at, kind, target, data, stored, key)
    SELECT a.room_id, a.rank, e."offset", e.id, e.user_id, e.content, e.inserted_at, e.kind, e.target, e.data, e.stored,
        CASE WHEN e.key IS NOT NULL AND NOT EXISTS (
            SELECT FROM chatx_entries AS k WHERE k.room_id = a.room_id AND k.user_id = e.user_id AND k.key = e.key
                AND k.inserted_at >= $18::bigint
        ) THEN e.key END
    FROM unnest($7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[],
            $14::text[], $15::text[], $16::text[], $17::boolean[])
        AS e (n, "offset", key, id, user_id, content, inserted_at, kind, target, data, stored)
    JOIN able AS a ON a.n = e.n
), told AS (
    INSERT INTO chatx_outbox (id, room_id, rank, "offset", users, due_at)
    SELECT t.id, a.room_id, a.rank, t."offset", t.users, t.due_at
    FROM unnest($19::bigint[], $20::bigint[], $21::text[], $22::text[], $23::bigint[])
        AS t (n, "offset", id, users, due_at)
    JOIN able AS a ON a.n = t.n
)
SELECT n FROM able
"""

LOCK_ROOM = "SELECT term, epoch, head FROM chatx_rooms WHERE room_id = $1 FOR UPDATE"

IDS = """
SELECT e."offset", e.id FROM chatx_entries AS e JOIN chatx_streams AS s USING (room_id, rank)
WHERE e.room_id = $1 AND s.epoch = $2 AND e."offset" > $3 AND e."offset" <= $4
"""

TAKE_OVER = """
INSERT INTO chatx_rooms AS r (room_id, term) VALUES ($1, 1) ON CONFLICT (room_id) DO UPDATE SET term = r.term + 1
RETURNING term, rank, epoch, head, proven
"""

LOOK = "SELECT term, rank, epoch, head, proven FROM chatx_rooms WHERE room_id = $1"

OLDEST = 'SELECT min("offset") FROM chatx_entries WHERE room_id = $1 AND rank = $2'

KEYED = f"""
SELECT {ENTRY}, e.key FROM chatx_entries AS e JOIN chatx_streams AS s USING (room_id, rank)
WHERE e.room_id = $1 AND e.key <> '' ORDER BY e.rank DESC, e."offset" DESC LIMIT {KEYS_AT_ONCE}
"""

FIND = f"""
SELECT {ENTRY} FROM chatx_entries AS e JOIN chatx_streams AS s USING (room_id, rank)
WHERE e.room_id = $1 AND e.user_id = $2 AND e.key = $3 AND e.inserted_at >= $4 ORDER BY e.rank, e."offset" LIMIT 1
"""

UNPROVEN = "UPDATE chatx_rooms SET proven = false WHERE room_id = $1 AND term = $2 RETURNING true"

CLOSE = """
WITH ends AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[]) AS w (room_id, term, epoch, head)
), locked AS MATERIALIZED (
    SELECT room_id, term, epoch, head FROM chatx_rooms
    WHERE room_id = ANY ($1::text[]) ORDER BY room_id FOR UPDATE
)
UPDATE chatx_rooms AS r SET proven = true FROM ends JOIN locked USING (room_id, term, epoch, head)
WHERE r.room_id = ends.room_id RETURNING r.room_id
"""

# The epoch that is asked for, with the oldest place in it: once, not for each entry, which LIMIT sees to. It is one
# past the head where nothing of the newest is left.
_ASKED = """
SELECT asked.epoch AS asked, asked.oldest, found.* FROM (SELECT) AS always LEFT JOIN (
    SELECT s.rank, s.epoch, coalesce(
        (SELECT min(o."offset") FROM chatx_entries AS o WHERE o.room_id = s.room_id AND o.rank = s.rank),
        (SELECT r.head + 1 FROM chatx_rooms AS r WHERE r.room_id = s.room_id AND r.rank = s.rank)) AS oldest
    FROM chatx_streams AS s WHERE s.room_id = $1
"""

READ_AFTER = f"""
{_ASKED} AND s.epoch = $2 LIMIT 1) AS asked ON true
LEFT JOIN LATERAL (
    SELECT {ENTRY} FROM chatx_entries AS e JOIN chatx_streams AS s USING (room_id, rank)
    WHERE e.room_id = $1 AND e.rank = asked.rank AND e."offset" > $3 ORDER BY e."offset" LIMIT $4
) AS found ON true
ORDER BY found."offset"
"""

_BEFORE = f"""
LEFT JOIN LATERAL (
    SELECT {ENTRY}, e.rank FROM chatx_entries AS e JOIN chatx_streams AS s USING (room_id, rank)
    WHERE e.room_id = $1 AND (e.rank, e."offset") < (coalesce(asked.rank, 9223372036854775807), $2::bigint)
    ORDER BY e.rank DESC, e."offset" DESC LIMIT $3
) AS found ON true
ORDER BY found.rank, found."offset"
"""

READ_BEFORE = f"{_ASKED} AND s.epoch = $4 LIMIT 1) AS asked ON true {_BEFORE}"

READ_NEWEST = f"{_ASKED} ORDER BY s.rank DESC LIMIT 1) AS asked ON true {_BEFORE}"
