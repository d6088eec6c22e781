"""Token buckets, one per (room, user), in constant memory per active pair.

The buckets are kept as the generic cell rate algorithm keeps them (ITU-T I.371, and equal to a token bucket): one
number a pair, the time at which its bucket will be full again. A pair whose bucket is full is forgotten, since a full
bucket and no bucket answer alike.

Rules:
1. `acquire` takes one token or says exactly how long to wait for one; a refusal takes nothing.
2. A lone sender that waits exactly the `retry_after` it was given succeeds, in floating point too.
3. A pair is in memory only while its bucket is not full; `expire` and every `acquire` let go of the full ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from msgspec import Struct


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

    __slots__ = ("_full_at", "_interval", "_tolerance")

    def __init__(self, limit: RateLimit) -> None:
        self._interval = 1.0 / limit.messages_per_sec if limit.messages_per_sec > 0 else math.inf
        try:
            self._tolerance = (limit.burst - 1) * self._interval
        except OverflowError:  # a burst beyond any float: never empty
            self._tolerance = math.inf
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many pairs are in memory."""
        return len(self._full_at)

    def acquire(self, room_id: str, user_id: str, now: float) -> float:
        """Take one token. Return 0.0, or the seconds after which one will be there."""
        pairs = self._full_at
        key = (room_id, user_id)
        full_at = pairs.get(key)
        if full_at is None or full_at < now:
            full_at = now
        allowed_at = full_at - self._tolerance
        if allowed_at > now:
            retry_after = allowed_at - now
            # The difference is rounded: make sure that the sum reaches the time that was meant.
            while now + retry_after < allowed_at:
                retry_after += math.ulp(allowed_at)
            return retry_after
        pairs[key] = full_at + self._interval
        pairs.move_to_end(key)
        self.expire(now, 2)
        return 0.0

    def expire(self, now: float, at_most: int) -> int:
        """Forget full buckets, least recently used first, at most `at_most` of them; return how many went.

        A bucket behind one that is not full waits for it: at most `burst / messages_per_sec` seconds.
        """
        pairs = self._full_at
        gone = 0
        while gone < at_most and pairs:
            key = next(iter(pairs))
            if pairs[key] > now:
                break
            del pairs[key]
            gone += 1
        return gone
