"""Many rooms on three nodes and this one: how long they take to begin, what they hold, and what a node's coming and
going does to them.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from benchmarks.cluster.node import chat
from benchmarks.cluster.nodes import Cluster, Node
from benchmarks.cluster.sends import ME
from benchmarks.fanout import CONTENT
from chatx import Chat, ChatError

UNDER_WAY = 256
"""Sends under way."""

SENT_S = 900
"""Seconds for a message to each room; what takes longer is no figure."""

AGAIN_S = 0.05
"""Before a send that was refused for now is tried again, in seconds."""


async def measure(running: Cluster, strategy: str, rooms: int) -> dict[str, float]:
    """Return the figures of so many rooms; the nodes are those of the cluster, and one of this process."""
    before, places = [node.holds() for node in running.nodes], [("", 0)] * rooms
    async with chat(ME, strategy, running.url) as here:
        begin_s, _ = await _send_to_all(here, places)
        after = [node.holds() for node in running.nodes]
        found = {
            "begin per_second": rooms / begin_s,
            "bytes": sum(b["resident"] - a["resident"] for a, b in zip(before, after, strict=True))
            / max(1, sum(node["rooms"] for node in after)),
        }
        leaving = running.nodes[-1]
        found["left rooms"] = after[-1]["rooms"]
        began = time.perf_counter()
        leaving.terminate()
        await asyncio.to_thread(leaving.process.wait)
        found["left drain_s"] = time.perf_counter() - began
        touched_s, anew = await _send_to_all(here, places)
        found |= {"left all_s": touched_s, "left anew": anew}
        (coming,) = await asyncio.to_thread(running.start, "coming")
        touched_s, anew = await _send_to_all(here, places)
        found |= {"came all_s": touched_s, "came anew": anew, "came rooms": _rooms(coming)}
    return found


def _rooms(node: Node) -> float:
    return node.holds()["rooms"]


async def _send_to_all(here: Chat, places: list[tuple[str, int]]) -> tuple[float, int]:
    """Send a message to each room; return the seconds it took, and how many have begun anew since the last."""
    anew, numbers, began = 0, iter(range(len(places))), time.perf_counter()
    key = secrets.token_hex(4)  # what is tried again is not to be there twice

    async def send() -> None:
        nonlocal anew
        for number in numbers:
            while True:
                try:
                    message = await here.send_message(f"room-{number}", "user-0001", CONTENT, idempotency_key=key)
                except ChatError as error:
                    if not error.retryable:
                        raise
                    await asyncio.sleep(error.retry_after or AGAIN_S)
                else:
                    epoch, offset = places[number]
                    anew += (message.epoch, message.offset) != (epoch or message.epoch, offset + 1)
                    places[number] = message.epoch, message.offset
                    break

    async with asyncio.timeout(SENT_S):
        await asyncio.gather(*(send() for _ in range(UNDER_WAY)))
    return time.perf_counter() - began, anew
