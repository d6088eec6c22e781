"""The log: what stored sends cost beside their rows written by hand, and sequenced ones beside those without a store;
and what a restart and a long history cost.

python -m benchmarks log --help

Each cell runs in a process of its own, on a store of its own. References and candidates alternate, so that a machine
whose speed drifts does not favour one of them. PostgreSQL is a cluster of the measurement's own, with `fsync` on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.goals import Figures, table
from benchmarks.log.goals import CELLS, GOALS, STORES, others, sends
from benchmarks.page import progress
from benchmarks.wire.servers import Bench
from tests.postgres import Postgres, cluster

CLIENTS, PACE = "1000", 50
CROWD, ROOMS, MISSED = "10000", "100", 100
OPENED, SHORT, PAGES = 10_000, 10_000, 3_000

ROOT = Path(__file__).parent.parent.parent


class Rounds:
    """Takes figures by name, some in each round.

    Args:
        folder: On the disk that is measured.
        postgres: Where the databases are made.
        bench: The load on the wire.
        seconds: How long a cell takes.
        long: Messages of the long room.
    """

    def __init__(
        self, folder: Path, postgres: Callable[[], Postgres], bench: Bench, *, seconds: float, long: int
    ) -> None:
        self._folder = folder
        self._bench = bench
        self._long = long
        self._postgres = postgres
        self._seconds = seconds
        self._files = 0
        self.taken: dict[str, list[float]] = defaultdict(list)

    def sqlite(self) -> None:
        """Take stored sends on SQLite, through the engine and by hand."""
        self._sends("sqlite")

    def postgres(self) -> None:
        """Take stored sends on PostgreSQL, through the engine and by hand."""
        self._sends("postgres")

    def sequenced(self) -> None:
        """Take what a store beside sequenced messages costs: over the wire some a second, and in process."""
        for store in ("without", *STORES):
            url = "none" if store == "without" else self._new(store)
            self._take(f"sequenced {store} send_us", _python("benchmarks.log.beside", url, self._seconds)["send_us"])
            options = () if store == "without" else ("--store", self._new(store))
            with self._bench.server("native", *options) as server:
                phases = ("warm:1:1", f"pace:{PACE}:{2 * self._seconds}")
                *_, seen = self._bench.load(server, "--clients", CLIENTS, *phases)
            if seen["incomplete"] or seen["lost"] or seen["disordered"]:
                sys.exit(f"benchmarks: with the store {store} not everybody saw everything in order: {seen}")
            self._take(f"sequenced {store} cpu_us", seen["cpu_us"])

    def restart(self) -> None:
        """Take how long a crowd takes to catch up from the log when the server has crashed, and rooms to be opened."""
        for store in STORES:
            seen = self._bench.across_a_restart(MISSED, "--clients", CROWD, "--rooms", ROOMS, store=self._new(store))
            if seen["unrecovered"] or seen["incomplete"] or seen["disordered"]:
                sys.exit(f"benchmarks: across the restart not everybody saw everything in order: {seen}")
            self._take(f"restart {store} seconds", seen["seconds"])
            self._take(f"restart {store} cpu_s", seen["cpu_s"])
        opened = _python("benchmarks.log.opening", self._new("sqlite"), OPENED)
        self._take("opening sqlite seconds", opened["seconds"])

    def history(self) -> None:
        """Take pages of a short and of a long room."""
        for store in STORES:
            found = _python("benchmarks.log.pages", self._new(store), SHORT, self._long, PAGES)
            for name, value in found.items():
                self._take(f"history {store} {name}", value)

    def _sends(self, store: str) -> None:
        for rooms, senders in CELLS:
            cell = f"{store} {rooms} {senders}"
            for kind in ("hand", "chat"):
                found = _python("benchmarks.log.sends", kind, self._new(store), senders, rooms, self._seconds)
                for name, value in found.items():
                    self._take(f"{cell} {kind} {name}", value)
            # Of each pair, since the disk's speed changes within a round.
            self._take(f"{cell} ratio", self._last(f"{cell} chat per_second") / self._last(f"{cell} hand per_second"))
            self._take(f"{cell} commits", self._last(f"{cell} chat p50_ms") / self._last(f"{cell} hand commit_ms"))

    def _new(self, store: str) -> str:
        """Return where a store is that has nothing in it."""
        if store == "postgres":
            return self._postgres().new_database()
        self._files += 1
        return str(self._folder / f"{self._files}.db")

    def _last(self, name: str) -> float:
        return self.taken[name][-1]

    def _take(self, name: str, value: float) -> None:
        self.taken[name].append(value)


def _python(module: str, *arguments: object) -> Figures:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


PARTS = ("sqlite", "postgres", "sequenced", "restart", "history")


def main(arguments: list[str]) -> int:
    """Measure, print the tables, and write them into docs/benchmarks.md where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks log",
        description="Measure what a log under the rooms costs.",
        epilog="examples:\n  make bench ARGS=log\n  make bench ARGS='log --rounds 1 --only sqlite'\n"
        "  make bench ARGS='log --write'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a cell of sends takes (default: 3)")
    parser.add_argument("--long", type=int, default=5_000_000, help="messages of the long room (default: 5,000,000)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument(
        "--folder", help="where the stores are made, on the disk to be measured (default: as TMPDIR says)"
    )
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        made: list[Postgres] = []

        def postgres() -> Postgres:
            if not made:
                made.append(stack.enter_context(cluster(options.folder)))
            return made[0]

        compiled = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rounds = Rounds(folder, postgres, Bench(compiled), seconds=options.seconds, long=options.long)
        for turn in range(1, options.rounds + 1):
            for part in options.only:
                progress(turn, options.rounds, part)
                getattr(rounds, part)()
    figures = {name: statistics.median(values) for name, values in rounds.taken.items()}
    if options.json:
        print(json.dumps(figures, indent=2))
        return 0
    written = (
        page.machine(options.rounds) + "\n\n" + "\n".join((sends(figures), table(GOALS, figures), others(figures)))
    )
    print("\n" + written)
    if options.write:
        page.write("log", written)
    return 0
