"""A frame that came whole is read as the library reads it, and everything else is left to the library."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from chatx.gateway.whole import whole_text

SIZES = st.sampled_from([0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 8000, 65_535, 65_536])


def frame(opcode: int, data: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """Return a frame as a client writes it."""
    return bytes(Frame(Opcode(opcode), data, fin=fin).serialize(mask=masked))


def as_the_library_reads(data: bytes) -> list[Frame]:
    protocol = ServerProtocol(state=OPEN, max_size=None)
    protocol.receive_data(data)
    assert protocol.parser_exc is None
    return [event for event in protocol.events_received() if isinstance(event, Frame)]


@given(SIZES, st.binary(min_size=1, max_size=4))
def test_one_whole_text_is_read_where_its_length_takes_at_most_two_bytes(size: int, pattern: bytes) -> None:
    data = (pattern * size)[:size]
    read = whole_text(frame(Opcode.TEXT, data))
    assert read == (data if 0 < size < 65_536 else None)


@given(st.binary(max_size=300))
@example(frame(Opcode.TEXT, b"hello"))
@example(frame(Opcode.TEXT, b"x" * 200))
@example(b"\x81\xfe\x00\x01\x00\x00\x00\x00x")
@example(b"\x81\xff" + (3).to_bytes(8) + b"\x00\x00\x00\x00xyz")
def test_what_is_read_at_all_is_what_the_library_reads(data: bytes) -> None:
    read = whole_text(data)
    if read is not None:
        assert [(each.opcode, each.data, each.fin) for each in as_the_library_reads(data)] == [
            (Opcode.TEXT, read, True)
        ]


@given(st.binary(min_size=1, max_size=200), st.integers(0, 205))
def test_anything_less_or_more_or_else_is_left_to_the_library(data: bytes, cut: int) -> None:
    whole = frame(Opcode.TEXT, data)
    assert whole_text(whole[: min(cut, len(whole) - 1)]) is None
    assert whole_text(whole + b"\x81") is None
    assert whole_text(whole * 2) is None
    assert whole_text(frame(Opcode.TEXT, data, fin=False)) is None
    assert whole_text(frame(Opcode.TEXT, data, masked=False)) is None
    for bit in (0x10, 0x20, 0x40):
        assert whole_text(bytes((whole[0] | bit,)) + whole[1:]) is None
    assert whole_text(frame(Opcode.BINARY, data)) is None
    assert whole_text(frame(Opcode.CONT, data)) is None
    assert whole_text(frame(Opcode.PING, data[:125])) is None
