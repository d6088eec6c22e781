"""One bar for each phase, on standard error: it moves on a terminal, and is two lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Final

_WIDTH: Final = 30
_EVERY_S: Final = 0.1


class Bar:
    """The bar of a phase.

    Args:
        name: The phase.
        whole: How much there is to do.
        unit: Of what.
    """

    def __init__(self, name: str, whole: float, unit: str) -> None:
        self._name = name
        self._whole = max(whole, 1e-9)
        self._unit = unit
        self._began = time.monotonic()
        self._shown = 0.0
        self._moves = sys.stderr.isatty()
        if not self._moves:
            print(f"{name}: {whole:,.0f} {unit}", file=sys.stderr, flush=True)

    def at(self, done: float) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._moves and now - self._shown >= _EVERY_S:
            self._shown = now
            self._draw(done)

    def end(self, done: float) -> None:
        """Show that it is over."""
        if self._moves:
            self._draw(done)
            print(file=sys.stderr, flush=True)
        else:
            took = time.monotonic() - self._began
            print(f"{self._name}: {done:,.0f} of {self._whole:,.0f} in {took:.1f} s", file=sys.stderr, flush=True)

    def _draw(self, done: float) -> None:
        full = int(_WIDTH * min(1.0, done / self._whole))
        bar = "█" * full + "░" * (_WIDTH - full)
        took = time.monotonic() - self._began
        print(
            f"\r{self._name:<12} {bar} {done:>9,.0f} of {self._whole:,.0f} {self._unit} {took:6.1f} s ",
            end="", file=sys.stderr, flush=True,
        )  # fmt: skip
