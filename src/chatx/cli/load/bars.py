"""One bar for each phase, on standard error: it moves on a terminal, and is a line a minute elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final

_WIDTH: Final = 30
_EVERY_S: Final = 0.1
_EVERY_LINE_S: Final = 60.0


class Bar:
    """The bar of a phase.

    Args:
        name: The phase.
        whole: How much there is to do.
        unit: Of what.
        clock: The seconds of a clock that goes on.
    """

    def __init__(self, name: str, whole: float, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._whole = max(whole, 1e-9)
        self._unit = unit
        self._clock = clock
        self._began = clock()
        self._shown = self._began
        self._moves = sys.stderr.isatty()
        if not self._moves:
            print(f"{name}: {whole:,.0f} {unit}", file=sys.stderr, flush=True)

    def at(self, done: float) -> None:
        """Show how far it is."""
        now = self._clock()
        if now - self._shown >= (_EVERY_S if self._moves else _EVERY_LINE_S):
            self._shown = now
            if self._moves:
                self._draw(done)
            else:
                self._say(done, now)

    def end(self, done: float) -> None:
        """Show that it is over."""
        if self._moves:
            self._draw(done)
            print(file=sys.stderr, flush=True)
        else:
            self._say(done, self._clock())

    def _say(self, done: float, now: float) -> None:
        print(
            f"{self._name}: {done:,.0f} of {self._whole:,.0f} in {now - self._began:.1f} s", file=sys.stderr, flush=True
        )

    def _draw(self, done: float) -> None:
        took = time.monotonic() - self._began
        rest = f"{done:>9,.0f} of {self._whole:,.0f} {self._unit} {took:6.1f} s "
        room = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some terminals say 0
        width = min(_WIDTH, room - len(rest) - 15)  # a line that is too long would stay there, each time
        full = int(width * min(1.0, done / self._whole))
        line = f"{self._name:<12} {'█' * full}{'░' * (width - full)} {rest}"
        print(f"\r{line[: room - 1]}", end="", file=sys.stderr, flush=True)
