"""Rooms opened after a crash: how long until all of them go on where they were. One process, one figure.

python -m benchmarks.log.opening STORE ROOMS
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

from benchmarks.fanout import CONTENT, UNLIMITED
from benchmarks.log.stores import closed, log_at
from chatx import Chat, Message


def _chat(log: object, rooms: int) -> Chat:
    return Chat(persistence=log, durability="stored", rate_limit=UNLIMITED, room_queue_limit=rooms)


async def _fill_and_crash(url: str, rooms: int) -> None:
    async with _chat(log_at(url), rooms) as chat:
        await asyncio.gather(*(chat.send_message(f"room-{number}", "user-0001", CONTENT) for number in range(rooms)))
        os.kill(os.getpid(), signal.SIGKILL)


async def _open(url: str, rooms: int) -> dict[str, float]:
    log = log_at(url)
    began, used = time.perf_counter(), time.process_time()
    async with _chat(log, rooms) as chat:
        opened = await asyncio.gather(
            *(chat.subscribe_callback(f"room-{number}", lambda event: None) for number in range(rooms))
        )
        found = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - used}
        message: Message = await chat.send_message(f"room-{rooms - 1}", "user-0001", CONTENT)
        if message.offset != 2:
            sys.exit(f"benchmarks: after the crash the room goes on at {message.offset}; expected 2.")
        for each in opened:
            each.close()
    await closed(log)
    return found


def main() -> None:
    """Measure and print JSON; called with `crash` in front, fill the store and crash."""
    crash = sys.argv[1] == "crash"
    url, rooms = sys.argv[-2:]
    if crash:
        asyncio.run(_fill_and_crash(url, int(rooms)))
    filled = subprocess.run([sys.executable, "-m", "benchmarks.log.opening", "crash", url, rooms], check=False)
    if filled.returncode != -signal.SIGKILL:
        sys.exit(f"benchmarks: the store could not be filled; that process ended with {filled.returncode}.")
    print(json.dumps(asyncio.run(_open(url, int(rooms)))))


if __name__ == "__main__":
    main()
