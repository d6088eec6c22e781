"""What can still be read of a frame that is not wholly readable: where its answer goes.

A client that cuts a text within an emoji writes half a surrogate pair, others write `NaN`. Such a payload is a mistake
in one message; the client can be told so as long as the rest of the frame says which message that was.

Rules:
1. Only a frame that could not be read is looked at here, and by patterns: no step of Python is taken for each byte, and
   the cost grows no faster than the frame.
2. Nothing within the payload is taken for a part of the envelope, unless the frame lacks its end.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import DecodeError, Raw, Struct
from msgspec.json import Decoder

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SCALAR = rb'(?:%s|[^\s"\\,:\[\]{}]++)' % _STRING
_PAIR = rb"\s*(%s)\s*:\s*(%s)\s*" % (_STRING, _SCALAR)

_PAIRS = re.compile(_PAIR, re.DOTALL)
_HEAD_V2 = re.compile(rb"\s*\[" + rb"\s*(%s)\s*," % _SCALAR * 4, re.DOTALL)
_HEAD_V1 = re.compile(rb'\s*\{((?:(?!\s*"payload"\s*:)%s,)*+)\s*"payload"\s*:' % _PAIR, re.DOTALL)
_TAIL_V1 = re.compile(rb"((?:,%s){1,4}+)\}\s*\Z" % _PAIR, re.DOTALL)

_TAIL_BYTES = 2048
"""Bytes at the end of a version 1 frame in which what follows the payload is looked for."""

_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")

_NAMES = ("join_ref", "ref", "topic", "event")


class _LooseV2(Struct, array_like=True, gc=False):
    join_ref: Raw
    ref: Raw
    topic: Raw
    event: Raw
    payload: Raw


class _LooseV1(Struct, gc=False):
    ref: Raw
    payload: Raw = Raw(b"{}")
    join_ref: Raw = Raw(b"null")
    topic: Raw = Raw(b"null")
    event: Raw = Raw(b"null")


_decode_v2 = Decoder(_LooseV2).decode
_decode_v1 = Decoder(_LooseV1).decode


def parts_of(version: Literal[1, 2], data: bytes) -> dict[str, bytes]:
    """Return the JSON of each of `join_ref`, `ref`, `topic` and `event` that can be found; none of it is checked.

    Args:
        version: The protocol version of the frame.
        data: A text that is no frame of that version, in UTF-8 or nearly.
    """
    try:
        # JSON it may be, with a part of another type.
        loose = _decode_v2(data) if version == 2 else _decode_v1(data)
    except (DecodeError, UnicodeError, RecursionError):
        return _parts_v2(data) if version == 2 else _parts_v1(data)
    return {name: bytes(getattr(loose, name)) for name in _NAMES}


def holds_half_a_pair(data: bytes) -> bool:
    """Return whether a JSON text has an escape that is half of a surrogate pair, which stands for no character."""
    return _SURROGATE.search(_SURROGATE_PAIR.sub(b"", data)) is not None


def _parts_v2(data: bytes) -> dict[str, bytes]:
    head = _HEAD_V2.match(data)
    return dict(zip(_NAMES, head.groups(), strict=True)) if head is not None else {}


def _parts_v1(data: bytes) -> dict[str, bytes]:
    head = _HEAD_V1.match(data)
    if head is None:
        return {}
    tail = _TAIL_V1.search(data, max(head.end(), len(data) - _TAIL_BYTES))
    pairs = _PAIRS.findall(tail[1]) if tail is not None else []
    return {name[1:-1].decode("latin-1"): value for name, value in [*pairs, *_PAIRS.findall(head[1])]}
