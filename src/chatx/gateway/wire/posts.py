"""What a polling client posts: a body, and the messages in it.

phoenix.js posts up to 100 messages as lines of `application/x-ndjson`: a text message as it is, a binary one in base64.
Older versions, and other clients, post one text message as a body of any other type.

Bytes of a text that are not UTF-8 are kept as lone surrogates, which no frame may hold. So that one message is refused
with an answer, and the other messages of the post are taken.

The lines are counted before any of them is looked at, since many small things in one body are how a server was brought
down (Phoenix CVE-2026-32689). Source: `Phoenix.Transports.LongPoll`; there the lines past the hundredth are dropped,
here the post is refused.
"""

from __future__ import annotations

import binascii

from chatx.gateway.wire.closes import CLOSE_POLICY
from chatx.gateway.wire.excess import Excess

MAX_POST_BYTES = 262_144
"""Bytes of one post."""

MAX_POST_MESSAGES = 100
"""Messages of one post; phoenix.js never sends more."""


class MalformedPost(Exception):
    """The body of a post holds something that is no message; none of its messages was taken."""


def messages_of(content_type: str, body: bytes) -> list[str | bytes]:
    """Return the messages of a post: `str` for text, `bytes` for binary. An empty line is no message.

    Raises:
        Excess: There are more than `MAX_POST_MESSAGES`.
        MalformedPost: A line is neither JSON nor base64.
    """
    if content_type.partition(";")[0].strip().lower() != "application/x-ndjson":
        return [_text(body)] if body else []
    if body.count(b"\n") >= MAX_POST_MESSAGES + body.endswith(b"\n"):
        raise Excess(CLOSE_POLICY, f"more than {MAX_POST_MESSAGES} messages in a post")
    return [_message(line) for each in body.split(b"\n") if (line := each.removesuffix(b"\r"))]


def _message(line: bytes) -> str | bytes:
    if line.startswith((b"[", b"{")):
        return _text(line)
    try:
        return binascii.a2b_base64(line, strict_mode=True)
    except binascii.Error:
        raise MalformedPost("a line is neither JSON nor base64") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
