"""The renderings that come with chatx: whatever people are called and say, they show it and do nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Gap, Message, PresenceDiff, PresenceMeta, PresenceState
from chatx.demo.app import PAGE
from chatx.integrations.html import PEOPLE_LIMIT, marked, render, text
from chatx.integrations.spans import spans

ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
CASES = json.loads((Path(__file__).parents[1] / "demo" / "spans.json").read_text(encoding="utf-8"))
NASTY = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(1)>"


class Seen(HTMLParser):
    """What a browser makes of a rendering.

    Attributes:
        tags: Every element's name and attributes.
        text: Text by the class of the innermost element around it that has one.
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
        within = next(filter(None, reversed(self._inside)), "")
        self.text[within] = self.text.get(within, "") + data


def message(content: str = "hi", user_id: str = "ada") -> Message:
    return Message("id-1", "a", user_id, content, 1_700_000_000_000, "e", 1)


def people(*names: str) -> PresenceState:
    return PresenceState("a", {name: [PresenceMeta("r", 0)] for name in names})


@given(ANYTHING, ANYTHING.filter(bool))
def test_a_message_shows_its_text_and_nothing_of_it_is_markup(content: str, user_id: str) -> None:
    seen = Seen(render(message(content, user_id)))

    tags = [tag for tag, _ in seen.tags]
    assert tags[:6] == ["article", "span", "header", "bdi", "time", "p"]
    assert set(tags[6:]) <= {"a", "code"}
    assert seen.text.get("message-text", "") == "".join(part for _, part in spans(content))
    assert seen.text.get("message-author", "") == user_id
    assert seen.tags[0][1]["data-user-id"] == user_id


@pytest.mark.parametrize("content, expected", CASES)
def test_links_and_code_are_found_where_they_are(content: str, expected: list[list[str]]) -> None:
    """The channel page's script is tested with the same table."""
    assert [list(each) for each in spans(content)] == expected
    seen = Seen(f"<p>{marked(content)}</p>")
    links = [part for kind, part in expected if kind == "link"]
    assert [tag for tag, _ in seen.tags[1:]] == [
        "a" if kind == "link" else "code" for kind, _ in expected if kind != "text"
    ]
    assert [attributes["href"] for tag, attributes in seen.tags if tag == "a"] == links


PIECES = st.sampled_from(
    ["http://", "HTTPS://", "a", ".b", "/", "(", ")", "]", "[", "`", "``", "```", "\n", " ", "\u202e", "<"]
)


@given(st.lists(PIECES | ANYTHING).map("".join))
def test_of_a_content_nothing_is_lost_but_the_backticks_of_its_code(content: str) -> None:
    found = spans(content)
    rest = content
    for kind, part in found:
        before, _, rest = rest.partition(part)
        assert set(before) <= {"`"}
        assert part
        assert kind != "link" or re.fullmatch(r"https?://[^\s<>\"`\u202e]+", part, re.IGNORECASE)
    assert set(rest) <= {"`"}
    assert not any(one[0] == other[0] == "text" for one, other in pairwise(found))


@pytest.mark.parametrize(
    "content",
    ["`" * 65_536, "`a\n" * 20_000, "https://a.b/" + "(" * 30_000 + ")" * 30_001, "http://" * 10_000, ")]" * 30_000],
)
def test_no_content_holds_the_server_up(content: str) -> None:
    """Each took minutes or more if the work grew with the square of the length."""
    assert "".join(part for _, part in spans(content)) == content


def test_a_link_tells_the_page_it_opens_nothing_of_this_one() -> None:
    assert marked('https://a.b/?c=1&d="') == (
        '<a href="https://a.b/?c=1&amp;d=" target="_blank" rel="noopener noreferrer" dir="ltr">https://a.b/?c=1&amp;d=</a>'
        "&quot;"
    )
    assert marked("`<b>`") == '<code dir="auto">&lt;b&gt;</code>'


def test_ones_own_name_is_hidden_on_ones_own_messages_only() -> None:
    assert " hidden>ada</bdi>" in render(message(user_id="ada"), me="ada")
    assert " hidden>" not in render(message(user_id="ada"), me="bob")


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
    assert re.findall(r'data-count="(\d+)"', html) == [str(PEOPLE_LIMIT + more)]


def test_an_empty_room_says_so() -> None:
    assert Seen(render(people())).text["people-rest"] == "Nobody is here"
    assert 'data-count="0"' in render(people())


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
