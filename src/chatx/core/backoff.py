"""How long to wait before a retry: exponential, with full jitter.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

from __future__ import annotations

CEILING_MS = 30_000
"""No wait is longer than this, in ms."""


def backoff_ms(attempt: int, base_ms: int, jitter: float) -> float:
    """Return the wait before retry number `attempt`, in ms.

    Args:
        attempt: 1 for the first retry.
        base_ms: The ceiling of the first wait; it doubles with each retry up to `CEILING_MS`.
        jitter: A random number in [0, 1).
    """
    ceiling = min(CEILING_MS, base_ms << min(attempt - 1, 32))
    return ceiling * jitter
