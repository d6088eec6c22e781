"""One node of a measurement, in a process of its own, with the native server.

python -m benchmarks.cluster.node NAME local|pg|horde [URL]

Prints one line of JSON with its port when it serves, and one with what it holds at each SIGUSR1; SIGTERM drains it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from typing import Any

import uvloop

from benchmarks.memory import resident
from benchmarks.wire.server import UNLIMITED, named
from chatx import Chat
from chatx.gateway import NativeServer


def chat(name: str, strategy: str, url: str | None) -> Chat:
    """Return the chat of a node: nobody reaches the rate limit, and no room is forgotten while it lasts."""
    nodes: dict[str, Any] = {}
    if strategy != "local":
        nodes = {"cluster_strategy": strategy, "cluster_url": url, "node_name": name, "cluster_name": "bench"}
    forgets_nothing: dict[str, Any] = {
        "room_idle_ms": 3_600_000,
        "idle_rooms_limit": 1_000_000,
        "drain_timeout_ms": 120_000,
    }
    return Chat(rate_limit=UNLIMITED, room_queue_limit=10_000, **forgets_nothing, **nodes)


async def _serve(name: str, strategy: str, url: str | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    running = chat(name, strategy, url)

    def tell() -> None:
        figures = running.statistics()
        owned = figures.rooms if strategy == "local" else figures.rooms_owned
        _print({"rooms": owned, "resident": resident()})

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, tell)
    async with running:
        server = NativeServer(running, authenticate=named)
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        await server.start([listening])
        _print({"port": listening.getsockname()[1]})
        await stop.wait()
        await server.drain(2.0)
    await server.close()


def _print(what: dict[str, float]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
