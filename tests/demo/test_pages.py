"""What both pages of the demo promise, in Chromium against a real `chatx demo` process, and between the two of them."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from playwright.sync_api import expect

from tests.demo.browsing import Channel, Live, Screen, Visitors
from tests.process import Demo

pytestmark = [pytest.mark.browser, pytest.mark.process]


def other(kind: type[Screen]) -> type[Screen]:
    return Live if kind is Channel else Channel


def test_everybody_sees_the_same_messages_in_the_same_order(visitors: Visitors, kind: type[Screen]) -> None:
    ada, bob, eve = visitors.join(kind, "Ada"), visitors.join(kind, "Bob"), visitors.join(other(kind), "Eve")
    speakers = {"ada": ada, "bob": bob, "eve": eve}
    for number in range(4):
        # All at once, so that only the room can say which comes first.
        for name, screen in speakers.items():
            screen.locate(screen.composer).fill(f"{name} {number}")
        for screen in speakers.values():
            screen.locate(screen.composer).press("Enter", no_wait_after=True)
        for screen in speakers.values():
            screen.taken()
    ada.messages.nth(11).wait_for()
    seen = ada.messages.locator(".message-text").all_inner_texts()

    for screen in speakers.values():
        screen.shows(*seen)
        assert screen.places() == ada.places()
    for name in speakers:
        assert [each for each in seen if each.startswith(name)] == [f"{name} {number}" for number in range(4)]


def test_presence_follows_who_comes_who_closes_their_last_page_and_who_leaves(
    visitors: Visitors, kind: type[Screen]
) -> None:
    ada, bob, eve = visitors.join(kind, "Ada"), visitors.join(kind, "Bob"), visitors.join(other(kind), "Eve")
    second = visitors.join(kind, "Bob")
    for screen in (ada, bob, eve, second):
        screen.people("Ada", "Bob", "Eve")

    eve.page.close()
    ada.people("Ada", "Bob")
    second.page.close()
    # Whoever comes now shows that the page of before was closed, and is told what the room knows of it.
    visitors.join(kind, "Cleo").people("Ada", "Bob", "Cleo")
    ada.people("Ada", "Bob", "Cleo")
    bob.page.get_by_role("button", name="Leave").click()
    ada.people("Ada", "Cleo")
    expect(bob.page.get_by_label("Your name")).to_be_focused()
    expect(bob.page.get_by_label("Room")).to_have_value(visitors.room)


def test_two_rooms_do_not_hear_each_other(visitors: Visitors, kind: type[Screen]) -> None:
    tea, coffee = f"{visitors.room} tea & cake", f"{visitors.room} coffee"
    ada, bob = visitors.join(kind, "Ada", tea), visitors.join(other(kind), "Bob", tea)
    eve = visitors.join(kind, "Eve", coffee)
    ada.say("tea?")
    eve.say("coffee?")
    bob.shows("tea?")
    bob.say("tea!")

    ada.shows("tea?", "tea!")
    eve.shows("coffee?")
    ada.people("Ada", "Bob")
    eve.people("Eve")
    expect(ada.page.get_by_role("heading", level=1)).to_have_text(tea)
    assert tea in ada.page.title()


def test_a_room_is_chosen_by_the_address_or_in_the_form(visitors: Visitors, kind: type[Screen]) -> None:
    ada = visitors.open(kind)
    expect(ada.page.get_by_label("Room")).to_have_value(visitors.room)
    ada.page.get_by_label("Room").fill(f"{visitors.room} b")
    ada.join("Ada")
    ada.connected()
    visitors.join(kind, "Bob", f"{visitors.room} b").say("here?")

    ada.shows("here?")
    # The address is now the room's, to be kept or passed on.
    ada.page.reload()
    ada.connected()
    ada.shows("here?")
    ada.people("Ada", "Bob")


def test_markup_is_text_wherever_somebody_may_write_it(visitors: Visitors, kind: type[Screen]) -> None:
    script = '<script>alert(1)</script><img src=x onerror="alert(2)">\'&lt;'
    name, room = "<b onclick=alert(3)>Eve</b>", f"<i>{visitors.room}</i>"
    ada, eve = visitors.join(kind, "Ada", room), visitors.join(other(kind), name, room)
    eve.say(script)

    for _ in ("pushed", "loaded"):
        ada.shows(script)
        ada.people("Ada", name)
        expect(ada.locate(".message-author")).to_have_text([name])
        expect(ada.page.get_by_role("heading", level=1)).to_have_text(room)
        expect(ada.locate("body :is(script, b, i), .messages img")).to_have_count(0)
        ada.page.reload()
        ada.connected()


def test_a_refusal_is_said_and_the_text_is_still_there(visitors: Visitors, kind: type[Screen]) -> None:
    ada, bob = visitors.join(kind, "Ada"), visitors.join(other(kind), "Bob")
    for text, words in (
        ("WHY IS NOBODY ANSWERING", "No shouting, please"),
        ("é" * 3000, "This message is too long (6,000 bytes)"),
    ):
        ada.write(text)
        ada.told(words)
        expect(ada.locate(ada.notice)).to_have_attribute("role", re.compile("^(alert|status)$"))
        expect(ada.locate(ada.composer)).to_have_value(text)
        expect(ada.locate(ada.composer)).to_be_focused()
    ada.say("why is nobody answering?")
    expect(ada.locate(ada.notice)).to_be_empty()
    for screen in (ada, bob):
        screen.shows("why is nobody answering?")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_server_loses_nothing_on_any_page(
    visitors: Visitors, server: Demo, how: signal.Signals
) -> None:
    bob = visitors.join(Channel, "Bob")
    writers: dict[str, Screen] = {"ada": visitors.join(Channel, "Ada"), "eve": visitors.join(Live, "Eve")}
    screens = (*writers.values(), bob)
    said = []
    for number in range(2):
        for name, screen in writers.items():
            said.append(f"{name} {number}")
            screen.say(said[-1])
            screen.shows(*said)
    saved(server, len(said))

    status, output = server.stop(how)
    if how == signal.SIGTERM:
        assert (status, "ERROR" in output) == (0, False)
    for screen in screens:
        screen.disconnected()
    for name, screen in writers.items():
        screen.begin_offline(f"{name} while nobody was there")
    server.restart()

    for screen in screens:
        screen.connected()
    for name, screen in writers.items():
        said.append(f"{name} while nobody was there")
        screen.finish_offline(said[-1])
        bob.shows(*said)
    said.append("there you are")
    bob.say(said[-1])
    # Who comes now sees it all too.
    for screen in (*screens, visitors.join(Channel, "Cleo"), visitors.join(Live, "Dora")):
        screen.shows(*said)
        expect(screen.locate(".divider-hole")).to_have_count(0)
    for screen in screens:
        screen.people("Ada", "Bob", "Cleo", "Dora", "Eve")


def saved(server: Demo, count: int) -> None:
    """Wait until so many messages are in the store, which a kill must not come before."""
    deadline = time.monotonic() + 10
    with closing(sqlite3.connect(server.store)) as db:
        while db.execute("SELECT count(*) FROM chatx_entries").fetchone()[0] < count:
            assert time.monotonic() < deadline, "the messages were not saved"
            time.sleep(0.01)
