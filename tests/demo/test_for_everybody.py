"""Both pages for all kinds of people and screens: axe, the keyboard alone, any script, phones, zoom, light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.demo.browsing import PHONE, ZOOMED, Channel, Live, Screen, Visitors
from tests.process import Demo

pytestmark = [pytest.mark.browser, pytest.mark.process]

AXE = Path(__file__).parents[1] / "npm" / "node_modules" / "axe-core" / "axe.min.js"

SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
SMALL = pytest.mark.parametrize("window", [PHONE, ZOOMED], ids=["phone", "zoomed"])

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
    """Return what axe has to say against what is on screen: its weight, its rule and where."""
    screen.page.evaluate(axe)
    result: dict[str, Any] = screen.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{each['impact']} {each['id']}: {node['target']} {node['failureSummary']}"
        for each in result["violations"]
        for node in each["nodes"]
    ]


@SCHEMES
def test_axe_finds_nothing_on_the_way_in(visitors: Visitors, kind: type[Screen], axe: str, scheme: str) -> None:
    screen = visitors.open(kind, "x" * 129, color_scheme=scheme)
    assert findings(screen, axe) == []


@SCHEMES
def test_axe_finds_nothing_in_a_room(visitors: Visitors, kind: type[Screen], axe: str, scheme: str) -> None:
    ada, bob = visitors.join(kind, "Ada", color_scheme=scheme), visitors.join(Channel, "Bob")
    assert findings(ada, axe) == []
    for number in range(2):
        ada.say(f"Hello! {number}")
        ada.shows(*(f"Hello! {each}" for each in range(number + 1)))
    for number in range(2):
        bob.say(f"Hello to you! {number}")
    expect(ada.messages).to_have_count(4)
    ada.people("Ada", "Bob")
    assert findings(ada, axe) == []

    ada.write("WHY IS NOBODY ANSWERING")
    expect(ada.locate(ada.notice)).to_contain_text("No shouting, please")
    assert findings(ada, axe) == []
