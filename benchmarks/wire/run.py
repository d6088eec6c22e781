"""The wire: what a delivery costs on real sockets, what a connection holds, how long a crowd takes to come in.

python -m benchmarks wire --help

Each run has a fresh server on one core and the load on another. References and candidates alternate, so that a machine
whose speed drifts does not favour one of them. Loopback only; it ends by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks import page
from benchmarks.goals import table
from benchmarks.page import progress
from benchmarks.wire.goals import GOALS
from benchmarks.wire.servers import Bench, Seen

CLIENTS, PACE, OUTSTANDING = "1000", 50, 16
CROWD, ROOMS, MISSED = "10000", "100", 3
STALLED_EACH, STALLED_BODY, SEND_BUFFER = "10", "1000", "65536"
STALLED_S = 20.0
"""The slow ones are given up 10 s after nothing has moved; until then they are to be slow."""

Taken = dict[str, list[float]]


class Rounds:
    """Takes figures by name, some in each round."""

    def __init__(self, bench: Bench, seconds: float) -> None:
        self._bench = bench
        self._seconds = seconds
        self.taken: Taken = defaultdict(list)
        # What the references send is as long as what chatx makes of the same body: measured once, before all.
        *_, seen = bench.run("native", "--clients", "100", "pace:20:1")
        self._bytes = str(round(seen["frame_bytes"]))

    def paced(self) -> None:
        """Take single messages, some a second, through the native server and through send() alone."""
        phases = ("warm:1:1", f"pace:{PACE}:{self._seconds}")
        for kind in ("each", "native"):
            seen = self._messages(kind, *phases)
            for name in ("cpu_us", "user_us", "p50_ms", "p99_ms"):
                self._take(f"paced {kind} {name}", seen[name])

    def outstanding(self) -> None:
        """Take messages as fast as they go, through the native server and the C server that joins them."""
        self._saturate("joined", "native")

    def uvicorn(self) -> None:
        """Take messages as fast as they go, through the ASGI application and a loop written by hand."""
        self._saturate("fastapi", "asgi")

    def _saturate(self, *kinds: str) -> None:
        for kind in kinds:
            seen = self._messages(kind, f"warm:{OUTSTANDING}:1", f"saturate:{OUTSTANDING}:{self._seconds}")
            self._take(f"saturated {kind} per_second", seen["per_second"])
            self._take(f"saturated {kind} cpu_us", seen["cpu_us"])

    def crowd(self) -> None:
        """Take what many clients in rooms of a hundred hold and how long they take to come in, and back."""
        shape = ("--clients", CROWD, "--rooms", ROOMS)
        with self._bench.server("native") as server:
            connect, idle, resume = self._bench.load(server, *shape, "idle:5", f"resume:{MISSED}")
        _none(idle, "lost")
        _none(resume, "unrecovered", "incomplete", "disordered")
        self._take("crowd connect_s", connect["seconds"])
        self._take("crowd connect_cpu_s", connect["cpu_s"])
        self._take("crowd bytes", connect["bytes_each"])
        self._take("crowd resume_s", resume["seconds"])
        self._take("crowd resume_cpu_s", resume["cpu_s"])

    def stalled(self) -> None:
        """Take what one reader in ten that takes nothing does to the others, and what is left of it afterwards."""
        shape = ("--clients", CLIENTS, "--body", STALLED_BODY)
        phase = f"pace:{PACE}:{STALLED_S}"
        for name, options in (("without", ()), ("with", ("--stalled-each", STALLED_EACH))):
            with self._bench.server("native", "--send-buffer", SEND_BUFFER) as server:
                # The same once before, so that what stays is not what the first ones always leave.
                self._bench.load(server, *shape, *options, phase if options else "warm:16:2")
                before = _settled(server.holds)
                seen = self._bench.load(server, *shape, *options, phase)[-1]
                after = _settled(server.holds)
            _none(seen, "incomplete", "disordered", "lost")
            self._take("waited", seen["waited"])
            self._take(f"stalled {name} clients", seen["stalled"])
            self._take(f"stalled {name} kept", seen["stalled"] - seen["given_up"])
            self._take(f"stalled {name} p99_ms", seen["p99_ms"])
            self._take(f"stalled {name} growth", seen["resident_growth"])
            self._take(f"stalled {name} members_left", after["members"])
            self._take(f"stalled {name} objects_left", after["objects"] - before["objects"])
            self._take(f"stalled {name} resident_left", after["resident"] - before["resident"])

    def _messages(self, kind: str, *phases: str) -> Seen:
        body = () if kind in ("native", "asgi") else ("--body", self._bytes)
        seen = self._bench.run(kind, "--clients", CLIENTS, *body, *phases)[-1]
        _none(seen, "incomplete", "lost")
        if kind != "fastapi":  # two of its loops may run at a time
            _none(seen, "disordered")
        self._take("frame_bytes " + kind, seen["frame_bytes"])
        self._take("waited", seen["waited"])
        return seen

    def _take(self, name: str, value: float) -> None:
        self.taken[name].append(value)


def _none(seen: Seen, *names: str) -> None:
    for name in names:
        if seen[name]:
            sys.exit(f"benchmarks: in phase {seen['phase']} {seen[name]} clients were {name}; expected none: {seen}")


def _settled(holds: Callable[[], Seen]) -> Seen:
    """Return what a server holds when its last client is gone, and all that is done with a delay."""
    end = time.monotonic() + 10
    held = holds()
    while time.monotonic() < end:
        time.sleep(0.5)
        before, held = held, holds()
        if not held["members"] and held["objects"] == before["objects"]:
            break
    return held


PARTS = ("paced", "outstanding", "uvicorn", "crowd", "stalled")


def main(arguments: list[str]) -> int:
    """Measure, print the table, and write it into docs/benchmarks.md where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks wire",
        description="Measure the native server and the ASGI shell beside their references.",
        epilog="examples:\n  make bench ARGS=wire\n  make bench ARGS='wire --rounds 1 --only crowd'\n"
        "  make bench ARGS='wire --write'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default: 3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds a phase of messages takes (default: 8)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(Bench(Path(folder)), options.seconds)
        for turn in range(1, options.rounds + 1):
            for part in options.only:
                progress(turn, options.rounds, part)
                getattr(rounds, part)()
    figures = {name: statistics.median(values) for name, values in rounds.taken.items()}
    if options.json:
        goals = {
            goal.name: {"value": goal.value(figures), "met": goal.met(figures)} for goal in GOALS if goal.has(figures)
        }
        print(json.dumps({"figures": figures, "goals": goals}, indent=2))
        return 0
    written = page.machine(options.rounds) + "\n\n" + table(GOALS, figures)
    if "waited" in figures:
        written += (
            f"\nServer and load waited for their cores for {figures['waited']:.0%} of the time. Above some percent, "
            "rates and latencies are those of what else the machine does.\n"
        )
    print("\n" + written)
    if options.write:
        page.write("wire", written)
    return 0
