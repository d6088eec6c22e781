"""What the sockets of one running chat share: the hubs of its rooms, bounds, deadlines, and the count of closes."""

from __future__ import annotations

import sys
from collections import Counter

from chatx.core.rate_limit import RateLimit, TokenBuckets
from chatx.gateway.entry.admission import Admission
from chatx.gateway.entry.newcomers import Newcomers
from chatx.gateway.session.allowances import Allowances
from chatx.gateway.session.expiry import Wheel
from chatx.gateway.session.hub import Hub
from chatx.gateway.session.pace import Rota
from chatx.gateway.session.reading import Reading
from chatx.gateway.session.socket import Flow
from chatx.gateway.wire.bounds import JOIN_BURSTS, JOIN_SECONDS, MAX_JOINS
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.phoenix import PhoenixProtocol
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess


class Gateway:
    """The gateway of one engine: its hubs, by room, and what else its sockets share.

    Attributes:
        engine: The running chat.
        admission: Counts the sockets.
        newcomers: Lets clients in, also at the bound of one user.
        joins: A token bucket for each connection, for its joins and its new tokens.
        allowances: What each user may do over all of their connections.
        reading: The pages that are read for its users, and what each user may have read.
        wheel: The deadlines of its sessions.
        flow: Tells the hubs that a socket is to be written to in another way.
        rota: Who has more input than one turn of the loop is for.
        closed: How many sockets were closed from this side, by close code.
        draining: Whether joins are refused, since the server goes away.
    """

    def __init__(self, engine: Engine) -> None:
        config = engine.config
        self.engine = engine
        self.admission: Admission = Admission(
            per_user=config.max_connections_per_user, per_address=config.max_connections_per_address
        )
        most = max(config.max_joins_per_connection, MAX_JOINS)
        self.newcomers: Newcomers = Newcomers(self.admission)
        self.joins: TokenBuckets = TokenBuckets(RateLimit(most / JOIN_SECONDS, JOIN_BURSTS * most))
        self.allowances: Allowances = Allowances(config)
        self.reading: Reading = Reading(
            config.history_bytes_per_sec, config.message_size_limit, config.mailbox_bytes, engine.loop
        )
        self.wheel: Wheel = Wheel(engine.loop)
        self.flow: Flow = Flow()
        self.rota: Rota = Rota(engine.loop)
        self.closed: Counter[int] = Counter()
        self.draining: bool = False
        self._hubs: dict[RoomProcess, Hub] = {}
        self._connections = 0

    def protocol(self, version: Version) -> PhoenixProtocol:
        """Return the protocol of a new connection, with the configured bound of joins."""
        return PhoenixProtocol(version, max_joins=self.engine.config.max_joins_per_connection or sys.maxsize)

    def number(self) -> str:
        """Return a name for a new connection that no other has."""
        self._connections += 1
        return str(self._connections)

    def __contains__(self, process: RoomProcess) -> bool:
        """Return whether the room has a hub."""
        return process in self._hubs

    def hub(self, process: RoomProcess) -> Hub:
        """Return the room's hub, begun if need be."""
        hub = self._hubs.get(process)
        if hub is None:
            hub = self._hubs[process] = Hub(process, self.engine.turn, self.flow, self._forget)
            hub.quiet = self.draining
        return hub

    def drain(self) -> None:
        """Refuse joins from here on, and tell nobody any more of those who come and go."""
        self.draining = True
        for hub in self._hubs.values():
            hub.quiet = True

    def _forget(self, hub: Hub) -> None:
        if self._hubs.get(hub.process) is hub:
            del self._hubs[hub.process]
