"""What comes over the wire to a client, decoded as far as it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import UNSET, Raw, Struct, json

from chatx.client.events import Message
from chatx.gateway.wire.payloads import ErrorResponse, Joined, PhxDiff, PhxMetas, Sent

COMES_BACK: Final = frozenset({"unmatched_topic", "closed"})
"""Codes that are not retryable as they are, but fine after the next join: the membership or the chat is gone."""


class Frame(Struct, array_like=True, gc=False):
    """A frame, its payload undecoded."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Raw


class Reply(Struct, gc=False):
    """The payload of an answer."""

    status: str
    response: Raw


class Page(Struct, gc=False):
    """The answer to `history`."""

    messages: list[Message]
    more: bool = False


read_frame: Callable[[Raw | bytes | str], Frame] = json.Decoder(Frame).decode
read_reply: Callable[[Raw | bytes | str], Reply] = json.Decoder(Reply).decode
read_message: Callable[[Raw | bytes | str], Message] = json.Decoder(Message).decode
read_error: Callable[[Raw | bytes | str], ErrorResponse] = json.Decoder(ErrorResponse).decode
read_joined: Callable[[Raw | bytes | str], Joined] = json.Decoder(Joined).decode
read_sent: Callable[[Raw | bytes | str], Sent] = json.Decoder(Sent).decode
read_page: Callable[[Raw | bytes | str], Page] = json.Decoder(Page).decode
read_state: Callable[[Raw | bytes | str], dict[str, PhxMetas]] = json.Decoder(dict[str, PhxMetas]).decode
read_diff: Callable[[Raw | bytes | str], PhxDiff] = json.Decoder(PhxDiff).decode


def after_s(refused: ErrorResponse) -> float | None:
    """Return the seconds that a refusal says to wait, or None."""
    return None if refused.retry_after_ms is UNSET else refused.retry_after_ms / 1000
