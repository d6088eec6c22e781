"""Resident memory per idle room, member and subscription, in bytes; each in a fresh process.

python -m benchmarks.memory rooms|members|subscriptions|crowd COUNT
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

from chatx import Chat, Subscription

_kept: list[Subscription] = []


def resident() -> int:
    """Return this process's resident memory, in bytes."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("There is no VmRSS in /proc/self/status; measure on Linux.")


async def rooms(chat: Chat, count: int) -> None:
    """Rooms that one message was sent to."""
    for number in range(count):
        await chat.send_message(f"room-{number}", f"user-{number}", "hello")


async def members(chat: Chat, count: int) -> None:
    """Members of one room."""
    for number in range(count):
        await chat.join("lobby", f"user-{number}")


async def subscriptions(chat: Chat, count: int) -> None:
    """Subscriptions to one room, with a mailbox each."""
    _kept.extend([await chat.subscribe("lobby") for _ in range(count)])


async def crowd(chat: Chat, count: int) -> None:
    """Rooms with ten members each."""
    for room in range(count):
        for member in range(10):
            await chat.join(f"room-{room}", f"user-{member}")


async def measure(kind: str, count: int) -> dict[str, float]:
    """Return bytes for each of `count`."""
    async with Chat(room_idle_ms=3_600_000) as chat:
        build = {"rooms": rooms, "members": members, "subscriptions": subscriptions, "crowd": crowd}[kind]
        await build(chat, 100)
        await asyncio.sleep(0.05)
        before = resident()
        await build(chat, count + 100)
        await asyncio.sleep(0.05)
        return {"bytes": (resident() - before) / count, "total_mib": resident() / 2**20}


def main() -> None:
    """Measure and print JSON."""
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2])))))


if __name__ == "__main__":
    main()
