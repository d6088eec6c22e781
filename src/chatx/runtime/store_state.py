"""Whether the store is there or away, since when, and when it is tried again; told to the log and as events."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from chatx.core.backoff import backoff_ms
from chatx.core.log_limit import LogLimit
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

AWAY_CEILING_MS = 5_000
"""The longest wait before a store that is away is tried again, in ms."""

AWAY_LOGGED_PER_MINUTE = 10
"""Lines of the log in a minute that say that the store went away, at most; the same for its coming back."""


class StoreState:
    """The state of one chat's store, as the calls that save have found it.

    Attributes:
        rounds: Rounds of tries that have found the store away; 0 where it is there.
        here: Set while the store is there.
        next_try: When the store is tried again (loop time).
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, telemetry: Telemetry, retry_base_ms: int) -> None:
        self._name = name
        self._loop = loop
        self._telemetry = telemetry
        self._retry_base_ms = retry_base_ms
        self._since = 0.0
        self._logged_away = LogLimit(AWAY_LOGGED_PER_MINUTE)
        self._logged_back = LogLimit(AWAY_LOGGED_PER_MINUTE)
        self.rounds: int = 0
        self.here: asyncio.Event = asyncio.Event()
        self.here.set()
        self.next_try: float = 0.0
        self._at_once = asyncio.Event()

    def backs_off(self, jitter: float) -> float:
        """Count one more round that found the store away; return the wait before the next round in ms."""
        self.rounds += 1
        wait_ms = min(AWAY_CEILING_MS, backoff_ms(self.rounds, self._retry_base_ms, jitter))
        self.next_try = self._loop.time() + wait_ms / 1000
        return wait_ms

    async def until_next_try(self) -> None:
        """Return when the store is tried again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, self.next_try - self._loop.time())):
                await self._at_once.wait()

    def try_at_once(self) -> None:
        """Have a store that is away tried now, and soon again where that fails: something says that it is back."""
        self.rounds, self.next_try = 1, self._loop.time()
        self._at_once.set()
        self._at_once = asyncio.Event()  # those who wait from here on wait for the next time

    def goes_away(self, reason: str, waiting: int) -> None:
        """Tell the log and the handlers that the store is away from now on."""
        self._since = self._loop.time()
        self.here.clear()
        if (left_out := self._logged_away.due(self._since)) is not None:
            logger.error(
                "The persistence adapter %s saves nothing (%s): %d messages wait for it in order; none is given up.%s",
                self._name,
                reason,
                waiting,
                f" {left_out} lines like this were left out." if left_out else "",
                extra={"adapter": self._name, "code": reason},
            )
        if self._telemetry.watched("persistence_away"):
            self._telemetry.emit("persistence_away", {"waiting": waiting}, {"adapter": self._name, "failure": reason})

    def comes_back(self, waiting: int) -> None:
        """Tell the log and the handlers that the store is there again."""
        now = self._loop.time()
        away_s = now - self._since
        self.rounds = 0
        self.here.set()
        if (left_out := self._logged_back.due(now)) is not None:
            logger.warning(
                "The persistence adapter %s saves again after %.1f s; %d messages wait for it.%s",
                self._name,
                away_s,
                waiting,
                f" {left_out} lines like this were left out." if left_out else "",
                extra={"adapter": self._name},
            )
        if self._telemetry.watched("persistence_back"):
            measured = {"waiting": waiting, "away_ms": away_s * 1000}
            self._telemetry.emit("persistence_back", measured, {"adapter": self._name})
