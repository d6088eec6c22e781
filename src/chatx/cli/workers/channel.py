"""What the supervisor and a worker say to each other: one JSON object a line, over a pair of sockets.

The first line says what the worker is to do. Either notices by the end of the other's lines that it is gone.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, TypeAlias

from msgspec import DecodeError, Struct, json

LINE_BYTES: Final = 4 * 1024 * 1024
"""The longest line, in bytes; one that is longer ends the channel."""


class Assignment(Struct, frozen=True, tag="assignment"):
    """What a worker is to do.

    Attributes:
        options: Those of `chatx serve`, by name.
        node: What the node is called; each line of its log begins with it.
        sockets: Descriptors of the sockets to serve.
        loads: The descriptor of the memory that the workers share.
        number: Which of the workers it is, from 0.
        workers: How many there are.
        style: How its log is written, `human` or `json`.
        colours: Whether its log may have colours.
        patience_s: Seconds after which a worker whose supervisor is gone ends hard.
    """

    options: dict[str, Any]
    node: str
    sockets: list[int]
    loads: int
    number: int
    workers: int
    style: str
    colours: bool
    patience_s: float


class Ready(Struct, frozen=True, tag="ready"):
    """The worker serves."""


class Ask(Struct, frozen=True, tag="ask"):
    """The figures are wanted: a worker wants those of all workers, the supervisor the worker's own.

    Attributes:
        number: Of the question, which the answer repeats.
    """

    number: int


class Figures(Struct, frozen=True, tag="figures"):
    """What was asked for.

    Attributes:
        number: Of the question.
        texts: By a node's name its figures in Prometheus' text format, or None where it did not answer.
    """

    number: int
    texts: dict[str, str | None]


Said: TypeAlias = Assignment | Ready | Ask | Figures


class NotUnderstood(Exception):
    """A line is none of those that are said here."""


def line_of(said: Said) -> bytes:
    """Return what is said as a line, with its end."""
    return json.encode(said) + b"\n"


def read_line(line: bytes) -> Said:
    """Return what a line says.

    Raises:
        NotUnderstood: It says nothing of this.
    """
    try:
        return _READING.decode(line)
    except DecodeError as error:
        raise NotUnderstood(str(error)) from error


def hears(writer: asyncio.StreamWriter) -> bool:
    """Return whether something can be said: not where the other end is gone, or has `LINE_BYTES` of it unread."""
    return not writer.is_closing() and writer.transport.get_write_buffer_size() < LINE_BYTES


def first_line(channel: socket.socket) -> bytes:
    """Return the first line that comes, waiting for it; no more is read. It is empty where nobody is there."""
    read = bytearray()
    while not read.endswith(b"\n") and len(read) < LINE_BYTES:
        # The other end says nothing more before it is answered.
        some = channel.recv(65_536)
        if not some:
            return b""
        read += some
    return bytes(read)


_READING: json.Decoder[Said] = json.Decoder(Said)
