"""What the document says a client may send, held against what the gateway takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from chatx.core.validation import valid_content, valid_id
from chatx.errors import InvalidMessage
from chatx.gateway.wire.frames import MalformedFrame, Version, decode
from chatx.gateway.wire.payloads import AccessToken, History, NewMessage, Resume, parse
from tests.gateway.described import DOCUMENT, FROM_CLIENTS, matches, validator

_SCHEMAS: dict[type[msgspec.Struct], Draft7Validator] = {
    kind: validator("schemas", kind.__name__) for kind in (AccessToken, History, NewMessage, Resume)
}

# No 1.0: to JSON Schema it is an integer, and the gateway wants integers written without a fraction.
_scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 50, 200, 201, 2**53 - 1, 2**53, -(2**53), 2**70])
    | st.sampled_from([0.5, -1.5, 1e300])
    | st.text(max_size=3)
    | st.sampled_from(["e" * 128, "e" * 129, "\u00e9" * 128, "t" * 8192, "t" * 8193])
)
_positions = st.fixed_dictionaries({}, optional={"epoch": _scalars, "offset": _scalars})
_anything = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
_names = ("content", "key", "limit", "token", "epoch", "offset")
_payloads = _anything | st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(_names, _scalars), "before": _positions | _anything, "unknown": _anything}
)


def taken(kind: type[msgspec.Struct], payload: Any) -> bool:
    try:
        parse(msgspec.Raw(msgspec.json.encode(payload)), kind)
    except InvalidMessage:
        return False
    return True


@pytest.mark.parametrize("kind", [AccessToken, History, Resume], ids=lambda kind: kind.__name__)
@given(payload=_payloads)
@example(payload={"epoch": None, "offset": None})
@example(payload={"epoch": None})
@example(payload={"epoch": "e", "offset": None})
@example(payload={"epoch": "e"})
@example(payload={"epoch": "e", "offset": 2**53 - 1})
@example(payload={"before": {"epoch": "e", "offset": 0}, "limit": 200})
@example(payload={"before": {"epoch": "e"}})
@example(payload={"token": "t" * 8192})
@example(payload={"token": "t" * 8193})
def test_a_payload_is_taken_if_and_only_if_its_schema_says_so(kind: type[msgspec.Struct], payload: Any) -> None:
    assert taken(kind, payload) is _SCHEMAS[kind].is_valid(payload)


@given(
    payload=_payloads
    | st.fixed_dictionaries(
        {"content": st.text()}, optional={"key": st.none() | st.text(), "epoch": st.none() | st.text()}
    )
)
@example(payload={"content": "x", "key": "k" * 129})
@example(payload={"content": ""})
@example(payload={"content": "x", "epoch": ""})
@example(payload={"content": "x", "epoch": "e" * 129})
def test_a_message_that_the_schema_refuses_is_refused_and_one_it_accepts_is_well_formed(payload: Any) -> None:
    accepted = _SCHEMAS[NewMessage].is_valid(payload)
    if taken(NewMessage, payload) is accepted:
        return
    # Bounds that the decoder leaves to the engine.
    assert not accepted
    with pytest.raises(InvalidMessage):
        valid_content(payload["content"], 65_536)
        valid_id(payload["key"], "key")


_refs = (
    st.none() | st.integers(-(2**54), 2**54) | st.text(max_size=2) | st.sampled_from(["r" * 255, "r" * 256]) | _scalars
)
_topics = st.sampled_from(["room:a", "room:" + "a" * 128, "room:\u00e9", "phoenix"])
_events = st.sampled_from(["phx_join", "phx_leave", "new_message", "history", "access_token", "heartbeat"])
_bodies: st.SearchStrategy[Any] = (
    st.fixed_dictionaries({"content": st.just("x"), "token": st.just("t")}) | st.just({}) | _anything
)


@st.composite
def _frames(draw: st.DrawFn, version: Version) -> Any:
    """A frame of the version, or nearly so."""
    fields = {
        "join_ref": draw(_refs),
        "ref": draw(_refs),
        "topic": draw(_topics | _scalars),
        "event": draw(_events | _scalars),
        "payload": draw(_bodies),
        "more": draw(_anything),
    }
    left_out = draw(st.sets(st.sampled_from(sorted(fields)), max_size=2) | st.just({"more"}))
    kept = {name: value for name, value in fields.items() if name not in left_out}
    return list(kept.values()) if version == 2 else kept


@pytest.mark.parametrize("version", [1, 2])
@given(data=st.data())
def test_a_frame_that_the_document_knows_is_one_to_the_gateway(version: Version, data: st.DataObject) -> None:
    frame = data.draw(_frames(version))
    names = matches(frame, FROM_CLIENTS)
    text = msgspec.json.encode(frame).decode()
    try:
        decode(version, text)
    except MalformedFrame:
        assert names == []
    else:
        assert len(names) <= 1


@pytest.mark.parametrize("version", [1, 2])
@given(
    join_ref=st.none() | st.text(max_size=255) | st.integers(1 - 2**53, 2**53 - 1),
    ref=st.none() | st.text(max_size=255) | st.integers(1 - 2**53, 2**53 - 1),
    topic=_topics,
    event=_events,
)
def test_whatever_refs_the_gateway_takes_the_document_knows(
    version: Version, join_ref: Any, ref: Any, topic: str, event: str
) -> None:
    payload = {"content": "x", "token": "t"}
    frame: Any = [join_ref, ref, topic, event, payload]
    if version == 1:
        frame = dict(zip(("join_ref", "ref", "topic", "event", "payload"), frame, strict=True))
    decode(version, msgspec.json.encode(frame).decode())
    assert len(matches(frame, FROM_CLIENTS)) == ((topic == "phoenix") is (event == "heartbeat"))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("left_out", ["ref", "topic", "event", "payload", "join_ref"])
def test_a_frame_without_one_of_its_parts_is_none(version: Version, left_out: str) -> None:
    fields = {"join_ref": "1", "ref": "1", "topic": "room:a", "event": "phx_leave", "payload": {}}
    assert matches(list(fields.values()) if version == 2 else fields, FROM_CLIENTS) == ["leave"]
    del fields[left_out]
    frame: Any = list(fields.values()) if version == 2 else fields

    if version == 1 and left_out == "payload":
        # What the document asks of a client is more than the gateway insists on.
        decode(version, msgspec.json.encode(frame).decode())
        assert matches(frame, FROM_CLIENTS) == []
        return
    if version == 1 and left_out == "join_ref":
        decode(version, msgspec.json.encode(frame).decode())
        assert matches(frame, FROM_CLIENTS) == ["leave"]
        return
    with pytest.raises(MalformedFrame):
        decode(version, msgspec.json.encode(frame).decode())
    assert matches(frame, FROM_CLIENTS) == []


def test_the_types_that_clients_send_are_those_that_are_tried_here() -> None:
    used = {
        reference["$ref"].rpartition("/")[2]
        for name in FROM_CLIENTS
        for reference in [DOCUMENT["components"]["messages"][name]["payload"]["oneOf"][0]["items"][4]]
    }
    assert used == {kind.__name__ for kind in _SCHEMAS} | {"Ignored"}
