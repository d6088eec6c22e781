"""A sequenced send in process, on a log or without one: what it costs in CPU, with all that the store takes here.

python -m benchmarks.log.beside none|STORE SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from benchmarks.fanout import CONTENT, UNLIMITED
from benchmarks.log.stores import closed, log_at
from chatx import Chat

AT_ONCE = 1_000
"""Sends between two waits for the log."""


async def measure(url: str, seconds: float) -> dict[str, float]:
    """Return the CPU of a send, until the log has it."""
    log = None if url == "none" else log_at(url)
    async with Chat(persistence=log, rate_limit=UNLIMITED) as chat:
        await chat.send_message("lobby", "user-0001", CONTENT)
        sent, used, end = 0, time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(AT_ONCE):
                await chat.send_message("lobby", "user-0001", CONTENT)
            sent += AT_ONCE
            while chat.statistics().delivery_waiting:  # noqa: ASYNC110  # there is no event of that in public
                await asyncio.sleep(0.001)
        used = time.process_time() - used
    if log is not None:
        await closed(log)
    return {"send_us": used / sent * 1e6}


def main() -> None:
    """Measure and print JSON."""
    url, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(url, float(seconds)))))


if __name__ == "__main__":
    main()
