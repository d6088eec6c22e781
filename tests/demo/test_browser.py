"""What the channel page alone does, in Chromium: what it holds back and sends by itself, its form, its people."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.demo.browsing import PHONE, Channel, Visitors
from tests.process import Demo

pytestmark = [pytest.mark.browser, pytest.mark.process]


def test_who_writes_too_fast_is_told_so_and_everything_arrives_once_in_order(
    visitors: Visitors, stumbling_server: Demo
) -> None:
    ada, bob = visitors.join(Channel, "Ada"), visitors.join(Channel, "Bob")
    texts = [f"message {number}" for number in range(24)]
    # Faster than hands, but through what hands use. What is said meanwhile is gone when everything has arrived.
    ada.locate("#composer").evaluate(
        """(composer, texts) => {
            const notice = document.querySelector("#notice");
            window.said = [];
            new MutationObserver(() => said.push(notice.textContent)).observe(notice, { childList: true });
            for (const text of texts) {
                composer.value = text;
                composer.dispatchEvent(new InputEvent("input", { bubbles: true }));
                composer.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
            }
        }""",
        texts,
    )

    ada.shows(*texts)
    bob.shows(*texts)
    expect(ada.locate("#notice")).to_be_empty()
    said = ada.page.evaluate("said.filter(each => each !== '')")
    assert len(said) == 1
    assert said[0].startswith("You are sending faster than this room allows.Your messages go out by themselves in 1 s")


def test_a_name_and_a_room_are_asked_for_in_words(visitors: Visitors) -> None:
    page = visitors.open(Channel, "x" * 129).page
    page.click("#join")

    expect(page.locator("#name-error")).to_have_text("Please choose a name.")
    expect(page.locator("#room-error")).to_contain_text("too long")
    expect(page.locator("#name")).to_be_focused()
    expect(page.locator("#chat")).to_be_hidden()


def test_people_are_behind_a_button_on_a_phone(visitors: Visitors) -> None:
    ada = visitors.join(Channel, "Ada", **PHONE)
    expect(ada.locate("#people")).to_be_hidden()
    expect(ada.locate("#people-toggle")).to_have_text("1 here")
    ada.page.tap("#people-toggle")

    expect(ada.locate("#people-count")).to_have_text("1")
    expect(ada.locate("#people [data-user-id=Ada]")).to_be_in_viewport()
    ada.page.keyboard.press("Escape")
    expect(ada.locate("#people")).to_be_hidden()
    expect(ada.locate("#people-toggle")).to_be_focused()
