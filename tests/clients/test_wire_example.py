"""The JavaScript on the page about the wire, run by Node as it stands there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chatx.chat import Chat
from tests.clients.peers import NPM, PATIENCE_S
from tests.docs.markdown import ROOT, blocks
from tests.gateway.servers import SHELLS, served

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]


@asynccontextmanager
async def example(folder: Path, port: int) -> AsyncIterator[asyncio.StreamReader]:
    """Run it; the value is what it writes."""
    (block,) = blocks(ROOT / "docs" / "wire.md", "js")
    (folder / "node_modules").symlink_to(NPM / "node_modules")
    script = folder / "example.mjs"
    script.write_text(block.code, encoding="utf-8")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "node", NPM / "example_in_node.mjs", f"localhost:{port}", script, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process.stdout
    finally:
        process.stdin.close()
        errors = await process.stderr.read()
        assert (await process.wait(), errors) == (0, b"")


async def written(output: asyncio.StreamReader) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return json.loads(await output.readline())


async def test_it_says_hello_once_and_misses_nothing_across_a_cut(shell: str, tmp_path: Path) -> None:
    chat = Chat()
    async with served(shell, chat) as port, example(tmp_path, port) as output:
        assert await written(output) == {"shown": "Hello"}
        assert set(await chat.presence("general")) == {"alice"}
        # The socket is cut, and the page lets itself in again.
        assert await chat.revoke("alice") == 1
        for number in range(3):
            await chat.send_message("general", "bob", f"m{number}")
        for number in range(3):
            assert await written(output) == {"shown": f"m{number}"}
        await chat.send_message("general", "bob", "live")
        assert await written(output) == {"shown": "live"}


async def test_it_tells_why_it_was_refused(shell: str, tmp_path: Path) -> None:
    class Strict:
        def check(self, content: str) -> bool:
            return content != "Hello"

    async with served(shell, Chat(moderation=Strict())) as port, example(tmp_path, port) as output:
        told = await written(output)
        assert list(told) == ["told"]
        assert "moderation" in told["told"]
