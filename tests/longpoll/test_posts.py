"""Bodies of posts, those of clients and those of strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.gateway.wire.excess import Excess
from chatx.gateway.wire.posts import MAX_POST_MESSAGES, MalformedPost, messages_of
from tests.longpoll.polling import NDJSON


@pytest.mark.parametrize(
    "kind, body, messages",
    [
        (NDJSON, b"[1]\n[2]", ["[1]", "[2]"]),
        (NDJSON, b'[1]\r\n{"a":"\xc3\xbc"}\r\n', ["[1]", '{"a":"ü"}']),
        (NDJSON, b"[1]\nAQID\n", ["[1]", b"\x01\x02\x03"]),
        ("Application/X-NDJSON ; charset=utf-8", b"[1]\n\n[2]", ["[1]", "[2]"]),
        (NDJSON, b"", []),
        ("application/json", b"[1]\n[2]", ["[1]\n[2]"]),
        ("", b"AQID", ["AQID"]),
        ("text/plain", b"", []),
        (NDJSON, b"[\xff]\n[2]", ["[\udcff]", "[2]"]),
    ],
)
def test_a_body_is_its_messages(kind: str, body: bytes, messages: list[str | bytes]) -> None:
    assert messages_of(kind, body) == messages


@pytest.mark.parametrize("line", [b" [1]", b"AQI", b"A-_D", b"A QID", b"=", b"\xff", b'"[1]"'])
def test_a_line_that_is_neither_json_nor_base64_makes_the_whole_post_malformed(line: bytes) -> None:
    with pytest.raises(MalformedPost):
        messages_of(NDJSON, b"[1]\n" + line)


@pytest.mark.parametrize("line", [b"[]", b"AQID", b""])
def test_lines_are_counted_before_they_are_looked_at(line: bytes) -> None:
    if line:
        assert len(messages_of(NDJSON, b"\n".join([line] * MAX_POST_MESSAGES))) == MAX_POST_MESSAGES
        assert len(messages_of(NDJSON, (line + b"\n") * MAX_POST_MESSAGES)) == MAX_POST_MESSAGES
    with pytest.raises(Excess):
        messages_of(NDJSON, (line + b"\n") * MAX_POST_MESSAGES + b"x")
    with pytest.raises(Excess):
        messages_of(NDJSON, (line + b"\n") * 100_000)


@given(st.binary(max_size=400), st.sampled_from([NDJSON, "application/json", "x"]))
def test_no_body_raises_anything_else(body: bytes, kind: str) -> None:
    try:
        messages = messages_of(kind, body)
    except (Excess, MalformedPost):
        return
    assert len(messages) <= MAX_POST_MESSAGES
