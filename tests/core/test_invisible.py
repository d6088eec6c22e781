"""Characters that show nothing by themselves: where an id may have them, and that two ids that look alike stay two."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from idna import idnadata

from chatx import Chat, InvalidMessage
from chatx.core.invisible import misplaced
from chatx.core.unicode import EMOJI, JOINS_NEXT, JOINS_PREVIOUS
from chatx.core.validation import valid_content, valid_id
from tests.virtual import virtual

ZWNJ, ZWJ, VS16 = "\u200c", "\u200d", "\ufe0f"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"

NAMES = {
    "Persian": f"می{ZWNJ}خواهم",
    "Persian plural": f"کتاب{ZWNJ}ها",
    "Persian with vowel signs": f"مِ{ZWNJ}خِ",
    "Kurdish": f"ئه{ZWNJ}م",
    "Malayalam chillu": f"എന{chr(0xD4D)}{ZWJ}റെ",
    "Malayalam chillu at the end": f"അവന{chr(0xD4D)}{ZWJ}",
    "Malayalam with ZWNJ": f"ക{chr(0xD4D)}{ZWNJ}ഷ",
    "Sinhala": f"ශ{chr(0xDCA)}{ZWJ}රී ලංකා",
    "Sinhala touching letters": f"ක{ZWJ}{chr(0xDCA)}ක",
    "Bengali ya-phalaa": f"র{ZWJ}{chr(0x9CD)}যাব",
    "Bengali khanda ta": f"ত{chr(0x9CD)}{ZWJ}",
    "Hindi half form": f"क{chr(0x94D)}{ZWJ}ष",
    "Nepali": f"नमस{chr(0x94D)}{ZWNJ}ते",
    "family": f"👨{ZWJ}👩{ZWJ}👧",
    "rainbow flag": f"🏳{VS16}{ZWJ}🌈",
    "skin tone": f"👩🏽{ZWJ}🚀",
    "two skin tones": f"🧑🏻{ZWJ}❤{VS16}{ZWJ}🧑🏿",
    "selector in the middle": f"👩{ZWJ}❤{VS16}{ZWJ}💋{ZWJ}👨",
    "shaking head": f"🙂{ZWJ}↔{VS16}",
    "England": ENGLAND,
    "England among others": f"x {ENGLAND} ❤{VS16}",
    "keycap": f"1{VS16}\u20e3",
    "heart": f"❤{VS16}",
    "heart as text": "❤\ufe0e",
    "country": "🇮🇷",
    "Japanese place name": "葛\U000e0100城",
    "Mongolian": "ᠠ\u180bᠨ",
    "blanks inside": "a b\u00a0c\u3000d",
    "braille": "⠓⠊\u2800⠓⠊",
}

# What -> an id, the character that is wrong in it, and the word for where that is.
REFUSED = {
    "leading joiner": (f"{ZWJ}alice", 0, "beginning"),
    "leading non-joiner": (f"{ZWNJ}می", 0, "beginning"),
    "trailing joiner": (f"alice{ZWJ}", 5, "end"),
    "trailing non-joiner": (f"می{ZWNJ}", 2, "end"),
    "joiner alone": (ZWJ, 0, "beginning"),
    "between Latin letters": (f"a{ZWJ}b", 1, "character 1"),
    "non-joiner between Latin letters": (f"a{ZWNJ}b", 1, "character 1"),
    "between Han": (f"中{ZWJ}村", 1, "character 1"),
    "joiner between Arabic letters": (f"می{ZWJ}خ", 2, "character 2"),
    "non-joiner behind what joins nothing": (f"د{ZWNJ}ر", 1, "character 1"),
    "doubled non-joiner": (f"می{ZWNJ}{ZWNJ}خ", 2, "character 2"),
    "doubled behind a virama": (f"क{chr(0x94D)}{ZWJ}{ZWJ}ष", 3, "character 3"),
    "doubled between emoji": (f"👩{ZWJ}{ZWJ}🚀", 1, "character 1"),
    "emoji and then nothing": (f"👩{ZWJ}", 1, "end"),
    "emoji and a letter": (f"👩{ZWJ}a", 1, "character 1"),
    "a letter and an emoji": (f"a{ZWJ}👩", 1, "character 1"),
    "a digit and an emoji": (f"1{ZWJ}👩", 1, "character 1"),
    "non-joiner between emoji": (f"👩{ZWNJ}🚀", 1, "character 1"),
    "selector alone": (VS16, 0, "beginning"),
    "selector behind a letter": (f"alice{VS16}", 5, "end"),
    "selector behind a digit that is no key": (f"1{VS16}", 1, "end"),
    "two selectors": (f"❤{VS16}{VS16}", 2, "end"),
    "ideographic selector behind a letter": ("a\U000e0100", 1, "end"),
    "ideographic selector alone": ("\U000e0100", 0, "beginning"),
    "Mongolian selector": ("a\u180bb", 1, "character 1"),
    "a tag alone": ("\U000e0067", 0, "beginning"),
    "tags behind another emoji": ("👩\U000e0067\U000e0062\U000e0065\U000e007f", 1, "character 1"),
    "tags without an end": (ENGLAND[:-1], 1, "character 1"),
    "too many tags": ("🏴" + "\U000e0061" * 20 + "\U000e007f", 1, "character 1"),
    "space first": (" alice", 0, "beginning"),
    "space last": ("alice ", 5, "end"),
    "space alone": (" ", 0, "beginning"),
    "no-break space first": ("\u00a0alice", 0, "beginning"),
    "no-break space last": ("alice\u00a0", 5, "end"),
    "ideographic space last": ("中\u3000", 1, "end"),
    "Hangul filler alone": ("\u3164", 0, "beginning"),
    "Hangul filler inside": ("a\u3164b", 1, "character 1"),
    "initial filler": ("\u115f", 0, "beginning"),
    "medial filler": ("한\u1160", 1, "end"),
    "halfwidth filler": ("alice\uffa0", 5, "end"),
    "braille blank alone": ("\u2800", 0, "beginning"),
    "braille blank last": ("⠓\u2800", 1, "end"),
    "null notehead": ("\U0001d159", 0, "beginning"),
    "grapheme joiner": ("a\u034fb", 1, "character 1"),
    "Khmer inherent vowel": ("ក\u17b4", 1, "end"),
    "soft hyphen": ("a\u00adb", 1, "character 1"),
    "zero width space": ("a\u200bb", 1, "character 1"),
    "byte order mark": ("\ufeffalice", 0, "beginning"),
    "word joiner": ("a\u2060b", 1, "character 1"),
    "what is kept free for more": ("a\U000e0fffb", 1, "character 1"),
    "an override": ("a\u202eb", 1, "character 1"),
}


@pytest.mark.parametrize("name", NAMES)
@virtual
async def test_names_are_taken_and_come_out_equal(name: str) -> None:
    named = NAMES[name]
    assert valid_id(named, "user_id") == named
    async with Chat() as chat, chat.subscribe(named) as subscription:
        await chat.join(named, named)
        sent = await chat.send_message(named, named, named, idempotency_key=named)
        assert await anext(subscription) == sent
        assert (sent.room_id, sent.user_id, sent.content) == (named, named, named)
        assert list(await chat.presence(named)) == [named]


@pytest.mark.parametrize("what", REFUSED)
def test_what_shows_nothing_where_it_stands_is_refused_with_what_it_is_and_where(what: str) -> None:
    value, place, where = REFUSED[what]
    with pytest.raises(InvalidMessage) as refusal:
        valid_id(value, "room_id")
    said = f"U+{ord(value[place]):04X} {unicodedata.name(value[place], '')}".rstrip()
    assert said in refusal.value.reason
    assert where in refusal.value.reason
    assert refusal.value.reason.startswith("room_id has the ")
    # What is said is said as it is.
    assert valid_content(value, 4096) == value


@virtual
async def test_two_ids_that_look_alike_are_two() -> None:
    alike = (f"می{ZWNJ}خواهم", "میخواهم"), ("é", "e\u0301"), ("a b", "a\u00a0b"), ("👩‍🚀", "👩🚀"), ("ﬁ", "fi")
    async with Chat() as chat:
        for first, second in alike:
            await chat.join(first, first)
            await chat.join(second, second)
            assert list(await chat.presence(first)) == [first]
            assert list(await chat.presence(second)) == [second]


invisible = st.sampled_from([ZWNJ, ZWJ, VS16, "\u3164", "\u2800", " ", "\u00a0", "\u034f", "\U000e0100", "\U000e0067"])
visible = st.sampled_from(["a", "1", "म", chr(0x94D), "ی", "د", "👩", "🏽", "❤", "葛", "ᠠ", "🏴", "\u20e3"])


@given(st.lists(invisible | visible, min_size=1, max_size=12).map("".join))
@example(ZWJ * 12)
def test_no_id_is_empty_to_the_eye_nor_begins_or_ends_in_what_is_not_seen(text: str) -> None:
    if misplaced(text) is not None:
        return
    assert re.fullmatch(r"[ \u00a0\u2800]*", text) is None
    assert text.strip(" \u00a0\u2800\u3164\u034f") == text
    assert text[0] not in (ZWNJ, ZWJ, VS16)
    for doubled in (ZWNJ + ZWNJ, ZWJ + ZWJ, ZWNJ + ZWJ, ZWJ + ZWNJ, VS16 + VS16):
        assert doubled not in text


@given(st.text(st.characters(exclude_categories=()), max_size=12))
def test_any_text_has_a_first_misplaced_character_or_none(text: str) -> None:
    found = misplaced(text)
    if found is not None:
        assert text[found[0]] not in "abc"


def test_the_joining_types_are_those_of_unicode() -> None:
    for pattern, types in ((JOINS_NEXT, "LD"), (JOINS_PREVIOUS, "RD")):
        ranges = [(each >> 32, each & 0xFFFFFFFF) for kind in types for each in idnadata.joining_types[kind]]
        known = {code for first, end in ranges for code in range(first, end)}
        assert {code for code in range(0x20000) if pattern.match(chr(code))} == known


def test_emoji_are_no_letters_digits_or_skin_tones() -> None:
    for text in "a1#é中م\U0001f3fd\U0001f1ee":
        assert EMOJI.match(text) is None
    for text in "❤👩🚀🏴🏳🌈☠♀⚕↔⬛🫠":
        assert EMOJI.match(text) is not None
