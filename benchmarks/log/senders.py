"""Senders of which each has one message under way: how many a second, and how long each waits.

What is sent through, the engine or rows written by hand, is for the caller.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

WARM_S = 0.5

Send = Callable[[str, str], Awaitable[object]]
"""`(room id, user id)`, returning when the message is stored."""

Figures = dict[str, float]


async def run(send: Send, senders: int, rooms: int, seconds: float) -> Figures:
    """Send for as long as it is to last, each sender into all the rooms in turn, and return the figures."""
    waited: list[float] = []
    room_ids = [f"room-{number}" for number in range(rooms)]
    sent_in_all = 0
    now = time.perf_counter
    begin = now() + min(WARM_S, seconds)
    end = begin + seconds

    async def one(number: int) -> None:
        nonlocal sent_in_all
        user_id = f"user-{number:04}"
        room = number
        while (sent := now()) < end:
            room = (room + 1) % rooms
            await send(room_ids[room], user_id)
            sent_in_all += 1
            if sent >= begin:
                waited.append(now() - sent)

    used = time.process_time()
    await asyncio.gather(*(one(number) for number in range(senders)))
    cuts = statistics.quantiles(waited, n=100)
    return {
        "cpu_us": (time.process_time() - used) / sent_in_all * 1e6,
        "per_second": len(waited) / (now() - begin),
        "p50_ms": statistics.median(waited) * 1000,
        "p99_ms": cuts[98] * 1000,
    }
