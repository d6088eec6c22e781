"""Threads for adapters that are plain functions and may block.

Daemon threads, unlike `concurrent.futures`: its threads are joined when the interpreter exits, so one hung adapter
would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

THREADS = 8
"""The most adapter calls that run at a time; the others wait in order."""


class AdapterThreads:
    """At most `THREADS` threads, started when needed, ended by `close`."""

    def __init__(self) -> None:
        self._calls: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._alive = 0
        self._closed = False
        self._ended: asyncio.Future[None] | None = None

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call the function in a thread; return a future of this loop with what it returns or raises."""
        future = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._closed:
                raise RuntimeError("The adapter threads are closed.")
            self._calls.append((future, partial(function, *args, **kwargs)))
            if self._idle >= len(self._calls):
                self._wake.notify()
            elif len(self._threads) < THREADS:
                thread = threading.Thread(target=self._work, name="chatx-adapter", daemon=True)
                self._threads.append(thread)
                self._alive += 1
                thread.start()
        return future

    def withdraw(self, future: asyncio.Future[Any]) -> bool:
        """Take back a call that no thread has begun; return whether that was so."""
        with self._wake:
            for call in self._calls:
                if call[0] is future:
                    self._calls.remove(call)
                    return True
        return False

    async def close(self, timeout_s: float) -> int:
        """End the threads, waiting at most so many seconds for calls under way; return how many still hang."""
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
                future, call = self._calls.popleft()
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            # Whatever it raises, SystemExit too, belongs to the caller and must not end the thread.
            except BaseException as raised:
                error = raised
            _tell(future, _settle, future, result, error)


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
