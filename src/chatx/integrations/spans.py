"""The links and the code in a message's content; everything else in it is text.

Rules, which `spans.js` of the demo has too; one table of cases tests both:
1. Code stands between two runs of equally many backticks, within a line; from three backticks on, over several lines.
   The next run of that length closes it. The backticks are not part of it, nor is code that is blank.
2. A link begins with `http://` or `https://`, in any case, where no ASCII letter or digit is before it, and a host
   follows. It ends before a space, a control, format or bidi character, a quotation mark, a bracket that an address
   cannot hold, or the punctuation of East Asian sentences.
3. Punctuation at its end, and a closing bracket that was not opened within it, belong to the sentence around it.

The work grows with the length of the content, whatever is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["text", "link", "code"]

_BACKTICKS = re.compile("`+")

_OUTSIDE: Final = (
    '\\0- \\x7f-\\xa0"<>\\\\^`{|}\xab\xad\xbb\\u061c\\u1680\\u180e\\u2000-\\u200f\\u201c-\\u201f\\u2028-\\u202f'
    "\\u2039\\u203a\\u205f-\\u206f\\u3000-\\u3003\\u3008-\\u3011\\u3014-\\u301f\\ud800-\\udfff\\ufe00-\\ufe0f\\ufeff"
    "\\uff01\\uff08\\uff09\\uff0c\\uff1a\\uff1b\\uff1f\\ufff9-\\uffff"
)
# A host is a name, in any script, or an address in brackets.
_LINK = re.compile(
    rf"(?<![A-Za-z0-9])[Hh][Tt][Tt][Pp][Ss]?://(?:\[[0-9A-Fa-f:.]+\]|(?![!-/:-@\[-`{{-~])[^{_OUTSIDE}])[^{_OUTSIDE}]*"
)

_ENDINGS: Final = frozenset(".,:;!?'*\u2019\u2026")
_OPENING: Final = {")": "(", "]": "["}


def spans(content: str) -> list[tuple[Kind, str]]:
    """Return the content as text, links and code, in their order; neighbouring texts are one."""
    found: list[tuple[Kind, str]] = []
    for kind, part in _parts(content):
        if kind == "text" and found and found[-1][0] == "text":
            found[-1] = (kind, found[-1][1] + part)
        elif part:
            found.append((kind, part))
    return found


def _parts(content: str) -> Iterator[tuple[Kind, str]]:
    begin = 0
    for start, end, code in _codes(content):
        yield from _links(content[begin:start])
        yield "code", code
        begin = end
    yield from _links(content[begin:])


def _codes(content: str) -> Iterator[tuple[int, int, str]]:
    """Yield where each code begins and ends, with its backticks, and the code without them."""
    runs = [match.span() for match in _BACKTICKS.finditer(content)]
    # For each run the next one of its length, from the back.
    closing: list[int | None] = [None] * len(runs)
    last: dict[int, int] = {}
    for index in range(len(runs) - 1, -1, -1):
        start, end = runs[index]
        closing[index] = last.get(end - start)
        last[end - start] = index
    index = 0
    while index < len(runs):
        start, end = runs[index]
        other = closing[index]
        index += 1
        if other is None:
            continue
        code = content[end : runs[other][0]]
        if not code.strip(" \t\r\n") or (end - start < 3 and "\n" in code):
            continue
        yield start, runs[other][1], code
        index = other + 1


def _links(text: str) -> Iterator[tuple[Kind, str]]:
    begin = 0
    for match in _LINK.finditer(text):
        link = _without_ending(match[0])
        yield "text", text[begin : match.start()]
        yield "link", link
        begin = match.start() + len(link)
    yield "text", text[begin:]


def _without_ending(link: str) -> str:
    unopened = {close: link.count(close) - link.count(opened) for close, opened in _OPENING.items()}
    end = len(link)
    while True:
        character = link[end - 1]
        if unopened.get(character, 0) > 0:
            unopened[character] -= 1
        elif character not in _ENDINGS:
            return link[:end]
        end -= 1
