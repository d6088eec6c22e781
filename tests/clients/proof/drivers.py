"""Where the clients run: in Node, in Chromium and in Python, several in each; commands go in and reports come out."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from playwright.async_api import Page, Route, async_playwright

from tests.demo.browsing import CHROMIUM_OPTIONS
from tests.process import ENVIRONMENT

Report: TypeAlias = Callable[[dict[str, Any]], None]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


CHATX_JS = ROOT / "clients" / "js" / "chatx.js"
LINE_BYTES = 16 * 1_048_576


class Drivers(ABC):
    """The clients of one kind."""

    @abstractmethod
    async def do(self, **command: Any) -> None:
        """Give a command; see `driver.mjs`."""

    @property
    @abstractmethod
    def runs(self) -> bool:
        """Whether it is still there."""


class ProcessDrivers(Drivers):
    """Clients in a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        self._commands = process.stdin
        self._process = process

    @property
    def runs(self) -> bool:
        return self._process.returncode is None

    async def do(self, **command: Any) -> None:
        self._commands.write(json.dumps(command).encode() + b"\n")
        await self._commands.drain()


@asynccontextmanager
async def _in_process(report: Report, *command: str | Path) -> AsyncIterator[Drivers]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, env=ENVIRONMENT, cwd=ROOT, limit=LINE_BYTES
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reports = process.stdout

    async def listen() -> None:
        async for line in reports:
            report(json.loads(line))

    listening = asyncio.create_task(listen())
    try:
        yield ProcessDrivers(process)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            raise
        await listening


class PageDrivers(Drivers):
    """Clients in a page of Chromium."""

    def __init__(self, page: Page) -> None:
        self._page = page

    @property
    def runs(self) -> bool:
        return not self._page.is_closed()

    async def do(self, **command: Any) -> None:
        await self._page.evaluate("command => window.drivers.do(command)", command)


# Reports go together, ten times a second: each call out of the page costs more than what it carries.
_MAIN = """
import { Drivers } from "/driver.mjs";
import { Chat } from "/socket/chatx.js";
let reports = [];
setInterval(() => {
  if (reports.length > 0) window.told(JSON.stringify(reports));
  reports = [];
}, 100);
window.drivers = new Drivers(Chat, (report) => reports.push(report), WebSocket);
"""


@asynccontextmanager
async def in_chromium(report: Report, origin: str) -> AsyncIterator[Drivers]:
    """Clients in one page of Chromium, which comes from the server as its script does."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")

    async def answer(route: Route) -> None:
        await route.fulfill(path=HERE / "driver.mjs", content_type="text/javascript")

    def told(reports: str) -> None:
        for each in json.loads(reports):
            report(each)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        page = await browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(f"{error}"))
        await page.expose_function("told", told)
        await page.route("**/driver.mjs", answer)
        await page.goto(f"{origin}/")
        await page.add_script_tag(content=_MAIN, type="module")
        await page.wait_for_function("window.drivers !== undefined")
        try:
            yield PageDrivers(page)
        finally:
            await browser.close()
        assert errors == []


@asynccontextmanager
async def in_node(report: Report, origin: str) -> AsyncIterator[Drivers]:
    """Clients in a process of Node."""
    async with _in_process(report, "node", HERE / "driver_in_node.mjs", CHATX_JS.as_uri()) as drivers:
        yield drivers


@asynccontextmanager
async def in_python(report: Report, origin: str) -> AsyncIterator[Drivers]:
    """Clients in a process of Python."""
    async with _in_process(report, sys.executable, "-m", "tests.clients.proof.driver") as drivers:
        yield drivers


KINDS = {"node": in_node, "chromium": in_chromium, "python": in_python}
