"""Payloads: what clients may send, the replies to what they may not, and presence as phoenix.js reads it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.core.message import PresenceMeta
from chatx.errors import ERRORS, ChatError, InvalidMessage, RateLimited
from chatx.gateway.wire.payloads import (
    History,
    NewMessage,
    Resume,
    StreamPosition,
    error_response,
    parse,
    presence_diff,
    presence_state,
)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(value if isinstance(value, bytes) else msgspec.json.encode(value))


def builtins(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@given(content=st.text(), key=st.none() | st.text())
def test_a_new_message_comes_out_equal(content: str, key: str | None) -> None:
    assert parse(raw({"content": content, "key": key}), NewMessage) == NewMessage(content, key)


def test_unknown_fields_are_ignored() -> None:
    assert parse(raw({"content": "hi", "colour": {"r": [1]}}), NewMessage) == NewMessage("hi")


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"content": 1},
        {"content": None},
        {"content": "x", "key": 1},
        {"content": "x", "epoch": 1},
        {"content": "x", "epoch": ""},
        {"content": "x", "epoch": "e" * 129},
        None,
        [],
        "x",
        b'{"content":"\xff"}',
        b'{"content":"\\ud800"}',
        b'{"content":"x","deep":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b"{",
        b"",
    ],
)
def test_a_bad_new_message_is_an_invalid_message_that_says_what_to_send(payload: Any) -> None:
    with pytest.raises(
        InvalidMessage, match=r"payload is not valid: .+ Send an object with content, key, data, epoch\."
    ):
        parse(raw(payload), NewMessage)


def test_a_refused_payload_is_not_quoted() -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse(raw(b'{"content":"secret\xff"}'), NewMessage)
    assert "secret" not in caught.value.reason
    assert "xff" not in caught.value.reason


@pytest.mark.parametrize(
    "payload",
    [{}, None, {"epoch": None, "offset": None}, {"token": "x"}],
)
def test_a_join_without_a_position_is_fresh(payload: Any) -> None:
    assert parse(raw(payload), Resume).position is None


@pytest.mark.parametrize("offset", [0, 1, 2**53 - 1])
def test_a_join_with_a_position_resumes_from_it(offset: int) -> None:
    position = parse(raw({"epoch": "e", "offset": offset}), Resume).position
    assert position == StreamPosition("e", offset)


@pytest.mark.parametrize(
    "payload",
    [
        {"epoch": "e"},
        {"offset": 1},
        {"epoch": "e", "offset": None},
        {"epoch": None, "offset": 0},
        {"epoch": "e", "offset": -1},
        {"epoch": "e", "offset": 2**53},
        {"epoch": "e", "offset": "1"},
        {"epoch": "e", "offset": 1.5},
        {"epoch": "e", "offset": True},
        {"epoch": 1, "offset": 1},
        {"epoch": "e" * 129, "offset": 1},
        b'{"epoch":"e","offset":' + b"9" * 5000 + b"}",
    ],
)
def test_half_a_position_or_a_bad_one_is_refused_and_never_taken_for_fresh(payload: Any) -> None:
    with pytest.raises(InvalidMessage, match="epoch, offset"):
        parse(raw(payload), Resume)


@pytest.mark.parametrize("payload", [{}, None])
def test_history_defaults_to_the_newest_fifty(payload: Any) -> None:
    assert parse(raw(payload), History) == History(limit=50, before=None)


@pytest.mark.parametrize("limit", [1, 200])
def test_history_takes_a_limit_and_a_place(limit: int) -> None:
    payload = {"limit": limit, "before": {"epoch": "e", "offset": 7}}
    assert parse(raw(payload), History) == History(limit, StreamPosition("e", 7))


@pytest.mark.parametrize(
    "payload",
    [{"limit": 0}, {"limit": 201}, {"limit": None}, {"before": {"epoch": "e"}}, {"before": {"offset": 1}}],
)
def test_history_out_of_bounds_is_refused(payload: Any) -> None:
    with pytest.raises(InvalidMessage, match="limit, before"):
        parse(raw(payload), History)


@pytest.mark.parametrize("kind", ERRORS.values(), ids=str)
def test_an_error_response_carries_the_code_and_no_delay_where_none_is_known(kind: type[ChatError]) -> None:
    assert builtins(error_response(kind("because"))) == {
        "code": kind.code,
        "reason": "because",
        "retryable": kind.retryable,
    }


@pytest.mark.parametrize("seconds, ms", [(0.0, 0), (0.1, 100), (0.1001, 101), (1e-9, 1), (2.0, 2000)])
def test_retry_after_becomes_milliseconds_rounded_up(seconds: float, ms: int) -> None:
    assert builtins(error_response(RateLimited(retry_after=seconds)))["retry_after_ms"] == ms


def test_presence_state_has_metas_with_phx_ref() -> None:
    state = {"alice": [PresenceMeta("r1", 1), PresenceMeta("r2", 2)], "__proto__": [PresenceMeta("r3", 3)]}
    assert builtins(presence_state(state)) == {
        "alice": {"metas": [{"phx_ref": "r1", "online_at": 1}, {"phx_ref": "r2", "online_at": 2}]},
        "__proto__": {"metas": [{"phx_ref": "r3", "online_at": 3}]},
    }


def test_presence_diff_has_joins_and_leaves_even_where_empty() -> None:
    assert builtins(presence_diff({"a": [PresenceMeta("r1", 1)]}, {})) == {
        "joins": {"a": {"metas": [{"phx_ref": "r1", "online_at": 1}]}},
        "leaves": {},
    }
