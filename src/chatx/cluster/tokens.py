"""The token that stands for a room in a subject, where blanks, dots and wildcards mean something else.

Rules:
1. A token is letters, digits, `-` and `_` only, and at most 78 of them.
2. Two rooms have one token only where blake2b-160 has one digest for both. The real id travels in every record, and is
   what counts.
3. It is the same on every machine and every Python.
"""

from __future__ import annotations

import re
from base64 import b32decode, b32encode
from hashlib import blake2b
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ENCODED_BYTES: Final = 48
_DIGEST_BYTES: Final = 20


def room_token(room_id: str) -> str:
    """Return a room's token: `p` and the id where it is plain, else `x` and its base32, or `h` and a digest.

    Args:
        room_id: One that `valid_id` has accepted.
    """
    if _PLAIN.fullmatch(room_id):
        return "p" + room_id
    encoded = room_id.encode()
    if len(encoded) <= _ENCODED_BYTES:
        return "x" + _base32(encoded)
    return "h" + _base32(blake2b(encoded, digest_size=_DIGEST_BYTES).digest())


def room_of(token: str) -> str | None:
    """Return the room whose token this is, or None where it says only a digest, or is none."""
    kind, rest = token[:1], token[1:]
    if kind == "p":
        return rest
    if kind != "x":
        return None
    try:
        return b32decode(rest.upper() + "=" * (-len(rest) % 8)).decode()
    except ValueError:
        return None


def _base32(content: bytes) -> str:
    return b32encode(content).decode().rstrip("=").lower()
