"""One client of the load: it joins one room, checks what it sees there, and comes back when it is cut off.

It speaks no more of the protocol than it needs, since it shares a core with thousands of others. What the bytes are is
in RFC 6455 and docs/wire.md.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import DecodeError, json

from chatx.cli.load.stream_check import StreamCheck

if TYPE_CHECKING:
    from chatx.cli.load.crew import Crew, Said

HEAD_BYTES: Final = 16_384
"""The longest answer to a handshake."""

FRAME_BYTES: Final = 64 * 1024**2
"""The longest frame; who sends a longer one is left, and asked again."""

PATIENCE_S: Final = 30.0
"""Seconds for a connection to open, and for the answers to the handshake and to the join."""

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class Visitor(asyncio.Protocol):
    """A client, over all its connections.

    Args:
        crew: All of them.
        user: Who it is.
        room: Its room.

    Attributes:
        check: What it has seen.
        inside: Whether it is joined.
        began: When its last attempt to come in began, by the crew's clock.
        since: When it was to come in, by the crew's clock, while it is not inside.
        unanswered: What it has said and nothing has answered, in order, by its ref.
        stays: Whether it comes back when it is cut off.
        dawdles: Whether it reads slowly now, so that what it sees says nothing of the server.
    """

    __slots__ = (
        "_after_s",
        "_attempts",
        "_awaited",
        "_crew",
        "_has_been",
        "_live_from",
        "_opening",
        "_ref",
        "_tail",
        "_task",
        "_transport",
        "began",
        "check",
        "dawdles",
        "inside",
        "room",
        "since",
        "stays",
        "unanswered",
        "user",
    )

    def __init__(self, crew: Crew, user: str, room: str) -> None:
        self._crew = crew
        self._transport: asyncio.Transport | None = None
        self._opening: bytes | None = None  # what has come of the answer to the handshake
        self._tail = b""  # of a frame that has not come whole
        self._awaited: str | None = None  # the ref of the join that is not answered
        self._after_s: float | None = None  # what the server says to wait
        self._ref = 0
        self._attempts = 0
        self._has_been = False  # inside, once
        self._live_from = 0  # offsets above this are said while it is inside
        self._task: asyncio.Task[None] | None = None
        self.user: str = user
        self.room: str = room
        self.check: StreamCheck = StreamCheck(crew.totals)
        self.inside: bool = False
        self.began: float = 0.0
        self.since: float = 0.0
        self.unanswered: dict[str, Said] = {}
        self.stays: bool = True
        self.dawdles: bool = False

    # What it does

    def comes(self, since: float, after_s: float = 0.0) -> None:
        """Have it come in after a while, counted as on its way `since` then."""
        self.since = since
        self.stays = True
        self._task = asyncio.get_running_loop().create_task(self._come(after_s))

    def cut(self) -> None:
        """Lose its connection, as a network does."""
        if self._transport is not None:
            self._transport.abort()

    def goes(self) -> None:
        """Have it leave, and not come back."""
        self.stays = False
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.write(b"\x88\x82\0\0\0\0\x03\xe8")
            self._transport.close()

    def reads(self, reads: bool) -> None:
        """Have it read, or leave what comes where it is."""
        self.dawdles = not reads
        # What has waited for it meanwhile says nothing of the server.
        self._live_from = max(self._live_from, self._crew.head(self.room, self.check.epoch))
        if self._transport is not None and not self._transport.is_closing():
            if reads:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def says(self, said: Said) -> None:
        """Say something in its room: now, or when it is back."""
        ref = self._next()
        self.unanswered[ref] = said
        if self.inside:
            self._say(ref, said)

    def beats(self) -> None:
        """Tell the server that it is there."""
        if self.inside:
            self._write([None, self._next(), "phoenix", "heartbeat", {}])

    async def _come(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.began = self._crew.now()
        try:
            await asyncio.wait_for(self._crew.connect(self), PATIENCE_S)
        except (OSError, TimeoutError) as error:
            self._crew.refused[type(error).__name__] += 1
            self._again(None)

    def _again(self, after_s: float | None) -> None:
        """Come back after a pause, which the server may have said."""
        if not self.stays or self._crew.over:
            return
        self._attempts += 1
        pause = self._crew.pause_s(self._attempts) if after_s is None else after_s * (1 + self._crew.random.random())
        self._task = asyncio.get_running_loop().create_task(self._come(pause))

    # What comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast("asyncio.Transport", transport)
        self._opening = b""
        self._tail = b""
        self.dawdles = False
        self._transport.write(self._crew.hello(self.user))

    def data_received(self, data: bytes) -> None:
        """Read the answer to the handshake, and the frames behind it."""
        if self._opening is not None:
            data = self._opened(self._opening + data)
        elif self._tail:
            data = self._tail + data
        now, at, end = self._crew.now(), 0, len(data)
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                start = at + 4
                size = int.from_bytes(data[at + 2 : start])
            elif size == 127:
                start = at + 10
                size = int.from_bytes(data[at + 2 : start])
            if start + size > end:
                if size > FRAME_BYTES:
                    self._crew.refused["frame too long"] += 1
                    self.cut()
                    return
                break
            self._frame(data[at] & 15, data[start : start + size], now)
            at = start + size
        self._tail = data[at:]

    def connection_lost(self, error: Exception | None) -> None:
        """Come back, unless it has gone."""
        self._transport = None
        if self.inside:
            self.inside = False
            self._attempts = 0
            self.since = self._crew.now()
        after_s, self._after_s = self._after_s, None
        self._again(after_s)

    def _opened(self, data: bytes) -> bytes:
        """Read the answer to the handshake; return what is behind it."""
        head, end, rest = data.partition(b"\r\n\r\n")
        self._opening = None if end else data[:HEAD_BYTES]
        if not end:
            return b""
        status = head[9:12].decode("latin-1")
        if status == "101":
            self._join()
            return rest
        self._crew.refused[f"HTTP {status}"] += 1
        self._after_s = _retry_after(head)
        self.cut()
        return b""

    def _join(self) -> None:
        check = self.check
        place = {} if check.epoch is None else {"epoch": check.epoch, "offset": check.stands}
        self._awaited = self._next()
        self._write([self._awaited, self._awaited, f"room:{self.room}", "phx_join", place])

    def _frame(self, kind: int, payload: bytes, now: float) -> None:
        if kind == _TEXT:
            heard = self._crew.heard(payload)
            if heard is not None:
                if self.inside:
                    epoch, offset, at = heard
                    self.check.saw(epoch, offset)
                    if at is not None and offset > self._live_from and not self.dawdles:
                        self._crew.delivered.add(now - at)
            elif b'"phx_' in payload[:400]:
                try:
                    self._told(payload, now)
                except (DecodeError, ValueError, KeyError, TypeError, AttributeError):
                    # Some server that speaks something else: no client comes in there.
                    self._crew.refused["not understood"] += 1
                    self.cut()
        elif kind == _PING and self._transport is not None:
            self._transport.write(_masked(_PONG, payload))
        elif kind == _CLOSE:
            self._crew.closed[int.from_bytes(payload[:2])] += 1
            self.cut()

    def _told(self, payload: bytes, now: float) -> None:
        """Take what is said to it alone."""
        join_ref, ref, _, event, body = json.decode(payload)
        if event == "phx_reply" and ref == self._awaited:
            self._awaited = None
            self._joined(body["status"], body["response"], now)
        elif event == "phx_reply" and (said := self.unanswered.get(ref)) is not None:
            if body["status"] == "ok":
                del self.unanswered[ref]
                self._crew.answered(self.room, said, body["response"]["epoch"], body["response"]["offset"])
            else:
                self._refused(ref, said, body["response"])
        elif event in ("phx_error", "phx_close") and join_ref is not None and self.inside:
            # The connection is fine; a client that begins it anew has the same way back.
            self._crew.closed[0] += 1
            self.cut()

    def _joined(self, status: str, response: dict[str, Any], now: float) -> None:
        if status != "ok":
            self._crew.refused[response["code"]] += 1
            self._after_s = response.get("retry_after_ms", 0) / 1000 or None
            self.cut()
            return
        epoch, offset = response["epoch"], response["offset"]
        head_before = self._crew.head(self.room, self.check.epoch)
        self.check.joined(epoch, offset, recovered=response["recovered"], head_before=head_before)
        self._live_from = offset
        self.inside = True
        (self._crew.returned if self._has_been else self._crew.connected).add(now - self.since)
        self._has_been = True
        for ref, said in self.unanswered.items():
            self._say(ref, said)

    def _refused(self, ref: str, said: Said, response: dict[str, Any]) -> None:
        self._crew.refused[response["code"]] += 1
        if response["retryable"] and self.stays:
            pause = response.get("retry_after_ms", 100) / 1000
            asyncio.get_running_loop().call_later(pause, self._say_again, ref, said)
        else:
            del self.unanswered[ref]
            self._crew.given_up += 1

    def _say_again(self, ref: str, said: Said) -> None:
        if self.inside and ref in self.unanswered:
            self._say(ref, said)

    def _say(self, ref: str, said: Said) -> None:
        # The key makes one message of all attempts.
        self._write([None, ref, f"room:{self.room}", "new_message", {"content": said.content, "key": said.content}])

    def _next(self) -> str:
        self._ref += 1
        return str(self._ref)

    def _write(self, frame: list[Any]) -> None:
        if self._transport is not None:
            self._transport.write(_masked(_TEXT, json.encode(frame)))


def _masked(kind: int, payload: bytes) -> bytes:
    """Return a frame; its mask is zero, since nothing is to be hidden."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | kind, 0x80 | size))
    elif size < 65_536:
        head = bytes((0x80 | kind, 0x80 | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | kind, 0x80 | 127)) + size.to_bytes(8)
    return head + b"\0\0\0\0" + payload


def _retry_after(head: bytes) -> float | None:
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "retry-after" and value.strip().isdecimal():
            return float(value)
    return None
