"""The JavaScript on the page about the wire, run by Node as it stands there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat, Unauthorized
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


async def expect(output: asyncio.StreamReader, *lines: Any) -> None:
    """Read so many lines; the first of all clears what was there, and the others may come in any order."""
    found = [await written(output) for _ in lines]
    assert found[0] == lines[0]
    assert sorted(map(str, found)) == sorted(map(str, lines))


CLEARED = {"cleared": True}


async def test_it_says_hello_once_and_misses_nothing_across_a_cut(shell: str, tmp_path: Path) -> None:
    chat = Chat()
    async with served(shell, chat) as port:
        await chat.send_message("general", "bob", "before")
        async with example(tmp_path, port) as output:
            await expect(output, CLEARED, {"before": ["before"]}, {"shown": "Hello"})
            assert set(await chat.presence("general")) == {"alice"}
            # The socket is cut, and the page lets itself in again.
            assert await chat.revoke("alice") == 1
            for number in range(3):
                await chat.send_message("general", "bob", f"m{number}")
            for number in range(3):
                assert await written(output) == {"shown": f"m{number}"}
            await chat.send_message("general", "bob", "live")
            assert await written(output) == {"shown": "live"}


async def test_where_it_cannot_resume_it_begins_anew_with_the_history(shell: str, tmp_path: Path) -> None:
    chat = Chat(history_size=2)
    async with served(shell, chat) as port, example(tmp_path, port) as output:
        await expect(output, CLEARED, {"before": []}, {"shown": "Hello"})
        assert await chat.revoke("alice") == 1
        for number in range(4):
            await chat.send_message("general", "bob", f"m{number}")
        await expect(output, CLEARED, {"before": ["m2", "m3"]})


async def test_it_tells_why_it_was_refused(shell: str, tmp_path: Path) -> None:
    class Strict:
        def check(self, content: str) -> bool:
            return content != "Hello"

    async with served(shell, Chat(moderation=Strict())) as port, example(tmp_path, port) as output:
        lines = [await written(output) for _ in range(3)]
        (told,) = [each["told"] for each in lines if "told" in each]
        assert "moderation" in told


async def test_where_it_may_not_join_it_tells_why(shell: str, tmp_path: Path) -> None:
    class Nobody:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            raise Unauthorized("Members only.")

    async with served(shell, Chat(auth=Nobody())) as port, example(tmp_path, port) as output:
        assert await written(output) == {"told": "Members only."}
