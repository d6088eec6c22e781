"""What one node knows of another, what it says of itself, and what is told of either."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from msgspec import Struct

from chatx.cluster.records import VERSION, Heartbeat

Kind: TypeAlias = Literal["joined", "left", "isolated", "healed", "refused", "ignored", "differs", "full"]


class Change(Struct, frozen=True, gc=False):
    """What happened, for the log and for whoever has to act.

    Attributes:
        kind: `joined` and `left` the view; this node is `isolated`, and stops serving, or `healed`, and looks at each
            of its rooms again; this node is `refused`, and ends; another one is `ignored`; its configuration `differs`;
            there are too many, `full`.
        node: Which node it is about.
        boot: Which life of it.
        reason: For a person: what was found, and what to do where something is to be done.
    """

    kind: Kind
    node: str
    boot: str
    reason: str


class Me(Struct, frozen=True):
    """What a node says of itself, and what does not change while it lives.

    Attributes:
        node: Its name.
        boot: Which life of it; a later one sorts behind.
        strategy: The effective cluster strategy.
        config: A hash of the options that must agree.
        weight: How many shares of the rooms it takes.
        version: The newest version of records that it reads.
    """

    node: str
    boot: str
    strategy: Literal["pg", "horde"]
    config: str
    weight: int = 1
    version: int = VERSION


class Peer:
    """Another node, as this one knows it.

    Attributes:
        heartbeat: Its newest.
        first_at: When its first one was heard, in seconds of this node's time.
        heard_at: When its newest one was heard, or since when it counts as silent.
        ignored: Why it counts for nothing, or None.
    """

    __slots__ = ("answered", "first_at", "heard_at", "heartbeat", "ignored", "told", "unanswered_at")

    def __init__(self, heartbeat: Heartbeat, now: float) -> None:
        self.heartbeat: Heartbeat = heartbeat
        self.first_at: float = now
        self.heard_at: float = now
        self.ignored: str | None = None
        self.answered: bool = True  # whether it is not known that nobody is there
        self.unanswered_at: float = math.inf
        self.told: bool = False  # whether it was said that its configuration differs

    @property
    def counts(self) -> tuple[str, int, str | None]:
        """What decides how it counts: its state, its weight, and why it is ignored."""
        return self.heartbeat.state, self.heartbeat.weight, self.ignored

    def heard(self, heartbeat: Heartbeat, now: float) -> None:
        """Take its next heartbeat."""
        self.heartbeat, self.heard_at, self.answered, self.unanswered_at = heartbeat, now, True, math.inf


def mismatch(me: Me, other: Heartbeat) -> str | None:
    """Return why two nodes cannot be in one cluster, or None."""
    if me.strategy != other.strategy:
        return (
            f"Node {other.node!r} has the cluster strategy {other.strategy!r}, and this one, {me.node!r}, has "
            f"{me.strategy!r}; give all nodes the same cluster_strategy, and a broker that has what it needs."
        )
    if abs(me.version - other.version) > 1:
        return (
            f"Node {other.node!r} speaks version {other.version} of the cluster's protocol, and this one, {me.node!r}, "
            f"version {me.version}; upgrade one version at a time."
        )
    return None
