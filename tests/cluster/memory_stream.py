"""What a `JetStreamLog` needs of JetStream, in memory."""

from __future__ import annotations

import asyncio

from chatx.cluster.jetstream import JetStream, Stored, WrongNumber


class MemoryStream(JetStream):
    """A stream in memory, which numbers what is appended over all subjects.

    Attributes:
        compares: Whether an append looks at what is expected.
        reads: Records that were read.
    """

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.subjects = "log."
        self.losses = 0
        self.compares = True
        self.reads = 0
        self._messages: dict[int, Stored] = {}

    def of(self, boot: str) -> MemoryStream:
        """Return the same stream, for another node."""
        other = MemoryStream(boot)
        other.__dict__ |= self.__dict__ | {"boot": boot}
        return other

    async def append(self, subject: str, content: bytes, expected: int) -> int:
        await asyncio.sleep(0)
        newest = max((each.seq for each in self._messages.values() if each.subject == subject), default=0)
        if self.compares and newest != expected:
            raise WrongNumber(f"{newest}, not {expected}")
        number = max(self._messages, default=0) + 1
        self._messages[number] = Stored(number, content, subject)
        return number

    async def newest(self, subject: str) -> Stored | None:
        await asyncio.sleep(0)
        self.reads += 1
        return max((each for each in self._messages.values() if each.subject == subject), key=_number, default=None)

    async def numbered(self, number: int) -> Stored | None:
        await asyncio.sleep(0)
        self.reads += 1
        return self._messages.get(number)

    async def next(self, subject: str, number: int) -> Stored | None:
        await asyncio.sleep(0)
        self.reads += 1
        behind = (each for each in self._messages.values() if each.subject == subject and each.seq >= number)
        return min(behind, key=_number, default=None)

    async def purge(self, subject: str, ahead_of: int) -> None:
        await asyncio.sleep(0)
        for each in [each for each in self._messages.values() if each.subject == subject and each.seq < ahead_of]:
            del self._messages[each.seq]

    async def all_subjects(self) -> list[str]:
        await asyncio.sleep(0)
        return list(dict.fromkeys(each.subject.removeprefix(self.subjects) for each in self._messages.values()))


def _number(stored: Stored) -> int:
    return stored.seq
