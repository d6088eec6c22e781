"""Token buckets, one per (room, user), in constant memory per active pair.

A bucket is kept as how many tokens were missing from it at one time. Counted in tokens a burst is exact. Counted as
the time at which the bucket is full again, a burst is a sum of rounded intervals, and its last message can be refused.

Rules:
1. `acquire` takes one token or says exactly how long to wait for one; a refusal takes nothing.
2. A lone sender that waits exactly the `retry_after` it was given succeeds, in floating point too.
3. A pair is in memory only while its bucket is not full; `expire` and every new pair let go of the full ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from msgspec import Struct

SLOWEST = 1e-9
"""The lowest rate, in tokens per second: one in 31 years. A lower one counts as this, so that every wait is finite."""


def wait_in_words(seconds: float) -> str:
    """Return a time to wait for a person, rounded up, such as `1 ms`, `2.5 s` or `90 s`."""
    if seconds < 1:
        return f"{max(1, math.ceil(seconds * 1000))} ms"
    return f"{math.ceil(seconds * 10) / 10:.1f} s" if seconds < 10 else f"{math.ceil(seconds)} s"


class RateLimit(Struct, frozen=True):
    """How many messages a user may send in a room.

    Attributes:
        messages_per_sec: The rate at which tokens come back, per second; a float above 0.
        burst: How many tokens a full bucket holds; an int of at least 1.
    """

    messages_per_sec: float = 10
    burst: int = 20


class TokenBuckets:
    """The buckets of every (room, user) under one rate and burst. Times are seconds of one monotonic clock."""

    __slots__ = ("_buckets", "_most", "_rate")

    def __init__(self, limit: RateLimit) -> None:
        self._rate = max(float(limit.messages_per_sec), SLOWEST)
        self._most = limit.burst - 1  # tokens that may be missing where one is taken
        # (room, user) -> (tokens missing, at what time); least recently used first
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many pairs are in memory."""
        return len(self._buckets)

    def acquire(self, room_id: str, user_id: str, now: float) -> float:
        """Take one token and return 0.0; where there is none, return the seconds after which there will be one."""
        buckets = self._buckets
        key = (room_id, user_id)
        bucket = buckets.get(key)
        missing = 0.0
        if bucket is not None:
            left = bucket[0] - (now - bucket[1]) * self._rate
            if left > self._most:
                return self._wait(bucket, now)
            if left > 0.0:
                missing = left
        buckets[key] = (missing + 1, now)
        if bucket is None:
            # Two for one: however many pairs come, the full ones go faster.
            self.expire(now, 2)
        else:
            buckets.move_to_end(key)
        return 0.0

    def take(self, room_id: str, user_id: str, now: float, most: int) -> int:
        """Take as many tokens as there are, at most `most`; return how many were taken."""
        missing, at = self._buckets.get((room_id, user_id), (0.0, now))
        missing = max(0.0, missing - (now - at) * self._rate)
        taken = min(most, math.floor(self._most - missing) + 1)
        if self.acquire(room_id, user_id, now):
            return 0
        self._buckets[room_id, user_id] = (missing + taken, now)
        return taken

    def wait(self, room_id: str, user_id: str, now: float) -> float:
        """Return 0.0 where there is a token, or the seconds after which there will be one; none is taken."""
        bucket = self._buckets.get((room_id, user_id))
        if bucket is None or bucket[0] - (now - bucket[1]) * self._rate <= self._most:
            return 0.0
        return self._wait(bucket, now)

    def expire(self, now: float, at_most: int) -> int:
        """Forget full buckets, least recently used first, at most `at_most`; return how many were forgotten.

        A bucket behind one that is not full waits for it: at most `burst / messages_per_sec` seconds.
        """
        buckets = self._buckets
        gone = 0
        while gone < at_most and buckets:
            key = next(iter(buckets))
            missing, at = buckets[key]
            if missing > (now - at) * self._rate:
                break
            del buckets[key]
            gone += 1
        return gone

    def forget(self, room_id: str, user_id: str) -> None:
        """Forget the bucket of a pair, full or not: nobody will take from it again. Harmless where there is none."""
        self._buckets.pop((room_id, user_id), None)

    def _wait(self, bucket: tuple[float, float], now: float) -> float:
        missing, at = bucket
        wait = max(0.0, (missing - self._most) / self._rate - (now - at))
        # What was computed is rounded: go on until the same sum that `acquire` makes says yes.
        step = math.ulp(max(abs(now), wait))
        while missing - (now + wait - at) * self._rate > self._most:
            wait += step
            step *= 2
        return wait
