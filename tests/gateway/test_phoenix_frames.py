"""The codec: what Phoenix's own serializer tests ask of versions 1 and 2, and hostile input."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.gateway.wire.frames import (
    Frame,
    MalformedFrame,
    Misaddressed,
    UnreadableFrame,
    Version,
    decode,
    encode_broadcast,
    encode_frame,
    encode_reply,
    negotiate,
)
from tests.gateway.phoenix_peer import raw_frame

both = pytest.mark.parametrize("version", [1, 2])


class Body(msgspec.Struct):
    m: int


@pytest.mark.parametrize(
    "vsn, version", [(None, 1), ("1.0.0", 1), ("1.0.7", 1), ("2.0.0", 2), ("2.0.12", 2), ("2.0.0+x", 2)]
)
def test_negotiate_accepts_any_patch_and_takes_a_missing_version_for_1(vsn: str | None, version: Version) -> None:
    assert negotiate(vsn) == version


@pytest.mark.parametrize(
    "vsn",
    [
        "",
        "2",
        "2.0",
        "2.1.0",
        "3.0.0",
        "123.1.1",
        "02.0.0",
        "2.0.0-rc.1",
        "2.0.0\n",
        "2.0.00",
        "².0.0",
        "x" * 999,
    ],
)
def test_negotiate_refuses_every_other_version_and_says_what_to_do(vsn: str) -> None:
    with pytest.raises(ValueError, match=r"expected 1\.0\.x or 2\.0\.x\. Connect with vsn=2\.0\.0") as caught:
        negotiate(vsn)
    assert len(str(caught.value)) < 200


def test_v2_encodes_a_frame_as_an_array() -> None:
    assert encode_frame(2, None, None, "t", "e", {"m": 1}) == '[null,null,"t","e",{"m":1}]'
    assert encode_frame(2, "1", "2", "t", "e", {}) == '["1","2","t","e",{}]'


def test_v1_encodes_a_frame_as_an_object_without_join_ref() -> None:
    assert json.loads(encode_frame(1, "1", "2", "t", "e", {"m": 1})) == {
        "topic": "t",
        "event": "e",
        "payload": {"m": 1},
        "ref": "2",
    }


def test_v2_encodes_a_reply() -> None:
    text = encode_reply(2, "1", "2", "t", "ok", {"m": 1})
    assert json.loads(text) == ["1", "2", "t", "phx_reply", {"status": "ok", "response": {"m": 1}}]


def test_v1_encodes_a_reply_without_join_ref() -> None:
    text = encode_reply(1, "1", "null", "t", "error", {})
    assert json.loads(text) == {
        "topic": "t",
        "event": "phx_reply",
        "payload": {"status": "error", "response": {}},
        "ref": "null",
    }


def test_a_broadcast_has_null_refs() -> None:
    assert encode_broadcast(2, "t", "e", {"m": 1}) == '[null,null,"t","e",{"m":1}]'
    assert json.loads(encode_broadcast(1, "t", "e", {"m": 1})) == {
        "topic": "t",
        "event": "e",
        "payload": {"m": 1},
        "ref": None,
    }


@both
def test_a_payload_may_be_a_dict_a_struct_or_json(version: Version) -> None:
    texts = {encode_broadcast(version, "t", "e", payload) for payload in ({"m": 1}, Body(1), b'{"m":1}')}
    assert len(texts) == 1


@both
@pytest.mark.parametrize("payload", ["invalid", None, [1], b"null", b"", 1])
def test_a_payload_that_is_no_object_is_refused(version: Version, payload: Any) -> None:
    with pytest.raises(TypeError, match="payload"):
        encode_broadcast(version, "t", "e", payload)


@both
def test_a_response_may_be_json_already(version: Version) -> None:
    assert encode_reply(version, "1", "2", "t", "ok", b'{"m":1}') == encode_reply(
        version, "1", "2", "t", "ok", {"m": 1}
    )


@both
def test_decodes_every_field(version: Version) -> None:
    frame = decode(version, raw_frame(version, "11", "2", "t", "e", {"m": 1}))
    assert (frame.join_ref, frame.ref, frame.topic, frame.event) == ("11", "2", "t", "e")
    assert bytes(memoryview(frame.payload)) == b'{"m":1}'
    assert type(frame) is Frame


def test_v2_ignores_elements_beyond_the_fifth() -> None:
    assert decode(2, '[null,"1","t","e",{},6,[7]]').topic == "t"


def test_v1_ignores_unknown_fields_and_takes_a_missing_join_ref_for_null() -> None:
    frame = decode(1, '{"topic":"t","event":"e","payload":{},"ref":"1","x":[1]}')
    assert (frame.join_ref, frame.ref) == (None, "1")


def test_v1_takes_a_missing_payload_for_null() -> None:
    frame = decode(1, '{"topic":"t","event":"e","ref":"1"}')
    assert (type(frame), frame.payload) == (Frame, msgspec.Raw(b"null"))


@pytest.mark.parametrize("missing", ["topic", "event", "ref"])
def test_v1_needs_its_other_fields(missing: str) -> None:
    fields = {"topic": "t", "event": "e", "payload": {}, "ref": "1"}
    del fields[missing]
    with pytest.raises(MalformedFrame, match=missing):
        decode(1, json.dumps(fields))


def test_a_version_does_not_read_the_other() -> None:
    with pytest.raises(MalformedFrame, match=r"frame of version 2; connect with \?vsn=2\.0\.0"):
        decode(1, '[null,null,"t","e",{"m":1}]')
    with pytest.raises(MalformedFrame, match=r"frame of version 1; connect with \?vsn=1\.0\.0"):
        decode(2, '{"topic":"t","event":"e","payload":{},"ref":null}')


def test_v1_reads_a_binary_message_as_json() -> None:
    assert decode(1, b'{"topic":"t","event":"e","payload":{},"ref":"1"}').ref == "1"


@both
@pytest.mark.parametrize("ref", [7, 0, -1, 2**53 - 1, "7", "", "x" * 255, None])
def test_a_ref_keeps_its_type_and_value(version: Version, ref: Any) -> None:
    frame = decode(version, raw_frame(version, ref, ref, "t", "e"))
    assert (frame.join_ref, type(frame.join_ref)) == (ref, type(ref))
    assert (frame.ref, type(frame.ref)) == (ref, type(ref))


@both
@pytest.mark.parametrize("ref", [1.5, True, [], {}, 2**53, -(2**53), "x" * 256])
def test_a_ref_of_another_type_or_size_is_malformed(version: Version, ref: Any) -> None:
    with pytest.raises(MalformedFrame):
        decode(version, raw_frame(version, None, ref, "t", "e"))
    with pytest.raises(MalformedFrame):
        decode(version, raw_frame(version, ref, "1", "t", "e"))


def test_v2_reads_a_binary_push() -> None:
    frame = decode(2, b"\x00\x02\x03\x05\x0512123topiceventefg")
    assert (frame.join_ref, frame.ref, frame.topic, frame.event) == ("12", "123", "topic", "event")
    assert isinstance(frame, UnreadableFrame)
    assert frame.binary


def test_v2_binary_push_has_empty_refs_for_null() -> None:
    frame = decode(2, b"\x00\x00\x00\x01\x01te")
    assert (frame.join_ref, frame.ref, frame.topic, frame.event) == (None, None, "t", "e")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00\x00\x00\x00",
        b"\x01\x02\x03\x05\x0212123topicokefg",
        b"\x02\x05\x05topiceventefg",
        b"\x00\x00\x00\x05\x00topi",
        b"\x00\xff\xff\xff\xff" + b"x" * 1019,
        b"\x00\x00\x00\x01\x01\xffe",
        b"[null,null,null]",
    ],
)
def test_v2_any_other_binary_message_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode(2, data)


UNREADABLE = {
    "high half": '{"content":"cut \\ud83d"}',
    "high half amid text": '{"content":"cut \\ud83d here"}',
    "low half": '{"content":"\\uDE00"}',
    "halves in the wrong order": '{"content":"\\ude00\\ud83d"}',
    "half in a key": '{"\\ud83d":1}',
    "half itself": '{"content":"\ud83d"}',
    "NaN": '{"content":NaN}',
    "bare NaN": "NaN",
    "Infinity": '{"content":-Infinity}',
    "bare word": '{"content":undefined}',
    "control character": '{"content":"a\x01b"}',
    "newline in a text": '{"content":"a\nb"}',
    "unknown escape": '{"content":"\\x41"}',
    "single quotes": "{'content':'x'}",
    "trailing comma": '{"content":"x",}',
    "comment": '{"content":"x"/**/}',
    "leading zero": '{"n":01}',
    "hexadecimal": '{"n":0x1}',
    "deep arrays": '{"x":' + "[" * 30_000 + "]" * 30_000 + "}",
    "deep objects": '{"":' * 12_500 + "1" + "}" * 12_500,
    "wrong bracket": '{"content":["x"}',
}


@both
@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("ref", ["2", 7, None, 'q"\\', "]}"])
def test_of_a_frame_whose_payload_cannot_be_read_the_envelope_can(version: Version, payload: str, ref: Any) -> None:
    text = raw_frame(version, "1", ref, "room:é,:", 'new"message', {"x": 1})
    frame = decode(version, text.replace('{"x":1}', payload))
    assert isinstance(frame, UnreadableFrame)
    assert (frame.join_ref, frame.ref, frame.topic, frame.event) == ("1", ref, "room:é,:", 'new"message')
    assert frame.problem
    assert len(frame.problem) < 200


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("place", range(5))
def test_the_payload_of_a_version_1_frame_may_stand_anywhere(payload: str, place: int) -> None:
    parts = ['"topic" : "t"', '"event":"e"', '"ref":"2"', '"x":null']
    parts.insert(place, f' "payload" : {payload}')
    frame = decode(1, "{" + ",".join(parts) + "}")
    assert isinstance(frame, UnreadableFrame)
    assert (frame.join_ref, frame.ref, frame.topic, frame.event) == (None, "2", "t", "e")


def test_what_stands_in_a_payload_is_no_part_of_the_envelope() -> None:
    inner = '{"a":NaN,"topic":"room:evil","ref":"666"}'
    frame = decode(1, f'{{"topic":"t","event":"e","ref":"2","payload":{inner}}}')
    assert (frame.topic, frame.ref) == ("t", "2")
    text = r'{"a":NaN,"b":",\"topic\":\"room:evil\",\"ref\":\"666\"}"}'
    frame = decode(1, f'{{"topic":"t","event":"e","payload":{text},"ref":"2"}}')
    assert (frame.topic, frame.ref) == ("t", "2")


@pytest.mark.parametrize(
    "tail", ["", "x", '{"content":"x"', '{"content":"x"}', '{"content":"x"}]]', '{"content":"x"},', "]"]
)
def test_a_version_2_frame_that_breaks_off_in_its_payload_can_be_answered(tail: str) -> None:
    frame = decode(2, f'["1","2","room:a","new_message",{tail}')
    assert isinstance(frame, UnreadableFrame)
    assert (frame.join_ref, frame.ref, frame.topic, frame.event) == ("1", "2", "room:a", "new_message")


@pytest.mark.parametrize("where, answered", [(0, (None, "2", "t")), (2, ("1", "2", "phoenix")), (3, ("1", "2", "t"))])
@pytest.mark.parametrize("odd", [1.5, True, [], {"a": 1}, 10**30, "\ud83d"])
@both
def test_a_frame_with_one_part_that_cannot_be_read_is_answered_by_its_ref(
    version: Version, odd: Any, where: int, answered: tuple[Any, Any, str]
) -> None:
    parts: list[Any] = ["1", "2", "t", "e", {}]
    parts[where] = odd
    frame: Any = (
        parts if version == 2 else dict(zip(("join_ref", "ref", "topic", "event", "payload"), parts, strict=True))
    )
    with pytest.raises(Misaddressed) as caught:
        decode(version, json.dumps(frame))
    assert (caught.value.join_ref, caught.value.ref, caught.value.topic) == answered


def test_a_binary_push_with_a_text_that_is_not_utf_8_is_answered_by_its_ref() -> None:
    with pytest.raises(Misaddressed) as caught:
        decode(2, b"\x00\x01\x01\x01\x0112\xffe")
    assert (caught.value.join_ref, caught.value.ref, caught.value.topic) == ("1", "2", "phoenix")
    with pytest.raises(MalformedFrame) as malformed:
        decode(2, b"\x00\x01\x01\x01\x011\xffte")
    assert type(malformed.value) is MalformedFrame


@both
@pytest.mark.parametrize("value", ['"\\ud800"', '"\\uDFFF"'])
def test_half_a_surrogate_pair_is_named(version: Version, value: str) -> None:
    frame = decode(version, raw_frame(version, None, "1", "t", "e", {"x": 1}).replace("1}", value + "}"))
    assert isinstance(frame, UnreadableFrame)
    assert "half a surrogate pair" in frame.problem


@both
def test_a_whole_surrogate_pair_is_fine_beside_another_fault(version: Version) -> None:
    payload = '{"a":"\\ud83d\\ude00","b":NaN}'
    frame = decode(version, raw_frame(version, None, "1", "t", "e", {"x": 1}).replace('{"x":1}', payload))
    assert isinstance(frame, UnreadableFrame)
    assert "invalid character" in frame.problem


@both
def test_a_lone_surrogate_in_the_topic_is_not_quoted(version: Version) -> None:
    with pytest.raises(Misaddressed, match="not valid Unicode") as caught:
        decode(version, raw_frame(version, None, "1", "t", "e").replace('"t"', '"\udce9"'))
    assert "udce9" not in str(caught.value)


@both
@pytest.mark.parametrize("data", [None, *(opening * 21_000 for opening in ('["', '{"a":', "[1,", '","', '"ref":1,'))])
def test_what_is_no_frame_at_all_is_malformed(version: Version, data: str | None) -> None:
    text = data if data is not None else raw_frame(3 - version, "1", "2", "t", "e")  # type: ignore[arg-type]  # the other
    with pytest.raises(MalformedFrame) as caught:
        decode(version, text)
    assert type(caught.value) is MalformedFrame


@given(
    version=st.sampled_from([1, 2]),
    refs=st.tuples(*[st.none() | st.text(max_size=255) | st.integers(-(2**53) + 1, 2**53 - 1)] * 2),
    topic=st.text(),
    event=st.text(),
    payload=st.dictionaries(st.text(), st.text() | st.integers(-(2**63), 2**64 - 1) | st.none()),
)
def test_what_is_encoded_decodes_to_the_same(
    version: Version, refs: tuple[Any, Any], topic: str, event: str, payload: dict[str, Any]
) -> None:
    frame = decode(version, encode_frame(version, refs[0], refs[1], topic, event, payload))
    assert (frame.ref, frame.topic, frame.event) == (refs[1], topic, event)
    assert frame.join_ref == (refs[0] if version == 2 else None)
    assert msgspec.json.decode(frame.payload) == payload


@given(
    join_ref=st.text(max_size=60),
    ref=st.text(max_size=60),
    topic=st.text(max_size=60),
    event=st.text(max_size=60),
    payload=st.binary(),
)
def test_any_binary_push_decodes_to_its_header(join_ref: str, ref: str, topic: str, event: str, payload: bytes) -> None:
    parts = [part.encode() for part in (join_ref, ref, topic, event)]
    frame = decode(2, bytes([0, *map(len, parts)]) + b"".join(parts) + payload)
    assert (frame.join_ref or "", frame.ref or "", frame.topic, frame.event) == (join_ref, ref, topic, event)
    assert isinstance(frame, UnreadableFrame)
    assert frame.binary


@given(version=st.sampled_from([1, 2]), data=st.text(alphabet=st.characters()) | st.binary())
def test_arbitrary_input_decodes_or_is_malformed(version: Version, data: str | bytes) -> None:
    with suppress(MalformedFrame):
        assert isinstance(decode(version, data), Frame)
