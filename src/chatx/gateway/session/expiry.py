"""One timer for the deadlines of all sockets: silence, and the end of a token.

A timer for each message that is read would cost more than reading it. Here a message only notes when it came; whoever
is due is asked, and says when to be asked again.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from typing import Protocol

logger: logging.Logger = logging.getLogger("chatx")

TICK_S = 0.25
"""How late a deadline may be, in seconds. A power of two, so that ticks are exact."""

FARTHEST_S = 64.0
"""Seconds ahead within which everybody is asked once, so that deadlines far ahead take no room of their own."""

DOUBTS = 4
"""Looks before silence is believed, a tick apart and each in a turn of its own: what a client sent in time may wait in
the kernel or in the server's queues while one turn of the loop takes long."""

AT_ONCE = 1000
"""How many are asked before everything else in the loop gets a turn."""


class Watched(Protocol):
    """What has a deadline."""

    @property
    def user_id(self) -> str | None:
        """The user whose deadline it is, for the log; None where there is none any more."""
        ...

    def due(self, now: float) -> float | None:
        """Do what is due by now, and return the loop time at which to be asked again, or None for never.

        The wheel may ask earlier than that. Must not block.
        """
        ...


class Wheel:
    """Asks each thing that is watched when it is due, `TICK_S` late at most; what is due far ahead, each `FARTHEST_S`.

    Without anybody to watch there is no timer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, dict[Watched, None]] = {}
        self._ticks: list[int] = []  # a heap of the slots' keys, and of some that are gone
        self._where: dict[Watched, int] = {}
        self._timer: asyncio.Handle | None = None
        self._armed = 0  # the tick the timer is set for

    def __len__(self) -> int:
        """Return how many things are watched."""
        return len(self._where)

    def watch(self, watched: Watched, at: float) -> None:
        """Ask a thing at this loop time, and at none that was given for it before."""
        self._remove(watched)
        self._put(watched, at, 0)
        self._arm()

    def forget(self, watched: Watched) -> None:
        """Watch a thing no longer; harmless where it is not watched."""
        self._remove(watched)
        if not self._where:
            self._stop()

    def _stop(self) -> None:
        self._slots.clear()
        self._ticks.clear()
        self._disarm()

    def _put(self, watched: Watched, at: float, earliest: int) -> None:
        tick = max(earliest, math.ceil(min(at, self._loop.time() + FARTHEST_S) / TICK_S))
        slot = self._slots.get(tick)
        if slot is None:
            slot = self._slots[tick] = {}
            heapq.heappush(self._ticks, tick)
        slot[watched] = None
        self._where[watched] = tick

    def _remove(self, watched: Watched) -> None:
        tick = self._where.pop(watched, None)
        if tick is not None:
            del self._slots[tick][watched]

    def _arm(self) -> None:
        if not self._ticks or (self._timer is not None and self._armed <= self._ticks[0]):
            return
        self._disarm()
        self._armed = self._ticks[0]
        self._timer = self._loop.call_at(self._armed * TICK_S, self._turn)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        """Ask what is due, at most `AT_ONCE` things."""
        self._timer = None
        # A timer may fire a little early, by the clock's resolution: its tick has come all the same.
        present = max(self._armed, math.floor(self._loop.time() / TICK_S))
        asked = 0
        while self._ticks and self._ticks[0] <= present and asked < AT_ONCE:
            slot = self._slots[self._ticks[0]]
            if not slot:
                del self._slots[heapq.heappop(self._ticks)]
                continue
            watched, _ = slot.popitem()
            del self._where[watched]
            asked += 1
            try:
                again = watched.due(max(self._loop.time(), present * TICK_S))
            except Exception:
                # One that fails must not stop the clock of all the others.
                logger.exception("A deadline failed.", extra={"user": watched.user_id})
                continue
            if again is not None:
                self._put(watched, again, present + 1)
        if self._where:
            self._arm()
        else:
            self._stop()
