"""The processes of one measurement: a broker on loopback, and nodes of one chat."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from chatx import ChatConfig, ConfigError
from chatx.cluster.placement import Placement, Seat, View
from tests.nats import NatsServer, program

ROOT = Path(__file__).parent.parent.parent
ENDS_S = 60
"""Seconds for a node to drain in; afterwards it is killed."""


def strategies() -> list[str]:
    """Return the strategies of many nodes that this version has."""
    found = []
    for strategy in ("pg", "horde"):
        try:
            ChatConfig(cluster_strategy=strategy, cluster_url="nats://127.0.0.1")
        except ConfigError:
            print(f"benchmarks: cluster_strategy {strategy!r} is not there; it is left out.", file=sys.stderr)
        else:
            found.append(strategy)
    return found


def room_of(owner: str, names: list[str], prefix: str = "room") -> str:
    """Return the id of a room that a node owns while these are up."""
    placement = Placement(View.of(Seat(name, "") for name in names))
    ids = (f"{prefix}-{number}" for number in count())
    return next(each for each in ids if _name(placement, each) == owner)


def _name(placement: Placement, room_id: str) -> str:
    seat = placement.owner(room_id)
    return "" if seat is None else seat.node


class Node:
    """A node that serves.

    Attributes:
        name: Its name.
        port: Where it serves.
        process: Its process.
    """

    def __init__(self, name: str, strategy: str, url: str) -> None:
        command = [sys.executable, "-m", "benchmarks.cluster.node", name, strategy, url]
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.port = 0

    def wait(self) -> None:
        """Wait until it serves."""
        self.port = int(self._read()["port"])

    def holds(self) -> dict[str, float]:
        """Ask it how many rooms it owns, and what memory it has, in bytes."""
        self.process.send_signal(signal.SIGUSR1)
        return self._read()

    @property
    def cpu_s(self) -> float:
        """The CPU time of its loop, in seconds; the scheduler counts it in nanoseconds."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def terminate(self) -> None:
        """Have it drain."""
        self.process.terminate()

    def end(self) -> None:
        """Let it drain, and see to it that it ends."""
        self.process.terminate()
        try:
            self.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"benchmarks: {self.name} ended; what it said is above.")
        told: dict[str, Any] = json.loads(line)
        return told


class Cluster:
    """Nodes around a broker.

    Attributes:
        url: The broker's, with its credentials; empty for `local`.
        nodes: The nodes that were started.
    """

    def __init__(self, strategy: str, url: str, broker: int | None, stack: ExitStack) -> None:
        self._strategy = strategy
        self._stack = stack
        self._broker = broker
        self.url = url
        self.nodes: list[Node] = []

    @property
    def broker_cpu_s(self) -> float:
        """The CPU time of the broker with all its threads, in seconds, of which the kernel counts a hundredth."""
        if self._broker is None:
            return 0.0
        fields = Path(f"/proc/{self._broker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self, *names: str) -> list[Node]:
        """Start nodes, side by side, and wait until all serve."""
        started = [Node(name, self._strategy, self.url) for name in names]
        for node in started:
            self._stack.callback(node.end)
            self.nodes.append(node)
        for node in started:
            node.wait()
        return started


@contextmanager
def cluster(strategy: str, folder: Path, *names: str) -> Iterator[Cluster]:
    """Run nodes of these names; with JetStream's file storage for `horde`, and no broker for `local`."""
    with ExitStack() as stack:
        url, pid = "", None
        if strategy != "local":
            own = folder / f"nats-{strategy}"
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            broker = NatsServer(program("current"), own)
            stack.callback(broker.end)
            url = f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}"
            if strategy == "horde":
                broker.stop()
                broker.configure(
                    f"authorization {{ user: {broker.user}, password: {broker.password} }}",
                    f'jetstream {{ store_dir: "{own / "data"}", sync_interval: always }}',
                )
                broker.start()
            pid = broker.pid
        running = Cluster(strategy, url, pid, stack)
        running.start(*names)
        yield running
