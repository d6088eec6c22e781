"""How many lines of one kind a log gets in a minute, so that no fault and no user can fill it."""

from __future__ import annotations

import math

WINDOW_S = 60.0
"""The time that a limit is for, in seconds."""


class LogLimit:
    """A bound of lines a minute. Lines beyond it are left out and counted; the next line says how many they were."""

    __slots__ = ("_left_out", "_lines", "_since", "lines")

    def __init__(self, lines: int) -> None:
        self.lines: int = lines
        self._since = -math.inf
        self._lines = 0
        self._left_out = 0

    def due(self, now: float) -> int | None:
        """Return how many lines were left out before the present one, or None where that one is to be left out too."""
        if now - self._since >= WINDOW_S:
            self._since, self._lines = now, 0
        if self._lines >= self.lines:
            self._left_out += 1
            return None
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
