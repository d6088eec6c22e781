"""Phoenix Channels frames, versions 1 and 2: what is on the wire on one side, `Frame` on the other.

A version 2 frame is the array `[join_ref, ref, topic, event, payload]`, a version 1 frame an object of the
same names, which the server writes without `join_ref`. Version 2 also knows a binary push, whose payload is
opaque bytes. Source: Phoenix's guide "Writing a Channels Client" and its V1 and V2 JSON serializers.

Payloads stay undecoded (`msgspec.Raw`) until somebody asks for a type, so a frame is parsed once and what is
dropped is never built. A payload that cannot be read at all makes an `UnreadableFrame`: the client is told, and only
what is no frame is the end of its connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, ValidationError
from msgspec.json import Decoder, Encoder

from chatx.gateway.wire.envelope import holds_half_a_pair, parts_of
from chatx.gateway.wire.payloads import NULL, Reply, Status

T = TypeVar("T")
Version: TypeAlias = Literal[1, 2]

# Phoenix's binary frames give a ref one byte of length. The same bound holds for text, since a connection
# keeps one join_ref per joined topic. Whole numbers within what JavaScript holds exactly are echoed as
# numbers.
Ref: TypeAlias = Annotated[str, Meta(max_length=255)] | Annotated[int, Meta(ge=-(2**53) + 1, le=2**53 - 1)] | None
Payload: TypeAlias = dict[str, Any] | Struct | bytes
"""A JSON object: a dict or a Struct to encode, or bytes that are its JSON already."""

_VERSIONS: dict[str, Version] = {"1.0": 1, "2.0": 2}
VSN_PATTERN: Final = rf"({'|'.join(map(re.escape, _VERSIONS))})\.(0|[1-9][0-9]*)(\+[0-9A-Za-z.-]+)?"
"""A regular expression, in the dialect of JSON Schema too, for the whole of a `vsn` that is spoken here."""

_VSN = re.compile(VSN_PATTERN)


class Frame(Struct, array_like=True, gc=False):
    """One frame from a client; elements beyond the fifth are ignored, as Phoenix does.

    Attributes:
        join_ref: The ref of the join this frame belongs to, or None.
        ref: What the reply echoes, or None.
        topic: Any text.
        event: Any text.
        payload: JSON as it came, not yet decoded.
    """

    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: Raw


class UnreadableFrame(Frame, array_like=True, gc=False):
    """A frame whose payload cannot be read, or is not JSON; it can be answered, and nothing else is done for it.

    Attributes:
        problem: Why it cannot be read, for a person; holds nothing the peer wrote.
        binary: Whether the payload is opaque bytes, which an event that looks at no payload may have.
    """

    problem: str
    binary: bool


class _FrameV1(Struct, gc=False):
    topic: str
    event: str
    ref: Ref
    payload: Raw = NULL  # clients in other languages leave out what is empty
    join_ref: Ref = None


class _SentV1(Struct, gc=False):
    topic: str
    event: str
    payload: Any
    ref: Ref


class MalformedFrame(Exception):
    """What came is no frame of this version; the message says why and holds nothing the peer wrote."""


class Misaddressed(MalformedFrame):
    """A frame has a ref, so that it can be answered, but lacks a readable join_ref, topic or event.

    Attributes:
        ref: The frame's ref, which the answer echoes; never None.
        join_ref: The frame's join_ref, or None where it cannot be read.
        topic: The frame's topic, or `phoenix`, the topic of the socket itself, where it cannot be read.
    """

    def __init__(self, problem: str, ref: str | int, join_ref: Ref, topic: str) -> None:
        super().__init__(problem)
        self.ref: str | int = ref
        self.join_ref = join_ref
        self.topic = topic


_decode_v1 = Decoder(_FrameV1).decode
_decode_v2 = Decoder(Frame).decode
_decode_ref = Decoder(Ref).decode
_decode_text = Decoder(str).decode
_encode = Encoder().encode

SOCKET_TOPIC: Final = "phoenix"
"""The topic of the socket itself: that of heartbeats, and of answers to what names no other."""


def negotiate(vsn: str | None) -> Version:
    """Return the protocol version for a `vsn` parameter; a missing one means 1.0.0.

    Any patch of 1.0 and 2.0 is accepted, pre-releases are not: Phoenix's requirement `~> 2.0.0`.

    Raises:
        ValueError: The version is not one of these. Refuse the handshake with 403.
    """
    if vsn is None:
        return 1
    match = _VSN.fullmatch(vsn)
    if match is None:
        raise ValueError(f"vsn {vsn[:32]!r} is not spoken here; expected 1.0.x or 2.0.x. Connect with vsn=2.0.0.")
    return _VERSIONS[match[1]]


def decode(version: Version, data: str | bytes) -> Frame:
    """Return the frame in one WebSocket message: `str` for a text message, `bytes` for a binary one.

    A binary message in version 2 is a push with a binary payload. Version 1 does not look at the opcode, so
    there it is JSON in UTF-8, as in Phoenix. A payload that cannot be read makes an `UnreadableFrame`.

    Raises:
        MalformedFrame: On anything else, whatever it is; `Misaddressed` where it can be answered. Nothing else is
            raised.
    """
    try:
        if version == 1:
            frame = _decode_v1(data)
            return Frame(frame.join_ref, frame.ref, frame.topic, frame.event, frame.payload)
        if isinstance(data, bytes):
            return _decode_binary(data)
        return _decode_v2(data)
    except (UnicodeError, RecursionError, DecodeError) as error:
        # Its traceback would keep the whole message in memory as long as the answer's cause is kept.
        problem = _problem(error, data)
    if version == 2 and isinstance(data, bytes):
        raise MalformedFrame(problem)
    parts = parts_of(version, _utf8(data))
    return _answerable(
        _part(parts, "join_ref", _decode_ref) if "join_ref" in parts else None,
        _part(parts, "ref", _decode_ref),
        _part(parts, "topic", _decode_text),
        _part(parts, "event", _decode_text),
        problem,
    )


def _problem(error: Exception, data: str | bytes) -> str:
    if isinstance(error, UnicodeError):
        return "the text is not valid Unicode"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    # The decoder says of half a pair that the input is truncated.
    if not isinstance(error, ValidationError) and holds_half_a_pair(_utf8(data)):
        return "a text holds half a surrogate pair, as cutting within an emoji leaves it"
    said = str(error)
    return _OTHER_VERSION.get(said, said)


# The commonest of them: an address without `vsn`, which means version 1.
_OTHER_VERSION = {
    "Expected `object`, got `array`": "this is a frame of version 2; connect with ?vsn=2.0.0",
    "Expected `array`, got `object`": "this is a frame of version 1; connect with ?vsn=1.0.0",
}


def _utf8(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")


def _part(parts: dict[str, bytes], name: str, decode_part: Callable[[bytes], T]) -> T | UnsetType:
    try:
        return decode_part(parts[name])
    except (KeyError, UnicodeError, RecursionError, DecodeError):
        return UNSET


def _answerable(
    join_ref: Ref | UnsetType,
    ref: Ref | UnsetType,
    topic: str | UnsetType,
    event: str | UnsetType,
    problem: str,
    *,
    binary: bool = False,
) -> UnreadableFrame:
    """Return the frame with this envelope, whose payload cannot be read.

    Raises:
        MalformedFrame: The frame has no ref, so that no answer could say what it is to; `Misaddressed` where it has
            one, but lacks another part of the envelope.
    """
    if ref is UNSET:
        raise MalformedFrame(problem)
    if join_ref is UNSET or topic is UNSET or event is UNSET:
        if ref is None:
            raise MalformedFrame(problem)
        raise Misaddressed(
            problem, ref, None if join_ref is UNSET else join_ref, SOCKET_TOPIC if topic is UNSET else topic
        )
    return UnreadableFrame(join_ref, ref, topic, event, NULL, problem, binary)


def _decode_binary(data: bytes) -> Frame:
    """Return a binary push: kind 0, four lengths of a byte, then join_ref, ref, topic, event and the payload.

    The format has no null; an empty ref stands for it.
    """
    if len(data) < 5 or data[0] != 0:
        raise MalformedFrame("expected a binary push: byte 0, then four lengths")
    ends = [5]
    for length in data[1:5]:
        ends.append(ends[-1] + length)
    if ends[-1] > len(data):
        raise MalformedFrame("a binary push ends before its header does")
    parts = dict(zip(("join_ref", "ref", "topic", "event"), (data[a:b] for a, b in pairwise(ends)), strict=True))
    return _answerable(
        _part(parts, "join_ref", bytes.decode) if parts["join_ref"] else None,
        _part(parts, "ref", bytes.decode) if parts["ref"] else None,
        _part(parts, "topic", bytes.decode),
        _part(parts, "event", bytes.decode),
        "a binary push holds a text that is not UTF-8",
        binary=True,
    )


def encode_frame(version: Version, join_ref: Ref, ref: Ref, topic: str, event: str, payload: Payload) -> str:
    """Return the text of one frame to a client; version 1 has no place for `join_ref`.

    Raises:
        TypeError: The payload is not a JSON object, on which phoenix.js would throw.
        UnicodeEncodeError: A text holds a lone surrogate.
    """
    body: object = payload
    if not isinstance(payload, (Struct, dict)):  # these two first, since nearly all are
        if not isinstance(payload, bytes):
            raise TypeError(f"payload is a {type(payload).__name__}; expected a dict, Struct or JSON bytes. Wrap it.")
        if not payload.startswith(b"{"):
            raise TypeError("payload bytes are no JSON object; expected them to start with '{'. Encode a dict.")
        body = Raw(payload)
    if version == 2:
        return _encode((join_ref, ref, topic, event, body)).decode()
    return _encode(_SentV1(topic, event, body, ref)).decode()


def encode_reply(version: Version, join_ref: Ref, ref: Ref, topic: str, status: Status, response: Payload) -> str:
    """Return the text of a `phx_reply`."""
    body: object = Raw(response) if isinstance(response, bytes) else response
    return encode_frame(version, join_ref, ref, topic, "phx_reply", Reply(status, body))


def encode_broadcast(version: Version, topic: str, event: str, payload: Payload) -> str:
    """Return the text of a frame that every connection of this version on the topic may be sent as it is.

    It carries no join_ref and no ref. The caller must not write it to a connection before that connection's
    reply to its join, nor after its reply to its leave; see `PhoenixProtocol.join_ok`.
    """
    return encode_frame(version, None, None, topic, event, payload)
