"""A server that is killed, drained and started again on one port and store: `chatx serve`, or uvicorn."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.clients.proof.checking import Said
from tests.gateway.real_client import RealClient, real_client
from tests.process import ENVIRONMENT, free_port
from tests.seeds import Chance

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0


class Server:
    """The process, and the next ones of it.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.port = free_port()
        self._command = (sys.executable, "-m", *command, "--port", str(self.port))
        self._output = folder / "server.txt"
        self._environment = ENVIRONMENT | {"CHATX_DURABILITY": "stored", "PROOF_STORE": _store(folder)}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it lets somebody in."""
        with self._output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=ROOT,
            )
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self._serves():
                    assert self._process.returncode is None
                    await asyncio.sleep(0.05)
        except (TimeoutError, AssertionError):
            raise AssertionError(f"The server does not listen: {self._output.read_text()}") from None

    async def _serves(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("localhost", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def disturb(self, chance: Chance) -> str:
        """Kill it (SIGKILL, as a power cut would) or drain it (SIGTERM), start it again, and return which it was."""
        kills = chance.once_in(2)
        if kills:
            await self._ended_by(signal.SIGKILL)
        else:
            await self._drain()
        await asyncio.sleep(chance.pick((0, 0, 3)) * chance.random())
        await self.start()
        return "kill" if kills else "drain"

    async def _drain(self) -> None:
        assert await self._ended_by(signal.SIGTERM) in (0, -signal.SIGTERM), self._output.read_text()

    async def _ended_by(self, sent: int) -> int:
        assert self._process is not None
        self._process.send_signal(sent)
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def end(self) -> None:
        """End it if it is still there."""
        if self._process is not None and self._process.returncode is None:
            await self._ended_by(signal.SIGKILL)

    def said_last(self) -> str:
        """Return the end of what it has said since it began."""
        return self._output.read_text()[-10_000:]

    async def say(self, room: str, content: str) -> None:
        """Say something, past the proxy."""
        async with real_client(self.port, "historian") as client:
            await _asked(client, room, "phx_join")
            await _asked(client, room, "new_message", {"content": content, "key": content})

    async def history(self, room: str) -> list[Said]:
        """Return all that the server has of a room, as it answers it page by page."""
        found: list[Said] = []
        async with real_client(self.port, "historian") as client:
            head = await _asked(client, room, "phx_join")
            before = {"epoch": head["epoch"], "offset": head["offset"] + 1}
            while True:
                page = await _asked(client, room, "history", {"before": before, "limit": 200})
                found = [*map(said, page["messages"]), *found]
                if not page["more"]:
                    return found
                before = {"epoch": found[0].epoch, "offset": found[0].offset}


async def _asked(client: RealClient, room: str, event: str, payload: object = None) -> dict[str, Any]:
    """Ask, and again where the server says to: what was killed last has just come back, and everybody catches up."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        ref = await client.push(f"room:{room}", event, payload)
        reply = await client.wait_for(lambda each: each.event == "phx_reply" and each.ref == ref)  # noqa: B023 # awaited
        response: dict[str, Any] = reply.payload["response"]
        if reply.payload["status"] == "ok":
            return response
        assert response["retryable"], response
        assert asyncio.get_running_loop().time() < deadline, response
        await asyncio.sleep(response.get("retry_after_ms", 200) / 1000)


def said(message: dict[str, object]) -> Said:
    """Return a message as the checker wants it."""
    return Said(*(message[each] for each in ("epoch", "offset", "id", "user_id", "content")))  # type: ignore[arg-type]  # what it is, the checker looks at


class Workers(Server):
    """Two workers, with a broker that keeps their messages; what is killed is begun again by their supervisor."""

    async def _serves(self) -> bool:
        return "All 2 workers serve." in self._output.read_text()

    async def disturb(self, chance: Chance) -> str:
        """Kill a worker or the broker, or drain all and start again, and return which it was."""
        assert self._process is not None
        if chance.once_in(4):
            await self._drain()
            await self.start()
            return "drain"
        victim = chance.pick(("worker", "worker", "broker"))
        found = [each for each in _children(self._process.pid) if _is_worker(each) == (victim == "worker")]
        if found:
            os.kill(int(chance.pick(found)), signal.SIGKILL)
        return f"kill {victim}"


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_worker(pid: str) -> bool:
    return b"chatx.cli.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _store(folder: Path) -> str:
    return f"sqlite:///{folder / 'chat.db'}"


@asynccontextmanager
async def server(shell: str, folder: Path) -> AsyncIterator[Server]:
    """Run a server: `native`, `asgi` or `workers`."""
    serve = ("chatx", "serve", "--insecure-user-param")
    running: Server
    if shell == "workers":
        running = Workers((*serve, "--workers", "2", "--data", f"{folder / 'data'}"), folder)
    elif shell == "native":
        running = Server((*serve, "--store", _store(folder), "--log-level", "warning"), folder)
    else:
        running = Server(("uvicorn", "tests.clients.proof.application:app", "--log-level", "warning"), folder)
    try:
        await running.start()
        yield running
    except BaseException as error:
        error.add_note(f"The server said last: {running.said_last()}")
        raise
    finally:
        await running.end()
