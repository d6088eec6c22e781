"""Message ids and epochs."""

from __future__ import annotations

import random
import secrets


class MessageIds:
    """UUIDv7 as text, rising within one process even within one ms (RFC 9562, 5.7 and method 1 of 6.2)."""

    __slots__ = ("_counter", "_ms", "_random")

    def __init__(self) -> None:
        # Ids are not secrets; a generator seeded once saves a system call a message.
        self._random = random.Random(secrets.randbits(128))
        self._ms = 0
        self._counter = 0

    def next(self, now_ms: int) -> str:
        """Return the next id; a clock that steps back does not take the ids back with it."""
        if now_ms > self._ms:
            self._ms = now_ms
            self._counter = self._random.getrandbits(11)
        elif self._counter < 0xFFF:
            self._counter += 1
        else:
            self._ms += 1
            self._counter = self._random.getrandbits(11)
        tail = self._random.getrandbits(62) | 0x8000000000000000
        text = f"{self._ms:012x}7{self._counter:03x}{tail:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_epoch() -> str:
    """Return a fresh opaque name for a stream."""
    return secrets.token_hex(8)
