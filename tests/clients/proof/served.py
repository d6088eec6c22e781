"""A server that is killed, drained and started again on one port and store: `chatx serve`, or uvicorn."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.clients.proof.checking import Said
from tests.gateway.real_client import real_client
from tests.process import ENVIRONMENT, free_port

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0


class Server:
    """The process, and the next ones of it.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, shell: str, folder: Path) -> None:
        self.port = free_port()
        store = f"sqlite:///{folder / 'chat.db'}"
        self._output = folder / "server.txt"
        self._environment = ENVIRONMENT | {"CHATX_DURABILITY": "stored", "PROOF_STORE": store}
        if shell == "native":
            self._command = ["chatx", "serve", "--insecure-user-param", "--store", store, "--log-level", "warning"]
        else:
            self._command = ["uvicorn", "tests.clients.proof.application:app", "--log-level", "warning"]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it lets somebody in."""
        with self._output.open("ab") as output:
            command = (sys.executable, "-m", *self._command, "--port", str(self.port))
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=ROOT,
            )
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self._listens():
                    assert self._process.returncode is None
                    await asyncio.sleep(0.05)
        except (TimeoutError, AssertionError):
            raise AssertionError(f"The server does not listen: {self._output.read_text()}") from None

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("localhost", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        await self._end(signal.SIGKILL)

    async def drain(self) -> None:
        """Let it send its clients away and end (SIGTERM)."""
        assert await self._end(signal.SIGTERM) in (0, -signal.SIGTERM), self._output.read_text()

    async def _end(self, sent: int) -> int:
        assert self._process is not None
        self._process.send_signal(sent)
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def end(self) -> None:
        """End it if it is still there."""
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def say(self, room: str, content: str) -> None:
        """Say something, past the proxy."""
        async with real_client(self.port, "historian") as client:
            await client.ask(f"room:{room}", "phx_join")
            await client.ask(f"room:{room}", "new_message", {"content": content})

    async def history(self, room: str) -> list[Said]:
        """Return all that the server has of a room, as it answers it page by page."""
        found: list[Said] = []
        async with real_client(self.port, "historian") as client:
            head = await client.ask(f"room:{room}", "phx_join")
            before = {"epoch": head["epoch"], "offset": head["offset"] + 1}
            while True:
                page = await client.ask(f"room:{room}", "history", {"before": before, "limit": 200})
                found = [*map(said, page["messages"]), *found]
                if not page["more"]:
                    return found
                before = {"epoch": found[0].epoch, "offset": found[0].offset}


def said(message: dict[str, object]) -> Said:
    """Return a message as the checker wants it."""
    return Said(*(message[each] for each in ("epoch", "offset", "id", "user_id", "content")))  # type: ignore[arg-type]  # what it is, the checker looks at


@asynccontextmanager
async def server(shell: str, folder: Path) -> AsyncIterator[Server]:
    """Run a server."""
    running = Server(shell, folder)
    try:
        await running.start()
        yield running
    finally:
        await running.end()
