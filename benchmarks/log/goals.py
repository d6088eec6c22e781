"""The goals of the log, and the table of stored sends."""

from __future__ import annotations

from benchmarks.goals import Figures, Goal

STORES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}

CELLS = ((1, 1), (1, 16), (1, 256), (64, 1), (64, 16), (64, 256))
"""(rooms, senders)."""

GOALS = (
    *(
        Goal(
            f"{name}, {senders} senders, {rooms} rooms: stored sends a second, beside the rows by hand",
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
)  # fmt: skip


def sends(figures: Figures) -> str:
    """Return the table of stored sends, of those stores that were measured."""
    lines = [
        "| store | rooms | senders | stored sends/s | by hand | p50, p99 | by hand p50, p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for store, name in STORES.items():
        for rooms, senders in CELLS:
            row = [name, str(rooms), str(senders)]
            kinds = [f"{store} {rooms} {senders} {kind}" for kind in ("chat", "hand")]
            if f"{kinds[0]} per_second" not in figures:
                continue
            row += [f"{figures[f'{kind} per_second']:,.0f}" for kind in kinds]
            row += [f"{figures[f'{kind} p50_ms']:.2f}, {figures[f'{kind} p99_ms']:.2f} ms" for kind in kinds]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""
