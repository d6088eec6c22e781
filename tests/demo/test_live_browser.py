"""The live page beside the channel page, in Chromium: the same room on both, with scripts and without."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.process import Demo, demo

pytestmark = [pytest.mark.browser, pytest.mark.process]

PICTURE = Path(__file__).parents[2] / "docs" / "live.png"

# What Chromium itself logs while there is no server; pages cannot prevent it.
NO_SERVER = re.compile(r"net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)")

NewPage: TypeAlias = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("There is no chromium on the PATH; these tests drive it. On Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Demo]:
    with demo(tmp_path / "demo.db") as served:
        yield served


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """A person's own browser, which runs nothing that a message brings along."""
    contexts = []
    failures: list[str] = []

    def dismissed(dialog: Dialog) -> None:
        failures.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def logged(line: ConsoleMessage) -> None:
        if line.type in ("error", "warning") and not NO_SERVER.search(line.text):
            failures.append(f"{line.type}: {line.text}")

    def new(**options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("dialog", dismissed)
        page.on("console", logged)
        return page

    yield new
    for context in contexts:
        context.close()
    assert failures == []


def enter_live(page: Page, served: Demo, name: str, room: str = "general") -> Page:
    page.goto(f"{served.url}/live?room={room}")
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Join the room").click()
    expect(page.get_by_label("Message", exact=True)).to_be_visible()
    return page


def enter_channel(page: Page, served: Demo, name: str, room: str = "general") -> Page:
    page.goto(f"{served.url}/?room={room}")
    page.locator("#name").fill(name)
    page.locator("#join").click()
    expect(page.locator("#status")).to_have_attribute("data-state", "connected")
    return page


def connected(page: Page) -> Page:
    expect(page.locator("[data-live-status]")).to_have_attribute("data-state", "connected")
    return page


def say_live(page: Page, text: str) -> None:
    page.locator("#content").fill(text)
    page.locator("#content").press("Enter")
    expect(page.locator("#content")).to_have_value("")


def say_channel(page: Page, text: str) -> None:
    page.locator("#composer").fill(text)
    page.locator("#composer").press("Enter")


def texts(page: Page) -> list[str]:
    return page.locator("[data-message-id] .message-text").all_inner_texts()


def people(page: Page) -> list[str]:
    """Return the names, by name: each page shows its reader first."""
    return sorted(page.locator("[data-user-id] .person-name").all_inner_texts())


def eventually(page: Page, look: Callable[[Page], list[str]], expected: list[str]) -> None:
    """Wait for what the page comes to show."""
    for _ in range(150):
        if look(page) == expected:
            return
        page.wait_for_timeout(50)
    assert look(page) == expected


def test_both_pages_show_the_same_messages_in_the_same_order_and_the_same_people(
    served: Demo, new_page: NewPage
) -> None:
    ada = connected(enter_live(new_page(), served, "Ada"))
    grace = enter_channel(new_page(), served, "Grace")
    eve = connected(enter_live(new_page(), served, "Eve"))
    for number in range(4):
        say_live(ada, f"ada {number}")
        say_channel(grace, f"grace {number}")
        say_live(eve, f"eve {number}")

    for page in (ada, grace, eve):
        expect(page.locator("[data-message-id]")).to_have_count(12)
    assert texts(ada) == texts(grace) == texts(eve)
    for page in (ada, grace, eve):
        eventually(page, people, ["Ada", "Eve", "Grace"])


def test_who_closes_a_page_is_gone_from_the_others(served: Demo, new_page: NewPage) -> None:
    ada = connected(enter_live(new_page(), served, "Ada"))
    grace = enter_channel(new_page(), served, "Grace")
    eve = connected(enter_live(new_page(), served, "Eve"))
    eventually(ada, people, ["Ada", "Eve", "Grace"])
    eve.close()
    eventually(grace, people, ["Ada", "Grace"])
    grace.close()
    eventually(ada, people, ["Ada"])


def test_markup_in_messages_and_names_is_only_shown(served: Demo, new_page: NewPage) -> None:
    nasty = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;"
    ada = connected(enter_live(new_page(), served, "<b onclick=alert(3)>Ada"))
    grace = enter_channel(new_page(), served, "Grace")
    say_channel(grace, nasty)
    say_live(ada, nasty)

    expect(ada.locator("[data-message-id]")).to_have_count(2)
    assert texts(ada) == [nasty, nasty]
    assert ada.locator("[data-live-messages] :is(script, img, b)").count() == 0
    ada.reload()
    connected(ada)
    assert texts(ada) == [nasty, nasty]
    assert ada.locator(".bar b, .people b, [data-live-messages] script").count() == 0


def test_a_refusal_is_shown_and_the_text_stays_to_be_changed(served: Demo, new_page: NewPage) -> None:
    ada = connected(enter_live(new_page(), served, "Ada"))
    ada.locator("#content").fill("STOP SHOUTING AT ME")
    ada.locator("#content").press("Enter")
    expect(ada.locator("[data-live-notice]")).to_contain_text("No shouting, please")
    expect(ada.locator("#content")).to_have_value("STOP SHOUTING AT ME")
    expect(ada.locator("#content")).to_be_focused()
    say_live(ada, "Stop shouting at me")

    expect(ada.locator("[data-message-id]")).to_have_count(1)
    expect(ada.locator("[data-live-notice]")).to_be_empty()


def test_the_page_works_without_scripts_but_for_the_pushing(served: Demo, new_page: NewPage) -> None:
    grace = enter_channel(new_page(), served, "Grace")
    say_channel(grace, "from the channel")
    ada = enter_live(new_page(java_script_enabled=False), served, "Ada")
    assert texts(ada) == ["from the channel"]
    assert people(ada) == ["Grace"]

    ada.locator("#content").fill("STOP SHOUTING AT ME")
    ada.get_by_role("button", name="Send").click()
    expect(ada.locator("[data-live-notice]")).to_contain_text("No shouting, please")
    expect(ada.locator("#content")).to_have_value("STOP SHOUTING AT ME")
    ada.locator("#content").fill("two\nlines")
    ada.get_by_role("button", name="Send").click()
    expect(ada.locator("[data-message-id]")).to_have_count(2)
    expect(grace.locator("[data-message-id]")).to_have_count(2)
    assert texts(grace) == texts(ada) == ["from the channel", "two\nlines"]

    say_channel(grace, "not pushed")
    expect(grace.locator("[data-message-id]")).to_have_count(3)
    assert len(texts(ada)) == 2
    ada.reload()
    assert len(texts(ada)) == 3


def test_a_page_without_scripts_begins_at_its_newest_message(served: Demo, new_page: NewPage) -> None:
    ada = connected(enter_live(new_page(), served, "Ada"))
    for number in range(12):
        say_live(ada, f"{number}\n\n\n")
    late = enter_live(new_page(java_script_enabled=False, viewport={"width": 390, "height": 700}), served, "Late")

    expect(late.get_by_text("11", exact=True)).to_be_in_viewport()
    expect(late.get_by_text("0", exact=True)).not_to_be_in_viewport()


@pytest.mark.parametrize("signal", [15, 9])
def test_a_restart_of_the_server_loses_nothing_on_screen(served: Demo, new_page: NewPage, signal: int) -> None:
    ada = connected(enter_live(new_page(), served, "Ada"))
    grace = enter_channel(new_page(), served, "Grace")
    for number in range(3):
        say_live(ada, f"before {number}")
    expect(grace.locator("[data-message-id]")).to_have_count(3)
    ada.wait_for_timeout(500)  # the store gets them within a tick; a killed server has no time to write
    status, output = served.stop(signal)
    if signal == 15:
        assert (status, "ERROR" in output) == (0, False)
    expect(ada.locator("[data-live-status]")).to_have_attribute("data-state", "waiting")

    ada.locator("#content").fill("while it was away")
    ada.locator("#content").press("Enter")
    expect(ada.locator("[data-live-notice]")).to_contain_text("cannot be reached")
    served.restart()
    connected(ada)
    expect(grace.locator("#status")).to_have_attribute("data-state", "connected", timeout=30_000)
    say_live(ada, "while it was away")
    say_channel(grace, "after")

    said = [*(f"before {number}" for number in range(3)), "while it was away", "after"]
    for page in (ada, grace):
        eventually(page, texts, said)
        eventually(page, people, ["Ada", "Grace"])


def test_two_rooms_do_not_hear_each_other(served: Demo, new_page: NewPage) -> None:
    tea = connected(enter_live(new_page(), served, "Ada", "tea"))
    cake = connected(enter_live(new_page(), served, "Eve", "cake"))
    say_live(tea, "tea!")
    say_live(cake, "cake!")

    expect(tea.locator("[data-message-id]")).to_have_count(1)
    expect(cake.locator("[data-message-id]")).to_have_count(1)
    assert (texts(tea), texts(cake)) == (["tea!"], ["cake!"])
    assert (people(tea), people(cake)) == (["Ada"], ["Eve"])


def test_a_run_of_one_persons_messages_stands_together(served: Demo, new_page: NewPage) -> None:
    ada = connected(enter_live(new_page(), served, "Ada"))
    for text in ("one", "two"):
        say_live(ada, text)
    expect(ada.locator("[data-message-id]")).to_have_count(2)

    assert ada.locator("[data-message-id].lead").count() == 1
    expect(ada.locator("[data-message-id] time").first).to_have_text(re.compile(r"^\d{1,2}:\d\d"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_can_be_used_by_keyboard_alone(served: Demo, new_page: NewPage, scheme: str) -> None:
    ada = new_page(viewport={"width": 390, "height": 720}, color_scheme=scheme)
    ada.goto(f"{served.url}/live")
    ada.keyboard.type("Ada")
    ada.keyboard.press("Enter")
    connected(ada)
    expect(ada.locator("#content")).to_be_focused()
    ada.keyboard.type("word" * 100)
    ada.keyboard.press("Shift+Enter")
    ada.keyboard.type("and a second line")
    ada.keyboard.press("Enter")
    expect(ada.locator("[data-message-id]")).to_have_count(1)

    assert texts(ada) == ["word" * 100 + "\nand a second line"]
    expect(ada.locator("#content")).to_be_focused()
    assert ada.evaluate("document.documentElement.scrollWidth <= innerWidth && scrollY === 0")
    expect(ada.get_by_role("button", name="Send")).to_be_in_viewport()


def test_a_picture_of_the_page_is_taken(served: Demo, new_page: NewPage, tmp_path: Path) -> None:
    ada = connected(enter_live(new_page(viewport={"width": 1120, "height": 700}, device_scale_factor=2), served, "Ada"))
    grace = enter_channel(new_page(), served, "Grace")
    linus = connected(enter_live(new_page(), served, "Linus"))
    talk = [
        (ada, say_live, "This page comes from the server, and so does every message on it."),
        (grace, say_channel, "I am on the channel page, over a WebSocket."),
        (grace, say_channel, "The room is the same one."),
        (linus, say_live, "And it works without JavaScript?"),
        (ada, say_live, "It does. You load it anew to see what is new, and you write in a plain form."),
    ]
    for number, (page, say, text) in enumerate(talk, 1):
        say(page, text)
        expect(ada.locator("[data-message-id]")).to_have_count(number)
    eventually(ada, people, ["Ada", "Grace", "Linus"])
    target = PICTURE if os.environ.get("WRITE_SCREENSHOTS") == "1" else tmp_path / "live.png"
    ada.screenshot(path=target)

    picture = target.read_bytes()
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (2240, 1400)
