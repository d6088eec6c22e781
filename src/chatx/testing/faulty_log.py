"""A log that fails as real ones do, call by call: what happens next is said by a script, or drawn from a seed.

| fault | the log | the caller |
|---|---|---|
| `ok` | does it | is answered |
| `unavailable` | does nothing | gets `LogUnavailable` |
| `lost` | does nothing | gets another exception: it may have been done |
| `lost answer` | does it | the same |
| `slow` | does it after `slow_s` | is answered late |
| `hang` | does it when it is released, whether or not anybody still waits | is answered then |
| `fenced` | lets somebody else take the rooms over first, then does it | is answered |

What the log has of an outbox and of retention fails likewise; what it has not, the faulty one has not either.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, Literal, TypeAlias

from chatx.adapters.outbox import KeepsNotifications
from chatx.adapters.retention import TrimsRooms
from chatx.adapters.room_log import Answer, Append, Found, LogUnavailable, Opened, RoomLog
from chatx.core.message import Entry, Position

_OPTIONAL = frozenset(
    name for optional in (KeepsNotifications, TrimsRooms) for name in vars(optional) if not name.startswith("_")
)

Fault: TypeAlias = Literal["ok", "unavailable", "lost", "lost answer", "slow", "hang", "fenced"]
"""What becomes of one call."""


class LogBroken(Exception):
    """What a call raises of which nobody can say what it did."""


class Script:
    """Chooses the faults that were written down for a method, one after another; then `ok`."""

    def __init__(self, **faults: Sequence[Fault]) -> None:
        self._faults: dict[str, deque[Fault]] = {method: deque(each) for method, each in faults.items()}

    def __call__(self, method: str) -> Fault:
        """Return the next call's fault."""
        faults = self._faults.get(method)
        return faults.popleft() if faults else "ok"

    def then(self, method: str, *faults: Fault) -> None:
        """Write more down."""
        self._faults.setdefault(method, deque()).extend(faults)


class Chance:
    """Draws a fault, for so many of a hundred calls."""

    def __init__(self, random: Random, percent: float, faults: Sequence[Fault]) -> None:
        self._random = random
        self._percent = percent
        self._faults = faults

    def __call__(self, method: str) -> Fault:
        """Return the next call's fault."""
        # `random()` alone gives the same numbers on every version of Python.
        if self._random.random() * 100 >= self._percent:
            return "ok"
        return self._faults[int(self._random.random() * len(self._faults))]


class FaultyLog:
    """A `RoomLog` around another one, whose calls fail as `choose(method)` says.

    Attributes:
        choose: Names the fault of each call; it may be set anew at any time.
        calls: The (method, fault) of each call that was made.
    """

    def __init__(self, log: RoomLog, choose: Callable[[str], Fault] | None = None, *, slow_s: float = 1.0) -> None:
        self._log = log
        self._slow_s = slow_s
        self._released = asyncio.Event()
        self._late: set[asyncio.Future[Any]] = set()
        self.choose: Callable[[str], Fault] = choose if choose is not None else Script()
        self.calls: list[tuple[str, Fault]] = []

    @property
    def waiting(self) -> int:
        """How many calls hang."""
        return len(self._late)

    async def release(self) -> None:
        """Let the log do what hangs, and wait until it has."""
        self._released.set()
        late, self._late = self._late, set()
        self._released = asyncio.Event()
        if late:
            await asyncio.wait(late)

    async def look(self, room_id: str, /) -> Opened:
        """Return what is known of a room."""
        answer: Opened = await self._called("look", [room_id], room_id)
        return answer

    async def take_over(self, room_id: str, /) -> Opened:
        """Take a room over."""
        answer: Opened = await self._called("take_over", [room_id], room_id)
        return answer

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        """Withdraw the proof of a head."""
        answer: bool = await self._called("unproven", [room_id], room_id, term, head)
        return answer

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        """Append to many rooms."""
        answer: Sequence[Answer] = await self._called("append", [each.room_id for each in appends], appends)
        return answer

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Read entries."""
        answer: Found = await self._called("read", [room_id], room_id, after=after, before=before, limit=limit)
        return answer

    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        """Prove heads."""
        answer: Mapping[str, bool] = await self._called("close_rooms", list(ends), ends)
        return answer

    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        """Return what was stored under a key."""
        answer: Entry | None = await self._called("find", [room_id], room_id, user_id, key)
        return answer

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        # Whether a log has an outbox, or knows retention, is told by its methods.
        if name not in _OPTIONAL or not hasattr(self._log, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return functools.partial(self._passed_on, name)

    async def _passed_on(self, method: str, *args: Any) -> Any:
        return await self._called(method, args[0] if method == "trim" else (), *args)

    async def _called(self, method: str, rooms: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        fault = self.choose(method)
        self.calls.append((method, fault))
        match fault:
            case "unavailable":
                raise LogUnavailable(f"{method} finds no log.")
            case "lost":
                raise LogBroken(f"{method} was lost on its way.")
            case "slow":
                await asyncio.sleep(self._slow_s)
            case "fenced":
                for room_id in dict.fromkeys(rooms):
                    await _awaited(self._log.take_over(room_id))
            case "hang":
                late = asyncio.ensure_future(self._when_released(method, *args, **kwargs))
                self._late.add(late)
                # Whoever gives up is gone, and the statement is on its way nevertheless.
                return await asyncio.shield(late)
        answer = await self._do(method, *args, **kwargs)
        if fault == "lost answer":
            raise LogBroken(f"The answer of {method} was lost.")
        return answer

    async def _do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await _awaited(getattr(self._log, method)(*args, **kwargs))

    async def _when_released(self, method: str, *args: Any, **kwargs: Any) -> Any:
        await self._released.wait()
        return await self._do(method, *args, **kwargs)


async def _awaited(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer
