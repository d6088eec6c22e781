"""A chat server as a process of its own, for tests that stop, freeze and kill it: either shell, with a store.

    python -m tests.clients.server SHELL PORT STORE [DURABILITY]

It prints a line when it serves. Each line on its standard input is said in room `a`; the end of the input stops it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from chatx import Chat
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.rate_limit import RateLimit
from tests.gateway.servers import served


async def main(shell: str, port: str, store: str, durability: Any = "sequenced") -> None:
    chat = Chat(
        persistence=SQLitePersistence(store),
        durability=durability,
        history_size=8,
        rate_limit=RateLimit(messages_per_sec=1e6, burst=10**6),
    )
    async with served(shell, chat, port=int(port)):
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await chat.send_message("a", "server", line.strip())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
