"""What no honest client writes, drawn from a seed: messages for a session, byte streams for a server."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

TOPICS = (
    "room:a",
    "room:a",
    "room:a",
    "room:b",
    "phoenix",
    "room:",
    "room",
    "",
    "ROOM:a",
    "room:a\x00",
    "room:" + "x" * 300,
)
EVENTS = (
    *("phx_join", "phx_join", "phx_leave", "new_message", "new_message", "history", "heartbeat", "access_token"),
    *("phx_reply", "phx_close", "phx_error", "presence_state", "", "\u202e", "x" * 1000, "__proto__"),
)
REFS: tuple[Any, ...] = (None, None, "1", "2", 7)
ODD_REFS: tuple[Any, ...] = (None, "1", "2", "3", 1, 0, -1, 2**53, 2**64, 1.5, "", "x" * 255, "x" * 256, True, [], {})
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        2**53,
        2**63,
        10**30,
        1e308,
        5e-324,
        "",
        "x",
        "\x00",
        "\u202e",
        "\U0001f600" * 100,
        "x" * 5000,
    ),
    *([], {}, [[]], {"": ""}, {"epoch": "e", "offset": 1}, {"epoch": "e"}, {"offset": -1}, {"content": "x"}),
)
FIELDS = ("content", "key", "epoch", "offset", "limit", "before", "token", "__proto__", "")

OPCODES = (0x0, 0x1, 0x2, 0x3, 0x7, 0x8, 0x9, 0xA, 0xB, 0xF)


def message(draw: random.Random) -> str | bytes:
    """Return one WebSocket message, text or binary; most can be read, so that an attacker gets somewhere."""
    kind = draw.randrange(60)
    if kind == 0:
        return draw.randbytes(draw.randrange(200))
    if kind == 1:
        return binary_push(draw)
    if kind == 2:
        return "".join(
            chr(draw.choice((draw.randrange(128), draw.randrange(0xD7FF)))) for _ in range(draw.randrange(60))
        )
    if kind == 3:
        opening = draw.choice(('[null,"1","room:a","new_message",', "", "["))
        return opening + draw.choice("[{") * draw.choice((10, 1000, 30_000))
    if kind == 4:
        return json.dumps(draw.choice(ODD))
    if kind < 8:
        return unreadable(draw)
    if kind < 20:
        return json.dumps([None, "9", "room:a", "new_message", {"content": f"evil {kind}"}])
    text = json.dumps(envelope(draw), ensure_ascii=draw.random() < 0.5)
    return mutated(draw, text) if kind < 25 else text


def envelope(draw: random.Random) -> list[Any]:
    """Return a version 2 frame whose parts may each be odd."""
    refs = [draw.choice(REFS if draw.random() < 0.95 else ODD_REFS) for _ in range(2)]
    frame: list[Any] = [*refs, draw.choice(TOPICS), draw.choice(EVENTS), payload(draw)]
    if draw.random() < 0.02:
        frame[draw.randrange(5)] = draw.choice(ODD)
    if draw.random() < 0.01:
        del frame[draw.randrange(5)]
    if draw.random() < 0.05:
        frame.append(draw.choice(ODD))
    return frame


def payload(draw: random.Random) -> Any:
    match draw.randrange(5):
        case 0:
            return {"content": f"evil {draw.randrange(1000)}"}
        case 1:
            return {}
        case 2:
            return draw.choice(ODD)
        case _:
            return {draw.choice(FIELDS): draw.choice(ODD) for _ in range(draw.randrange(4))}


UNREADABLE = ("\\ud83d", "\ud83d", '","x":NaN,"y":"', "\n", "\\x41", '"}]')


def unreadable(draw: random.Random) -> str:
    """Return a frame whose envelope can be read, and whose payload cannot."""
    frame = [draw.choice(REFS), draw.choice(REFS), draw.choice(TOPICS[:5]), draw.choice(EVENTS[:8]), {"content": "cut"}]
    return json.dumps(frame).replace("cut", draw.choice(UNREADABLE))


def binary_push(draw: random.Random) -> bytes:
    parts = [draw.randbytes(draw.randrange(20)) for _ in range(4)]
    if draw.random() < 0.5:
        parts = [b"1", b"2", b"room:a", b"new_message"]
    lengths = bytes(draw.choice((len(part), draw.randrange(256))) for part in parts)
    return bytes([draw.choice((0, 0, 0, 1, 2, 255))]) + lengths + b"".join(parts) + draw.randbytes(draw.randrange(50))


def mutated(draw: random.Random, text: str) -> str:
    """Return the text with pieces cut, doubled or replaced."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.randrange(8))
        middle = draw.choice(("", text[start:end] * 2, "\ud800", '"', "]", "\\u", "NaN", "\x00", "9" * 400, ","))
        text = text[:start] + middle + text[end:]
    return text


# Byte streams, for a server that reads them from a connection


def stream(draw: random.Random, path: str = "/socket/websocket?vsn=2.0.0&user=evil") -> list[bytes]:
    """Return what one connection writes, in pieces as they are written; about half open a WebSocket properly."""
    data = opening(draw, path) if draw.random() < 0.8 else draw.randbytes(draw.randrange(500))
    if draw.random() < 0.5:
        data += entrance(draw)
    data += b"".join(frame(draw) for _ in range(draw.randrange(20)))
    if draw.random() < 0.2:
        data = flipped(draw, data)
    pieces = []
    while data:
        length = draw.choice((1, 2, 7, 40, 100, 1000, len(data)))
        pieces.append(data[:length])
        data = data[length:]
    return pieces


def opening(draw: random.Random, path: str) -> bytes:
    """Return an HTTP/1.1 upgrade request; one in three has something wrong with it."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(draw.randbytes(16)).decode()}",
    ]
    end = "\r\n\r\n"
    if draw.random() < 1 / 3:
        match draw.randrange(8):
            case 0:
                del lines[draw.randrange(len(lines))]
            case 1:
                lines += [f"X-{number}: {'y' * draw.randrange(200)}" for number in range(draw.randrange(300))]
            case 2:
                lines.append("X: " + "y" * draw.choice((8000, 9000, 100_000)))
            case 3:
                lines.insert(1, draw.choice(("Transfer-Encoding: chunked", "Content-Length: 5", "Content-Length: -1")))
            case 4:
                lines.append(draw.choice((": x", "no colon", " folded", "X\x00: y", "X: a\rb", "\u00ff: y")))
            case 5:
                lines[0] = draw.choice(("GET", f"POST {path} HTTP/1.1", f"GET {path} HTTP/0.9", "GET " + "/" * 70_000))
            case 6:
                end = draw.choice(("\n\n", "\r\n", ""))
            case _:
                lines += [lines[draw.randrange(1, len(lines))]]
    return ("\r\n".join(lines) + end).encode("latin-1")


def entrance(draw: random.Random) -> bytes:
    """Return frames of somebody who joins the room and says something, all in order so far."""
    frames: list[list[Any]] = [["1", "1", "room:a", "phx_join", {}]]
    frames += [
        ["1", str(number + 2), "room:a", "new_message", {"content": f"evil {number}"}]
        for number in range(draw.randrange(10))
    ]
    return b"".join(written(0x81, json.dumps(each).encode(), draw) for each in frames)


def written(first: int, data: bytes, draw: random.Random) -> bytes:
    """Return a masked frame of at most 65,535 bytes."""
    length = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0xFE, len(data))
    mask = draw.randbytes(4)
    return bytes((first,)) + length + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


def frame(draw: random.Random) -> bytes:
    """Return one WebSocket frame: masked text of `message`, or one that breaks a rule of RFC 6455."""
    content = message(draw) if draw.random() < 0.7 else draw.randbytes(draw.randrange(130))
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    first = (0x80 if draw.random() < 0.8 else 0) | draw.choice((0x1, 0x1, 0x1, *OPCODES))
    if draw.random() < 0.05:
        first |= draw.choice((0x10, 0x20, 0x40))
    masked = draw.random() < 0.95
    length = len(data)
    if draw.random() < 0.05:
        length = draw.choice((0, 126, 2**16, 2**31, 2**63 - 1, 2**64 - 1))
    wide = draw.random() < 0.03  # a length in more bytes than it needs
    if length < 126 and not wide:
        header = struct.pack("!BB", first, masked << 7 | length)
    elif length < 2**16 and not wide:
        header = struct.pack("!BBH", first, masked << 7 | 126, length)
    else:
        header = struct.pack("!BBQ", first, masked << 7 | 127, length)
    if not masked:
        return header + data
    mask = draw.randbytes(4)
    return header + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


def flipped(draw: random.Random, data: bytes) -> bytes:
    """Return the bytes with some of their bits turned."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 5)):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)
