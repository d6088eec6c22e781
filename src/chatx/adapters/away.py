"""Which failures of persistence say that the store is away, rather than that a message is at fault.

A timeout, an `OSError` (refused, reset, no route, disk full), or what drivers call such things: an exception with
a class of such a name, or one raised from it. The guess decides little: only whether a message that fails with nothing
to compare it with waits, or is counted as tried.
"""

from __future__ import annotations

import re

from chatx.adapters.boundary import AdapterFailure

# PEP 249's for what "is not under the control of the programmer", and the like of asyncpg, redis, pymongo and httpx.
_NAMES = re.compile("OperationalError|InterfaceError|Connect|Timeout|TimedOut|Unavailable")

# Exceptions looked at in a chain of causes, at most.
_DEPTH = 20


def says_away(error: BaseException) -> bool:
    """Return whether this failure of a call says that the store cannot be reached or written now."""
    if isinstance(error, AdapterFailure) and error.failure != "raised":
        return error.failure in ("timeout", "busy")
    waiting: list[BaseException | None] = [error]
    for _ in range(_DEPTH):
        if not waiting:
            return False
        cause = waiting.pop()
        if isinstance(cause, OSError) or any(_NAMES.search(each.__name__) for each in type(cause).__mro__):
            return True
        if cause is not None:
            waiting += [cause.__context__, cause.__cause__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
    return False
