"""What the live page alone does, in Chromium: it works without scripts, and draws what the server sends."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.demo.browsing import PHONE, Channel, Live, Visitors

pytestmark = [pytest.mark.browser, pytest.mark.process]


def test_the_page_works_without_scripts_but_for_the_pushing(visitors: Visitors) -> None:
    grace = visitors.join(Channel, "Grace")
    grace.say("from the channel")
    grace.shows("from the channel")
    ada = visitors.open(Live, java_script_enabled=False)
    ada.join("Ada")
    ada.shows("from the channel")
    ada.people("Grace")

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


def test_who_writes_too_fast_is_asked_to_wait_and_keeps_the_text(visitors: Visitors) -> None:
    ada = visitors.join(Live, "Ada")
    ada.locate("#content").fill("me too")
    # Behind sixty others of the same person, for which nobody could wait in between.
    ada.locate("[data-live-form]").evaluate(
        """form => {
            for (let number = 0; number < 60; number += 1) {
                const body = new URLSearchParams({ content: `message ${number}`, key: `key ${number}` });
                fetch(form.action, { method: "POST", body, redirect: "manual" });
            }
            form.requestSubmit();
        }"""
    )

    ada.told("You are sending faster than this room allows")
    ada.told("Your text is still here; try again in a moment.")
    expect(ada.locate("#content")).to_have_value("me too")


def test_a_run_of_one_persons_messages_stands_together(visitors: Visitors) -> None:
    ada = visitors.join(Live, "Ada")
    for text in ("one", "two"):
        ada.say(text)
    ada.shows("one", "two")

    expect(ada.locate("[data-message-id].lead")).to_have_count(1)
    expect(ada.locate("[data-message-id] time").first).to_have_text(re.compile(r"^\d{1,2}:\d\d"))
