"""Many nodes: what it costs to be several, and how long a client waits where one of them goes.

python -m benchmarks cluster --help

Nodes and their broker are processes of their own on this machine, loopback only. Each part is bounded in time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks import page
from benchmarks.cluster import rooms, spread, stall
from benchmarks.cluster.goals import GOALS, ROOMS, SUBSCRIBERS, formula, others
from benchmarks.cluster.nodes import ROOT, cluster, room_of, strategies
from benchmarks.cluster.workers import per_second
from benchmarks.goals import table
from benchmarks.page import progress

NAMES = ("a", "b", "c")
STALL_S = 8.0
"""How long one talks for while the owner goes, in seconds."""

SENDS_S = 300


class Rounds:
    """Takes figures by name, some in each round.

    Args:
        folder: Where brokers keep what they have, on the disk that is measured, and where programs are compiled to.
        seconds: How long a cell takes.
        readers: Readers of a room on each of three nodes.
        many: Rooms.
        strategies: Those that are measured.
    """

    def __init__(self, folder: Path, *, seconds: float, readers: int, many: int, strategies: list[str]) -> None:
        self._folder = folder
        self._seconds = seconds
        self._readers = readers
        self._rooms = many
        self._strategies = strategies
        self.taken: dict[str, list[float]] = defaultdict(list)

    def sends(self) -> None:
        """Take what a send through another node takes longer, and how many go into one room."""
        for strategy in self._strategies:
            with cluster(strategy, self._folder, "other") as running:
                sends = max(50, int(self._seconds * 200))
                command = [sys.executable, "-m", "benchmarks.cluster.sends", strategy, running.url, "other"]
                done = subprocess.run(
                    [*command, str(sends), str(self._seconds)],
                    check=True, stdout=subprocess.PIPE, text=True, timeout=SENDS_S, cwd=ROOT,
                )  # fmt: skip
            self._take_all(strategy, json.loads(done.stdout))

    def stall(self) -> None:
        """Take how long somebody on another node waits when the owner of the room is killed, and when it drains."""
        for strategy in self._strategies:
            with cluster(strategy, self._folder, *NAMES) as running:
                victim, other, last = running.nodes
                for kind, node, strike, names in (
                    ("drain", victim, victim.terminate, NAMES),
                    ("kill", last, last.kill, NAMES[1:]),
                ):
                    # The other node is in both, and owns the room in neither.
                    room_id = room_of(node.name, [*names], kind)
                    self._take_all(f"{strategy} {kind}", asyncio.run(stall.stall(other.port, room_id, strike, STALL_S)))

    def spread(self) -> None:
        """Take what a delivery costs on one node and on three, and a message where many are said to few readers."""
        together = 3 * self._readers
        with cluster("local", self._folder, "alone") as running:
            self._take_all("together", spread.measure(running, together, self._seconds))
            self._take_all("together hurried", spread.measure(running, 3, self._seconds, hurried=True))
        with cluster("pg", self._folder, *NAMES) as running:
            self._take_all("spread", spread.measure(running, self._readers, self._seconds))
            self._take_all("spread hurried", spread.measure(running, 1, self._seconds, hurried=True))
        self.taken["spread readers"].append(together)

    def rooms(self) -> None:
        """Take what many rooms hold, and how long they take to begin and to move."""
        for strategy in self._strategies:
            with cluster(strategy, self._folder, *NAMES) as running:
                self._take_all(f"{strategy} rooms", asyncio.run(rooms.measure(running, strategy, self._rooms)))
            self.taken[f"{strategy} rooms count"].append(self._rooms)

    def workers(self) -> None:
        """Take deliveries a second of one worker, and of two."""
        for count in (1, 2):
            self.taken[f"workers {count} per_second"].append(per_second(self._folder, count, self._seconds))
        self.taken["workers cores"].append(len(os.sched_getaffinity(0)))

    def _take_all(self, what: str, found: dict[str, float]) -> None:
        for name, value in found.items():
            self.taken[f"{what} {name}"].append(value)


PARTS = ("sends", "stall", "spread", "rooms", "workers")


def main(arguments: list[str]) -> int:
    """Measure, print the table, and write it into docs/benchmarks.md where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cluster",
        description="Measure what it costs to be many nodes.",
        epilog="examples:\n  make bench ARGS=cluster\n  make bench ARGS='cluster --rounds 1 --only stall'\n"
        "  make bench ARGS='cluster --write'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default: 3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds a cell takes (default: 8)")
    parser.add_argument("--readers", type=int, default=SUBSCRIBERS, help="readers on each node (default: 2,000)")
    parser.add_argument("--rooms", type=int, default=ROOMS, help="rooms (default: 100,000)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--folder", help="where JetStream keeps its log, on the disk to be measured (default: TMPDIR)")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rounds = Rounds(
            Path(folder),
            seconds=options.seconds,
            readers=options.readers,
            many=options.rooms,
            strategies=strategies(),
        )
        for turn in range(1, options.rounds + 1):
            for part in options.only:
                if part == "rooms" and turn > 1:
                    continue  # it takes minutes
                progress(turn, options.rounds, part)
                getattr(rounds, part)()
    figures = {name: statistics.median(values) for name, values in rounds.taken.items()}
    if options.json:
        goals = {
            goal.name: {"value": goal.value(figures), "met": goal.met(figures)} for goal in GOALS if goal.has(figures)
        }
        print(json.dumps({"figures": figures, "goals": goals}, indent=2))
        return 0
    written = page.machine(options.rounds) + "\n\n" + table(GOALS, figures) + "\n" + others(figures)
    print("\n" + written)
    if options.write:
        page.write("cluster", written)
        if found := formula(figures):
            page.write("cluster", found, "scaling.md")
    return 0
