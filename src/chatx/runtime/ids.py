"""Message ids and epochs."""

from __future__ import annotations

import random
import secrets


class MessageIds:
    """UUIDv7 as text, rising within one process even within one ms.

    Source: RFC 9562, 5.7 and method 1 of 6.2: a counter in `rand_a`. The 62 random bits are drawn anew each ms, and
    once more where the counter runs over; ids are unique and ordered, but they are not secrets.
    """

    __slots__ = ("_counter", "_head", "_ms", "_random", "_tail")

    def __init__(self) -> None:
        self._random = random.Random(secrets.randbits(128))
        self._ms = -1
        self._counter = 0
        self._head = ""
        self._tail = ""

    def next(self, now_ms: int) -> str:
        """Return the next id; a clock that steps back does not take the ids back with it."""
        if now_ms > self._ms:
            self._begin(now_ms)
        elif self._counter < 0xFFF:
            self._counter += 1
        else:
            self._begin(self._ms + 1)
        return f"{self._head}{self._counter:03x}{self._tail}"

    def _begin(self, ms: int) -> None:
        self._ms = ms
        # Half of the counter is left to count with.
        self._counter = self._random.getrandbits(11)
        tail = self._random.getrandbits(62) | 0x8000000000000000
        self._head = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7"
        self._tail = f"-{tail >> 48:04x}-{tail & 0xFFFFFFFFFFFF:012x}"


def new_epoch() -> str:
    """Return a fresh opaque name for a stream."""
    return secrets.token_hex(8)
