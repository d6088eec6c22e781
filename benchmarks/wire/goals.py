"""The goals of the wire."""

from __future__ import annotations

from benchmarks.goals import Goal

MAILBOX_BYTES = 1_048_576
"""What may wait for one stalled reader, in bytes: the default of `mailbox_bytes`."""

STALLED = 98
"""Readers that stall, of 1,000: every tenth but those who send."""

GOALS = (
    Goal(
        "50 messages a second: CPU per delivery, beside `send()`",
        "paced native cpu_us", "paced each cpu_us", 1.25, "{:.2f} µs",
    ),
    Goal("… of it in user mode", "paced native user_us", None, 1.4, "{:.2f} µs"),
    Goal("… 99th percentile", "paced native p99_ms", "paced each p99_ms", 1.3, "{:.1f} ms"),
    Goal(
        "16 outstanding: deliveries a second, beside `send()` of joined frames",
        "saturated native per_second", "saturated joined per_second", 0.85, "{:,.0f} k", least=True, scale=1e-3,
    ),
    Goal(
        "16 outstanding on uvicorn: deliveries a second, beside a loop in FastAPI",
        "saturated asgi per_second", "saturated fastapi per_second", 1.2, "{:,.0f} k", least=True, scale=1e-3,
    ),
    Goal("10,000 joined connections: memory each", "crowd bytes", None, 8, "{:.1f} KiB", scale=1 / 1024),
    Goal("… connect, authenticate and join", "crowd connect_s", None, 8, "{:.1f} s"),
    Goal("… resume after a cut", "crowd resume_s", None, 8, "{:.1f} s"),
    Goal(
        "one reader in ten stalled: 99th percentile of the others",
        "stalled with p99_ms", "stalled without p99_ms", 1.2, "{:.1f} ms",
    ),
    Goal(
        "… growth of memory, bounded by `mailbox_bytes` for each",
        "stalled with growth", None, STALLED * MAILBOX_BYTES / 2**20, "{:.0f} MiB", scale=1 / 2**20,
    ),
    Goal("… of them not given up after 20 s", "stalled with kept", None, 0, "{:.0f}"),
    Goal("… members left when all have gone", "stalled with members_left", None, 0, "{:.0f}"),
    Goal("… objects left", "stalled with objects_left", None, 1000, "{:.0f}"),
    Goal("… memory left", "stalled with resident_left", None, 4, "{:.1f} MiB", scale=1 / 2**20),
)  # fmt: skip
