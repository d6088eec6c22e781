"""The goals of the log, and the table of stored sends."""

from __future__ import annotations

from benchmarks.goals import Figures, Goal

STORES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}

CELLS = ((1, 1), (1, 16), (1, 256), (64, 1), (64, 16), (64, 256))
"""(rooms, senders)."""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


GOALS = (
    *(
        Goal(
            f"{name}, {_counted(senders, 'sender')}, {_counted(rooms, 'room')}: stored sends a second, beside by hand",
            f"{store} {rooms} {senders} ratio", None, 0.7, "{:.2f}×", least=True,
        )
        for store, name in STORES.items() for rooms, senders in CELLS
    ),
    *(
        Goal(
            f"{name}, one sender: median wait for the acknowledgement, beside one commit",
            f"{store} 1 1 commits", None, 1.5, "{:.2f}×",
        )
        for store, name in STORES.items()
    ),
    *(
        Goal(
            f"sequenced messages on {name}, 50 a second to 1,000 sockets: CPU per delivery, beside none",
            f"sequenced {store} cpu_us", "sequenced without cpu_us", 1.1, "{:.2f} µs",
        )
        for store, name in STORES.items()
    ),
    Goal("10,000 rooms opened after a crash on SQLite", "opening sqlite seconds", None, 2.0, "{:.1f} s"),
    *(
        Goal(
            f"a page of history of the long room on {name}: 99th percentile, beside the short one",
            f"history {store} long p99_ms", f"history {store} short p99_ms", 3.0, "{:.2f} ms",
        )
        for store, name in STORES.items()
    ),
)  # fmt: skip


def sends(figures: Figures) -> str:
    """Return the table of stored sends, of those stores that were measured."""
    lines = [
        "| store | rooms | senders | stored sends/s | by hand | CPU each | by hand | p50, p99 | by hand |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for store, name in STORES.items():
        for rooms, senders in CELLS:
            row = [name, str(rooms), str(senders)]
            kinds = [f"{store} {rooms} {senders} {kind}" for kind in ("chat", "hand")]
            if f"{kinds[0]} per_second" not in figures:
                continue
            row += [f"{figures[f'{kind} per_second']:,.0f}" for kind in kinds]
            row += [f"{figures[f'{kind} cpu_us']:.1f} µs" for kind in kinds]
            row += [f"{figures[f'{kind} p50_ms']:.2f}, {figures[f'{kind} p99_ms']:.2f} ms" for kind in kinds]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def others(figures: Figures) -> str:
    """Return what has no goal, as a list, of what was measured."""
    lines = []
    for store, name in STORES.items():
        if f"sequenced {store} send_us" in figures:
            own, without = figures[f"sequenced {store} send_us"], figures["sequenced without send_us"]
            lines.append(
                f"* A sequenced send in process, as fast as {name} takes them: {own:.1f} µs of CPU, the store's part "
                f"in this process included; without a store {without:.1f} µs ({own / without:.1f}×)."
            )
        if f"restart {store} seconds" in figures:
            seconds, cpu = figures[f"restart {store} seconds"], figures[f"restart {store} cpu_s"]
            lines.append(
                f"* 10,000 clients in 100 rooms that missed 100 messages each, and whose server was killed meanwhile, "
                f"had caught up from {name} after {seconds:.1f} s; the server took {cpu:.1f} s of CPU."
            )
    return "\n".join(lines) + "\n" if lines else ""
