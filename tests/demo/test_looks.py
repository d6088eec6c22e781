"""What both pages show, and how: contrast, links and code, names and times, places and sizes, in Chromium."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import expect

from chatx import Message
from chatx.adapters.sqlite import SQLitePersistence
from tests.demo.browsing import PHONE, Channel, Live, Screen, Visitors
from tests.process import Demo, demo

pytestmark = [pytest.mark.browser, pytest.mark.process]

CASES = json.loads((Path(__file__).parent / "spans.json").read_text(encoding="utf-8"))

# The contrast of an element's own colours, by WCAG, and of its background with what is behind it.
CONTRASTS = """all => all.map(each => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const background = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return colour.replaceAll(" ", "") === "rgba(0,0,0,0)" ? background(node.parentElement) : colour;
    };
    const ground = background(each);
    return [ratio(getComputedStyle(each).color, ground), ratio(ground, background(each.parentElement))];
})"""


def other(kind: type[Screen]) -> type[Screen]:
    return Live if kind is Channel else Channel


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bubbles_stand_off_from_the_page_and_their_text_from_them(
    visitors: Visitors, kind: type[Screen], scheme: Literal["light", "dark"]
) -> None:
    ada, eve = visitors.join(kind, "Ada", color_scheme=scheme), visitors.join(Channel, "Eve")
    eve.say("see https://example.org")
    ada.shows("see https://example.org")  # or the second may overtake it
    ada.say("see https://example.org")
    ada.shows("see https://example.org", "see https://example.org")

    bubbles = ada.messages.locator(".message-text").evaluate_all(CONTRASTS)
    assert len(bubbles) == 2
    for text, page in bubbles:
        assert text >= 4.5
        assert page >= 1.25
    # Whose it is must be seen too.
    assert bubbles[1][1] > 1.5 * bubbles[0][1]
    for text, _ in ada.messages.locator(".message-text a, .message-time").evaluate_all(CONTRASTS):
        assert text >= 4.5


def test_the_channel_page_finds_the_links_and_code_that_the_server_finds(visitors: Visitors) -> None:
    page = visitors.open(Channel).page
    found = page.evaluate(
        """async (contents) => (await import("/static/spans.js")).spans && contents.map(
            (await import("/static/spans.js")).spans)""",
        [content for content, _ in CASES],
    )

    assert [[content, spans] for (content, _), spans in zip(CASES, found, strict=True)] == CASES


def test_the_channel_page_is_not_held_up_by_any_content(visitors: Visitors) -> None:
    page = visitors.open(Channel).page
    lengths = page.evaluate(
        """async (contents) => {
            const { spans } = await import("/static/spans.js");
            return contents.map(content => spans(content).map(([, part]) => part).join("").length);
        }""",
        [
            "`" * 65_536,
            "`a\n" * 20_000,
            "https://a.b/" + "(" * 30_000 + ")" * 30_001,
            "http://" * 10_000,
            ")]" * 30_000,
        ],
    )

    assert lengths == [65_536, 60_000, 60_013, 70_000, 60_000]


def test_links_are_links_and_code_is_code_and_nothing_else_is_markup(visitors: Visitors, kind: type[Screen]) -> None:
    ada, eve = visitors.join(kind, "Ada"), visitors.join(other(kind), "Eve")
    eve.say("*see* (https://example.org/Go_(game)?a=1&b=<i>), run `make <b>` not javascript:alert(1)")

    for _ in ("pushed", "loaded"):
        ada.shows("*see* (https://example.org/Go_(game)?a=1&b=<i>), run make <b> not javascript:alert(1)")
        link = ada.messages.locator("a")
        expect(link).to_have_count(1)
        expect(link).to_have_text("https://example.org/Go_(game)?a=1&b=")
        expect(link).to_have_attribute("href", "https://example.org/Go_(game)?a=1&b=")
        expect(link).to_have_attribute("target", "_blank")
        expect(link).to_have_attribute("rel", "noopener noreferrer")
        expect(ada.messages.locator("code")).to_have_text(["make <b>"])
        expect(ada.messages.locator(".message-text :not(a, code)")).to_have_count(0)
        ada.page.reload()
        ada.connected()


def test_what_office_programs_paste_is_sent_with_newlines(visitors: Visitors, kind: type[Screen]) -> None:
    ada = visitors.join(kind, "Ada")
    ada.say("a\vb\u2028c\u2029d\fe\x85f\ng")

    expect(ada.messages.locator(".message-text")).to_have_js_property("textContent", "a\nb\nc\nd\ne\nf\ng")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo in whose room `long` one person has said something each minute of thirteen."""
    store = tmp_path_factory.mktemp("long") / "demo.db"
    began = int(time.time() * 1000) // 86_400_000 * 86_400_000 - 43_200_000
    with closing(SQLitePersistence(str(store))) as persistence:
        for minute in range(13):
            at = began + minute * 60_000
            persistence.save_messages([Message(f"m{minute}", "long", "Eve", f"text {minute}", at, "e", minute + 1)])
    with demo(store) as running:
        yield running


@pytest.fixture
def long_run_screen(browser: Any, long_run: Demo, kind: type[Screen]) -> Iterator[Screen]:
    visitors = Visitors(browser, long_run)
    yield visitors.join(kind, "Ada", "long", **PHONE, locale="en-US", timezone_id="America/New_York")
    visitors.close()
    assert visitors.errors == []


def test_a_long_run_of_one_person_repeats_the_name_and_every_time_is_seen_on_touch(long_run_screen: Screen) -> None:
    messages = long_run_screen.messages
    expect(messages).to_have_count(13)

    leads = messages.evaluate_all("all => all.flatMap((each, index) => each.classList.contains('lead') ? index : [])")
    assert leads == [0, 5, 10]
    for author in messages.locator(".message-author").all()[::5]:
        assert (author.bounding_box() or {"width": 0})["width"] > 10
    for moment in messages.locator("time").all():
        assert re.fullmatch(r"(.*\D)?([01]\d|2[0-3]):\d\d", moment.inner_text())
    look = messages.locator("time").evaluate_all(
        "all => all.map(each => [getComputedStyle(each).opacity, each.getClientRects().length])"
    )
    assert look == [["1", 1]] * 13
    # No time is under the words it belongs to.
    apart = messages.evaluate_all(
        """all => all.filter(each => !each.classList.contains("lead")).map(each =>
            each.querySelector("time").getBoundingClientRect().right
                <= each.querySelector(".message-text").getBoundingClientRect().left + 1)"""
    )
    assert apart == [True] * 10


def test_ones_own_messages_carry_no_name(visitors: Visitors, kind: type[Screen]) -> None:
    ada, eve = visitors.join(kind, "Ada"), visitors.join(other(kind), "Eve")
    ada.say("mine")
    eve.shows("mine")
    eve.say("hers")
    for screen, names in ((ada, [False, True]), (eve, [True, False])):
        screen.shows("mine", "hers")
        assert [each.is_visible() for each in screen.messages.locator(".message-author").all()] == names
        # Whoever listens is told whose it is.
        expect(screen.locate(".message.own .message-you")).to_have_text("you")


def test_a_short_log_stands_at_the_composer(visitors: Visitors, kind: type[Screen]) -> None:
    ada = visitors.join(kind, "Ada")
    ada.say("hello?")
    ada.shows("hello?")
    bubble, composer = ada.messages.last.bounding_box(), ada.locate(".composer-box").bounding_box()

    assert bubble is not None
    assert composer is not None
    assert 0 <= composer["y"] - (bubble["y"] + bubble["height"]) < 40


def test_a_log_that_is_longer_than_the_window_can_be_read_from_its_beginning(
    visitors: Visitors, kind: type[Screen]
) -> None:
    ada = visitors.join(kind, "Ada", **PHONE)
    for number in range(6):
        ada.say(f"{number}\n\n\n\n\n")
    ada.messages.nth(5).wait_for()
    expect(ada.messages.last).to_be_in_viewport()
    expect(ada.messages.first).not_to_be_in_viewport()

    ada.locate("[role=log]").press("Home")
    expect(ada.messages.first).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("width", [1440, 2560])
def test_on_a_wide_screen_people_stand_beside_what_they_say(visitors: Visitors, kind: type[Screen], width: int) -> None:
    ada = visitors.join(kind, "Ada", viewport={"width": width, "height": 900})
    ada.say("hello?")
    ada.shows("hello?")
    bubble, people = ada.locate(".message-text").bounding_box(), ada.locate(".people-panel").bounding_box()
    chat = ada.locate(".chat").bounding_box()

    assert bubble is not None
    assert people is not None
    assert chat is not None
    assert 0 <= people["x"] - (bubble["x"] + bubble["width"]) <= 80
    # What is beside them is seen to be no part of the room.
    (_, off), *_ = ada.locate(".chat").evaluate_all(CONTRASTS)
    assert off > 1.05
    assert abs(chat["x"] - (width - chat["x"] - chat["width"])) <= 1


def test_a_finger_hits_everything_there_is_to_hit(visitors: Visitors, kind: type[Screen]) -> None:
    small = """() => [...document.querySelectorAll("button, input:not([type=hidden]), textarea, a")]
        .filter(each => !each.matches(".message-text a"))
        .filter(each => each.checkVisibility())
        .map(each => [each.outerHTML, each.getBoundingClientRect()])
        .filter(([, { width, height }]) => width < 44 || height < 44)
        .map(([html]) => html)"""
    ada = visitors.open(kind, **PHONE)
    assert ada.page.evaluate(small) == []
    ada.join("Ada")
    ada.connected()
    if kind is Channel:
        # The second text has no room in the composer, and stays in the list with its buttons.
        ada.locate("#try-shouting").tap()
        ada.told("No shouting, please")
        ada.locate("#try-shouting").tap()
        ada.locate(".message.failed button").nth(2).wait_for()
    else:
        ada.page.get_by_role("button", name="Try shouting").tap()
        ada.told("No shouting, please")
    assert ada.page.evaluate(small) == []


def test_the_first_screen_invites_to_meet_the_moderation_and_the_rate_limit(
    visitors: Visitors, kind: type[Screen], patient_server: Demo
) -> None:
    ada = visitors.open(kind, **PHONE)
    expect(ada.page.get_by_text("shout or flood the room")).to_be_in_viewport(ratio=1)
    ada.join("Ada")
    ada.connected()
    for name in ("Try shouting", "Try flooding"):
        expect(ada.page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)

    ada.page.get_by_role("button", name="Try shouting").click()
    ada.told("No shouting, please")
    ada.page.get_by_role("button", name="Try flooding").click()
    ada.told("You are sending faster than this room allows")
    # What was refused for its content has counted against the rate limit.
    ada.messages.filter(has_text="19 of 30").wait_for()
    expect(ada.messages).to_have_count(19)
