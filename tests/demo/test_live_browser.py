"""What the live page alone does, in Chromium: it works without scripts, and draws what the server sends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.demo.browsing import COMES_BACK_MS, PHONE, Channel, Live, Visitors
from tests.process import Demo, module

pytestmark = [pytest.mark.browser, pytest.mark.process]


def test_the_page_works_without_scripts_but_for_the_pushing(visitors: Visitors) -> None:
    grace = visitors.join(Channel, "Grace")
    grace.say("from the channel")
    grace.shows("from the channel")
    ada = visitors.open(Live, java_script_enabled=False)
    ada.join("Ada")
    ada.shows("from the channel")
    ada.people("Grace")
    for words in ("Connecting", "Connected", "Reconnecting", "Here now", "pushes"):
        expect(ada.page.get_by_text(words)).not_to_be_visible()
    expect(ada.locate("[data-live-count]")).to_have_text("1")
    ada.page.get_by_role("link", name="Load the page anew").click()

    ada.locate("#content").fill("STOP SHOUTING AT ME")
    ada.page.get_by_role("button", name="Send").click()
    ada.told("No shouting, please")
    expect(ada.locate("#content")).to_have_value("STOP SHOUTING AT ME")
    ada.locate("#content").fill("two\nlines")
    ada.page.get_by_role("button", name="Send").click()
    for screen in (ada, grace):
        screen.shows("from the channel", "two lines")
        expect(screen.messages.locator(".message-text").last).to_have_js_property("textContent", "two\nlines")

    grace.say("not pushed")
    grace.shows("from the channel", "two lines", "not pushed")
    ada.shows("from the channel", "two lines")
    ada.page.reload()
    ada.shows("from the channel", "two lines", "not pushed")


def test_a_page_without_scripts_begins_at_its_newest_message(visitors: Visitors) -> None:
    ada = visitors.join(Live, "Ada")
    for number in range(12):
        ada.say(f"{number}\n\n\n")
    late = visitors.open(Live, **PHONE, java_script_enabled=False)
    late.join("Late")

    expect(late.page.get_by_text("11", exact=True)).to_be_in_viewport()
    expect(late.page.get_by_text("0", exact=True)).not_to_be_in_viewport()


def test_who_writes_too_fast_is_asked_to_wait_and_keeps_the_text(visitors: Visitors, patient_server: Demo) -> None:
    ada = visitors.join(Live, "Ada")
    for number in range(20):
        ada.say(f"message {number}")
    ada.write("me too")

    ada.told("You are sending faster than this room allows")
    ada.told("Your text is still here; try again in a moment.")
    expect(ada.locate("#content")).to_have_value("me too")


def test_a_run_of_one_persons_messages_stands_together(visitors: Visitors) -> None:
    ada = visitors.join(Live, "Ada")
    for text in ("one", "two"):
        ada.say(text)
    ada.shows("one", "two")

    expect(ada.locate("[data-message-id].lead")).to_have_count(1)
    expect(ada.locate("[data-message-id] time").first).to_have_text(re.compile(r"^\d\d:\d\d$"))


def test_the_count_follows_who_comes_and_goes(visitors: Visitors) -> None:
    ada, bob = visitors.join(Live, "Ada"), visitors.join(Channel, "Bob")
    count = ada.locate("[data-live-count]")
    expect(count).to_have_text("2")
    bob.page.close()
    expect(count).to_have_text("1")


def test_the_strip_of_people_on_a_phone_is_seen_to_go_on_and_scrolls(visitors: Visitors) -> None:
    ada = visitors.join(Live, "Ada", **PHONE)
    names = [f"Somebody {number}" for number in range(5)]
    for name in names:
        visitors.join(Channel, name)
    ada.people("Ada", *names)
    panel = ada.locate(".people-panel")
    look = panel.evaluate(
        """panel => [panel.scrollWidth > panel.clientWidth, getComputedStyle(panel).overflowX,
            getComputedStyle(panel).maskImage.startsWith("linear-gradient")]"""
    )
    assert look == [True, "auto", True]

    last = ada.locate(".person").last
    expect(last).not_to_be_in_viewport(ratio=1)
    panel.evaluate("panel => panel.scrollLeft = panel.scrollWidth")
    expect(last).to_be_in_viewport(ratio=1)
    # Nothing of the last one is under the end that fades.
    assert last.evaluate("last => last.getBoundingClientRect().right") <= 360 - 47
    # How many there are stays in sight.
    expect(ada.locate("[data-live-count]")).to_be_in_viewport(ratio=1)


def test_a_page_comes_back_by_itself_when_the_server_reloads(browser: Browser, tmp_path: Path) -> None:
    source = tmp_path / "reloaded.py"
    source.write_text(f"from chatx.demo.app import demo_app\napp = demo_app({str(tmp_path / 'demo.db')!r})\n")
    with module("uvicorn", "reloaded:app", "--reload", "--port", "{port}", cwd=tmp_path) as server:
        visitors = Visitors(browser, server)
        ada = visitors.join(Live, "Ada")
        ada.say("before")
        # Only a script that has not been loaded anew remembers this.
        ada.locate("[data-live-status]").evaluate(
            """line => new MutationObserver(() => (line.dataset.seen = `${line.dataset.seen} ${line.dataset.state}`))
                .observe(line, { attributeFilter: ["data-state"] })"""
        )
        source.write_text(source.read_text() + "# changed\n")
        ada.locate("[data-seen*='waiting connected']").wait_for(timeout=COMES_BACK_MS)
        ada.say("after")
        ada.shows("before", "after")
        visitors.close()
        _, output = server.stop()

    assert "Traceback" not in output
    assert visitors.errors == []


def test_a_message_that_has_data_and_no_text_says_so(visitors: Visitors) -> None:
    grace = visitors.join(Channel, "Grace")
    ada = visitors.join(Live, "Ada")
    other = visitors.join(Channel, "Eve")
    # The page sends no data, so what it sends is made over on its way.
    grace.page.evaluate(
        """() => {
            const send = WebSocket.prototype.send;
            WebSocket.prototype.send = function (frame) {
                send.call(this, String(frame).replace('"content":"map"', '"content":"","data":{"at":[1,2]}'));
            };
        }"""
    )
    grace.say("map")
    for screen in (ada, other):
        screen.shows("")
        paragraph = screen.messages.locator(".message-text").last
        said = paragraph.evaluate("node => getComputedStyle(node, '::before').content")
        assert said == '"No text"'
