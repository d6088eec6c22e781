"""A rate limit that no test meets, for those that are about something else."""

from __future__ import annotations

from chatx.core.rate_limit import RateLimit

UNLIMITED = RateLimit(messages_per_sec=1e9, burst=10**9)
