"""The demo page in a real browser, against a real `chatx demo` process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.process import Demo, demo

pytestmark = [pytest.mark.browser, pytest.mark.process]

PICTURE = Path(__file__).parents[2] / "docs" / "demo.png"

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# What Chromium itself logs while there is no server; pages cannot prevent it.
NO_SERVER = re.compile(r"net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|SOCKET_NOT_CONNECTED)")

DESKTOP: dict[str, Any] = {"viewport": {"width": 1120, "height": 700}, "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 720},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Demo]:
    with demo(tmp_path / "demo.db") as running:
        yield running


class Visitors:
    """People with a browser each; what goes wrong on their pages is kept in `errors`."""

    def __init__(self, browser: Browser, server: Demo) -> None:
        self._browser = browser
        self._server = server
        self._contexts: list[BrowserContext] = []
        self.errors: list[str] = []

    def open(self, query: str = "", **options: Any) -> Page:
        """Open the page as a new person."""
        context = self._browser.new_context(**{**DESKTOP, **options})
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", self._logged)
        page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        page.goto(self._server.url + query)
        return page

    def join(self, name: str, room: str = "general", **options: Any) -> Page:
        """Open the page and go into a room."""
        page = self.open(**options)
        page.fill("#name", name)
        page.fill("#room", room)
        page.click("#join")
        connected(page)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not NO_SERVER.search(message.text):
            self.errors.append(f"{message.type}: {message.text}")


@pytest.fixture
def visitors(browser: Browser, server: Demo) -> Iterator[Visitors]:
    visitors = Visitors(browser, server)
    yield visitors
    visitors.close()
    assert visitors.errors == []


def connected(page: Page) -> None:
    expect(page.locator("#status")).to_have_attribute("data-state", "connected", timeout=20_000)


def say(page: Page, text: str) -> None:
    page.fill("#composer", text)
    page.press("#composer", "Enter")


def shows(page: Page, *texts: str) -> None:
    """Check that these are the messages on screen, in this order, all acknowledged."""
    expect(page.locator("#messages [data-message-id] .message-text")).to_have_text(list(texts), timeout=20_000)
    expect(page.locator("#messages [data-pending]")).to_have_count(0)


def people(page: Page, *names: str) -> None:
    expect(page.locator("#people [data-user-id]")).to_have_count(len(names))
    for name in names:
        expect(page.locator(f'#people [data-user-id="{name}"]')).to_have_count(1)


def test_two_people_see_each_others_messages_in_the_same_order(visitors: Visitors) -> None:
    ada, bob = visitors.join("Ada"), visitors.join("Bob")
    for number in range(5):
        # Both at once, so that only the room can say which comes first.
        ada.fill("#composer", f"ada {number}")
        bob.fill("#composer", f"bob {number}")
        ada.press("#composer", "Enter", no_wait_after=True)
        bob.press("#composer", "Enter", no_wait_after=True)
    messages = ada.locator("#messages [data-message-id] .message-text")
    expect(messages).to_have_count(10)
    seen = messages.all_inner_texts()

    shows(bob, *seen)
    assert [each for each in seen if each.startswith("ada")] == [f"ada {number}" for number in range(5)]
    assert [each for each in seen if each.startswith("bob")] == [f"bob {number}" for number in range(5)]
    ids = "elements => elements.map(element => element.dataset.messageId)"
    places = [page.locator("#messages [data-message-id]").evaluate_all(ids) for page in (ada, bob)]
    assert places[0] == places[1]


def test_rooms_do_not_hear_each_other(visitors: Visitors) -> None:
    ada, bob = visitors.join("Ada", "tea"), visitors.join("Bob", "coffee")
    say(ada, "tea?")
    say(bob, "coffee?")

    shows(ada, "tea?")
    shows(bob, "coffee?")
    people(ada, "Ada")
    people(bob, "Bob")


def test_presence_follows_a_closed_tab(visitors: Visitors) -> None:
    ada, bob = visitors.join("Ada"), visitors.join("Bob")
    second_tab = visitors.join("Bob")
    people(ada, "Ada", "Bob")
    people(bob, "Ada", "Bob")

    second_tab.close()
    people(ada, "Ada", "Bob")
    bob.close()
    people(ada, "Ada")
    expect(ada.locator("#people-count")).to_have_text("1")


def test_leaving_goes_back_to_the_lobby(visitors: Visitors) -> None:
    ada, bob = visitors.join("Ada"), visitors.join("Bob")
    bob.click("#leave")

    expect(bob.locator("#join-form")).to_be_visible()
    people(ada, "Ada")


def test_markup_is_text_wherever_somebody_may_write_it(visitors: Visitors) -> None:
    script = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    ada, eve = visitors.join("Ada", "<i>room</i>"), visitors.join("<b>Eve</b>", "<i>room</i>")
    say(eve, script)

    for page in (ada, eve):
        shows(page, script)
        expect(page.locator("#messages .message-author")).to_have_text(["<b>Eve</b>"])
        people(page, "Ada", "<b>Eve</b>")
        expect(page.locator("#room-title")).to_have_text("<i>room</i>")
        expect(page.locator("#chat script, #chat img, #chat b, #chat i")).to_have_count(0)
        assert "owned" not in page.title()


def test_what_is_blocked_or_too_long_is_said_and_given_back(visitors: Visitors) -> None:
    ada, bob = visitors.join("Ada"), visitors.join("Bob")
    for text, words in (
        ("WHY IS NOBODY ANSWERING", "No shouting, please"),
        ("é" * 3000, "This message is too long (6,000 bytes)"),
    ):
        say(ada, text)
        expect(ada.locator("#notice")).to_contain_text(words)
        expect(ada.locator("#composer")).to_have_value(text)
    say(ada, "why is nobody answering?")

    expect(ada.locator("#notice")).to_be_empty()
    shows(ada, "why is nobody answering?")
    shows(bob, "why is nobody answering?")


def test_who_writes_too_fast_is_told_so_and_everything_arrives_once_in_order(visitors: Visitors) -> None:
    ada, bob = visitors.join("Ada"), visitors.join("Bob")
    texts = [f"message {number}" for number in range(30)]
    # Faster than hands, but through what hands use.
    ada.locator("#composer").evaluate(
        """(composer, texts) => {
            for (const text of texts) {
                composer.value = text;
                composer.dispatchEvent(new InputEvent("input", { bubbles: true }));
                composer.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
            }
        }""",
        texts,
    )

    expect(ada.locator("#notice")).to_contain_text("You are sending faster than this room allows")
    shows(ada, *texts)
    shows(bob, *texts)
    expect(ada.locator("#notice")).to_be_empty()


def test_a_name_and_a_room_are_asked_for_in_words(visitors: Visitors) -> None:
    page = visitors.open()
    page.fill("#room", "x" * 129)
    page.click("#join")

    expect(page.locator("#name-error")).to_have_text("Please choose a name.")
    expect(page.locator("#room-error")).to_contain_text("too long")
    expect(page.locator("#name")).to_be_focused()
    expect(page.locator("#chat")).to_be_hidden()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_pages_come_back_by_themselves_after_a_restart(visitors: Visitors, server: Demo, how: signal.Signals) -> None:
    ada, bob = visitors.join("Ada"), visitors.join("Bob")
    said = []
    for number in range(3):
        for page, name in ((ada, "ada"), (bob, "bob")):
            said.append(f"{name} {number}")
            say(page, said[-1])
            shows(page, *said)
    shows(ada, *said)
    saved(server, 6)

    server.stop(how)
    for page in (ada, bob):
        expect(page.locator("#status")).not_to_have_attribute("data-state", "connected")
    say(ada, "said while nobody was there")
    expect(ada.locator("#messages [data-pending]")).to_contain_text("Will be sent once connected")
    server.restart()

    for page in (ada, bob):
        connected(page)
        shows(page, *said, "said while nobody was there")
        people(page, "Ada", "Bob")
        expect(page.locator("#messages .hole")).to_have_count(0)
    say(bob, "there you are")
    for page in (ada, bob):
        shows(page, *said, "said while nobody was there", "there you are")
    # Who comes now sees it all too.
    shows(visitors.join("Cleo"), *said, "said while nobody was there", "there you are")


def saved(server: Demo, count: int) -> None:
    """Wait until so many messages are in the store, which a kill must not come before."""
    deadline = time.monotonic() + 10
    with closing(sqlite3.connect(server.store)) as db:
        while db.execute("SELECT count(*) FROM chatx_messages").fetchone()[0] < count:
            assert time.monotonic() < deadline, "the messages were not saved"
            time.sleep(0.01)


def test_a_reload_keeps_the_person_and_shows_the_room_again(visitors: Visitors) -> None:
    ada = visitors.join("Ada", "tea")
    say(ada, "hello")
    shows(ada, "hello")
    ada.reload()

    connected(ada)
    shows(ada, "hello")
    people(ada, "Ada")


def test_the_keyboard_is_enough(visitors: Visitors) -> None:
    page = visitors.open()
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type("Ada")
    page.keyboard.press("Tab")
    page.keyboard.type("quiet room")
    page.keyboard.press("Enter")
    connected(page)
    expect(page.locator("#room-title")).to_have_text("quiet room")
    expect(page.locator("#composer")).to_be_focused()
    page.keyboard.type("one line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.keyboard.press("Enter")

    expect(page.locator("#messages [data-message-id] .message-text")).to_have_js_property(
        "textContent", "one line\nand another"
    )
    expect(page.locator("#composer")).to_be_focused()
    expect(page.locator("#composer")).to_have_value("")


def test_a_phone_shows_everything_within_its_width(visitors: Visitors) -> None:
    page = visitors.join("Ada", **PHONE)
    say(page, "w" * 300)
    expect(page.locator("#messages [data-message-id]")).to_have_count(1)

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for what in ("#composer", "#send", "#leave", "#people-toggle", "#messages"):
        expect(page.locator(what)).to_be_in_viewport(ratio=0.9)
    expect(page.locator("#people")).to_be_hidden()
    page.tap("#people-toggle")
    expect(page.locator("#people [data-user-id=Ada]")).to_be_in_viewport()


def test_the_page_follows_the_colours_of_the_system(visitors: Visitors) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    brightness = {}
    for scheme in ("light", "dark"):
        page = visitors.join(scheme, color_scheme=scheme)
        numbers = [float(number) for number in re.findall(r"[\d.]+", page.evaluate(background))[:3]]
        brightness[scheme] = sum(numbers) / 3

    assert brightness["light"] > 200
    assert brightness["dark"] < 60


def test_a_picture_can_be_taken(visitors: Visitors, tmp_path: Path) -> None:
    room = "book club"
    ada, grace, linus = (visitors.join(name, room, device_scale_factor=2) for name in ("Ada", "Grace", "Linus"))
    conversation: list[tuple[Page, str]] = [
        (grace, "Hello you two! Did you get to chapter seven?"),
        (linus, "Last night, under the blanket. I did not see that letter coming."),
        (ada, "Me neither! I went back to chapter two: it is all there, on the first page!"),
        (grace, "No spoilers for those who are still reading …"),
        (linus, "Fair. Same time on Thursday?"),
        (ada, "Thursday is perfect. I will bring the biscuits."),
    ]
    for number, (page, text) in enumerate(conversation, start=1):
        say(page, text)
        expect(ada.locator("#messages [data-message-id]")).to_have_count(number)
    people(ada, "Ada", "Grace", "Linus")
    target = PICTURE if os.environ.get("WRITE_SCREENSHOTS") == "1" else tmp_path / "demo.png"
    ada.screenshot(path=target)

    picture = target.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (2240, 1400)
