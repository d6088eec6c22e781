"""A ring of a room's newest messages, and what a reader who was away gets from it.

Rules:
1. The messages kept have contiguous offsets and end at the head of the stream.
2. A read is whole or it is refused with a reason: never a part.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Literal

from chatx.core.message import Message, Position, Unrecovered


class History:
    """The newest `size` messages of one stream, and where the stream stands."""

    __slots__ = ("_ring", "epoch", "offset")

    def __init__(self, size: int, position: Position) -> None:
        self._ring: deque[Message] = deque(maxlen=size)
        self.epoch: str = position.epoch
        self.offset: int = position.offset

    @property
    def position(self) -> Position:
        """The head of the stream: what was published up to, inclusive."""
        return Position(self.epoch, self.offset)

    @property
    def start(self) -> int:
        """The offset of the oldest message kept; one past the head where none is."""
        return self.offset + 1 - len(self._ring)

    @property
    def size(self) -> int:
        """How many messages it keeps at most."""
        return self._ring.maxlen or 0

    def rebuilt(self) -> History:
        """Return a fresh one with the messages that end at the head in one unbroken run."""
        fresh = type(self)(self.size, self.position)
        run: deque[Message] = deque(maxlen=self.size)
        for message in reversed(self._ring):
            if message.epoch != self.epoch or message.offset != self.offset - len(run):
                break
            run.appendleft(message)
        fresh._ring = run
        return fresh

    def append(self, message: Message) -> None:
        """Keep the stream's next message; the oldest goes where the ring is full."""
        self.offset = message.offset
        self._ring.append(message)

    def after(self, position: Position, limit: int) -> list[Message] | Unrecovered:
        """Return every message after `position`, or the reason why that cannot be done whole.

        `too_old` says that the ring no longer reaches back so far: older storage may.
        """
        if position.epoch == self.epoch and self.offset - position.offset > limit:
            return "too_many"
        return self.page(position, limit)

    def page(self, position: Position, most: int) -> list[Message] | Literal["epoch_changed", "too_old"]:
        """Return the oldest messages after `position`, at most `most`, or the reason why they cannot be had.

        `too_old` says that the ring no longer reaches back so far: older storage may.
        """
        if position.epoch != self.epoch or position.offset > self.offset:
            return "epoch_changed"
        if position.offset == self.offset:
            return []
        first = position.offset + 1 - self.start
        if first < 0:
            return "too_old"
        return list(islice(self._ring, first, first + most))

    def at(self, position: Position) -> Message | None:
        """Return the message at a place of the stream, or None where it is not kept."""
        found = self.before(position.offset + 1, 1) if position.epoch == self.epoch else []
        return found[0] if found and found[0].offset == position.offset else None

    def newest(self, limit: int) -> list[Message]:
        """Return the newest messages kept, oldest first, at most `limit`."""
        return list(islice(self._ring, max(0, len(self._ring) - limit), None))

    def before(self, offset: int, limit: int) -> list[Message]:
        """Return the newest messages kept below `offset`, oldest first, at most `limit`."""
        end = max(0, min(len(self._ring), offset - self.start))
        return list(islice(self._ring, max(0, end - limit), end))
