"""What tests on virtual time share: how one is run, a chat without a rate limit, turns of the loop."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from chatx import Chat, RateLimit
from chatx.testing import run_virtual

P = ParamSpec("P")


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an `async def` test on a `VirtualLoop`; its fixtures and parameters are passed on.

    Goes below `@given` and `@pytest.mark.parametrize`.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtual(test(*args, **kwargs))

    return run


def unlimited(**options: Any) -> Chat:
    """Return a chat whose users may send as fast as they like."""
    return Chat(rate_limit=RateLimit(1e9, 10**9), **options)


async def turns(count: int = 3) -> None:
    """Let the loop go on for so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)
