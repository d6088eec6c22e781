"""The requests under way that open no WebSocket, each kind of them within its bound.

Rules:
1. A plain request that waits for its peer gives way at `MAX_EXCHANGES`: its body has not come, or its answer is not
   taken. One that is being answered does not; where all are, the newcomer is refused.
2. A request for the server's health, and one of long-polling that is read, have bounds of their own, and keep out
   nobody: at the bound one gives way, one that waits for its peer before one that does not.
3. Whose answer is written is among those that leave, until the connection is gone; at `MAX_LEAVING` one of them is cut
   off. Those that polled stay among the polls, since thousands of them may be answered at once.
4. Who gives way is the oldest of the address that has most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from chatx.gateway.entry.shares import Shares
from chatx.gateway.native.http import AsgiApp, HttpExchange, ScopeOf

MAX_EXCHANGES = 256
"""Requests that open no WebSocket, under way at a time; those of long-polling until they are read."""

MAX_HEALTH = 64
"""Requests for the server's health, under way at a time."""

MAX_POLLS = 16_384
"""Requests of long-polling that are read, under way at a time. Nearly all of them only wait, as a WebSocket would."""

MAX_LEAVING = 256
"""Connections whose answer is written, and not taken, or that have not ended for another reason."""


class Pool:
    """Requests of one kind."""

    def __init__(self) -> None:
        self.held: Shares[HttpExchange] = Shares()
        self.waiting: Shares[HttpExchange] = Shares()  # those of them that wait for their peer

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.held)

    def discard(self, exchange: HttpExchange) -> None:
        """Hold it no longer."""
        self.held.discard(exchange)
        self.waiting.discard(exchange)


class Exchanges:
    """The requests of one server.

    Args:
        app: Who answers.
        scope_of: Makes the ASGI scope.
        is_poll: Whether a target is that of long-polling.
        is_health: Whether a target is asked for the server's health.

    Attributes:
        plain: Those of no other kind.
        health: Those for the server's health.
        polls: Those of long-polling that are read.
        leaving: Those that are answered.
    """

    def __init__(
        self, app: AsgiApp, scope_of: ScopeOf, is_poll: Callable[[str], bool], is_health: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._scope_of = scope_of
        self._is_poll = is_poll
        self._is_health = is_health
        self._pools: dict[HttpExchange, Pool] = {}
        self.plain: Pool = Pool()
        self.health: Pool = Pool()
        self.polls: Pool = Pool()
        self.leaving: Pool = Pool()

    def __len__(self) -> int:
        """Return how many there are of all kinds."""
        return len(self._pools)

    def __iter__(self) -> Iterator[HttpExchange]:
        """Iterate over a copy of all."""
        return iter(list(self._pools))

    def take(self, transport: asyncio.Transport, target: str, data: bytes) -> bool:
        """Serve a request, unless there are too many; return whether it is served.

        Args:
            transport: The connection; a protocol of its own is set where it is served.
            target: What the first line of its head asks for.
            data: All that has been read, the whole head at least.
        """
        health = self._is_health(target)
        if not health and not self._is_poll(target) and len(self.plain) >= MAX_EXCHANGES and not self._make_way():
            return False
        exchange = HttpExchange(transport, self._app, self._scope_of, self)
        pool = self._pools[exchange] = self.health if health else self.plain
        transport.set_protocol(exchange)
        exchange.data_received(data)
        if exchange.reading:
            pool.held.add(exchange, exchange.address)
            pool.waiting.add(exchange, exchange.address)
            self._keep_bounds()
        return True

    # What an exchange tells.

    def read(self, exchange: HttpExchange, target: str) -> None:
        """A request has come whole."""
        pool = self._pools[exchange]
        pool.waiting.discard(exchange)
        if pool is self.plain and self._is_poll(target):
            pool.discard(exchange)
            pool = self._pools[exchange] = self.polls
        pool.held.add(exchange, exchange.address)
        self._keep_bounds()

    def stalls(self, exchange: HttpExchange) -> None:
        """Its answer is not taken."""
        if (pool := self._pools.get(exchange)) is not None:
            pool.waiting.add(exchange, exchange.address)

    def flows(self, exchange: HttpExchange) -> None:
        """Its answer is taken again."""
        if (pool := self._pools.get(exchange)) is not None:
            pool.waiting.discard(exchange)

    def leaves(self, exchange: HttpExchange) -> None:
        """Its answer is written."""
        pool = self._pools.get(exchange)
        if pool is self.polls:
            pool.waiting.add(exchange, exchange.address)
        elif pool is not None:
            self._move_to_leaving(exchange, pool)
            self._keep_bounds()

    def lost(self, exchange: HttpExchange) -> None:
        """Its connection is gone."""
        pool = self._pools.pop(exchange, None)
        if pool is not None:
            pool.discard(exchange)

    # The bounds.

    def _keep_bounds(self) -> None:
        """Let one go of each kind of which there is one too many."""
        if len(self.plain) > MAX_EXCHANGES:
            self._make_way()
        if len(self.health) > MAX_HEALTH:
            self._turn_away(self.health, self.health.waiting.first_to_go() or self.health.held.first_to_go())
        if len(self.polls) > MAX_POLLS:
            self._turn_away(self.polls, self.polls.waiting.first_to_go() or self.polls.held.first_to_go())
        if len(self.leaving) > MAX_LEAVING and (oldest := self.leaving.held.first_to_go()) is not None:
            self.lost(oldest)
            oldest.abort()

    def _make_way(self) -> bool:
        """Let a plain request go that waits for its peer; return whether there was one."""
        oldest = self.plain.waiting.first_to_go()
        self._turn_away(self.plain, oldest)
        return oldest is not None

    def _turn_away(self, pool: Pool, exchange: HttpExchange | None) -> None:
        if exchange is not None:
            self._move_to_leaving(exchange, pool)
            exchange.turn_away()

    def _move_to_leaving(self, exchange: HttpExchange, pool: Pool) -> None:
        pool.discard(exchange)
        self._pools[exchange] = self.leaving
        self.leaving.held.add(exchange, exchange.address)
