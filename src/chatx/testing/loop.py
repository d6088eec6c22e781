"""An event loop whose clock moves only when there is nothing else to do.

A test that waits an hour takes no time, and takes the same steps every time. Real sockets and threads still work: the
loop looks at them before it moves the clock, and waits for them where no timer is due at all. A timer and a thread
race, though, and the timer wins: test threads that must be waited for on a real loop.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _PatientSelector(selectors.DefaultSelector):
    """Moves the clock where a selector would sleep."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self._advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time, in seconds from 0."""

    def __init__(self) -> None:
        self._virtual_time = 0.0
        super().__init__(_PatientSelector(self._advance))
        self._set_time(0.0)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._virtual_time

    def _advance(self, seconds: float) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]  # asyncio's own heap of timers
        # To the timer's very time: the sum with a rounded difference could fall short of it.
        self._set_time(max(self._virtual_time, timers[0].when() if timers else self._virtual_time + seconds))

    def _set_time(self, seconds: float) -> None:
        self._virtual_time = seconds
        # Timers are exact here. asyncio runs those due before `time() + resolution`: with the distance to the next
        # float that is the ones due by now, and none before its time.
        self._clock_resolution = math.ulp(seconds)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh `VirtualLoop`, as `asyncio.run` does on a real one."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
