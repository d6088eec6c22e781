"""The messages of one room, as a room would make them."""

from __future__ import annotations

import secrets
import time

from chatx.core.message import Message
from chatx.runtime.ids import MessageIds


class Stream:
    """Makes the messages of one room, epoch by epoch, as a room would."""

    _ids = MessageIds()

    def __init__(self) -> None:
        # Rooms that no other check and no earlier run has used.
        self.room_id: str = f"contract {secrets.token_hex(8)} ü"
        self._now = time.time_ns() // 1_000_000
        self._lives = 0
        self.begin()

    def begin(self) -> None:
        """Begin a new epoch; as texts, the epochs of a stream sort against their order in time."""
        self.epoch: str = f"{0xFFFF - self._lives:x}-{secrets.token_hex(4)}"
        self._lives += 1
        self._offset = 0

    def message(self, content: str = "hello", user_id: str = "alice") -> Message:
        """Return the next message."""
        self._offset += 1
        self._now += 1
        return Message(self._ids.next(self._now), self.room_id, user_id, content, self._now, self.epoch, self._offset)

    def messages(self, count: int) -> list[Message]:
        """Return the next messages."""
        return [self.message(f"message {n}") for n in range(count)]
