"""One node's picture of the others, from their heartbeats and its own, and from time.

Rules:
1. Time is monotonic and this node's own. A node is silent since its last heartbeat came in, whatever its clock says.
2. A node joins for two heartbeats: it hears who is there before anyone counts on it. It is in the view while it is up.
3. Silence makes a node suspect, and longer silence takes it down. Two questions that nobody was there for, a moment
   apart, take it down too, and its own last word at once.
4. Who cannot judge does not. After a stall nobody is taken down before an own heartbeat that was sent since has come
   back: all that waited in the socket comes ahead of it. A node that does not hear itself is isolated: it stops
   serving, and takes nobody down; when it hears itself again, the others' silence begins anew. After so long that the
   others have it down, it joins anew too.
5. A name is one node's. A new life of a node shortens the wait for the one before to one heartbeat that does not come.
   It does not end it: a second node that is given the name by mistake is refused, and moves none of the first's rooms.
6. A heartbeat counts once, and none after a later one. Who has left comes back only with a later one than its last.
7. No more than `NODES` are known. At the bound a new one is left out until another has gone, and that is told once.

The shell makes a heartbeat (`beat`) every `BEAT_S` ± 10 % and publishes it at once; it hears it itself through the one
subscription that brings the others'. It calls `tick` every `TICK_S`: two that are further apart tell of a stall. What
any call returns is to be logged, and to be acted upon.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final, Literal

from chatx.cluster.peers import Change, Kind, Me, Peer, mismatch
from chatx.cluster.placement import Seat, View
from chatx.cluster.records import Heartbeat

BEAT_S: Final = 0.5
"""Between two heartbeats, in seconds, ± 10 %."""

TICK_S: Final = 0.1
"""Between two ticks, in seconds, about."""

SUSPECT_S: Final = 1.5
"""Silence after which a node is suspect, in seconds."""

DOWN_S: Final = 2.5
"""Silence after which a node is down, in seconds."""

SUCCEEDED_S: Final = 0.75
"""Silence after which a node is down whose name another one came with since, in seconds: one heartbeat did not come."""

UNANSWERED_S: Final = 0.1
"""Between two questions that nobody was there for, in seconds, at least, that take a node down."""

STALL_S: Final = 1.0
"""Between two ticks, in seconds: more is a stall of this node."""

ISOLATED_S: Final = 1.5
"""How long a node may not hear itself, in seconds."""

JOINING_BEATS: Final = 3
"""Own heartbeats that are heard before a node is up: two times from one to the next."""

NODES: Final = 256
"""Lives of other nodes that are known at a time, at most; new ones beyond are left out."""

DEPARTED: Final = 1_024
"""Lives that have left and are remembered, at most. Of one that is forgotten a late heartbeat counts, for `DOWN_S`."""

# Own heartbeats that have not come back, at most: older ones are beyond what isolation asks for.
_UNDER_WAY = 16


class Membership:
    """The others, and this node among them.

    Args:
        me: This node.
        now: The present, in seconds of a monotonic clock, as with every call.

    Attributes:
        me: This node.
        state: What its heartbeats say.
        isolated: Whether it does not hear itself.
        refused: Why it must end, or None.
    """

    __slots__ = (
        "_alone_since",
        "_barrier",
        "_departed",
        "_full",
        "_heard",
        "_number",
        "_own_at",
        "_peers",
        "_seats",
        "_ticked_at",
        "_under_way",
        "_view",
        "isolated",
        "me",
        "refused",
        "state",
    )

    def __init__(self, me: Me, now: float) -> None:
        self.me: Me = me
        self.state: Literal["joining", "up", "draining", "gone"] = "joining"
        self.isolated: bool = False
        self.refused: str | None = None
        self._peers: dict[str, Peer] = {}
        self._departed: dict[str, float] = {}  # boot: the number of its last heartbeat
        self._seats: dict[str, Seat] = {}  # by boot
        self._view = View.of(())
        self._number = 0
        self._under_way: deque[tuple[int, float]] = deque(maxlen=_UNDER_WAY)
        self._own_at = now  # when the newest own heartbeat was sent that has come back
        self._alone_since = now  # what that was when isolation began
        self._heard = 0  # own heartbeats that have come back while joining
        self._barrier: int | None = None  # an own heartbeat behind this one has to come back after a stall
        self._ticked_at = now
        self._full = False

    @property
    def view(self) -> View:
        """The nodes that rooms are placed on; this one is among them while it is up."""
        return self._view

    @property
    def serving(self) -> bool:
        """Whether this node may serve the rooms that it has."""
        return self.state in {"up", "draining"} and not self.isolated and self.refused is None

    def serves(self, now: float) -> bool:
        """Return whether this node may serve, and could know by now where it may not: a tick may be overdue."""
        return self.serving and now - self._own_at < ISOLATED_S

    @property
    def stalled(self) -> bool:
        """Whether this node stalled, and has not yet read what waited meanwhile."""
        return self._barrier is not None

    @property
    def speaks(self) -> int:
        """The version of records to write: the newest that every node reads.

        Heartbeats are written in `hails` instead, which a node of one version less reads before it is known.
        """
        versions = [peer.heartbeat.version for peer in self._peers.values() if peer.ignored is None]
        return max(min([self.me.version, *versions]), self.hails)

    @property
    def hails(self) -> int:
        """The version to write heartbeats in: the oldest that this node reads."""
        return max(1, self.me.version - 1)

    def peers(self) -> tuple[Peer, ...]:
        """Return all nodes that are known but this one, ignored ones included."""
        return tuple(self._peers.values())

    def suspects(self, now: float) -> tuple[str, ...]:
        """Return the names of the nodes in the view that have been silent for `SUSPECT_S`."""
        silent = (peer.heartbeat for peer in self._peers.values() if now - peer.heard_at >= SUSPECT_S)
        return tuple(sorted(heartbeat.node for heartbeat in silent if heartbeat.boot in self._seats))

    # What this node does

    def beat(self, now: float, *, presence: int = 0, tails: int = 0, rooms: int = 0) -> Heartbeat:
        """Return the next heartbeat, to be published at once; the arguments are those of `Heartbeat`."""
        me = self.me
        # Who has been away for so long is down for the others. Were it up for them again before it knows of that, they
        # would count on it, and then no longer, and then again.
        away = self.isolated and self.state == "up" and now - self._own_at >= DOWN_S
        self._number += 1
        self._under_way.append((self._number, now))
        return Heartbeat(
            me.node,
            me.boot,
            self._number,
            "joining" if away else self.state,
            me.strategy,
            me.version,
            self._view.hash,
            me.config,
            me.weight,
            presence,
            tails,
            rooms,
        )

    def drain(self) -> list[Change]:
        """Leave the view, to hand the rooms off; the next heartbeat says so."""
        if self.state in {"joining", "up"}:
            self.state = "draining"
        return self._seated("It drains.")

    def leave(self) -> list[Change]:
        """Be gone; the next heartbeat is the last word."""
        self.state = "gone"
        return self._seated("It is gone.")

    # What comes in

    def heard(self, heartbeat: Heartbeat, now: float) -> list[Change]:
        """Take a heartbeat, which may be an own one."""
        if heartbeat.boot == self.me.boot:
            return self._heard_own(heartbeat, now)
        boot = heartbeat.boot
        peer = self._peers.get(boot)
        if heartbeat.number <= (self._departed.get(boot, 0) if peer is None else peer.heartbeat.number):
            return []
        if heartbeat.state == "gone":
            return self._departs(boot, math.inf, "It said that it is gone.")
        before = None
        if peer is not None:
            before = peer.counts
            peer.heard(heartbeat, now)
        elif len(self._peers) < NODES:
            peer = self._peers[boot] = Peer(heartbeat, now)
        elif self._full:
            return []
        else:
            self._full = True
            reason = f"{NODES} nodes are known, which is the most; others are left out until one of them has gone."
            return [Change("full", heartbeat.node, boot, reason)]
        changes = self._judged(peer, before is not None)
        if heartbeat.config != self.me.config and not peer.told and peer.ignored is None:
            peer.told = True
            reason = (
                f"Its configuration hash is {heartbeat.config}, and this node's is {self.me.config}; "
                "give all nodes the same options, or users are treated as the owner of their room is configured."
            )
            changes.append(Change("differs", heartbeat.node, boot, reason))
        # Nearly every heartbeat says what the one before said.
        return changes if peer.counts == before else changes + self._seated("It is no longer up.")

    def cannot_read(self, reason: str) -> list[Change]:
        """Take note that a heartbeat has a version that this node does not read: one that joins is refused.

        Any other node tells it each time, since the heartbeat does not say whose it is.

        Args:
            reason: What `UnknownVersion` says.
        """
        if self.state != "joining":
            return [Change("ignored", "", "", reason)]
        return self._refuse(f"A node of this cluster cannot be understood: {reason}")

    def no_responders(self, boot: str, now: float) -> list[Change]:
        """Take note that a question to a node was refused since nobody was there."""
        peer = self._peers.get(boot)
        if peer is not None:
            peer.answered = peer.answered and now - peer.unanswered_at < UNANSWERED_S
            peer.unanswered_at = min(peer.unanswered_at, now)
        return self._take_down(now)

    def tick(self, now: float) -> list[Change]:
        """Take note of the time."""
        if now - self._ticked_at > STALL_S:
            self._barrier = self._number
        self._ticked_at = max(now, self._ticked_at)
        changes = []
        if not self.isolated and self.state != "gone" and now - self._own_at >= ISOLATED_S:
            self.isolated, self._alone_since, self._heard = True, self._own_at, 0
            changes.append(self._change("isolated", f"It has not heard itself for {ISOLATED_S} s, and serves nothing."))
        return changes + self._take_down(now)

    def _heard_own(self, heartbeat: Heartbeat, now: float) -> list[Change]:
        if heartbeat.number > self._number:
            return []  # never sent
        while self._under_way and self._under_way[0][0] < heartbeat.number:
            self._under_way.popleft()
        if not self._under_way or self._under_way[0][0] != heartbeat.number:
            return []  # twice, or too late to matter
        self._own_at = self._under_way.popleft()[1]
        if self._barrier is not None and heartbeat.number > self._barrier:
            self._barrier = None
        if now - self._own_at >= ISOLATED_S:
            return []
        changes = []
        if self.isolated and self._barrier is None:
            self.isolated, away = False, now - self._alone_since
            for peer in self._peers.values():
                peer.heard_at, peer.answered, peer.unanswered_at = now, True, math.inf
            changes.append(self._change("healed", f"It hears itself again, after {away:.1f} s."))
            if self.state == "up" and away >= DOWN_S:
                # The others have it down by now, and it knows nobody who came meanwhile.
                self.state = "joining"
        if self.state == "joining" and not self.isolated:
            self._heard += 1
            if self._heard >= JOINING_BEATS and self.refused is None and not self._contested():
                self.state, self._heard = "up", 0
        return changes + self._seated("It joins anew.")

    # Who counts

    def _judged(self, peer: Peer, again: bool) -> list[Change]:
        """Return what a heartbeat means for whether this node, or the other one, may be in the cluster."""
        other, me = peer.heartbeat, self.me
        first = self.state != "joining" or (other.state == "joining" and me.boot < other.boot)
        reason = mismatch(me, other)
        if reason is not None and not first:
            return self._refuse(reason)
        # One that drains gives its rooms to whoever has the name now.
        if reason is None and other.node == me.node and self.state in {"joining", "up"}:
            reason = f"Its name, {me.node!r}, is that of a node which is there; give each node a node_name of its own."
            if self.state == "joining" and not first:
                # Once may be the last of a life before this one; who drains is waited for.
                return self._refuse(reason) if again and other.state != "draining" else []
            if self.state == "up" and other.state == "up" and me.boot < other.boot:
                return self._refuse(f"A later node was given the name {me.node!r} and is up; this one gives way to it.")
        if reason is None or peer.ignored is not None:
            peer.ignored = reason
            return []
        peer.ignored = reason
        return [Change("ignored", other.node, other.boot, reason)]

    def _contested(self) -> bool:
        """Return whether another node of this one's name may still be there."""
        mine = (peer.heartbeat for peer in self._peers.values() if peer.heartbeat.node == self.me.node)
        return any(other.state != "joining" or other.boot < self.me.boot for other in mine)

    def _take_down(self, now: float) -> list[Change]:
        if self.isolated or self._barrier is not None or self.state == "gone":
            return []
        came: dict[str, float] = {}
        for peer in self._peers.values():
            came[peer.heartbeat.node] = max(peer.first_at, came.get(peer.heartbeat.node, -math.inf))
        down: list[tuple[str, float, str]] = []
        for boot, peer in self._peers.items():
            silent = now - peer.heard_at
            node = peer.heartbeat.node
            succeeded = node == self.me.node or came[node] > peer.heard_at
            if not peer.answered:
                down.append((boot, peer.heartbeat.number, "Nobody is there for what it is asked."))
            elif silent >= DOWN_S:
                down.append((boot, peer.heartbeat.number, f"It has been silent for {silent:.1f} s."))
            elif silent >= SUCCEEDED_S and succeeded:
                reason = f"Another node came with its name, and it has been silent for {silent:.1f} s."
                down.append((boot, peer.heartbeat.number, reason))
        return [change for each in down for change in self._departs(*each)]

    def _departs(self, boot: str, number: float, reason: str) -> list[Change]:
        self._departed.pop(boot, None)
        self._departed[boot] = number
        if len(self._departed) > DEPARTED:
            del self._departed[next(iter(self._departed))]
        if self._peers.pop(boot, None) is not None:
            self._full = False
        return self._seated(reason)

    def _seated(self, reason: str) -> list[Change]:
        """Make the view what is known, and return who came and who went."""
        seats = {seat.node: seat for seat in sorted(self._up())}  # of one name the latest
        now = {seat.boot: seat for seat in seats.values()}
        if now == self._seats:
            return []
        before, self._seats, self._view = self._seats, now, View.of(now.values())
        left = [Change("left", seat.node, boot, reason) for boot, seat in before.items() if boot not in now]
        return left + [
            Change("joined", seat.node, boot, "It is up.") for boot, seat in now.items() if boot not in before
        ]

    def _up(self) -> Iterator[Seat]:
        if self.state == "up" and self.refused is None:
            yield Seat(self.me.node, self.me.boot, self.me.weight)
        for peer in self._peers.values():
            other = peer.heartbeat
            if other.state == "up" and peer.ignored is None:
                yield Seat(other.node, other.boot, other.weight)

    def _refuse(self, reason: str) -> list[Change]:
        if self.refused is not None:
            return []
        self.refused = reason
        return [self._change("refused", reason), *self._seated("It was refused.")]

    def _change(self, kind: Kind, reason: str) -> Change:
        return Change(kind, self.me.node, self.me.boot, reason)
