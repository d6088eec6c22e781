"""The contract of a room's log: places are taken once, by whoever has the room, and what was appended is there."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from chatx.adapters.outbox import keeps_some
from chatx.adapters.retention import trims
from chatx.adapters.room_log import RoomLog, check_log
from chatx.testing.contracts.calls import calls_of
from chatx.testing.contracts.log_answers import CHECKS as ANSWERS
from chatx.testing.contracts.log_appends import CHECKS as APPENDS
from chatx.testing.contracts.log_calls import LogCalls
from chatx.testing.contracts.log_outbox import CHECKS as OUTBOX
from chatx.testing.contracts.log_retention import CHECKS as RETENTION


async def check_room_log(make: Callable[[], RoomLog | Awaitable[RoomLog]], *, timeout_s: float = 5.0) -> None:
    """Check that a log gives each place once, fences whoever had a room before, and answers with all that it holds.

    Where it has methods of an outbox, or of retention, they are checked too. What a power cut leaves is not checked.

    Args:
        make: A function without arguments, plain or async, that returns a log: the class, or one that always returns
            the same. It is called once per check. The checks use rooms of their own, so the logs may share a store that
            holds other rooms; what is to be closed in the end is the caller's. Of an outbox they claim whatever is due.
        timeout_s: Bound of each call.

    Raises:
        AssertionError: It does not.
    """
    for check in (*APPENDS, *ANSWERS, *OUTBOX, *RETENTION):
        made = make()
        log = await made if inspect.isawaitable(made) else made
        if (check not in OUTBOX or keeps_some(log)) and (check not in RETENTION or trims(log)):
            async with calls_of("log", log, timeout_s, check_log) as calls:
                await check(LogCalls(calls))
