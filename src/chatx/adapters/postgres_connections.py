"""Connections to PostgreSQL: how many, for how long, and whether what was asked on one may have been done.

Rules:
1. There are at most `limit` at a time. Whoever finds all of them taken waits, as long as a call may take, and is then
   told that nothing was done.
2. What the server has answered with an error was rolled back. A connection that broke, or a call that was given up,
   says nothing about what the server did: its statement may commit later still.
3. A connection on which anything went wrong but an ordinary error is dropped, and those that idle with it: they lead to
   the same server. The next call opens another one.
4. The lock that says who writes has a connection of its own, and goes with it.
5. While the server is away those who wait for one attempt to reach it get its outcome; they do not try one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from chatx.adapters.room_log import LogUnavailable
from chatx.errors import ConfigError
from chatx.extras import needs

with needs("postgres", "chatx.adapters.postgres_log"):
    import asyncpg

logger: logging.Logger = logging.getLogger("chatx")

Connection = Any
"""A connection of asyncpg, which comes without types."""

Refused = asyncpg.PostgresError
"""What the server answers with an error; its `sqlstate` says which."""

LATER_S = 0.5
"""How much longer a call is waited for than the server may take for it, in seconds."""

REPLANNED_S = 30
"""How long a connection keeps how a statement is best done, in seconds."""

ENDING_S = 1.0
"""How long the end of a connection is waited for, in seconds."""

TRIED_EVERY_S = 0.1
"""How often a lock that somebody else has is asked for, in seconds."""

# What opening a connection, or asking on it, raises while the server is away.
_UNREACHABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# Beginnings of SQLSTATE that say that what was given is at fault, and not the server or the moment.
_ABOUT_WHAT_WAS_GIVEN = ("22", "23", "54")

# What every connection is told. Statements here look rows up by their keys: a plan that was made while the tables were
# empty would scan them when they are full, and to compile one costs more than it saves. A client that is gone without a
# word is noticed within 25 s.
_SETTINGS = {
    "application_name": "chatx",
    "enable_seqscan": "off",
    "jit": "off",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


async def connected(url: str, timeout_s: float, *, patient: bool = False) -> Connection:
    """Return a new connection, whose transactions are as durable as the server can make them.

    The server gives a statement up before this side does, since its word says that nothing was done.

    Args:
        url: The database.
        timeout_s: How long connecting, a statement, and a wait for a lock may take, in seconds.
        patient: Whether a statement may take as long as it needs; a wait for a lock has its bound still.

    Raises:
        LogUnavailable: There is none to be had now.
        ConfigError: The URL is none that PostgreSQL understands, or the database does not keep UTF-8.
    """
    limit_ms = str(max(1, round(timeout_s * 1000)))
    bounds = dict.fromkeys(("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"), limit_ms)
    if patient:
        bounds["statement_timeout"] = "0"
    try:
        connection = await asyncpg.connect(
            url,
            timeout=timeout_s,
            command_timeout=None if patient else timeout_s + LATER_S,
            server_settings=_SETTINGS | bounds,
            # Plans are made anew now and then: the first ones are made while the tables are small.
            max_cached_statement_lifetime=REPLANNED_S,
        )
        try:
            # A server may be set to acknowledge before it has written; here an acknowledgement means that it has.
            encoding, _ = await connection.fetchrow(
                """SELECT current_setting('server_encoding'), CASE current_setting('synchronous_commit')
                WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END"""
            )
        except BaseException:
            connection.terminate()
            raise
    except ValueError:
        # What the driver says of it can have a part of the password in it.
        raise ConfigError(
            "The URL of PostgresLog cannot be read; write postgresql://user:password@host:port/database, quote each "
            "part of it with urllib.parse.quote(..., safe=''), and have options as libpq has them."
        ) from None
    except _UNREACHABLE as error:
        raise LogUnavailable(f"PostgreSQL cannot be used now: {type(error).__name__}: {error}") from error
    if encoding != "UTF8":
        connection.terminate()
        raise ConfigError(
            f"The database of PostgresLog keeps text as {encoding}; give one that was created with ENCODING 'UTF8'."
        )
    return connection


def is_about_what_was_given(error: BaseException) -> bool:
    """Return whether a statement failed for what it was given, such as a text that cannot be kept."""
    return isinstance(error, ValueError) or (
        isinstance(error, asyncpg.PostgresError) and str(error.sqlstate).startswith(_ABOUT_WHAT_WAS_GIVEN)
    )


class ConnectionBroke(Exception):
    """A connection broke while something was asked on it, which may have been done."""


class Attempt:
    """Something that is to be done once: one try at a time, whose failure is everybody's who waited for it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._tries = 0
        self._failed: LogUnavailable | None = None

    async def make(self, is_done: Callable[[], bool], attempt: Callable[[], Awaitable[object]]) -> None:
        """Have the thing done, where `is_done` does not say that it is.

        Raises:
            LogUnavailable: The try failed, or the one did for which this one waited.
        """
        tries = self._tries
        async with self._turn:
            if is_done():
                return
            if self._failed is not None and self._tries != tries:
                raise LogUnavailable(str(self._failed))
            try:
                await attempt()
            except LogUnavailable as error:
                self._failed = error
                raise
            else:
                self._failed = None
            finally:
                self._tries += 1


class Connections:
    """A bounded set of connections, each for one call at a time; for one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], limit: int, timeout_s: float) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []
        self._closed = False

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        """Give a connection for a block that makes one transaction at most.

        Raises:
            LogUnavailable: No connection could be had, or the server has answered an error of the moment within the
                block, so that nothing was done.
            ConnectionBroke: It broke within the block.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise LogUnavailable(f"All connections to PostgreSQL were in use for {self._timeout_s:g} s.") from None
        try:
            connection = await self._one()
            try:
                yield connection
            except BaseException as error:
                if not self._goes_on(connection, error):
                    connection.terminate()
                    self.drop()
                    if isinstance(error, _UNREACHABLE) and not isinstance(error, TimeoutError):
                        raise ConnectionBroke(f"{type(error).__name__}: {error}") from error
                    raise
                await self._back(connection)
                if isinstance(error, asyncpg.PostgresError) and not is_about_what_was_given(error):
                    raise LogUnavailable(f"PostgreSQL refused: {type(error).__name__}: {error}") from error
                raise
            else:
                await self._back(connection)
        finally:
            self._free.release()

    def drop(self) -> None:
        """Drop the connections that idle."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()

    async def close(self) -> None:
        """Close the connections that idle, and each of the others when its call has ended."""
        self._closed = True
        while self._idle:
            await self._back(self._idle.pop())

    async def _back(self, connection: Connection) -> None:
        if not self._closed:
            self._idle.append(connection)
        else:
            await _end(connection)

    async def _one(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    @staticmethod
    def _goes_on(connection: Connection, error: BaseException) -> bool:
        """Return whether a connection can be used again after an error: the server told it, and is ready for more."""
        told = isinstance(error, (asyncpg.PostgresError, ValueError))
        return told and not connection.is_closed() and not connection.is_in_transaction()


class WriterLock:
    """The lock of a database that says which chat writes to it; it goes with the connection that has it.

    The nodes of one chat share it: each writes to rooms of its own, and to none that another has taken over.
    """

    # Of what is in one schema there is one lock.
    _KEY = "hashtextextended('chatx ' || current_schema(), 0)"

    FREE = f"SELECT pg_try_advisory_xact_lock({_KEY})"
    """A statement that asks whether nobody has the lock, and takes it until the transaction ends."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._held = False  # by this connection, while it lives
        self._wanted = False
        self._shared = False
        self._let_go = 0  # how often it was; what is under way then is for nothing
        self._again = Attempt()

    async def take(self, wait_s: float, *, shared: bool = False) -> bool:
        """Take the lock, waiting for at most so long for another chat to let go; return whether it is held.

        Args:
            wait_s: How long, in seconds.
            shared: Whether the other nodes of this chat may have it too.

        Raises:
            LogUnavailable: PostgreSQL could not be asked.
        """
        self._shared = shared
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while not await self._taken():
            if (left := until - loop.time()) <= 0:
                await self.let_go()
                return False
            await asyncio.sleep(min(TRIED_EVERY_S, left))
        self._wanted = True
        return True

    async def check(self) -> None:
        """See to it that a lock that was taken is held still: a connection that was lost has taken it along.

        Raises:
            LogUnavailable: Another chat has the lock now, or it is not known who has.
        """
        if self._wanted and not self._lives():
            await self._again.make(self._lives, self._take_again)

    async def let_go(self) -> None:
        """Let another chat have the lock; twice is harmless."""
        self._wanted = self._held = False
        self._let_go += 1
        connection, self._connection = self._connection, None
        if connection is not None:
            await _end(connection)

    def _lives(self) -> bool:
        return self._held and self._connection is not None and not self._connection.is_closed()

    async def _take_again(self) -> None:
        if not await self._taken():
            raise LogUnavailable("Another chat writes to this database since the connection to it was lost.")

    async def _taken(self) -> bool:
        if self._lives():
            return True
        self._held = False
        let_go = self._let_go
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._connect()
        try:
            lock = "pg_try_advisory_lock_shared" if self._shared else "pg_try_advisory_lock"
            held = await connection.fetchval(f"SELECT {lock}({self._KEY})")
        except BaseException as error:
            connection.terminate()
            if isinstance(error, _UNREACHABLE):
                raise LogUnavailable(f"PostgreSQL cannot be asked for its lock: {error}") from error
            raise
        if let_go != self._let_go:
            await _end(connection)
            return False
        self._connection, self._held = connection, held
        return self._held


async def _end(connection: Connection) -> None:
    """End a connection and its session, so that the server sees that it is meant."""
    try:
        await connection.close(timeout=ENDING_S)
    except _UNREACHABLE as error:
        logger.debug("A connection to PostgreSQL was not ended in order: %s", error, extra={"adapter": "PostgresLog"})
