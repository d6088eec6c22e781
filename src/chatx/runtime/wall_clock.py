"""The machine's clock, as far as it is believed: for what cannot be undone when the clock was wrong.

Rules:
1. It is believed from where it stands when it is first asked, and while it goes on as evenly as the event loop's clock.
2. Where it was set ahead it says nothing for `BELIEVED_S`: a clock that is wrong is mostly set right within that time,
   and one that was suspended or behind may wait. Who asks is told once.
3. Where it was set back it is believed, since then nothing is as old as it was.
"""

from __future__ import annotations

from collections.abc import Callable

STEP_MS = 60_000
"""How far ahead of the loop's clock it may get from one question to the next and is still believed, in ms."""

BELIEVED_S = 3600.0
"""For how long it has to go on evenly to be believed where it was set to, in seconds."""


class WallClock:
    """One clock, asked now and then.

    Args:
        now_ms: The machine's clock, in ms since the Unix epoch.
        now: The loop's clock, in seconds.
        set_ahead: Called with how far it was set ahead, in seconds, each time when that is found.
    """

    def __init__(self, now_ms: Callable[[], int], now: Callable[[], float], set_ahead: Callable[[float], None]) -> None:
        self._now_ms = now_ms
        self._now = now
        self._set_ahead = set_ahead
        # How far the machine's clock is ahead of the loop's, in ms.
        self._believed: float | None = None
        self._seen = 0.0
        self._since = 0.0  # when `_seen` was found, where that is not believed (loop time)

    def now_ms(self) -> int | None:
        """Return the time, or None while it is not believed."""
        now_ms, now = self._now_ms(), self._now()
        ahead = now_ms - now * 1000
        if self._believed is None or ahead <= self._believed + STEP_MS:
            self._believed = self._seen = ahead
            return now_ms
        if ahead > self._seen + STEP_MS:
            self._since = now
            self._set_ahead((ahead - self._seen) / 1000)
        self._seen = ahead
        if now - self._since < BELIEVED_S:
            return None
        self._believed = ahead
        return now_ms
