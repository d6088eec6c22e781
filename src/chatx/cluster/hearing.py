"""Whether a node hears what it says itself, by each way on which words come in.

A link can be deaf without any error: a server forgets one subscription, a client loses another, and all that is left
goes on. So a node says something on each way, again and again, and listens for it.

Rules:
1. A turn begins with a word on each way, and the next turn looks at which of them have come back. Turns are counted
   and not seconds: a process that stood still has missed one turn, and does not blame the broker.
2. After `SILENT_TURNS` turns in a row without a word on some way the node is deaf, until a turn in which all came back.
3. The link is made anew then. Where that does not help, it is tried again after twice as many turns, `PATIENCE` at
   most: whoever hears nothing in a broker that is unwell is not to make it worse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SILENT_TURNS: Final = 3
"""Turns without a word on some way after which a node is deaf."""

PATIENCE: Final = 48
"""Turns between two links that are made anew in vain, at most."""


class Hearing:
    """What came back to a node of its own words.

    Args:
        ways: On which they go.
    """

    def __init__(self, ways: Iterable[str]) -> None:
        self._silent: dict[str, int] = dict.fromkeys(ways, 0)  # turns in a row without a word
        self._spoken = False
        self._wait = 0  # turns until the link may be made anew again
        self._patience = SILENT_TURNS

    def heard(self, way: str) -> None:
        """Take note that a word of this turn has come back."""
        self._silent[way] = -1

    @property
    def deaf(self) -> tuple[str, ...]:
        """The ways on which the node is deaf."""
        return tuple(way for way, turns in self._silent.items() if turns >= SILENT_TURNS)

    def turn(self) -> bool:
        """Begin a turn: a word is to go on each way now. Return whether the link is to be made anew."""
        if self._spoken:
            for way in self._silent:
                self._silent[way] += 1
        self._spoken = True
        if not self.deaf:
            if all(turns <= 0 for turns in self._silent.values()):
                self._wait, self._patience = 0, SILENT_TURNS
            return False
        if self._wait > 0:
            self._wait -= 1
            return False
        self._wait, self._patience = self._patience, min(PATIENCE, 2 * self._patience)
        return True

    def pause(self) -> None:
        """Take note that nothing can be said now, so that nothing is missed."""
        self._spoken = False
