"""The end of a process that has served: in time, whatever is still running in it.

Adapters may leave tasks behind that do not heed their cancellation, threads that Python waits for when it ends, and
calls that block the event loop itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import Final

logger: logging.Logger = logging.getLogger("chatx")

LEFT_S: Final = 0.5
"""Seconds that Python has for its own end where something is left behind."""

LEAST_S: Final = 1.0
"""Seconds that a drain may take at least, however little it was given: within less, nothing ends in order."""

_SAY_S: Final = 0.2
"""Seconds for the last line in the log, which may be what everything waits for."""


class Ending:
    """The deadline of a process: at it the process is ended hard, where it has not ended by itself.

    Attributes:
        status: The exit status of a process that is ended hard.
    """

    def __init__(self) -> None:
        self.status: int = 1
        self._timer: threading.Timer | None = None
        self._at = 0.0
        # A program that calls the command has threads of its own.
        self._before = set(threading.enumerate())

    @property
    def left(self) -> float:
        """Seconds until the deadline; zero or less where none is set, or where it has passed."""
        return self._at - time.monotonic()

    def within(self, seconds: float) -> None:
        """Set the deadline in so many seconds from now; the last call stands."""
        self.cancel()
        self._at = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Take the deadline back: the process ends by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def threads_left(self, timeout_s: float) -> int:
        """Wait for the threads that began since this was built, and return how many of them did not end in time."""
        ends = time.monotonic() + timeout_s
        begun = [each for each in threading.enumerate() if not each.daemon and each not in self._before]
        for each in begun:
            each.join(max(0.0, ends - time.monotonic()))
        return sum(each.is_alive() for each in begun)

    def _end(self) -> None:
        if self.status:
            saying = threading.Thread(
                target=logger.error,
                args=("It did not end in time and was ended hard: something may be lost.",),
                daemon=True,
            )
            saying.start()
            saying.join(_SAY_S)
        os._exit(self.status)


def close_loop(loop: asyncio.AbstractEventLoop, timeout_s: float) -> int:
    """Cancel the tasks that are left on a loop, and close it; return how many did not end in so many seconds."""
    ends = loop.time() + timeout_s
    while (tasks := asyncio.all_tasks(loop)) and loop.time() < ends:
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=ends - loop.time()))
    generators = loop.create_task(loop.shutdown_asyncgens())
    loop.run_until_complete(asyncio.wait((generators,), timeout=max(0.0, ends - loop.time())))
    hung = sum(not task.done() for task in (*tasks, generators))
    if hung:
        # Of their end together with the loop there is nothing more to say.
        loop.set_exception_handler(lambda *_: None)
    loop.close()
    return hung
