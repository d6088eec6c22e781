"""What every subject's driver shares: the page with the figures, and telling how far it is."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def machine(rounds: int) -> str:
    """Return the line above a table: where it was measured, and how often."""
    return (
        f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}; "
        f"medians of {rounds} rounds."
    )


def write(name: str, table: str, page: str = "benchmarks.md") -> None:
    """Put a table into a page of docs/, between the two comments of this name."""
    path = DOCS / page
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text().partition(begin)
    if not found or end not in rest:
        sys.exit(f"benchmarks: {path} has no {begin!r} followed by {end!r}; put the two where the table belongs.")
    path.write_text(f"{before}{begin}\n\n{table}\n{end}{rest.partition(end)[2]}")


def progress(turn: int, rounds: int, what: str) -> None:
    """Tell how far it is, on standard error."""
    print(f"round {turn} of {rounds}: {what}", file=sys.stderr, flush=True)
