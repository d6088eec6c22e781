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
        self._by_subject: dict[str, dict[int, Stored]] = {}  # each in order
        self._messages: dict[int, Stored] = {}

    def of(self, boot: str) -> MemoryStream:
        """Return the same stream, for another node."""
        other = MemoryStream(boot)
        other.__dict__ |= self.__dict__ | {"boot": boot}
        return other

    async def append(self, subject: str, content: bytes, expected: int) -> int:
        await asyncio.sleep(0)
        messages = self._by_subject.setdefault(subject, {})
        newest = next(reversed(messages), 0)
        if self.compares and newest != expected:
            raise WrongNumber(f"{newest}, not {expected}")
        number = next(reversed(self._messages), 0) + 1
        self._messages[number] = messages[number] = Stored(number, content, subject)
        return number

    async def newest(self, subject: str) -> Stored | None:
        await asyncio.sleep(0)
        self.reads += 1
        return next(reversed(self._by_subject.get(subject, {}).values()), None)

    async def numbered(self, number: int) -> Stored | None:
        await asyncio.sleep(0)
        self.reads += 1
        return self._messages.get(number)

    async def next(self, subject: str, number: int) -> Stored | None:
        await asyncio.sleep(0)
        self.reads += 1
        return next((each for each in self._by_subject.get(subject, {}).values() if each.seq >= number), None)

    async def purge(self, subject: str, ahead_of: int) -> None:
        await asyncio.sleep(0)
        for number in [each for each in self._by_subject[subject] if each < ahead_of]:
            del self._messages[number], self._by_subject[subject][number]

    async def all_subjects(self) -> list[str]:
        await asyncio.sleep(0)
        return [each.removeprefix(self.subjects) for each, messages in self._by_subject.items() if messages]
