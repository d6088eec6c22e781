"""How many connections each worker has, in memory that all of them share, so that clients are spread evenly.

All workers wait at the same sockets, and the kernel wakes all of them: who is first would be so nearly each time, and
was, for nine of ten. So one that has more than another by `LEAD` leaves a newcomer to that one for a moment, and takes
it where nobody did.
"""

from __future__ import annotations

import mmap
import tempfile
from typing import IO, Final

LEAD: Final = 16
"""Connections by which a worker may be ahead of the one that has fewest, and a sixteenth of what that one has."""

_ABSENT: Final = 2**63
_BYTES: Final = 8


class Loads:
    """The memory.

    Args:
        descriptor: A file of it, as `made` returns one.
        workers: How many there are.
    """

    def __init__(self, descriptor: int, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(descriptor, workers * _BYTES)).cast("Q")

    def leads(self, own: int, count: int) -> bool:
        """Say what a worker has, and return whether it is to leave a newcomer to another one."""
        self._counts[own] = count
        least = min((each for number, each in enumerate(self._counts) if number != own), default=_ABSENT)
        return count > least + LEAD + least // 16

    def absent(self, number: int) -> None:
        """Take note that a worker takes nobody."""
        self._counts[number] = _ABSENT


def memory_for(workers: int) -> IO[bytes]:
    """Return a file for the memory of so many workers, which has no name; it is gone when it was closed by all."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 # whoever asks for it closes it
    file.truncate(workers * _BYTES)
    return file
