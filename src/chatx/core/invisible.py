"""Where in an id a character may stand that shows nothing by itself.

Rules:
1. A joiner stands where Unicode has it change how the characters beside it look: in the contexts of RFC 5892, A.1 and
   A.2; before a virama, as Bengali and Sinhala spell; between two emoji of UTS #51.
2. A variation selector stands behind what it varies, a tag in the flag of a part of a country.
3. Whatever else shows nothing stands nowhere, and a blank neither first nor last: ids that differ in it alone, or
   consist of it, could not be told apart.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from chatx.core.unicode import EMOJI, JOINS_NEXT, JOINS_PREVIOUS

_ZWNJ, _ZWJ = "\u200c", "\u200d"
_VIRAMA = 9
"""The combining class of viramas, the signs that take a consonant's vowel away."""

# Controls, format characters (bidi marks, zero-width), line and paragraph separators, and what is no character at all.
_NOT_IN_IDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# Default_Ignorable_Code_Point where the category does not say so: fillers, selectors, what is kept free for more.
_IGNORABLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
)

# Symbols and letters that are drawn as nothing but width.
_DRAWN_BLANK = "\u2800\U0001d159\U00013441\U00013442"

_UNSEEN = re.compile(f"[{_IGNORABLE}{_DRAWN_BLANK}]")

_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff]")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
_KEYCAP = re.compile("[0-9#*]\ufe0f\u20e3")
_FLAG_OF_A_PART = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")

# Selectors -> what they may stand behind.
_VARIES: Final = (
    (re.compile("[\ufe0e\ufe0f]"), EMOJI),
    (re.compile("[\ufe00-\ufe02\U000e0100-\U000e01ef]"), _IDEOGRAPH),
    (re.compile("\ufe00"), re.compile("[\u1000-\u109f\ua840-\ua877\uaa60-\uaa7f]")),
    (re.compile("[\u180b-\u180d\u180f]"), re.compile("[\u1820-\u18aa]")),
)


def misplaced(text: str) -> tuple[int, str] | None:
    """Return the first character of an id that may not stand where it does, as its index and what it is, or None."""
    if text.isprintable() and text.strip() == text and (text.isascii() or not _UNSEEN.search(text)):
        return None
    last = len(text) - 1
    for place, character in enumerate(text):
        if character.isascii() and character.isprintable() and character != " ":
            continue
        category = unicodedata.category(character)
        if category == "Zs" or character in _DRAWN_BLANK:
            if place in (0, last):
                return place, "the blank"
        elif (category in _NOT_IN_IDS or _UNSEEN.match(character)) and not _stands(text, place):
            return place, "the control character" if category == "Cc" else "the invisible character"
    return None


def _stands(text: str, place: int) -> bool:
    """Return whether the invisible character at a place changes how the text beside it looks."""
    character = text[place]
    before, behind = text[place - 1 : place], text[place + 1 : place + 2]
    if character in (_ZWNJ, _ZWJ):
        if not before:
            return False
        if unicodedata.combining(before) == _VIRAMA:
            return True
        return _parts_letters(text, place) if character == _ZWNJ else _joins(text, place)
    if "\U000e0020" <= character <= "\U000e007f":
        return any(each.start() < place < each.end() for each in _FLAG_OF_A_PART.finditer(text))
    if character == "\ufe0f" and behind == "\u20e3":
        return _KEYCAP.match(text, place - 1) is not None if place else False
    return any(selector.match(character) and varied.match(before) for selector, varied in _VARIES)


def _parts_letters(text: str, place: int) -> bool:
    """Return whether the letters beside the non-joiner at a place would join without it, marks upon them aside."""
    before, behind = place - 1, place + 1
    while before > 0 and _transparent(text[before]):
        before -= 1
    while behind < len(text) - 1 and _transparent(text[behind]):
        behind += 1
    return bool(JOINS_NEXT.match(text, before) and JOINS_PREVIOUS.match(text, behind))


def _transparent(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me")


def _joins(text: str, place: int) -> bool:
    """Return whether the joiner at a place makes one emoji of two, or stands between a consonant and its virama."""
    before, behind = text[place - 1], text[place + 1 : place + 2]
    if not behind:
        return False
    if unicodedata.combining(behind) == _VIRAMA:
        return unicodedata.category(before) == "Lo"
    if not EMOJI.match(behind):
        return False
    if before == "\ufe0f" or _SKIN_TONE.match(before):
        before = text[max(0, place - 2)]
    return EMOJI.match(before) is not None
