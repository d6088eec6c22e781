"""The goals of many nodes."""

from __future__ import annotations

from benchmarks.goals import Figures, Goal

SUBSCRIBERS, ROOMS = 2_000, 100_000

GOALS = (
    Goal("`pg`: a send through another node, p50 added", "pg added p50_ms", None, 1.5, "{:.2f} ms"),
    Goal("`horde`, file storage: a send through another node, p50 added", "horde added p50_ms", None, 3.0, "{:.2f} ms"),
    Goal("`horde`: messages a second in one room", "horde per_second", None, 20_000, "{:,.0f}", least=True),
    *(
        Goal(f"`{strategy}`: longest wait of a client, {what}", f"{strategy} {kind} stall_s", None, bound, "{:.2f} s")
        for strategy in ("pg", "horde")
        for kind, what, bound in (("kill", "the owner killed", 3.0), ("drain", "the owner drained", 0.3))
    ),
    Goal("`horde`: acknowledged messages that were lost, the owner killed", "horde kill lost", None, 0, "{:.0f}"),
    Goal("… and that came twice", "horde kill doubled", None, 0, "{:.0f}"),
)  # fmt: skip


def others(figures: Figures) -> str:
    """Return what has no goal, as a list, of what was measured."""
    lines = []
    for strategy in ("pg", "horde"):
        if f"{strategy} own p50_ms" in figures:
            own, other = figures[f"{strategy} own p50_ms"], figures[f"{strategy} other p50_ms"]
            lines.append(
                f"* `{strategy}`: a send to a room of its own node takes {own:.2f} ms, to another node's {other:.2f} "
                f"ms; 256 senders bring {figures[f'{strategy} per_second']:,.0f} messages a second into one room."
            )
        if f"{strategy} rooms bytes" in figures:
            rooms = {
                name.removeprefix(f"{strategy} rooms "): value
                for name, value in figures.items()
                if name.startswith(f"{strategy} rooms ")
            }
            lines.append(
                f"* `{strategy}`, {rooms['count']:,.0f} rooms on four nodes: {rooms['begin per_second']:,.0f} begin a "
                f"second, each takes {rooms['bytes'] / 1024:.1f} KiB at its owner. A node with "
                f"{rooms['left rooms']:,.0f} of them drains in {rooms['left drain_s']:.1f} s, and a message to each of "
                f"all takes {rooms['left all_s']:.1f} s then; {rooms['left anew']:,.0f} began anew. A node that comes "
                f"has {rooms['came rooms']:,.0f} of them when each was sent another message, {rooms['came all_s']:.1f} "
                f"s after it serves; {rooms['came anew']:,.0f} began anew."
            )
    if "spread cpu_us" in figures:
        lines.append(
            f"* {figures['spread readers']:,.0f} readers of one room, 10 messages a second: a delivery costs "
            f"{figures['together cpu_us']:.2f} µs of CPU on one node, and {figures['spread cpu_us']:.2f} µs where they "
            f"are spread over three; the broker takes {figures['spread broker_us']:.0f} µs a message."
        )
    if "workers 2 per_second" in figures:
        one, two = figures["workers 1 per_second"], figures["workers 2 per_second"]
        lines.append(
            f"* `chatx serve --workers 2` makes {two:,.0f} deliveries a second, one process {one:,.0f} "
            f"({two / one:.2f}×), with the load on one of {figures['workers cores']:.0f} cores."
        )
    return "\n".join(lines) + "\n" if lines else ""


def formula(figures: Figures) -> str:
    """Return what the figures say of more nodes; empty where a delivery was not measured."""
    if "spread hurried message_us" not in figures:
        return ""
    delivery = figures["together cpu_us"]
    # Of three nodes two follow.
    following = max(0.0, figures["spread hurried message_us"] - figures["together hurried message_us"]) / 2
    copied, copied_slowly = figures["spread hurried broker_us"] / 2, figures["spread broker_us"] / 2
    pace = figures["spread hurried per_second"]
    lines = [
        f"`d` = {delivery:.1f} µs a delivery, and for each node that follows `f` = {following:.0f} µs and `b` = "
        f"{copied:.0f} µs a message where {pace:,.0f} a second are said. At 10 a second each wakes the broker up, and "
        f"`b` is {copied_slowly:.0f} µs.",
        "",
    ]
    for nodes in (10, 100):
        deliveries_ms, following_ms = nodes * delivery, (nodes - 1) * following / 1000
        lines.append(
            f"* {nodes} nodes, readers on all of them: a room of {nodes * 1000:,} readers costs {deliveries_ms:,.0f} "
            f"ms of CPU a message in deliveries, and {following_ms:,.1f} ms for being followed. A broker on one core "
            f"copies {1e6 / ((nodes - 1) * copied):,.0f} messages a second to all of them."
        )
    return "\n".join(lines) + "\n"
