"""The demo's two pages as people use them in Chromium: the same words for both, so that one test can ask both.

`wait_for` sees a change at once; `expect` looks again after 100 ms and then ever later, so it comes second here.
"""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Locator, Page, expect, sync_playwright

from tests.process import Served

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium. Not for longer than a module: its event loop would be in the way of asynchronous tests."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


# What Chromium itself logs while there is no server; pages cannot prevent it.
NO_SERVER = re.compile(
    r"net::ERR_(CONNECTION_REFUSED|CONNECTION_CLOSED|CONNECTION_RESET|SOCKET_NOT_CONNECTED|EMPTY_RESPONSE"
    r"|INCOMPLETE_CHUNKED_ENCODING|CONTENT_LENGTH_MISMATCH)"
)

DESKTOP: dict[str, Any] = {"viewport": {"width": 1120, "height": 700}, "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 640},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}
# The desktop's window at 200 %: half the pixels of the style sheet each way, each drawn twice as large.
ZOOMED: dict[str, Any] = {"viewport": {"width": 560, "height": 350}, "device_scale_factor": 2}

# A connection takes up to 15 s to come back by itself.
COMES_BACK_MS = 40_000


class Screen(ABC):
    """One of the two pages in front of a person; `room` is where they are or want to go."""

    path: ClassVar[str]
    composer: ClassVar[str]
    notice: ClassVar[str]
    status: ClassVar[str]

    def __init__(self, page: Page, url: str, room: str) -> None:
        self.page = page
        self.room = room
        page.goto(f"{url}{self.path}?{urlencode({'room': room})}")

    @property
    def messages(self) -> Locator:
        """The messages that the room has taken."""
        return self.page.locator("[data-message-id]")

    def locate(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def join(self, name: str) -> None:
        """Go in by the form."""
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_label("Your name").press("Enter")

    def connected(self) -> None:
        self.locate(f"{self.status}[data-state=connected]").wait_for(timeout=COMES_BACK_MS)

    def disconnected(self) -> None:
        self.locate(f"{self.status}:not([data-state=connected])").wait_for()

    def write(self, text: str) -> None:
        """Write a text and press Enter, whatever becomes of it."""
        self.locate(self.composer).fill(text)
        self.locate(self.composer).press("Enter", no_wait_after=True)

    def say(self, text: str) -> None:
        """Write a text that is taken."""
        self.write(text)
        self.taken()

    def taken(self) -> None:
        """Wait until the composer is free for the next text."""
        self.locate(f"{self.composer}:placeholder-shown").wait_for()

    def told(self, words: str) -> None:
        """Wait until the page says why the last message was refused."""
        self.locate(self.notice).filter(has_text=words).wait_for()

    def shows(self, *texts: str) -> None:
        """Check that these are the messages on screen, in this order."""
        self.messages.nth(len(texts) - 1).wait_for(timeout=COMES_BACK_MS)
        expect(self.messages.locator(".message-text")).to_have_text(list(texts), timeout=COMES_BACK_MS)

    def places(self) -> list[str]:
        """Return the ids of the messages, from top to bottom."""
        ids: list[str] = self.messages.evaluate_all("all => all.map(each => each.dataset.messageId)")
        return ids

    def people(self, *names: str) -> None:
        """Check that these are the people who are here; each page shows its reader first."""
        self.locate(".person").nth(len(names) - 1).wait_for(state="attached")
        self.locate(".person").nth(len(names)).wait_for(state="detached")
        expect(self.locate(".person")).to_have_count(len(names))
        for name in names:
            expect(self.page.get_by_text(name, exact=True).and_(self.locate(".person-name"))).to_have_count(1)

    @abstractmethod
    def begin_offline(self, text: str) -> None:
        """Write a text while there is no server, and see what the page says of it."""

    @abstractmethod
    def finish_offline(self, text: str) -> None:
        """Do what this page asks for when the server is back, so that the text is said."""


class Channel(Screen):
    """The channel page: a WebSocket, and all drawing in the browser."""

    path = "/"
    composer = "#composer"
    notice = "#notice"
    status = "#status"

    def shows(self, *texts: str) -> None:
        super().shows(*texts)
        expect(self.locate("#messages [data-pending]")).to_have_count(0)

    def begin_offline(self, text: str) -> None:
        self.write(text)
        self.locate("#messages [data-pending]").filter(has_text="Will be sent once connected").last.wait_for()

    def finish_offline(self, text: str) -> None:
        """Nothing: it goes out by itself."""


class Live(Screen):
    """The live page: rendered by the server and pushed by server-sent events."""

    path = "/live"
    composer = "#content"
    notice = "[data-live-notice]"
    status = "[data-live-status]"

    def begin_offline(self, text: str) -> None:
        self.write(text)
        self.told("The server cannot be reached. Your text is still here")
        expect(self.locate(self.composer)).to_have_value(text)

    def finish_offline(self, text: str) -> None:
        self.say(text)


AnyScreen = TypeVar("AnyScreen", bound=Screen)

_rooms = count(1)


class Visitors:
    """People with a browser each, in a room that no other test uses; what goes wrong on their pages is in `errors`."""

    def __init__(self, browser: Browser, server: Served) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.server = server
        self.room = f"room {next(_rooms)}"
        self.errors: list[str] = []

    def open(self, kind: type[AnyScreen], room: str | None = None, **options: Any) -> AnyScreen:
        """Open a page as a new person, who is asked for a name."""
        context = self._browser.new_context(**{**DESKTOP, **options})
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", self._logged)
        page.on("dialog", self._dismissed)
        page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        return kind(page, self.server.url, self.room if room is None else room)

    def join(self, kind: type[AnyScreen], name: str, room: str | None = None, **options: Any) -> AnyScreen:
        """Open a page as a new person and go in."""
        screen = self.open(kind, room, **options)
        screen.join(name)
        screen.connected()
        return screen

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not NO_SERVER.search(message.text):
            self.errors.append(f"{message.type}: {message.text}")

    def _dismissed(self, dialog: Dialog) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()
