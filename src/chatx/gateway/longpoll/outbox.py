"""What one polling client has not acknowledged yet: numbered batches of messages, each kept until a poll names it.

A response may be lost on its way, and whoever wrote it does not hear of it: a browser asks once more by itself where a
connection breaks, and so do proxies. So a batch is not gone when it is given out. The token of a response has the
batch's number; the next poll brings it back, and only then is the batch dropped.

Rules:
1. A poll that names the number of the last batch acknowledges it, and gets the next one. One that names the number
   before gets the last batch again, unchanged, a few times. Any other number is out of step.
2. What waits and what is not acknowledged are counted together, and bounded in bytes.
"""

from __future__ import annotations

BATCH_BYTES = 600_000
"""Bytes of one batch, at most but for a single message; with nodes it goes from one to another."""

MAX_REPEATS = 3
"""Times that a batch is given out again. Who does not get it then will not, and each copy may lie in a buffer."""


class OutOfStep(Exception):
    """A poll names a batch that is neither the last one nor the one before: whoever asks has missed something."""


class Outbox:
    """The messages of one client.

    Attributes:
        number: The number of the last batch that was given out; 0 where there was none.
        repeats: How often that batch was given out again.

    Args:
        limit_bytes: The most bytes of UTF-8 in all messages that are not acknowledged.
    """

    __slots__ = ("_batch", "_batch_size", "_limit_bytes", "_waiting", "_waiting_size", "number", "repeats")

    def __init__(self, limit_bytes: int) -> None:
        self.number: int = 0
        self.repeats: int = 0
        self._limit_bytes = limit_bytes
        self._batch: list[str] = []
        self._batch_size = 0
        self._waiting: list[str] = []
        self._waiting_size = 0

    def __len__(self) -> int:
        """Return how many messages are not acknowledged."""
        return len(self._batch) + len(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether a poll would get something new."""
        return bool(self._waiting)

    def add(self, texts: list[str], size: int, *, bounded: bool) -> bool:
        """Keep these messages and return True; where they are bounded and would pass `limit_bytes`, keep none.

        Args:
            texts: The messages.
            size: Bytes of UTF-8 in all of them.
            bounded: Whether the bound holds for them.
        """
        if bounded and self._batch_size + self._waiting_size + size > self._limit_bytes:
            return False
        self._waiting.extend(texts)
        self._waiting_size += size
        return True

    def take(self, acknowledged: int) -> list[str]:
        """Return what the client is to get, which may be nothing; `number` is then that of the last batch.

        Raises:
            OutOfStep: That number cannot be the client's.
        """
        if acknowledged == self.number - 1 and self._batch:
            self.repeats += 1
            return self._batch
        if acknowledged != self.number:
            raise OutOfStep
        count, size = len(self._waiting), self._waiting_size
        if size > BATCH_BYTES:
            count, size = _that_fit(self._waiting)
        self._batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._batch_size, self._waiting_size = size, self._waiting_size - size
        self.repeats = 0
        if self._batch:
            self.number += 1
        return self._batch

    def clear(self) -> None:
        """Drop everything: the client is gone."""
        self._batch, self._waiting = [], []
        self._batch_size = self._waiting_size = 0


def _that_fit(texts: list[str]) -> tuple[int, int]:
    """Return how many messages go into one batch, at least one, and their bytes."""
    count = whole = 0
    for text in texts:
        size = len(text.encode())
        if count and whole + size > BATCH_BYTES:
            break
        count, whole = count + 1, whole + size
    return count, whole
