"""A server that looks like uvicorn's from within: for tests on virtual time, and of one that has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any


async def _serve(self: object) -> None:
    await asyncio.Event().wait()


def task_of(server: object, module: str = "uvicorn.server") -> asyncio.Task[None]:
    """Return a task that waits where uvicorn's does, for a server with whatever it has."""
    serve: Callable[[Any], Awaitable[None]] = FunctionType(_serve.__code__, {**globals(), "__name__": module})
    return asyncio.ensure_future(serve(server))


class UvicornLike:
    """What is asked of a server of uvicorn's: one that listens nowhere, and stops when it is told to."""

    def __init__(self) -> None:
        self.should_exit = False
        self.servers = [self]
        self.sockets: list[object] = []

    def is_serving(self) -> bool:
        return True
