"""Threads for adapters that are plain functions and may block.

Daemon threads, unlike `concurrent.futures`: its threads are joined when the interpreter exits, so one hung adapter
would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

THREADS = 8
"""The most calls of one kind (saving, reading, notifying, ...) that run at a time; the others wait in order."""

WAITING_CALLS = 16_384
"""The most calls that wait for one kind's threads; the next one is not made, which is a failure (`busy`)."""


class Busy(Exception):
    """`WAITING_CALLS` calls wait for the threads, which is the bound."""


class AdapterThreads:
    """At most `THREADS` threads, started when needed, ended by `close`."""

    def __init__(self) -> None:
        # By future, so that one in the middle is taken back without a search.
        self._calls: OrderedDict[asyncio.Future[Any], Callable[[], Any]] = OrderedDict()
        self._begun: dict[asyncio.Future[Any], float] = {}
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._alive = 0
        self._closed = False
        self._ended: asyncio.Future[None] | None = None

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call the function in a thread; return a future of this loop with what it returns or raises.

        Raises:
            Busy: `WAITING_CALLS` wait already.
        """
        future = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._closed:
                raise RuntimeError("The adapter threads are closed.")
            if len(self._calls) >= WAITING_CALLS:
                raise Busy(f"{WAITING_CALLS} calls wait for its threads already")
            self._calls[future] = partial(function, *args, **kwargs)
            if self._idle >= len(self._calls):
                self._wake.notify()
            elif len(self._threads) < THREADS:
                thread = threading.Thread(target=self._work, name="chatx-adapter", daemon=True)
                self._threads.append(thread)
                self._alive += 1
                thread.start()
        return future

    def withdraw(self, future: asyncio.Future[Any]) -> bool:
        """Take back a call, unless a thread has begun it; return whether it was taken back."""
        with self._wake:
            return self._calls.pop(future, None) is not None

    def begun_at(self, future: asyncio.Future[Any]) -> float | None:
        """Return when a thread began this call, in its loop's time; None where none has, or it has returned."""
        with self._wake:
            return self._begun.get(future)

    async def close(self, timeout_s: float) -> int:
        """End the threads, waiting `timeout_s` at most for calls under way; return how many calls still hang."""
        ended = asyncio.get_running_loop().create_future()
        with self._wake:
            self._closed = True
            self._calls.clear()  # what no thread has begun is not begun any more
            self._ended = ended
            self._wake.notify_all()
            if not self._alive:
                ended.set_result(None)
        await asyncio.wait((ended,), timeout=timeout_s)
        with self._wake:
            hung = self._alive - self._idle  # one that waited for a call only wakes up to end
        if not hung:
            for thread in self._threads:
                thread.join()  # each has said that it ends: this takes no time
        return hung

    def _work(self) -> None:
        while True:
            with self._wake:
                self._idle += 1
                while not self._calls and not self._closed:
                    self._wake.wait()
                self._idle -= 1
                if not self._calls:
                    self._alive -= 1
                    if not self._alive and self._ended is not None:
                        _tell(self._ended, _end, self._ended)
                    return
                future, call = self._calls.popitem(last=False)
                self._begun[future] = future.get_loop().time()
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            # Whatever it raises, SystemExit too, belongs to the caller and must not end the thread.
            except BaseException as raised:
                error = raised
            with self._wake:
                del self._begun[future]
            _tell(future, _settle, future, result, error)
            del future, call, result, error  # or it is kept for as long as the thread waits for its next call


def _tell(future: asyncio.Future[Any], function: Callable[..., None], *args: Any) -> None:
    # A closed loop raises: then nobody waits any more.
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(function, *args)


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:  # a future cannot carry these
        future.set_exception(RuntimeError(f"{type(error).__name__} was raised in a thread"))
