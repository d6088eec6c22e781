"""The engine without sockets: every figure beside its reference, in turn, several rounds, medians; one table.

python -m benchmarks engine --help

Each cell runs in a process of its own. References and candidates alternate, so that a machine whose speed drifts does
not favour one of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.page import progress

HERE = Path(__file__).parent

CELLS = ((1_000, 1), (1_000, 16), (10_000, 1), (10_000, 16))
KINDS = ("callbacks", "iterators", "erlang", "queues", "broadcaster")
MEMORY = (("rooms", 20_000), ("members", 50_000), ("subscriptions", 10_000), ("crowd", 100_000))

Figures = dict[str, float]


def main(arguments: list[str]) -> int:
    """Measure, print the table, and write it into docs/benchmarks.md where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks engine",
        description="Measure the engine beside its references, without sockets.",
        epilog="examples:\n  make bench\n  make bench ARGS='--rounds 1 --seconds 0.5'\n  make bench ARGS=--write",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds a cell (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        beam = _compiled(Path(folder))
        figures = _measure(options.rounds, options.seconds, beam)
    if options.json:
        print(json.dumps(figures, indent=2))
        return 0
    table = _table(figures, options.rounds)
    print("\n" + table)
    if options.write:
        page.write("figures", table)
    return 0


def _measure(rounds: int, seconds: float, beam: Path) -> dict[str, float]:
    taken: dict[str, list[float]] = defaultdict(list)
    for turn in range(1, rounds + 1):
        for subscribers, outstanding in CELLS:
            for kind in KINDS:
                progress(turn, rounds, f"{kind}, {subscribers} subscribers, {outstanding} outstanding")
                cell = (str(subscribers), str(outstanding), str(seconds))
                found = _erlang(beam, *cell) if kind == "erlang" else _python("benchmarks.fanout", kind, *cell)
                taken[f"{kind} {subscribers} {outstanding}"].append(found["deliveries"] / found["seconds"])
        progress(turn, rounds, "pipeline")
        found = _python("benchmarks.pipeline", str(seconds))
        taken["send"].append(found["send"])
        taken["encode"].append(found["encode"])
        taken["send/encode"].append(found["send"] / found["encode"])
    for kind, count in MEMORY:
        progress(rounds, rounds, f"memory, {count} {kind}")
        found = _python("benchmarks.memory", kind, str(count))
        taken[f"memory {kind}"].append(found["bytes"])
        taken[f"total {kind}"].append(found["total_mib"])
    return {name: statistics.median(values) for name, values in taken.items()}


def _table(figures: dict[str, float], rounds: int) -> str:
    lines = [
        page.machine(rounds),
        "",
        "Fan-out in process, million deliveries a second:",
        "",
        "| subscribers, outstanding | callbacks | `async for` | Erlang | `asyncio.Queue` | broadcaster "
        "| callbacks / Erlang | `async for` / Erlang | `async for` / Queue |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for subscribers, outstanding in CELLS:
        rate = {kind: figures[f"{kind} {subscribers} {outstanding}"] / 1e6 for kind in KINDS}
        ratios = (
            rate["callbacks"] / rate["erlang"],
            rate["iterators"] / rate["erlang"],
            rate["iterators"] / rate["queues"],
        )
        cells = [f"{rate[kind]:.2f}" for kind in KINDS] + [f"{ratio:.1f}×" for ratio in ratios]
        lines.append(f"| {subscribers:,}, {outstanding} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"One message through the whole pipeline without subscribers, auth, rate limit and moderation on: "
        f"{figures['send'] * 1e6:.2f} µs, which is {figures['send/encode']:.1f}× one msgspec JSON encode of it "
        f"({figures['encode'] * 1e6:.3f} µs).",
        "",
        "| memory | bytes each |",
        "|---|---|",
        f"| idle room that one message was sent to | {figures['memory rooms']:,.0f} |",
        f"| member | {figures['memory members']:,.0f} |",
        f"| subscription with a mailbox | {figures['memory subscriptions']:,.0f} |",
        f"| room with 10 members, 100,000 of them | {figures['memory crowd']:,.0f} "
        f"({figures['total crowd']:,.0f} MiB in all) |",
        "",
    ]
    return "\n".join(lines)


def _compiled(folder: Path) -> Path:
    if shutil.which("erlc") is None:
        sys.exit("benchmarks: erlc is missing, and the Erlang room is a reference; install Debian's erlang-base.")
    subprocess.run(["erlc", "-o", str(folder), str(HERE / "erlang_room.erl")], check=True)
    return folder


def _erlang(beam: Path, *cell: str) -> Figures:
    subscribers, outstanding, seconds = cell
    # One scheduler, as Python has one thread.
    command = ["erl", "+S", "1:1", "+sbwt", "none", "+P", "1000000", "-noshell", "-pa", str(beam)]
    return _run([*command, "-s", "erlang_room", "main", subscribers, outstanding, str(max(1, round(float(seconds))))])


def _python(module: str, *arguments: str) -> Figures:
    return _run([sys.executable, "-m", module, *arguments])


def _run(command: list[str]) -> Figures:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
