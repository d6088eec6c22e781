"""A server that goes and comes back: a real process, stopped, frozen or killed, on the same port and store."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from tests.process import ENVIRONMENT, free_port, freeze

ROOT = Path(__file__).parents[2]


class Server:
    """The process, and the next ones of it."""

    def __init__(self, shell: str, store: Path, durability: str) -> None:
        self._shell = shell
        self._durability = durability
        self._store = store
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *says: str) -> None:
        """Start it; it says these things as soon as it serves, whoever is back by then."""
        pipe = asyncio.subprocess.PIPE
        module = ("-m", "tests.clients.server", self._shell, str(self.port), str(self._store), self._durability)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *module, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT, cwd=ROOT
        )
        for text in says:
            self.say(text)
        assert self._process.stdout is not None
        ready = await self._process.stdout.readline()
        assert ready == b"ready\n", await self._end()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def say(self, text: str) -> None:
        """Let it say something in room `a`, now or when it is running again."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")

    async def stop(self) -> None:
        """Let it stop by itself."""
        assert await self._end() == (0, b"")

    async def kill(self) -> None:
        self.process.kill()
        await self._end()

    def freeze(self) -> None:
        freeze(self.process.pid)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def saved(self) -> int:
        """Return how many messages are in the store."""
        with closing(sqlite3.connect(self._store)) as db:
            count: int = db.execute("SELECT count(*) FROM chatx_entries").fetchone()[0]
            return count

    async def end(self) -> None:
        """Kill it if it is still there."""
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def _end(self) -> tuple[int, bytes]:
        process = self.process
        assert process.stdin is not None
        process.stdin.close()
        _, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, errors


@asynccontextmanager
async def server(shell: str, store: Path, durability: str = "sequenced") -> AsyncIterator[Server]:
    """Run a server."""
    running = Server(shell, store, durability)
    try:
        await running.start()
        yield running
    finally:
        await running.end()
