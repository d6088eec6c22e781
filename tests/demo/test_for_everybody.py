"""Both pages for all kinds of people and screens: axe, the keyboard alone, any script, phones, zoom, light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import expect

from tests.demo.browsing import DESKTOP, PHONE, ZOOMED, Channel, Live, Screen, Visitors
from tests.process import Demo

pytestmark = [pytest.mark.browser, pytest.mark.process]

AXE = Path(__file__).parents[1] / "npm" / "node_modules" / "axe-core" / "axe.min.js"

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk" * 8
LONG_NAME = "Wolfeschlegelsteinhausenbergerdorff" * 3
ARABIC, HEBREW = "محمد", "מה שלומך? (chatx 0.1)"


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which evaluating puts into a page past its content security policy."""
    if not AXE.exists():
        pytest.fail("axe-core is not installed; these tests check the pages with it. Run tools/npm")
    return AXE.read_text(encoding="utf-8")


def findings(screen: Screen, axe: str) -> list[str]:
    """Return what axe has to say against what is on screen, light and dark: its weight, its rule and where."""
    screen.page.evaluate(axe)
    found = []
    for scheme in SCHEMES:
        screen.page.emulate_media(color_scheme=scheme)
        # What still changes its colours has the contrast of neither its beginning nor its end.
        screen.page.evaluate(
            """Promise.allSettled(document.getAnimations()
                .filter(each => each.effect.getComputedTiming().endTime !== Infinity).map(each => each.finished))"""
        )
        # Dark differs from light in its colours only.
        asked = {} if scheme == "light" else {"runOnly": ["cat.color"]}
        result: dict[str, Any] = screen.page.evaluate("options => axe.run(document, options)", asked)
        found += [
            f"{scheme}: {each['impact']} {each['id']}: {node['target']} {node['failureSummary']}"
            for each in result["violations"]
            for node in each["nodes"]
        ]
    return found


def width_and_height(screen: Screen) -> tuple[bool, bool]:
    """Return whether the page is within the window's width, and within its height."""
    wide, high = screen.page.evaluate(
        "[document.documentElement.scrollWidth <= innerWidth, document.documentElement.scrollHeight <= innerHeight]"
    )
    return wide, high


def test_axe_is_asked_for_what_it_would_find(visitors: Visitors, axe: str) -> None:
    screen = visitors.open(Channel)
    screen.page.evaluate(
        """document.querySelector(".wordmark svg").setAttribute("role", "img");
        document.querySelector(".wordmark svg").removeAttribute("aria-hidden");
        document.querySelector(".lede").style.color = "light-dark(#ccc, #777)";"""
    )

    rules = sorted(each.partition(": [")[0] for each in findings(screen, axe))
    assert rules == [
        "dark: serious color-contrast",
        "light: serious color-contrast",
        "light: serious svg-img-alt",
    ]


def test_axe_finds_nothing_on_the_way_in(visitors: Visitors, kind: type[Screen], axe: str) -> None:
    screen = visitors.open(kind)
    assert findings(screen, axe) == []

    screen.page.get_by_label("Room").fill("x" * 129)
    screen.join("Ada")
    expect(screen.page.get_by_text(re.compile("too long|128 bytes"))).to_be_visible()
    assert findings(screen, axe) == []


def test_axe_finds_nothing_in_a_room(visitors: Visitors, kind: type[Screen], axe: str) -> None:
    ada, bob = visitors.join(kind, "Ada"), visitors.join(Channel, "Bob")
    assert findings(ada, axe) == []
    for number in range(2):
        ada.say(f"Hello! {number}")
        bob.say(f"Hello to you! {number}")
    bob.say("And again")
    ada.messages.nth(4).wait_for()
    ada.people("Ada", "Bob")
    assert findings(ada, axe) == []

    ada.write("WHY IS NOBODY ANSWERING")
    ada.told("No shouting, please")
    assert findings(ada, axe) == []


def test_axe_finds_nothing_on_a_phone(visitors: Visitors, kind: type[Screen], axe: str) -> None:
    ada = visitors.join(kind, "Ada", **PHONE)
    visitors.join(Channel, LONG_NAME)
    ada.people("Ada", LONG_NAME)
    ada.say(LONG_WORD)
    ada.shows(LONG_WORD)
    if kind is Channel:
        ada.page.tap("#people-toggle")
    assert findings(ada, axe) == []


def test_axe_finds_nothing_while_the_server_is_away(visitors: Visitors, server: Demo, axe: str) -> None:
    ada, eve = visitors.join(Channel, "Ada"), visitors.join(Live, "Eve")
    # The first refused text goes back to where it was written; the other one has no room there and stays in the list.
    ada.locate(ada.composer).evaluate(
        """composer => {
            for (const text of ["STOP SHOUTING AT ME", "NO YOU STOP SHOUTING"]) {
                composer.value = text;
                composer.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
            }
        }"""
    )
    ada.locate(".message.failed").filter(has_text="No shouting, please").first.wait_for()
    server.stop()
    for screen in (ada, eve):
        screen.disconnected()
    for screen in (ada, eve):
        screen.begin_offline("Hello?")
        assert findings(screen, axe) == []


def test_the_keyboard_is_enough(visitors: Visitors, kind: type[Screen]) -> None:
    screen = visitors.open(kind)
    page, keyboard = screen.page, screen.page.keyboard
    expect(page.get_by_label("Your name")).to_be_focused()
    keyboard.type("Ada")
    keyboard.press("Tab")
    keyboard.press("Control+A")
    keyboard.type(f"{visitors.room} quiet")
    keyboard.press("Enter")
    screen.connected()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{visitors.room} quiet")
    composer = screen.locate(screen.composer)
    expect(composer).to_be_focused()
    keyboard.type("WHY IS NOBODY ANSWERING")
    keyboard.press("Enter")
    screen.told("No shouting, please")
    expect(composer).to_be_focused()
    keyboard.press("Control+A")
    keyboard.type("one line")
    keyboard.press("Shift+Enter")
    keyboard.type("and another")
    keyboard.press("Enter")
    expect(screen.messages.locator(".message-text")).to_have_js_property("textContent", "one line\nand another")
    expect(composer).to_be_focused()
    expect(composer).to_have_value("")

    leave = page.get_by_role("button", name="Leave")
    # Back over the messages, which the arrows scroll, to the bar; what has the focus is seen to have it.
    for each in (screen.locate("[role=log]"), leave):
        keyboard.press("Shift+Tab")
        expect(each).to_be_focused()
        style = each.evaluate("each => [getComputedStyle(each).outlineStyle, getComputedStyle(each).outlineWidth]")
        assert style == ["solid", "2px"]
    keyboard.press("Enter")
    expect(page.get_by_label("Your name")).to_be_focused()


def test_long_words_break_and_right_to_left_stays_so_in_every_window(visitors: Visitors, kind: type[Screen]) -> None:
    room = f"{visitors.room} {LONG_NAME}"
    ada, eve = visitors.join(kind, ARABIC, room), visitors.join(Channel, LONG_NAME, room)
    said = [LONG_WORD, HEBREW, "plain"]
    for text in said:
        eve.say(text)
    ada.shows(*said)
    ada.people(ARABIC, LONG_NAME)
    ada.say(LONG_WORD)
    ada.shows(*said, LONG_WORD)
    ada.locate(ada.composer).fill(HEBREW)

    for window in (DESKTOP, ZOOMED, PHONE):
        ada.page.set_viewport_size(window["viewport"])
        assert width_and_height(ada) == (True, True), window
        outside = ada.locate(".bar-title, .message-head, .message-text").evaluate_all(
            """all => all
                .filter(each => each.getBoundingClientRect().right > innerWidth || each.scrollWidth > innerWidth)
                .map(each => each.outerHTML)"""
        )
        assert outside == [], window
    directions = "all => all.map(each => getComputedStyle(each).direction)"
    assert ada.messages.locator(".message-text").evaluate_all(directions) == ["ltr", "rtl", "ltr", "ltr"]
    assert ada.locate(ada.composer).evaluate_all(directions) == ["rtl"]


@pytest.mark.parametrize("window", [PHONE, ZOOMED], ids=["phone", "zoomed"])
def test_everything_that_is_needed_is_in_a_small_window(
    visitors: Visitors, kind: type[Screen], window: dict[str, Any]
) -> None:
    ada = visitors.join(kind, "Ada", **window)
    for number in range(8):
        ada.say(f"message {number}")
    ada.shows(*(f"message {number}" for number in range(8)))
    ada.write("WHY IS NOBODY ANSWERING")
    ada.told("No shouting, please")

    assert width_and_height(ada) == (True, True)
    for what in (ada.locate(ada.composer), ada.page.get_by_role("button", name="Send"), ada.locate(ada.notice)):
        expect(what).to_be_in_viewport(ratio=1)
    expect(ada.page.get_by_role("button", name="Leave")).to_be_in_viewport(ratio=1)
    expect(ada.page.get_by_role("heading", level=1)).to_be_in_viewport(ratio=1)
    # The newest is what one reads, and a refusal must not push it out of sight.
    expect(ada.messages.last).to_be_in_viewport(ratio=1)


def test_where_the_window_is_too_small_the_page_scrolls(visitors: Visitors, kind: type[Screen]) -> None:
    # The desktop's window at 400 %.
    ada = visitors.join(kind, "Ada", viewport={"width": 320, "height": 200}, device_scale_factor=4)
    ada.write("WHY IS NOBODY ANSWERING")
    ada.told("No shouting, please")
    ada.locate(ada.composer).fill("why is nobody answering?")
    # Playwright clicks only what can be scrolled to and has nothing on top of it.
    ada.page.get_by_role("button", name="Send").click()
    ada.shows("why is nobody answering?")

    assert width_and_height(ada) == (True, False)
    assert (ada.locate("[role=log]").bounding_box() or {"height": 0})["height"] >= 80


def test_the_page_follows_the_colours_of_the_system(visitors: Visitors, kind: type[Screen]) -> None:
    def brightness(scheme: Literal["light", "dark"]) -> float:
        screen.page.emulate_media(color_scheme=scheme)
        colour = screen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(float(number) for number in re.findall(r"[\d.]+", colour)[:3]) / 3

    screen = visitors.open(kind)
    assert brightness("dark") < 60
    assert brightness("light") > 200
    screen.join("Ada")
    screen.connected()
    assert brightness("dark") < 60
    assert brightness("light") > 200
