"""What a reader waits on, again and again, without a future for each time.

A task can await any object that speaks asyncio's future protocol (`asyncio.isfuture`: `_asyncio_future_blocking`,
`add_done_callback`, `result`, ...). This one is reused for every wait of one reader. And a reader that is woken when a
turn ends goes on there and then, without a round through the loop's queue: with a thousand readers that round is
half of what a message costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from chatx.errors import Closed
from chatx.runtime.turn import Turn


class Wakeup:
    """One reader's place to wait. Not for two tasks at a time.

    Attributes:
        callback: The waiting task's wake-up, or None where none waits.
        context: What it is to be called in.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_turn", "_woken", "callback", "context")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._woken = False
        self._cancelled = False
        self._asyncio_future_blocking = False
        self.callback: Callable[[Any], object] | None = None
        self.context: Context | None = None

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for `wake`.

        Raises:
            Closed: Another task waits here already.
        """
        if self.callback is not None:
            raise Closed("Another task is waiting for the next event already; one mailbox has one reader.")
        self._woken = self._cancelled = False
        self._asyncio_future_blocking = True
        try:
            yield self
        except BaseException:
            self.callback = None
            raise

    def wake(self) -> None:
        """Let the waiting task go on: when the turn that is ending has ended, or soon."""
        if not self._woken and self.callback is not None:
            self._woken = True
            self._turn.resume(self)

    # What asyncio asks of a future.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the reader."""
        return self._turn.loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Keep the waiting task's wake-up; what asyncio calls when a task begins to wait."""
        self.callback = callback
        self.context = context

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """Forget the task's wake-up."""
        known = self.callback is not None
        self.callback = None
        return int(known)

    def cancel(self, msg: object = None) -> bool:
        """Let the waiting task go on with `CancelledError`; what asyncio calls when the task is cancelled."""
        if self._woken:
            return False
        self._woken = self._cancelled = True
        self._turn.resume_soon(self)
        return True

    def cancelled(self) -> bool:
        """Return whether the wait was cancelled."""
        return self._cancelled

    def done(self) -> bool:
        """Return whether the wait is over."""
        return self._woken

    def result(self) -> None:
        """Raise `CancelledError` if the wait was cancelled."""
        if self._cancelled:
            raise asyncio.CancelledError

    def exception(self) -> None:
        """Return nothing: waiting does not fail."""
        self.result()
