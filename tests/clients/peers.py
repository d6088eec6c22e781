"""The official client of Phoenix Channels, as it comes from npm, in Node or in Chromium: the same driver in both."""

from __future__ import annotations

import asyncio
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, Route, async_playwright

from tests.demo.browsing import CHROMIUM_OPTIONS

Report: TypeAlias = dict[str, Any]

NPM = Path(__file__).parents[1] / "npm"
PHOENIX = NPM / "node_modules" / "phoenix" / "priv" / "static" / "phoenix.mjs"

PATIENCE_S = 20.0

# What the server says of its root is the page, whatever it says: a page has the server's origin, and so may open its
# socket. The scripts come from here.
_SCRIPTS = {"/phoenix.mjs": PHOENIX, "/driver.mjs": NPM / "driver.mjs"}
_IMPORTS = """{"imports": {"phoenix": "/phoenix.mjs"}}"""
_MAIN = """
import { Driver } from "/driver.mjs";
window.driver = new Driver(window.report);
"""


class Peer(ABC):
    """One person's client: what it is told to do, and what it reports."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._ended = False
        self._taken: set[int] = set()
        self._more = asyncio.Event()

    @abstractmethod
    async def do(self, command: str, **fields: Any) -> None:
        """Give the driver a command; see `tests/npm/driver.mjs`."""

    def heard(self, report: Report) -> None:
        self.reports.append(report)
        self._more.set()

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._more.set()

    async def expect(self, what: str, **fields: Any) -> Report:
        """Return the first report of this kind that was not returned before, and has these fields; wait for it."""
        wanted = {"what": what, **fields}
        found: list[int] = []

        def find() -> bool:
            found.extend(
                index
                for index, report in enumerate(self.reports)
                if index not in self._taken and wanted.items() <= report.items()
            )
            return bool(found)

        await self.until(find, wanted)
        self._taken.add(found[0])
        return self.reports[found[0]]

    async def until(self, condition: Callable[[], bool], wanted: object = "") -> None:
        """Wait for reports that make a condition true."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    assert not self._ended, "the client's process has ended"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"expected {wanted}; the last of it was {self.reports[-20:]}") from None

    def told(self, what: str, **fields: Any) -> list[Report]:
        """Return all reports of this kind with these fields so far."""
        return [each for each in self.reports if {"what": what, **fields}.items() <= each.items()]

    async def connect(self, port: int, user: str, **options: Any) -> None:
        options.setdefault("params", {"user_id": user})
        await self.do("connect", url=f"ws://localhost:{port}/socket", **options)

    async def join(self, topic: str, channel: str = "main") -> Any:
        """Join, and return the response."""
        await self.do("join", topic=topic, channel=channel)
        return (await self.expect("joined", channel=channel))["head"]

    async def push(self, event: str, payload: Any = None, channel: str = "main", **fields: Any) -> tuple[str, Any]:
        """Push, and return the reply's status and response."""
        number = len(self.reports)
        await self.do("push", channel=channel, event=event, payload=payload or {}, id=number, **fields)
        reply = await self.expect("reply", id=number)
        return reply["status"], reply["response"]

    async def say(self, content: str, channel: str = "main") -> Any:
        """Send a message that is taken, and return the response."""
        status, response = await self.push("new_message", {"content": content}, channel)
        assert status == "ok", response
        return response

    def messages(self, channel: str = "main") -> list[Any]:
        return [each["message"] for each in self.told("message", channel=channel)]

    def contents(self, channel: str = "main") -> list[str]:
        return [each["content"] for each in self.messages(channel)]

    def check_unbroken(self) -> None:
        """Check that each channel saw a stream without a hole or a repetition, but where a join's reply said so."""
        places: dict[str, tuple[str, int]] = {}
        for report in self.reports:
            if report["what"] == "joined" and not report["head"]["recovered"]:
                places[report["channel"]] = (report["head"]["epoch"], report["head"]["offset"])
            elif report["what"] == "message":
                epoch, offset = places[report["channel"]]
                message = report["message"]
                assert (message["epoch"], message["offset"]) == (epoch, offset + 1)
                places[report["channel"]] = (epoch, offset + 1)

    async def has_seen(self, count: int, channel: str = "main") -> list[str]:
        """Wait for so many messages since the beginning, and return the contents of all there are."""
        await self.until(lambda: len(self.contents(channel)) >= count, f"{count} messages")
        return self.contents(channel)


class Runtime(ABC):
    """Where clients run. The next test uses it again: to start it takes longer than most of what is done in it."""

    @abstractmethod
    async def open_peer(self, port: int) -> Peer:
        """Open a client that is about to speak with the server on this port."""

    @abstractmethod
    async def leave_all(self) -> None:
        """Forget every client; fail where one threw what nobody caught, or missed or doubled a message unannounced."""


OpenPeer: TypeAlias = Callable[[int], Awaitable[Peer]]


class NodePeer(Peer):
    """One of the clients in a Node."""

    def __init__(self, number: int, commands: asyncio.StreamWriter) -> None:
        super().__init__()
        self._number = number
        self._commands = commands

    async def do(self, command: str, **fields: Any) -> None:
        self._commands.write(json.dumps({"peer": self._number, "command": command, **fields}).encode() + b"\n")
        await self._commands.drain()


class Node(Runtime):
    """A process of Node."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._peers: dict[int, NodePeer] = {}
        self._opened = 0

    async def open_peer(self, port: int) -> Peer:
        assert self._process.stdin is not None
        self._opened += 1
        peer = self._peers[self._opened] = NodePeer(self._opened, self._process.stdin)
        return peer

    async def leave_all(self) -> None:
        for peer in self._peers.values():
            await peer.do("forget")
            peer.check_unbroken()
        self._peers.clear()
        assert self._process.returncode is None, "Node has ended"

    async def listen(self) -> None:
        """Pass on what the clients report, until Node ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            report = json.loads(line)
            peer = self._peers.get(report.pop("peer"))
            if peer is not None:
                peer.heard(report)
        for peer in self._peers.values():
            peer.end()


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "node", NPM / "driver_in_node.mjs", stdin=pipe, stdout=pipe, stderr=pipe
    )
    running = Node(process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        # Its input ends, so it ends.
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        errors = await process.stderr.read()
        await listening
        assert (await process.wait(), errors) == (0, b"")


class PagePeer(Peer):
    """The client in a tab of Chromium."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self._page = page

    async def do(self, command: str, **fields: Any) -> None:
        await self._page.evaluate("command => window.driver.do(command)", {"command": command, **fields})


class Tabs(Runtime):
    """Tabs of one browser."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._unused: list[Page] = []
        self._peers: dict[Page, PagePeer] = {}
        self._errors: list[str] = []

    async def open_peer(self, port: int) -> Peer:
        page = self._unused.pop() if self._unused else await self._new_page()
        peer = self._peers[page] = PagePeer(page)
        await page.goto(f"http://localhost:{port}/")
        await page.add_script_tag(content=_IMPORTS, type="importmap")
        await page.add_script_tag(content=_MAIN, type="module")
        await page.wait_for_function("window.driver !== undefined")
        return peer

    async def leave_all(self) -> None:
        for page, peer in self._peers.items():
            await page.goto("about:blank")
            peer.check_unbroken()
        self._unused += self._peers
        self._peers.clear()
        errors, self._errors = self._errors, []
        assert errors == []

    async def _new_page(self) -> Page:
        async def answer(route: Route) -> None:
            path = _SCRIPTS[urlsplit(route.request.url).path]
            await route.fulfill(path=path, content_type="text/javascript")

        def report(fields: Report) -> None:
            if page in self._peers:
                self._peers[page].heard(fields)

        page = await self._browser.new_page()
        page.on("pageerror", lambda error: self._errors.append(f"{error}"))
        await page.expose_function("report", report)
        await page.route("**/*.mjs", answer)
        return page


@asynccontextmanager
async def chromium() -> AsyncIterator[Tabs]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        yield Tabs(browser)
        await browser.close()
