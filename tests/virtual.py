"""Runs a test on virtual time."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

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
