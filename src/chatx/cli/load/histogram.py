"""Times, counted in buckets: as many as there may be, in bounded memory, each within 1 % of what it was.

The buckets are those of HdrHistogram: 128 to each power of two. Source: hdrhistogram.org.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

SHARES: Final = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))
"""What is told of times, by name: this share of them is not longer."""

_BITS: Final = 7


class Histogram:
    """Times in seconds, of which µs are told apart.

    Attributes:
        count: How many there are.
        most_s: The longest.
    """

    __slots__ = ("_buckets", "count", "most_s")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count: int = 0
        self.most_s: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a time, so often."""
        micros = max(0, int(seconds * 1e6))
        beyond = max(0, micros.bit_length() - _BITS - 1)
        self._buckets[micros >> beyond << beyond] += times
        self.count += times
        self.most_s = max(self.most_s, seconds)

    def at_most(self, share: float) -> float:
        """Return the seconds that this share of the times does not exceed; 0 where there are none."""
        left = share * self.count
        for micros, times in sorted(self._buckets.items()):
            left -= times
            if left <= 1e-9:  # a share of a whole number is not always exact
                return micros / 1e6
        return self.most_s

    def told(self) -> dict[str, float]:
        """Return the percentiles by name, and the longest as `max`, in seconds."""
        return {name: self.at_most(share) for name, share in SHARES} | {"max": self.most_s}
