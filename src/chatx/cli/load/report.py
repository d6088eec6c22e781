"""What a load has found, for a person and for a program."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any, Final

from chatx.cli.load.crew import Crew
from chatx.cli.load.histogram import Histogram
from chatx.cli.load.loads import SPARE_BYTES, Course, Plan, late_growth
from chatx.cli.load.server import Figures
from chatx.cli.load.thresholds import Threshold, name_of

MIB: Final = 1024.0**2

WIDE: Final = 78
"""Columns that the table takes; on a narrower terminal it is turned."""

ALWAYS: Final = (
    Threshold("lost==0", "lost", "==", 0),
    Threshold("doubled==0", "doubled", "==", 0),
    Threshold("reordered==0", "reordered", "==", 0),
    Threshold("unanswered==0", "unanswered", "==", 0),
)
"""What every server must keep."""

SOAKED: Final = (
    Threshold("task_growth<=0", "task_growth", "<=", 0),
    Threshold("descriptor_growth<=0", "descriptor_growth", "<=", 0),
    Threshold("memory_growth<=64MiB", "memory_growth", "<=", SPARE_BYTES),
)
"""What a server must keep that tells its figures, when everybody has left."""

TIMES: Final = (
    *(f"{what}{name}" for what in ("", "connect_", "return_") for name in ("p50", "p90", "p99", "p999", "max")),
    "cpu_per_delivery",
)
SIZES: Final = ("memory", "memory_growth", "memory_late_growth")
NAMES: Final = (
    *TIMES,
    *("lost", "doubled", "reordered", "gaps", "unanswered", "refused", "rate", "delivery_rate", "connect_rate"),
    *SIZES,
    *("task_growth", "descriptor_growth"),
)
"""The figures that a threshold may be of: times in seconds, memory in bytes, rates a second, and counts."""


def figures(crew: Crew, course: Course) -> dict[str, float | None]:
    """Return the figures by the names that thresholds have."""
    found: dict[str, float | None] = {}
    for what, times in (("", crew.delivered), ("connect_", crew.connected), ("return_", crew.returned)):
        for name, value in times.told().items():
            found[what + name] = value if times.count else None
    talked_s = max(1e-9, course.talked_s)
    grown = _grown(course.before, course.after)
    return found | {
        "lost": crew.totals.lost,
        "doubled": crew.totals.doubled,
        "reordered": crew.totals.reordered,
        "gaps": crew.totals.gaps,
        "unanswered": crew.said - crew.acknowledged - crew.given_up,
        "refused": crew.refused.total(),
        "rate": course.acknowledged / talked_s,
        "delivery_rate": course.deliveries / talked_s,
        "connect_rate": course.came_in / course.came_in_s if course.came_in_s else None,
        "cpu_per_delivery": None if course.cpu_s is None or not course.deliveries else course.cpu_s / course.deliveries,
        "memory": course.most.resident or None,
        "memory_growth": grown.get("resident"),
        "memory_late_growth": late_growth(course),
        "task_growth": grown.get("tasks"),
        "descriptor_growth": grown.get("descriptors"),
    }


def document(
    kind: str,
    crew: Crew,
    course: Course,
    plan: Plan,
    versions: Mapping[str, str],
    kept: Mapping[str, bool],
    whole: bool,
) -> dict[str, Any]:
    """Return everything as one JSON object.

    Args:
        kind: The load's name.
        crew: All clients.
        course: How it went.
        plan: What was to be done.
        versions: Of what took part.
        kept: By threshold, whether it was kept.
        whole: Whether the load ran to its end.
    """
    found = figures(crew, course)
    return {
        "lost": crew.totals.lost,
        "doubled": crew.totals.doubled,
        "reordered": crew.totals.reordered,
        "load": kind,
        "complete": whole and course.complete,
        "seed": crew.seed,
        "versions": dict(versions),
        "plan": {name: getattr(plan, name) for name in Plan.__struct_fields__},
        "said": crew.said,
        "acknowledged": crew.acknowledged,
        "deliveries": course.deliveries,
        "cut": course.cut,
        "churned": course.churned,
        "refused_by": dict(crew.refused),
        "closed_by": {str(code): times for code, times in crew.closed.items()},
        "figures": found,
        "server": {
            name: None if each is None else {field: getattr(each, field) for field in Figures.__struct_fields__}
            for name, each in (("before", course.before), ("most", course.most), ("after", course.after))
        },
        "thresholds": dict(kept),
        "bottleneck": course.bottleneck,
    }


def text(
    kind: str,
    crew: Crew,
    course: Course,
    plan: Plan,
    versions: Mapping[str, str],
    kept: Mapping[str, bool],
    whole: bool,
    width: int = 80,
) -> str:
    """Return everything as a summary of some lines, of this width; other arguments as `document`."""
    found = figures(crew, course)
    rooms = "1 room" if plan.rooms == 1 else f"{plan.rooms:,} rooms"
    talked = f"{plan.rate:g} messages a second for {course.talked_s:.0f} s"
    head = f"chatx bench {kind}: {plan.clients:,} clients in {rooms}, {talked}"
    told = (("connect", crew.connected), ("come back", crew.returned), ("delivery", crew.delivered))
    table = _table([each for each in told if each[1].count], width)
    lines = [
        f"  said         {crew.said:,}, acknowledged {crew.acknowledged:,}, a second {found['rate']:,.0f}",
        f"  delivered    {course.deliveries:,} while they talked, a second {found['delivery_rate']:,.0f}",
    ]
    if crew.unsent:
        lines.append(f"  not sent     {crew.unsent:,}, since as many as are kept had no answer")
    if course.cut or course.churned:
        lines.append(f"  cut off      {course.cut:,}, and {course.churned:,} left for a new one")
    if (cost := found["cpu_per_delivery"]) is not None:
        lines.append(
            f"  server       {cost * 1e6:.1f} µs of CPU a delivery, {course.most.resident / MIB:,.0f} MiB at most"
        )
    elif course.talked_s and not course.most.resident:
        lines.append("  server       tells no figures at /metrics, so nothing is known of its CPU and memory")
    if kind == "soak" and course.before is not None and course.after is not None:
        before, after = course.before, course.after
        lines.append(
            f"  at rest      {before.resident / MIB:,.0f} → {after.resident / MIB:,.0f} MiB, {before.tasks:,.0f} → "
            f"{after.tasks:,.0f} tasks, {before.descriptors:,.0f} → {after.descriptors:,.0f} descriptors"
        )
        if (late := found["memory_late_growth"]) is not None:
            lines.append(f"  meanwhile    {late / MIB:+,.1f} MiB of memory in the second half")
    if crew.refused:
        lines.append(
            "  said no      " + ", ".join(f"{what} ({times:,})" for what, times in crew.refused.most_common(6))
        )
    lines += [
        "",
        f"  lost {crew.totals.lost:,}, doubled {crew.totals.doubled:,}, reordered {crew.totals.reordered:,}"
        + (f"; {crew.totals.gaps:,} gaps were told" if crew.totals.gaps else ""),
    ]
    if not whole:
        lines.append("  It did not run to its end; that is what there was until then.")
    elif not course.complete:
        lines.append("  Not everybody had seen everything in time.")
    if course.bottleneck is not None:
        lines.append(f"  {course.bottleneck}")
    lines += [f"  not kept: {name}{_was(name, found)}" for name, was_kept in kept.items() if not was_kept]
    lines += ["", "  " + ", ".join(f"{name} {version}" for name, version in versions.items()) + f", seed {crew.seed}"]
    above, below = (
        "\n".join(line for each in some for line in wrap(each, width, subsequent_indent="    ") or [""])
        for some in ([head], ["", *lines])
    )
    return "\n".join((above, "", *table, below))


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    from chatx import __version__

    return {"chatx": __version__, "python": platform.python_version(), "system": platform.system()}


def _table(told: Sequence[tuple[str, Histogram]], width: int) -> list[str]:
    """Return percentiles of what took time: a line for each of it, or a column where the lines are short."""
    if width >= WIDE:
        head = f"  {'':<12}{'p50':>10}{'p90':>10}{'p99':>10}{'p99.9':>10}{'max':>10}{'times':>13}"
        return [head, *(f"  {what:<12}{_times(times)}{times.count:>13,}" for what, times in told)]
    columns = [[what, *map(_shown, times.told().values()), f"{times.count:,}"] for what, times in told]
    names = ("", "p50", "p90", "p99", "p99.9", "max", "times")
    return [f"{name:<6}" + "".join(f"{each:>11}" for each in line) for name, *line in zip(names, *columns, strict=True)]


def _times(times: Histogram) -> str:
    return "".join(f"{_shown(value):>10}" for value in times.told().values())


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _was(name: str, found: Mapping[str, float | None]) -> str:
    """Return what a figure was of which a threshold is, as its bound is written."""
    of = name_of(name)
    if of not in NAMES:
        return ""
    if (value := found.get(of)) is None:
        return " (not measured)"
    if of in SIZES:
        return f" ({value / MIB:,.1f} MiB)"
    if of in TIMES:
        return f" ({value * 1e6:,.1f} µs)" if value < 1e-3 else f" ({_shown(value)})"
    return f" ({value:,.10g})"


def _grown(before: Figures | None, after: Figures | None) -> dict[str, float]:
    if before is None or after is None:
        return {}
    return {name: getattr(after, name) - getattr(before, name) for name in Figures.__struct_fields__}
