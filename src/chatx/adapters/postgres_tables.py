"""Making the tables of a log in PostgreSQL, and taking those of an earlier version up.

Rules:
1. All steps that are lacking are one transaction, so it is done as a whole or not at all.
2. Whoever does it holds a lock of the database's meanwhile, and that of the one who writes where there are tables: two
   do not do it at once, and no chat of an earlier version has its tables changed under its hands.
3. A wait for a lock has the bound of the connection, since whoever comes behind who waits has to wait too. Whether a
   step has one is for whoever connects to say.
"""

from __future__ import annotations

from chatx.adapters import postgres_schema as sql
from chatx.adapters.postgres_connections import Connection, Refused, WriterLock
from chatx.adapters.room_log import LogUnavailable
from chatx.errors import ConfigError

MAKING = 0x63686174786C6F67
"""The lock of who makes the tables; a constant of ours."""

_LOCKED, _GIVEN_UP = "55P03", "57014"

# What to do where the server has refused a step, by its SQLSTATE.
_TO_DO = {
    _LOCKED: "End what uses them, such as a backup, a report or a transaction that was left open (pg_stat_activity "
    "shows them), and try again.",
    _GIVEN_UP: "Where it takes longer than a chat may wait, have chatx db upgrade do it ahead, which waits for as long "
    "as it takes.",
    "42501": "Connect as the user who owns them; to make them it needs GRANT CREATE ON SCHEMA.",
}


async def make_tables(db: Connection) -> None:
    """Make the tables, or take them up to this version; nothing is changed where they are of it.

    Raises:
        ConfigError: They were made by a later version.
        LogUnavailable: Somebody else makes them, writes to them or has a lock on them, or a step took too long; nothing
            was changed.
    """
    async with db.transaction():
        try:
            await db.execute(f"SELECT pg_advisory_xact_lock({MAKING})")
        except Refused as error:
            if error.sqlstate not in (_LOCKED, _GIVEN_UP):
                raise
            raise LogUnavailable(
                "The tables in this database are being made or taken up by somebody else, which is not over yet; wait "
                "until it is, and try again."
            ) from error
        version = 0
        if await db.fetchval(sql.IS_MADE):
            version = await db.fetchval(sql.VERSION)
        if 0 < version < sql.SCHEMA_VERSION and not await db.fetchval(WriterLock.FREE):
            raise LogUnavailable(
                "Another chat writes to this database, in tables of an earlier version, which are not taken up under "
                "its hands; end it first."
            )
        if version < sql.SCHEMA_VERSION:
            await _take_up(db, version)
    if version > sql.SCHEMA_VERSION:
        raise ConfigError(
            f"The tables in the database of PostgresLog have version {version}, and this version of chatx reads up to "
            f"{sql.SCHEMA_VERSION}; use the chatx that made them, or another database."
        )


async def _take_up(db: Connection, version: int) -> None:
    try:
        for step in sql.STEPS[version:]:
            await db.execute(step)
        await db.execute("UPDATE chatx_schema SET version = $1", sql.SCHEMA_VERSION)
    except Refused as error:
        what = f"taken up from version {version}" if version else "made"
        raise LogUnavailable(
            f"The tables in this database could not be {what}, and nothing was changed: {error}. "
            + _TO_DO.get(str(error.sqlstate), "Where they are not as chatx made them, restore them from a backup.")
        ) from error
