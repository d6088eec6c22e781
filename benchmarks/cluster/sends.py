"""Sends through a node: to a room of its own and to another node's in turn, and as many as go into one room.

python -m benchmarks.cluster.sends STRATEGY URL OTHER SENDS SECONDS

This process is one node; OTHER is the name of one that is there.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

import uvloop

from benchmarks.cluster.node import chat
from benchmarks.cluster.nodes import room_of
from benchmarks.fanout import CONTENT
from chatx import Chat

ME = "measuring"

SENDERS = 256
"""Messages under way in one room."""


async def measure(strategy: str, url: str, other: str, sends: int, seconds: float) -> dict[str, float]:
    """Return the median waits, in ms, and the rate of messages in one room of this node."""
    names = [ME, other]
    rooms = {"own": room_of(ME, names), "other": room_of(other, names)}
    waited: dict[str, list[float]] = {kind: [] for kind in rooms}
    async with chat(ME, strategy, url) as running:
        for turn in range(sends + 20):
            for kind, room_id in rooms.items():
                began = time.perf_counter()
                await running.send_message(room_id, "user-0001", CONTENT)
                if turn >= 20:
                    waited[kind].append(time.perf_counter() - began)
        per_second = await _rate(running, rooms["own"], seconds)
    found = {f"{kind} p50_ms": statistics.median(times) * 1000 for kind, times in waited.items()}
    return {**found, "added p50_ms": found["other p50_ms"] - found["own p50_ms"], "per_second": per_second}


async def _rate(running: Chat, room_id: str, seconds: float) -> float:
    sent, began = 0, time.perf_counter()
    end = began + seconds

    async def send(user_id: str) -> None:
        nonlocal sent
        while time.perf_counter() < end:
            await running.send_message(room_id, user_id, CONTENT)
            sent += 1

    await asyncio.gather(*(send(f"user-{number:04}") for number in range(SENDERS)))
    return sent / (time.perf_counter() - began)


if __name__ == "__main__":
    strategy, url, other, sends, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(measure(strategy, url, other, int(sends), float(seconds)))))
