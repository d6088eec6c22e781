"""What whoever operates the nodes is told by one of them, of itself and of all others.

Rules:
1. Only the owner of a room tells of it. Where two do, since it moves, the one that the view says is believed.
2. No answer is larger than one record, and none looks at more than `LOOKED_AT` rooms that are not in it; a page ends
   where the first node's look has ended.
3. A node that does not answer is named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from chatx.cluster.backplane import Backplane
from chatx.cluster.membership import SUSPECT_S, Membership
from chatx.cluster.memberships import MEMBERSHIPS_AT_ONCE
from chatx.cluster.operating import (
    NAMES,
    Drain,
    List,
    Listed,
    Look,
    Looked,
    OperatorsAsk,
    Show,
    Shown,
)
from chatx.cluster.peers import Peer
from chatx.cluster.rpc import Answer, Done, Refused
from chatx.core.validation import ID_LIMIT
from chatx.errors import RoomUnavailable
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.abroad import Abroad
from chatx.runtime.nodes.counts import Counts
from chatx.runtime.nodes.peers import Peers, Unreachable
from chatx.runtime.nodes.probe import Probe
from chatx.runtime.nodes.rooms_page import RoomsPage
from chatx.runtime.overview import Readiness, RoomOfNode, RoomsOfNodes, first_of, summary_of

logger: logging.Logger = logging.getLogger("chatx")

ASKED_AT_ONCE: Final = 32
"""Nodes that are asked for their rooms at a time; what they answer is put together before the next are."""

LOOKED_AT: Final = 5_000
"""Rooms that a node looks through for one page, at most: those of others, of which it has replicas, are not in it."""


class Operating:
    """This node and the others, as an operator sees them; an `Overview`.

    Args:
        peers: The other nodes.
        membership: Who is there.
        engine: This node's engine.
        abroad: What it follows of the others.
        link: The link to them.
        probe: Whether this node hears.
        counts: What this node counts.
        drain: Begins to drain this node.
    """

    def __init__(
        self,
        peers: Peers,
        membership: Membership,
        engine: Engine,
        abroad: Abroad,
        link: Backplane,
        probe: Probe,
        counts: Counts,
        drain: Callable[[], object],
    ) -> None:
        self._peers = peers
        self._membership = membership
        self._engine = engine
        self._abroad = abroad
        self._link = link
        self._probe = probe
        self._counts = counts
        self._drain = drain
        self._drains = False

    @property
    def readiness(self) -> Readiness:
        """Whether this node serves now."""
        if self._drains or self._membership.state == "draining":
            return "draining"
        if not self._peers.serving:
            return "away"
        return "deaf" if self._probe.deaf else "ok"

    def answer(self, ask: OperatorsAsk) -> Answer:
        """Return the answer to what an operator, or another node for one, asks of this node."""
        match ask:
            case Drain():
                if self._membership.state == "joining":
                    return Refused("starting", "It is no node yet, and cannot drain; ask again, or end its process.")
                self._begin_to_drain()
                return Done()
            case Look():
                return self._looked()
            case List():
                return self._listed(ask)
            case Show():
                return self._shown(ask.room_id)

    def figures(self) -> Mapping[str, Any]:
        """Return the fields of `Statistics` that are about nodes."""
        now = self._engine.loop.time()
        states = {"up": 0, "joining": 0, "draining": 0, "suspect": 0, "ignored": 0}
        for peer in self._membership.peers():
            states[_state_of(peer, now)] += 1
        own = self._membership.state
        if own in states:
            states[own] += 1
        behind, lag_s = self._abroad.lag
        counts = self._counts
        return {
            "nodes": states,
            "rooms_owned": self.owned,
            "rooms_followed": len(self._abroad),
            "replicas_behind": behind,
            "replica_lag_ms": int(lag_s * 1000),
            "rooms_left": self._abroad.left_behind,
            "link_connected": int(self._link.state == "connected"),
            "link_pending_bytes": self._link.pending_bytes,
            "sends_waiting": self._abroad.credits.waiting,
            "requests_asking": counts.asking,
            "requests_answering": counts.answering,
            "records_refused": counts.records_refused,
            "isolations": counts.isolations,
            "deafnesses": self._probe.found,
            "links_lost": counts.links_lost,
        }

    async def rooms(self, after: str, limit: int) -> RoomsOfNodes:
        """Return rooms of all nodes behind an id, at most so many."""
        own = self._membership.me
        names = {own.boot: own.node}
        names |= {each.heartbeat.boot: each.heartbeat.node for each in self._membership.peers() if not each.ignored}
        boots, ask = list(names), List(after[:ID_LIMIT], limit)  # no id is behind one that goes on, and longer
        page = RoomsPage(limit)
        missing: list[str] = []
        for first in range(0, len(boots), ASKED_AT_ONCE):
            group = boots[first : first + ASKED_AT_ONCE]
            for boot, answer in zip(
                group, await asyncio.gather(*(self._ask(boot, ask) for boot in group)), strict=True
            ):
                if isinstance(answer, Listed):
                    page.add(boot, answer, self._peers.owner)
                else:
                    missing.append(names[boot])
        shown, following = page.cut()
        rooms = [(names[boot], each) for boot, each in shown]
        return RoomsOfNodes(page.total, rooms, following, sorted(missing))

    async def room(self, room_id: str) -> RoomOfNode | None:
        """Return a room, from its owner; errors as `Overview.room`."""
        boot = self._peers.owner(room_id)
        name = next((each.node for each in self._membership.view.seats if each.boot == boot), "")
        if not name:
            raise RoomUnavailable("No node has the room now; look again later.", retry_after=1.0)
        answer = await self._ask(boot, Show(room_id))
        if not isinstance(answer, Shown):
            raise RoomUnavailable(f"Node {name} has the room, and does not answer; look again later.", retry_after=1.0)
        return None if answer.room is None else RoomOfNode(name, answer.room, answer.present)

    @property
    def _state(self) -> Literal["joining", "up", "draining", "gone", "away", "deaf"]:
        readiness = self.readiness
        return self._membership.state if self._membership.state != "up" or readiness == "ok" else readiness

    async def _ask(self, boot: str, ask: List | Show) -> Answer | None:
        try:
            return await self._peers.ask(boot, ask)
        except Unreachable:
            return None

    @property
    def owned(self) -> int:
        """How many rooms this node owns."""
        return max(0, len(self._engine.rooms) - len(self._abroad))

    def _begin_to_drain(self) -> None:
        if self._drains:
            return
        self._drains = True
        logger.info("An operator has this node drained.", extra={"node": self._membership.me.node, "code": "drain"})
        self._engine.loop.call_soon(self._drain)  # behind the answer

    def _looked(self) -> Looked:
        now = self._engine.loop.time()
        behind, lag_s = self._abroad.lag
        return Looked(
            self._membership.me.node,
            self._state,
            self.owned,
            len(self._abroad),
            behind,
            int(lag_s * 1000),
            self._abroad.left_behind,
            len(self._engine.consumers),
            self._counts.isolations,
            self._membership.suspects(now)[:NAMES],
        )

    def _listed(self, ask: List) -> Listed:
        looked = self._engine.rooms.after(ask.after, ask.limit + 1)
        found = [each for each in looked if not each.replica]
        count = len(looked)
        while len(found) <= ask.limit and looked and count < LOOKED_AT:
            looked = self._engine.rooms.after(looked[-1].room_id, ask.limit + 1)
            found += [each for each in looked if not each.replica]
            count += len(looked)
        shown = found[: ask.limit]
        upto = shown[-1].room_id if len(found) > len(shown) else looked[-1].room_id if looked else None
        return Listed(self.owned, tuple(summary_of(each) for each in shown), upto)

    def _shown(self, room_id: str) -> Shown:
        process = self._engine.rooms.find(room_id)
        if process is None or process.replica:
            return Shown(None)
        return Shown(summary_of(process), first_of(process.first_presences(MEMBERSHIPS_AT_ONCE)))


def _state_of(peer: Peer, now: float) -> str:
    if peer.ignored is not None:
        return "ignored"
    return "suspect" if now - peer.heard_at >= SUSPECT_S else peer.heartbeat.state
