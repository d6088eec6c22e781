"""An event loop that runs what is ready in an order drawn from a seed: another seed, another interleaving.

Callbacks that one callback (one step of a task) hands to `call_soon` run in the order they were handed in, as asyncio
has it, and none waits for more than one round of the loop. Drawn is the order among those of different origin, among
timers due at the same time, and among files that are ready. asyncio runs the first of these in order too; but which
origin ran first is mostly chance there (a network, a clock), and that chance is what this loop explores.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from chatx.testing.loop import VirtualLoop

T = TypeVar("T")


class _Ready:
    """The loop's queue of ready callbacks; it takes the place of the deque of asyncio's own loop.

    A round of that loop takes as many callbacks as the queue had when the round began. So what is handed in meanwhile
    belongs to the next round.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._round: list[deque[asyncio.Handle]] = []  # by origin
        self._left = 0  # callbacks of the round still to run
        # One append, one popleft: another thread may hand in at any time.
        self._next: deque[tuple[object, asyncio.Handle]] = deque()
        self._running: object = None

    def __len__(self) -> int:
        return self._left + len(self._next)

    def append(self, handle: asyncio.Handle) -> None:
        """Take a callback of the next round; its origin is the callback that runs now."""
        # Timers have none: asyncio leaves open which of those due at the same time comes first.
        self._next.append((object() if isinstance(handle, asyncio.TimerHandle) else self._running, handle))

    def append_alone(self, handle: asyncio.Handle) -> None:
        """Take a callback without an origin in the loop."""
        self._next.append((object(), handle))

    def popleft(self) -> asyncio.Handle:
        """Return the callback that runs next."""
        if not self._left:
            self._begin_round()
        # `random()` alone gives the same numbers on every version of Python.
        place = int(self._random.random() * len(self._round))
        handles = self._round[place]
        handle = handles.popleft()
        if not handles:
            del self._round[place]
        self._left -= 1
        # A file's callback is the same object each time it is ready, and each time an origin of its own.
        self._running = object()
        return handle

    def clear(self) -> None:
        """Drop everything; the loop is closed."""
        self._round.clear()
        self._next.clear()
        self._left = 0

    def _begin_round(self) -> None:
        origins: dict[object, deque[asyncio.Handle]] = {}
        self._left = len(self._next)
        for _ in range(self._left):
            origin, handle = self._next.popleft()
            origins.setdefault(origin, deque()).append(handle)
        self._round = list(origins.values())


class SeededLoop(VirtualLoop):
    """A loop on virtual time whose order of steps is drawn from a seed, the same on every run and version of Python.

    Threads and sockets work as on a `VirtualLoop`, but when they are ready is no matter of the seed.

    Attributes:
        seed: The seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed: int = seed
        self._ready = _Ready(seed)  # what asyncio's loop calls its queue

    def _add_callback(self, handle: asyncio.Handle) -> None:
        # How asyncio's loop takes in a file that is ready.
        self._ready.append_alone(handle)


def run_seeded(seed: int, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh `SeededLoop`.

    What it raises says with which seed, so that the run can be had again. The program must draw its own chances from
    the seed too, and depend on neither threads nor the order of sets.
    """
    with asyncio.Runner(loop_factory=lambda: SeededLoop(seed)) as runner:
        try:
            return runner.run(main)
        except BaseException as error:
            error.add_note(f"On a SeededLoop with seed {seed}; run_seeded({seed}, ...) takes the same steps again.")
            raise
