"""The chain a draft goes through before it gets its place in the room.

A middleware is one callable over the draft: it returns the draft, or a changed one, or raises a `ChatError` to refuse.
The chain is composed once; whether anything in it awaits is decided then.

Rules:
1. Steps run in the configured order; the first refusal ends the chain.
2. A changed draft is checked again, and cannot change its room or its sender.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from chatx.core.message import Draft

Middleware: TypeAlias = Callable[[Draft], Draft | Awaitable[Draft]]
"""A middleware as an application gives it: a plain or an async callable."""

Check: TypeAlias = Callable[[Draft, Draft], Draft]
"""Takes the draft that a step was given and what the step returned. Returns the draft to go on with, or raises."""


class PlainStep:
    """A step that answers at once."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[Draft], Draft]) -> None:
        self.run: Callable[[Draft], Draft] = run


class AwaitingStep:
    """A step that awaits."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[Draft], Awaitable[Draft]]) -> None:
        self.run: Callable[[Draft], Awaitable[Draft]] = run


Step: TypeAlias = PlainStep | AwaitingStep


class Chain:
    """The steps that a draft goes through, in order.

    Attributes:
        awaits: Whether any step awaits; then `run` is not to be called.
    """

    __slots__ = ("_check", "_plain", "_steps", "awaits")

    def __init__(self, steps: list[Step], check: Check) -> None:
        self._steps = tuple(steps)
        self._check = check
        self._plain = tuple(step.run for step in steps if isinstance(step, PlainStep))
        self.awaits: bool = len(self._plain) < len(steps)

    def run(self, draft: Draft) -> Draft:
        """Take a draft through a chain in which nothing awaits."""
        for step in self._plain:
            result = step(draft)
            if result is not draft:
                draft = self._check(draft, result)
        return draft

    async def run_awaiting(self, draft: Draft) -> Draft:
        """Take a draft through any chain."""
        for step in self._steps:
            result = step.run(draft) if isinstance(step, PlainStep) else await step.run(draft)
            if result is not draft:
                draft = self._check(draft, result)
        return draft
