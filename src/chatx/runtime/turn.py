"""Turns of the event loop: what is published within one leaves together, and a tight loop of sends gives way.

Rules:
1. Whatever a room publishes within a turn is flushed once, when the turn ends. No timer, so nothing waits longer.
2. Whatever raises in a flush keeps nobody else's messages back.
3. After `BURST` messages without a turn, a send yields once, so that readers get theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, Protocol

logger: logging.Logger = logging.getLogger("chatx")

BURST = 64
"""Messages published without a turn of the loop before a send yields."""


class Flushes(Protocol):
    """Something that is flushed when a turn ends."""

    def flush(self) -> None:
        """Send out the events that this turn has left pending. Must not raise."""
        ...


class Waits(Protocol):
    """A task that waits, with its own way to be called back."""

    callback: Callable[[Any], object] | None
    context: Context | None


class Turn:
    """The current turn of one chat's loop.

    Attributes:
        loop: The loop.
        number: Rises by one with each turn in which something was published.
        published: Messages published in this turn, and sends that were refused or answered as repeats.
    """

    __slots__ = ("_handle", "_resumed", "_touched", "loop", "number", "published")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self._touched: dict[Flushes, None] = {}
        self._handle: asyncio.Handle | None = None
        # Readers to be resumed when this turn has ended; None unless the loop itself is ending it.
        self._resumed: list[Waits] | None = None
        self.number: int = 0
        self.published: int = 0

    def touch(self, what: Flushes) -> None:
        """Have something flushed when the turn ends."""
        self._touched[what] = None
        if self._handle is None:
            self._begin()

    def count(self) -> None:
        """Count a send that published nothing: a tight loop of those must give way too."""
        self.published += 1
        if self._handle is None:
            self._begin()

    def end(self) -> None:
        """End the turn now."""
        handle, self._handle = self._handle, None
        rest: Iterator[Flushes] = iter(())
        try:
            # What is flushed may touch what is built on top of it, which belongs to the same turn.
            while self._touched:
                touched, self._touched = self._touched, {}
                rest = iter(touched)
                for what in rest:
                    try:
                        what.flush()
                    except Exception:
                        logger.exception(
                            "A flush raised, which it must not; the others are flushed all the same.",
                            extra={"room": getattr(what, "room_id", None), "code": "internal"},
                        )
        except BaseException:
            # Only a signal's exception gets here; those behind it are flushed in a turn of their own.
            for what in rest:
                self.touch(what)
            raise
        if handle is not None:
            handle.cancel()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self.number += 1
        self.published = 0

    def resume(self, waiting: Waits) -> None:
        """Let a waiting task go on: right behind the turn where the loop is ending it now, else in the next round."""
        if self._resumed is None:
            self.resume_soon(waiting)
        else:
            self._resumed.append(waiting)

    def resume_soon(self, waiting: Waits) -> None:
        """Let a waiting task go on in the loop's next round."""
        self.loop.call_soon(_go, waiting, context=waiting.context)

    def _begin(self) -> None:
        # Whoever closes what it holds after the loop has nobody left to tell.
        if not self.loop.is_closed():
            self._handle = self.loop.call_soon(self._ended)

    def _ended(self) -> None:
        resumed = self._resumed = []
        try:
            self.end()
        finally:
            self._resumed = None
        # No task is running here, so each reader's task can take its step at once; whatever it publishes belongs to
        # the next turn.
        rest = iter(resumed)
        try:
            for waiting in rest:
                callback, context = waiting.callback, waiting.context
                if callback is not None and context is not None:
                    waiting.callback = None
                    context.run(callback, waiting)
        finally:
            # Only a signal's exception gets here; those behind it are resumed all the same.
            for waiting in rest:
                self.resume_soon(waiting)


def _go(waiting: Waits) -> None:
    callback = waiting.callback
    if callback is not None:
        waiting.callback = None
        callback(waiting)
