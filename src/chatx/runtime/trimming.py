"""Retention at work: the log is asked, a little at a time, to let go of what is older or more than is to be kept.

Rules:
1. It asks for a bounded number of rooms and entries at a time, and rests nine times as long as that took, so the store
   is there for those who send.
2. A round goes through all rooms; the next one begins `ROUND_S` after the last has ended.
3. Where the log is away nothing is asked of it; what failed is tried again after `RETRY_S`, from the same room on.
4. What was placed within `SPARED_MS` stays, whatever the number: a batch of which it is not known whether it was
   written is looked for by its places.
5. While the clock is not believed nothing goes: it would take what is not old.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.adapters.retention import ROOMS_AT_ONCE, TRIMMED_AT_ONCE, Retention
from chatx.adapters.room_log import KEYS_KEPT_MS
from chatx.config import ChatConfig
from chatx.errors import ChatError
from chatx.runtime import wall_clock

logger: logging.Logger = logging.getLogger("chatx")

ROUND_S = 60.0
"""Seconds between two rounds."""

PAUSE_S = 0.05
"""Seconds between two calls, at least."""

REST = 9
"""How many times as long as a call took it rests after it."""

RETRY_S = 5.0
"""Seconds after which it tries again what failed, or looks whether the log is there again."""

SPARED_MS = 5 * 60 * 1000
"""How long every entry is kept, in ms."""

DAY_MS = 24 * 60 * 60 * 1000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Trimming:
    """The worker that has one chat's log let go of what need not be kept.

    Args:
        config: The options; without a bound there, there is nothing to do.
        boundary: Calls the log.
        loop: The event loop.
        away: Returns whether the log cannot be used now.
    """

    def __init__(
        self,
        config: ChatConfig,
        boundary: Boundary,
        loop: asyncio.AbstractEventLoop,
        away: Callable[[], bool],
    ) -> None:
        self._log: Any = config.persistence
        self._name = adapter_name(config.persistence)
        self._call = boundary.caller("trimming")
        self._failed = boundary.failed
        self._days = config.retention_days
        self._messages = config.retention_messages
        self._loop = loop
        self._away = away
        self._clock = wall_clock.WallClock(_now_ms, loop.time, self._set_ahead)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to trim, where retention has a bound."""
        if self._days or self._messages:
            self._task = self._loop.create_task(self._work(), name="chatx retention")

    async def close(self) -> None:
        """End the worker. A call that is under way may still end; twice is harmless."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _work(self) -> None:
        while True:
            after = ""
            while (room_ids := await self._rooms(after)) or room_ids is None:
                if room_ids is not None and await self._trim(room_ids):
                    after = room_ids[-1]
                    continue
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(ROUND_S)

    async def _rooms(self, after: str) -> Sequence[str] | None:
        """Return the next rooms, or None where that cannot be told now."""
        if self._clock.now_ms() is None:
            return None
        answer = await self._asked("list_rooms", after, ROOMS_AT_ONCE)
        if answer is None:
            return None
        if (
            not isinstance(answer, Sequence)
            or isinstance(answer, str)
            or not all(isinstance(each, str) and each > after for each in answer)
        ):
            self._wrong("list_rooms", f"{answer!r:.200}, not ids behind {after!r}")
            return None
        return answer

    async def _trim(self, room_ids: Sequence[str]) -> bool:
        """Have the log let go of all that goes of these rooms; return whether it did."""
        while True:
            now_ms = self._clock.now_ms()
            if now_ms is None:
                return False
            gone = await self._asked("trim", room_ids, self._retention(now_ms), TRIMMED_AT_ONCE)
            if gone is None:
                return False
            if type(gone) is not int or gone < 0:
                self._wrong("trim", f"{gone!r:.200}, not a number of entries")
                return False
            if gone < TRIMMED_AT_ONCE:
                return True

    def _retention(self, now: int) -> Retention:
        return Retention(
            before_ms=max(0, now - self._days * DAY_MS) if self._days else None,
            keep=self._messages or None,
            spared_ms=now - SPARED_MS,
            keys_spared_ms=now - KEYS_KEPT_MS,
        )

    async def _asked(self, method: str, *args: object) -> Any:
        """Return a call's answer, and rest after it; None where the log is away or failed."""
        if self._away():
            return None
        began = self._loop.time()
        try:
            answer = await self._call(self._name, getattr(self._log, method), *args)
        except (ChatError, AdapterFailure):
            return None
        await asyncio.sleep(max(PAUSE_S, REST * (self._loop.time() - began)))
        return answer

    def _set_ahead(self, by_s: float) -> None:
        logger.warning(
            "The machine's clock was set ahead by %.0f s, or the machine was suspended: retention lets go of nothing "
            "for %.0f min. If the clock is wrong, set it right before then, or stop the chat.",
            by_s,
            wall_clock.BELIEVED_S / 60,
            extra={"adapter": self._name},
        )

    def _wrong(self, method: str, answer: str) -> None:
        try:
            self._failed(self._name, "wrong_answer", f"{method} answered {answer}")
        except AdapterFailure:
            return
