"""Content and ids: accepted and equal, or refused with the right code; nothing else."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatx import Chat, ChatError, InvalidMessage, Message, MessageTooLarge
from chatx.core.invisible import misplaced
from chatx.core.validation import ID_LIMIT, valid_content, valid_id
from chatx.testing import run_virtual

LIMIT = 64

# Every code point, surrogates too: half the interesting inputs are not text at all.
any_text = st.text(st.characters(exclude_categories=()), max_size=LIMIT + 6)
any_bytes = st.binary(max_size=LIMIT + 6)
utf8 = any_text.map(lambda text: text.encode("utf-8", "surrogatepass"))
any_content = st.one_of(any_text, any_bytes, utf8)


def as_text(content: str | bytes) -> str | None:
    """Return what the content says, or None where it is not text."""
    try:
        return content.encode().decode() if isinstance(content, str) else content.decode()
    except UnicodeError:
        return None


# What `content_code` says -> the codes that are right.
REFUSALS: dict[str | None, tuple[str | None, ...]] = {
    None: (None,),
    "invalid_message": ("invalid_message",),
    "message_too_large": ("message_too_large",),
    "either": ("invalid_message", "message_too_large"),
}


def outcome(function: Callable[..., str], *args: object) -> tuple[str | None, str | None]:
    """Return (what it accepted, None), or (None, the code of its refusal)."""
    try:
        return function(*args), None
    except ChatError as refusal:
        return None, refusal.code


def content_code(content: str | bytes, limit: int) -> str | None:
    """Return the code that must refuse the content, or None where it must be accepted: the rules once more."""
    size = len(content) if isinstance(content, bytes) else len(content.encode("utf-8", "surrogatepass"))
    text = as_text(content)
    if text is None:
        # Both are true of a text that is too large and not well-formed; either code is right.
        return "invalid_message" if size <= limit else "either"
    if size > limit:
        return "message_too_large"
    controls = [each for each in text if unicodedata.category(each) == "Cc" and each not in "\n\r\t"]
    return "invalid_message" if controls or not text else None


@given(any_content)
@example("")
@example(b"")
@example("\ud800" * LIMIT)
@example("\ufeffhi")
@example(b"\xef\xbb\xbfhi")
@example("e\u0301 \u202e \x85")
@example("e\u0301 \u202e \u2028\t\r\n")
@example("é" * (LIMIT // 2))
@example("é" * (LIMIT // 2) + "x")
@example("x" * LIMIT)
@example(b"\xed\xa0\x80")
def test_content_is_accepted_and_equal_or_refused_with_its_code(content: str | bytes) -> None:
    accepted, code = outcome(valid_content, content, LIMIT)
    assert code in REFUSALS[content_code(content, LIMIT)]
    if code is None:
        assert type(accepted) is str
        assert accepted == as_text(content)


@given(any_text | st.text(max_size=4).map(lambda text: text * 40))
@example("")
@example("x" * ID_LIMIT)
@example("x" * (ID_LIMIT + 1))
@example("é" * (ID_LIMIT // 2 + 1))
@example("a\u200bb")
@example("a\u202eb")
@example("a\u2028b")
@example("a\nb")
@example("a\u00a0b c")
@example("a b")
@example(" a")
@example("a ")
@example(" ")
def test_ids_are_accepted_unchanged_or_invalid(value: str) -> None:
    text = as_text(value)
    fine = text is not None and 1 <= len(text.encode()) <= ID_LIMIT and misplaced(text) is None
    accepted, code = outcome(valid_id, value, "room_id")
    assert code == (None if fine else "invalid_message")
    assert accepted == (value if fine else None)


@pytest.mark.parametrize("value", [None, 1, 1.5, True, ["a"], bytearray(b"a"), memoryview(b"a"), object()])
def test_other_types_are_invalid_as_content_and_as_ids(value: Any) -> None:
    with pytest.raises(InvalidMessage, match=type(value).__name__):
        valid_content(value, LIMIT)
    with pytest.raises(InvalidMessage, match=type(value).__name__):
        valid_id(value, "user_id")


def test_bytes_are_content_but_no_id() -> None:
    assert valid_content("é".encode(), LIMIT) == "é"
    with pytest.raises(InvalidMessage, match="bytes"):
        valid_id(b"alice", "user_id")


def test_a_subclass_of_str_goes_on_as_plain_text() -> None:
    class Loud(str):
        def __str__(self) -> str:
            return "something else"

    assert type(valid_content(Loud("hi"), LIMIT)) is str
    assert valid_content(Loud("hi"), LIMIT) == "hi"
    assert type(valid_id(Loud("hi"), "user_id")) is str


def test_a_refusal_says_where_and_what_to_do() -> None:
    with pytest.raises(InvalidMessage, match=r"U\+0007 at character 2.*newline, return and tab"):
        valid_content("hi\x07", LIMIT)
    with pytest.raises(MessageTooLarge, match=r"65 bytes.*limit is 64.*shorten"):
        valid_content("x" * 65, LIMIT)
    with pytest.raises(InvalidMessage, match="byte 1"):
        valid_content(b"h\xff", LIMIT)


def test_a_huge_text_is_refused_without_being_encoded() -> None:
    class Unencodable(str):
        def encode(self, *_: Any) -> bytes:
            raise AssertionError("it was encoded")

    with pytest.raises(MessageTooLarge, match="at least"):
        valid_content(Unencodable("é" * (LIMIT + 1)), LIMIT)


@given(st.lists(any_content, min_size=1, max_size=12), any_text, any_text)
def test_every_input_through_a_chat_comes_out_equal_everywhere_or_is_refused(
    contents: list[str | bytes], room_id: str, user_id: str
) -> None:
    async def main() -> None:
        chat = Chat(message_size_limit=LIMIT, middlewares=())
        async with chat:
            called: list[Any] = []
            room = room_id if id_is_fine(room_id) else "general"
            async with chat.subscribe(room) as first, chat.subscribe(room) as second:
                async with chat.subscribe_callback(room, called.append):
                    accepted = []
                    for content in contents:
                        code = message = None
                        try:
                            message = await chat.send_message(room_id, user_id, content)
                        except ChatError as refusal:
                            code = refusal.code
                        fine = id_is_fine(room_id) and id_is_fine(user_id)
                        assert code in REFUSALS[content_code(content, LIMIT) if fine else "invalid_message"]
                        if message is not None:
                            assert (message.room_id, message.user_id) == (room_id, user_id)
                            assert message.content == as_text(content)
                            accepted.append(message)
                seen = [[await anext(each) for _ in accepted] for each in (first, second)]
                assert first.unread == second.unread == 0
            assert seen == [accepted, accepted]
            assert called == accepted
            assert await chat.history(room, limit=100) == accepted

    run_virtual(main())


def id_is_fine(value: str) -> bool:
    try:
        valid_id(value, "id")
    except InvalidMessage:
        return False
    return True


@given(any_text)
@example("")
@example("\ud800")
def test_every_call_refuses_the_same_ids(value: str) -> None:
    async def main() -> None:
        async with Chat() as chat:
            refused = 0
            calls = (
                lambda: chat.join(value, "alice"),
                lambda: chat.join("general", value),
                lambda: chat.leave(value, "alice"),
                lambda: chat.leave("general", value),
                lambda: chat.presence(value),
                lambda: chat.history(value),
                lambda: chat.send_message("general", "alice", "hi", idempotency_key=value),
                lambda: chat.subscribe(value).__aenter__(),
                lambda: chat.subscribe("general", user_id=value).__aenter__(),
                lambda: chat.subscribe_callback(value, print).__aenter__(),
                lambda: chat.connect(value).__aenter__(),
            )
            for call in calls:
                try:
                    await call()
                except InvalidMessage:
                    refused += 1
            assert refused == (0 if id_is_fine(value) else len(calls))

    run_virtual(main())


@given(any_content)
def test_a_message_equals_what_was_sent_after_a_middleware_too(content: str | bytes) -> None:
    """A message is validated once more only where a middleware changed it."""

    async def main() -> Message | None:
        async with Chat(message_size_limit=LIMIT, middlewares=(lambda draft: draft,)) as chat:
            try:
                return await chat.send_message("general", "alice", content)
            except (InvalidMessage, MessageTooLarge):
                return None

    message = run_virtual(main())
    assert (message is None) == (content_code(content, LIMIT) is not None)
    if message is not None:
        assert message.content == as_text(content)
