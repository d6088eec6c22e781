"""The client for browsers and Node against real servers: each way to connect, and the page of the documentation."""

from __future__ import annotations

import asyncio
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from chatx.chat import Chat
from chatx.gateway.entry.handshake import Handshake
from tests.clients.js.test_in_node import CLIENT, run
from tests.clients.peers import NPM
from tests.demo.browsing import CHROMIUM_OPTIONS
from tests.docs.markdown import blocks
from tests.gateway.servers import SHELLS, served, under_uvicorn
from tests.process import ENVIRONMENT

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "client-js.md"

pytestmark = pytest.mark.process


def bearer(handshake: Handshake) -> str | None:
    """Let in whoever has a token that begins right."""
    token = handshake.token or ""
    return token.removeprefix("geheim-ü-") if token.startswith("geheim-ü-") else None


@pytest.mark.parametrize("shell", SHELLS)
async def test_sockets_polling_and_what_becomes_of_a_user_who_is_shut_out(shell: str) -> None:
    pipe = asyncio.subprocess.PIPE
    chat = Chat()
    async with served(shell, chat, bearer) as port:
        process = await asyncio.create_subprocess_exec(
            "node",
            HERE / "against_a_server.mjs",
            f"http://localhost:{port}/socket",
            stdin=pipe,
            stdout=pipe,
            env=ENVIRONMENT,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        told: dict[str, Any] = {}
        async with asyncio.timeout(60):
            async for line in process.stdout:
                report = json.loads(line)
                told.setdefault(report["name"], report.get("value"))
                if report["name"] == "ready":
                    await chat.revoke("websocket")
                elif report["name"] == "state" and report["value"][0] == "stopped":
                    process.stdin.write(b"go on\n")
            assert await process.wait() == 0
    for name in ("websocket", "polling", "refused", "blocked"):
        assert told[name] == [name, True, {"name": name}, "message_too_large", True]
    assert told["state"] == ["stopped", "revoked"]
    assert told["wrong"] == ["waiting", True]


async def test_the_program_of_the_documentation_runs_in_node(tmp_path: Path) -> None:
    (program,) = blocks(PAGE, "js")
    chat = Chat()
    async with served("native", chat) as port:
        (tmp_path / "bot.mjs").write_text(program.code.replace(":4000/", f":{port}/"))
        (tmp_path / "chatx.js").write_bytes((CLIENT / "chatx.js").read_bytes())
        (tmp_path / "package.json").write_text('{"type": "module"}')
        (tmp_path / "node_modules").symlink_to(NPM / "node_modules")
        assert await run("node", tmp_path / "bot.mjs") == (0, "1\n")
        assert [(each.user_id, each.content) for each in await chat.history("general")] == [("bot", "Good morning")]


async def _said(page: Page) -> list[str]:
    return await page.locator("#log li").all_text_contents()


async def _say(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.get_by_role("button").click()


@pytest.mark.browser
async def test_the_page_of_the_documentation_keeps_what_was_written_across_cuts_and_a_reload(tmp_path: Path) -> None:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")
    (code,), (html,) = blocks(PAGE, "py"), blocks(PAGE, "html")
    (tmp_path / "app.py").write_text(code.code)
    (tmp_path / "page.html").write_text(html.code)
    app = runpy.run_path(str(tmp_path / "app.py"))["app"]
    async with under_uvicorn(app) as port, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        ada, bob = await browser.new_page(), await browser.new_page()
        errors: list[str] = []
        for page, user in ((ada, "ada"), (bob, "bob")):
            page.on("pageerror", lambda error: errors.append(f"{error}"))
            await page.goto(f"http://localhost:{port}/?user={user}")
            await expect(page.locator("#state")).to_have_text("joined")
        await expect(ada.locator("#members")).to_have_text("ada, bob")
        await _say(ada, "Hello")
        await expect(bob.locator("#log li")).to_have_text(["ada: Hello"])

        # Nothing of hers gets through any more, by either way; then she writes, and loads the page anew.
        await ada.route_web_socket("**/socket/**", lambda route: asyncio.ensure_future(route.close(code=1012)))
        await ada.route("**/socket/longpoll*", lambda route: route.abort())
        await ada.reload()
        await _say(ada, "one")
        await _say(ada, "two")
        await ada.reload()
        assert await _said(ada) == []
        await ada.unroute("**/socket/longpoll*")
        await expect(bob.locator("#log li")).to_have_text(["ada: Hello", "ada: one", "ada: two"], timeout=30_000)
        await expect(ada.locator("#log li")).to_have_text(["ada: Hello", "ada: one", "ada: two"])
        await browser.close()
    assert errors == []
