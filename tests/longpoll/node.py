"""The phoenix client in Node: `client.mjs` as a process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("client.mjs")
PHOENIX = SCRIPT.parent.parent / "npm" / "node_modules" / "phoenix"


class NodeClient:
    """One client; what it tells is kept in `told`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told: list[dict[str, Any]] = []

    def do(self, command: str, **more: Any) -> None:
        """Give a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **more}).encode() + b"\n")

    async def wait_for(self, what: str, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Return the first thing of this kind, told already or to come, that is `wanted`."""
        assert self._process.stdout is not None
        seen = 0
        async with asyncio.timeout(30):
            while True:
                for each in self.told[seen:]:
                    if each["what"] == what and wanted(each):
                        return each
                seen = len(self.told)
                line = await self._process.stdout.readline()
                assert line, f"the client ended after {self.told}"
                self.told.append(json.loads(line))

    async def join(self, topic: str) -> dict[str, Any]:
        """Join, and return the head of the room's stream."""
        self.do("join", topic=topic)
        return await self.wait_for("joined", lambda each: each["topic"] == topic)

    async def contents(self, count: int) -> list[str]:
        """Return the contents of all messages, once there are `count`."""
        await self.wait_for("message", lambda _: len(self._messages()) >= count)
        return self._messages()

    def count(self, what: str) -> int:
        """Return how often this was told."""
        return sum(each["what"] == what for each in self.told)

    def forget(self) -> None:
        """Drop what was told so far."""
        self.told.clear()

    def _messages(self) -> list[str]:
        return [each["content"] for each in self.told if each["what"] == "message"]


@asynccontextmanager
async def node_client(port: int, user: str, *arguments: str) -> AsyncIterator[NodeClient]:
    """Run a client of the socket on this machine; it does not connect by itself."""
    node = shutil.which("node")
    if node is None:
        pytest.fail("There is no node on the PATH; these tests run the phoenix client in it. On Debian: nodejs")
    if not PHOENIX.is_dir():
        pytest.fail("The phoenix client is not installed; tools/npm installs it.")
    process = await asyncio.create_subprocess_exec(
        node,
        str(SCRIPT),
        f"ws://localhost:{port}/socket",
        user,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        yield NodeClient(process)
    finally:
        process.stdin.close()  # at which it ends
        async with asyncio.timeout(10):
            await process.wait()
