"""Processes around `Membership`, and a broker between them, under a clock that is turned by hand."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Literal

from chatx.cluster.membership import BEAT_S, TICK_S, Membership
from chatx.cluster.peers import Change, Me
from chatx.cluster.records import Heartbeat


class Process:
    """One life of a node.

    Attributes:
        alive: Whether it has not ended.
        frozen: Whether it runs, without doing anything; what is sent to it waits.
        cut: Whether it reaches the broker.
        disturbed_at: When one of these changed last.
        waiting: Heartbeats that wait in its socket.
        changes: All that its membership said.
    """

    def __init__(self, me: Me, now: float) -> None:
        self.me = me
        self.membership = Membership(me, now)
        self.alive, self.frozen, self.cut = True, False, False
        self.disturbed_at = self.up_at = now
        self.beat_at = now
        self.waiting: deque[Heartbeat] = deque()
        self.changes: list[Change] = []

    def kinds(self, node: str | None = None) -> list[str]:
        """The kinds of what was said, of one node or of all."""
        return [change.kind for change in self.changes if node in {None, change.node}]

    def sees(self) -> list[str]:
        """The names of the nodes in its view."""
        return [seat.node for seat in self.membership.view.seats]


class Cluster:
    """Processes and time."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1_000.0
        self.processes: list[Process] = []
        self.random = Random(seed)
        self.born = 0

    def start(
        self, node: str, *, strategy: Literal["pg", "horde"] = "pg", config: str = "c", version: int = 1
    ) -> Process:
        """Start a process; its boot id sorts behind those before."""
        self.born += 1
        process = Process(Me(node, f"{self.born:016d}", strategy, config, 1, version), self.now)
        self.processes.append(process)
        return process

    def started(self, *nodes: str) -> list[Process]:
        """Start processes, and let them become up."""
        processes = [self.start(node) for node in nodes]
        self.run(2)
        return processes

    def live(self) -> list[Process]:
        """The processes that have not ended."""
        return [process for process in self.processes if process.alive]

    def crash(self, process: Process) -> None:
        """`kill -9`."""
        process.alive, process.disturbed_at = False, self.now

    def freeze(self, process: Process, frozen: bool = True) -> None:
        """SIGSTOP, or SIGCONT."""
        process.frozen, process.disturbed_at = frozen, self.now

    def cut(self, process: Process, cut: bool = True) -> None:
        """Take its way to the broker, or give it back. What waited in its socket is lost."""
        process.cut, process.disturbed_at = cut, self.now
        process.waiting.clear()

    def stop(self, process: Process) -> None:
        """End a process with a last word."""
        process.changes += process.membership.leave()
        self.publish(process)
        self.crash(process)

    def publish(self, process: Process) -> None:
        """Send its next heartbeat."""
        heartbeat = process.membership.beat(self.now)
        if process.cut:
            return
        for other in self.live():
            if not other.cut:
                other.waiting.append(heartbeat)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            for process in self.live():
                if process.frozen:
                    continue
                before = process.membership.state
                # A loop that wakes up may turn to its timers first, or to its sockets.
                if self.random.random() < 0.5:
                    process.changes += process.membership.tick(self.now)
                while process.waiting:
                    process.changes += process.membership.heard(process.waiting.popleft(), self.now)
                process.changes += process.membership.tick(self.now)
                if process.membership.state != before:
                    process.up_at = self.now
                if process.membership.refused is not None:
                    self.stop(process)
                elif self.now >= process.beat_at:
                    self.publish(process)
                    process.beat_at = self.now + BEAT_S * self.random.uniform(0.9, 1.1)
