"""The pictures of the documentation; with WRITE_SCREENSHOTS=1 they go into docs/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.demo.browsing import Channel, Live, Screen, Visitors

pytestmark = [pytest.mark.browser, pytest.mark.process]

DOCS = Path(__file__).parents[2] / "docs"


def taken(screen: Screen, name: str, tmp_path: Path) -> None:
    """Take a picture, twice as fine as the page."""
    target = (DOCS if os.environ.get("WRITE_SCREENSHOTS") == "1" else tmp_path) / name
    screen.page.screenshot(path=target)
    picture = target.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (2240, 1400)


def talk(*lines: tuple[Screen, str]) -> None:
    """Say one line after the other, each where everybody has seen the one before."""
    screens = dict.fromkeys(screen for screen, _ in lines)
    said = []
    for screen, text in lines:
        said.append(text)
        screen.say(text)
        for each in screens:
            each.shows(*said)


def test_a_picture_of_the_channel_page(visitors: Visitors, tmp_path: Path) -> None:
    room = "book club"
    ada = visitors.join(Channel, "Ada", room, device_scale_factor=2)
    grace, linus = visitors.join(Channel, "Grace", room), visitors.join(Channel, "Linus", room)
    talk(
        (grace, "Hello you two! Did you get to chapter seven?"),
        (linus, "Last night, under the blanket. I did not see that letter coming."),
        (ada, "Me neither! I went back to chapter two: it is all there, on the first page!"),
        (grace, "No spoilers for those who are still reading …"),
        (linus, "Fair. Same time on Thursday?"),
        (ada, "Thursday is perfect. I will bring the biscuits."),
    )
    ada.people("Ada", "Grace", "Linus")
    taken(ada, "demo.png", tmp_path)


def test_a_picture_of_the_live_page(visitors: Visitors, tmp_path: Path) -> None:
    room = "general"
    ada = visitors.join(Live, "Ada", room, device_scale_factor=2)
    grace, linus = visitors.join(Channel, "Grace", room), visitors.join(Live, "Linus", room)
    talk(
        (ada, "This page comes from the server, and so does every message on it."),
        (grace, "I am on the channel page, over a WebSocket."),
        (grace, "The room is the same one."),
        (linus, "And it works without JavaScript?"),
        (ada, "It does. You load it anew to see what is new, and you write in a plain form."),
    )
    ada.people("Ada", "Grace", "Linus")
    taken(ada, "live.png", tmp_path)
