"""The figures of all workers, gathered by their supervisor for one of them that was asked.

It asks over its own channels, not over the broker: so figures are answered also while the broker is away, which is when
somebody looks, and they are those of this port alone. Whoever scrapes several machines counts nobody twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from chatx.cli.workers.channel import LINE_BYTES, Ask, Figures

WITHIN_S: Final = 2.0
"""Seconds for a worker to answer; afterwards it counts as one that does not."""


class Gathering:
    """One round at a time; who asks meanwhile gets the same answer.

    Args:
        nodes: What the workers are called.
        say: Says something to one of them, and returns whether it is there.
    """

    def __init__(self, nodes: Sequence[str], say: Callable[[str, Ask | Figures], bool]) -> None:
        self._nodes = nodes
        self._say = say
        self._most = LINE_BYTES // (4 * len(nodes))  # characters of one worker; JSON may need more bytes for them
        self._number = 0
        self._askers: list[tuple[str, int]] = []  # no more than the servers of the workers take requests
        self._texts: dict[str, str | None] = {}
        self._missing: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    def wanted(self, node: str, number: int) -> None:
        """Answer a worker that asks under this number, when all have answered or the time is over."""
        self._askers.append((node, number))
        if self._timer is not None:
            return
        self._number += 1
        self._texts = dict.fromkeys(self._nodes)
        self._timer = asyncio.get_running_loop().call_later(WITHIN_S, self._end)
        self._missing = {each for each in self._nodes if self._say(each, Ask(self._number))}
        self._look()

    def came(self, node: str, figures: Figures) -> None:
        """Take the answer of a worker; one that is too large counts as none, and one of an earlier round not at all."""
        if figures.number == self._number and node in self._missing:
            text = figures.texts.get(node)
            self._texts[node] = text if text is not None and len(text) <= self._most else None
            self._missing.discard(node)
            self._look()

    def gone(self, node: str) -> None:
        """Wait for a worker no longer."""
        if node in self._missing:
            self._missing.discard(node)
            self._look()

    def _look(self) -> None:
        if self._timer is not None and not self._missing:
            self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._missing.clear()
        askers, self._askers = self._askers, []
        for node, number in askers:
            self._say(node, Figures(number, self._texts))
