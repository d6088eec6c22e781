"""The renderings that come with chatx: whatever people are called and say, they show it and do nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Gap, Message, PresenceDiff, PresenceMeta, PresenceState
from chatx.demo.app import PAGE
from chatx.integrations.html import PEOPLE_LIMIT, render, text

ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NASTY = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


class Seen(HTMLParser):
    """What a browser makes of a rendering.

    Attributes:
        tags: Every element's name and attributes.
        text: Text by the class of the element it stands in.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._inside: list[str] = []
        self.feed(html)
        self.close()
        assert self._inside == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside.pop()

    def handle_data(self, data: str) -> None:
        self.text[self._inside[-1]] = self.text.get(self._inside[-1], "") + data


def message(content: str = "hi", user_id: str = "ada") -> Message:
    return Message("id-1", "a", user_id, content, 1_700_000_000_000, "e", 1)


def people(*names: str) -> PresenceState:
    return PresenceState("a", {name: [PresenceMeta("r", 0)] for name in names})


@given(ANYTHING, ANYTHING.filter(bool))
def test_a_message_shows_its_text_and_nothing_of_it_is_markup(content: str, user_id: str) -> None:
    seen = Seen(render(message(content, user_id)))

    assert [tag for tag, _ in seen.tags] == ["article", "span", "header", "bdi", "time", "p"]
    assert seen.text.get("message-text", "") == content
    assert seen.text.get("message-author", "") == user_id
    assert seen.tags[0][1]["data-user-id"] == user_id


@given(st.lists(ANYTHING, unique=True, max_size=5))
def test_people_are_shown_by_name_and_no_name_is_markup(names: list[str]) -> None:
    seen = Seen(render(people(*names)))

    shown = [attributes["data-user-id"] for tag, attributes in seen.tags if "data-user-id" in attributes]
    assert sorted(map(str, shown)) == sorted(names)
    assert {tag for tag, _ in seen.tags} <= {"li", "span", "bdi"}


def test_the_reader_is_the_first_of_the_people_and_told_so() -> None:
    html = render(people("bob", "Ada", "eve"), me="eve")

    assert re.findall(r'data-user-id="(\w+)"', html) == ["eve", "Ada", "bob"]
    assert html.count("message-you") == 1


def test_ones_own_messages_are_marked() -> None:
    assert 'class="message lead own"' in render(message(user_id="ada"), me="ada")
    assert 'class="message lead"' in render(message(user_id="ada"), me="bob")


@pytest.mark.parametrize("more, words", [(0, None), (1, "and 1 other"), (2, "and 2 others")])
def test_a_crowd_is_shown_in_part_and_counted(more: int, words: str | None) -> None:
    html = render(people(*(f"p{number:04}" for number in range(PEOPLE_LIMIT + more))))

    assert html.count('class="person"') == PEOPLE_LIMIT
    assert Seen(html).text.get("people-rest") == words


def test_an_empty_room_says_so() -> None:
    assert Seen(render(people())).text["people-rest"] == "Nobody is here"


def test_a_gap_is_told_and_what_has_no_rendering_is_empty() -> None:
    assert "missing" in render(Gap("a", "too_old", "e", 1))
    assert render(PresenceDiff("a", {}, {})) == ""


def test_a_carriage_return_stays_one_through_a_parser() -> None:
    assert text("a\rb") == "a&#13;b"


def test_the_time_is_utc_and_machine_readable() -> None:
    seen = Seen(render(message()))

    assert dict(seen.tags)["time"]["datetime"] == "2023-11-14T22:13:20Z"
    assert seen.text["message-time"] == "2023-11-14 22:13 UTC"


def test_a_person_has_the_same_colour_on_both_pages_of_the_demo() -> None:
    """The channel page computes it in JavaScript; this is that function's arithmetic, if it is still written so."""
    script = (PAGE / "log.js").read_text(encoding="utf-8")
    assert "hash = (hash * 31 + character.codePointAt(0)) % 65_521" in script
    assert "let hash = 7;" in script
    assert "const TINTS = 8;" in script
    assert re.findall(r'data-tint="(\d)"', render(message(user_id="Ada"))) == ["3", "3"]
