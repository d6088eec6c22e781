"""One frame that came whole: what nearly all input of a WebSocket is, read without a parser that waits for more.

Source: RFC 6455, section 5.2.
"""

from __future__ import annotations

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # it is in C there, where it can be

_TEXT = 0x81
"""First byte of a text message in one frame, without extensions."""

_MASKED = 0x80


def whole_text(data: bytes) -> bytes | None:
    """Return the payload where `data` is exactly one masked text message in one frame of less than 64 KiB, else None.

    None says nothing of what it is else: more, less, or against the rules.
    """
    if len(data) < 7 or data[0] != _TEXT or data[1] < _MASKED:
        return None
    length, start = data[1] - _MASKED, 2
    if length == 126:
        length, start = data[2] << 8 | data[3], 4
        if length < 126:  # the length is in more bytes than it needs, which is the library's to judge
            return None
    if length == 127 and start == 2:
        return None
    if len(data) != start + 4 + length:
        return None
    return apply_mask(data[start + 4 :], data[start : start + 4])
