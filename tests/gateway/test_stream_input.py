"""However what a client sends is cut on its way, the native server reads the same messages."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from chatx.gateway.native.stream import Stream
from chatx.gateway.session.socket import Flow


class Sink(asyncio.Transport):
    """Takes everything."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False


class Listens:
    """A session that keeps what it is told."""

    busy = False

    def __init__(self) -> None:
        self.received: list[str | bytes] = []

    def receive(self, data: str | bytes) -> None:
        self.received.append(data)

    def cut(self, code: int, reason: str) -> None:
        raise AssertionError(f"{code} {reason}")


def unmasked(text: str) -> bytes:
    """Return a text frame whose mask is zero, so that what is in it can be chosen."""
    data = text.encode("latin-1")
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


@given(
    st.lists(st.text(st.characters(max_codepoint=127), max_size=100), min_size=1, max_size=4),
    st.lists(st.integers(0, 400)),
)
@example(["hello", "ok"], [2, 6, 11])
def test_messages_are_the_same_wherever_they_are_cut(texts: list[str], cuts: list[int]) -> None:
    whole = b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=True) for text in texts)
    assert read(whole, cuts) == texts


def test_a_payload_that_looks_like_a_frame_is_none() -> None:
    inner = b"\x81\x85\0\0\0\0HELLO"
    outer = b"\x82" + bytes((0x80 | len(inner),)) + b"\0\0\0\0" + inner
    for cut in range(len(outer) + 1):
        assert read(outer + unmasked("ok"), [cut, len(outer)]) == [inner, "ok"]


def read(data: bytes, cuts: list[int]) -> list[str | bytes]:
    """Return the messages that a stream reads from these bytes, cut at these places."""
    session: Any = Listens()
    stream = Stream(Sink(), 1_000_000, Flow(), lambda _: None)
    stream.begin(session, b"")
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(places):
        stream.data_received(data[start:end])
    received: list[str | bytes] = session.received
    return received
