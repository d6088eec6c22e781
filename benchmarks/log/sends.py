"""Stored sends: how many a second and how long each waits, through the engine or by hand. One process, one figure.

python -m benchmarks.log.sends chat|hand STORE SENDERS ROOMS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.fanout import CONTENT, UNLIMITED
from benchmarks.log import by_hand
from benchmarks.log.senders import Figures, run
from benchmarks.log.stores import closed, log_at
from chatx import Chat


async def through_the_engine(url: str, senders: int, rooms: int, seconds: float) -> Figures:
    """Return the figures of one cell."""
    log = log_at(url)
    async with Chat(persistence=log, durability="stored", rate_limit=UNLIMITED) as chat:
        found = await run(
            lambda room_id, user_id: chat.send_message(room_id, user_id, CONTENT), senders, rooms, seconds
        )
    await closed(log)
    return found


KINDS = {"chat": through_the_engine, "hand": by_hand.measure}


def main() -> None:
    """Measure one cell and print it as JSON."""
    kind, url, senders, rooms, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(KINDS[kind](url, int(senders), int(rooms), float(seconds)))))


if __name__ == "__main__":
    main()
