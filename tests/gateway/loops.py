"""Runs a test on each event loop that the native server is used with, and looks at what it leaves behind."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class Errors(logging.Handler):
    """Keeps what is logged as an error or worse."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


async def harmless(test: Coroutine[Any, Any, None]) -> None:
    """Run a test; no exception may reach the loop, no error the log, and no task may be left."""
    unhandled: list[dict[str, Any]] = []
    errors = Errors()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    logging.getLogger().addHandler(errors)
    try:
        await test
        async with asyncio.timeout(10):
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
    finally:
        logging.getLogger().removeHandler(errors)
    assert unhandled == []
    assert errors.messages == []


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an `async def` test on asyncio's own loop and on uvloop; its fixtures and parameters are passed on.

    Goes below `@pytest.mark.parametrize`.
    """

    def run(*, loop: str, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(harmless(test(**kwargs)))

    functools.update_wrapper(run, test)
    del run.__dict__["__wrapped__"]
    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop])  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return marked
