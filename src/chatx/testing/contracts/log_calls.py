"""A log under test, and the owner of one of its rooms: each answer is looked at before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from chatx.adapters.room_log import FENCED, Answer, Append, Found, Keyed, Opened, Record
from chatx.core.message import Entry, Position
from chatx.testing.contracts.calls import Calls, brief, shown
from chatx.testing.contracts.stream import Stream

NOWHERE = Position("an epoch nobody has seen", 0)


class LogCalls:
    """Calls a log as the engine does, and checks the form of its answers."""

    def __init__(self, calls: Calls) -> None:
        self.calls: Calls = calls
        self.expect: Callable[[bool, str], None] = calls.expect

    async def look(self, room_id: str) -> Opened:
        """Look at a room."""
        return await self._opened("look", room_id)

    async def take_over(self, room_id: str) -> Opened:
        """Take a room over."""
        return await self._opened("take_over", room_id)

    async def _opened(self, method: str, room_id: str) -> Opened:
        opened = await self.calls.call(method, room_id)
        well = isinstance(opened, Opened) and type(opened.term) is int and type(opened.oldest) is int
        well = well and type(opened.proven) is bool and all(isinstance(each, Keyed) for each in opened.keyed)
        well = well and (opened.head is None or isinstance(opened.head, Position))
        self.expect(well, f"{method}(room) answered {brief(repr(opened))}; it must answer a well-formed Opened")
        answer: Opened = opened
        return answer

    async def unproven(self, room_id: str, term: int, head: Position) -> bool:
        """Withdraw the proof of a head."""
        return self._truth("unproven(room, term, head)", await self.calls.call("unproven", room_id, term, head))

    async def append(self, *appends: Append) -> list[Answer]:
        """Append to rooms."""
        answers = await self.calls.call("append", list(appends))
        well = isinstance(answers, Sequence) and not isinstance(answers, str) and len(answers) == len(appends)
        well = well and all(each is None or (isinstance(each, str) and each) for each in answers)
        self.expect(
            well,
            f"append of {len(appends)} rooms answered {brief(repr(answers))}; it must answer for each in their order: "
            f"None, {FENCED!r}, or what is wrong with an entry",
        )
        return list(answers)

    async def read(self, room_id: str, *, limit: int = 100, **place: Position) -> Found:
        """Read entries."""
        found = await self.calls.call("read", room_id, **place, limit=limit)
        well = isinstance(found, Found) and all(isinstance(each, Entry) for each in found.entries)
        well = well and (found.oldest is None or isinstance(found.oldest, Position))
        self.expect(
            well,
            f"{shown('read', (room_id,), {**place, 'limit': limit})} answered {brief(repr(found))}; it must answer a "
            "Found with entries",
        )
        answer: Found = found
        return answer

    async def expect_read(
        self, expected: Sequence[Entry], room_id: str, *, limit: int = 100, **place: Position
    ) -> None:
        """Read and compare."""
        found = (await self.read(room_id, limit=limit, **place)).entries
        asked = shown("read", (room_id,), {**place, "limit": limit})
        for got, want in zip(found, expected, strict=False):
            if (got.epoch, got.offset) == (want.epoch, want.offset):
                self.expect_equal(got, want, f"an entry that {asked} answered")
        self.expect(
            list(found) == list(expected),
            f"{asked} answered the places {places(found)}; it must answer {places(expected)}, oldest first",
        )

    def expect_equal(self, got: Entry | None, want: Entry, what: str) -> None:
        """Compare an entry with what was appended, its data by its text too."""
        self.expect(type(got) is type(want), f"{what} is {got!r}; it must be {brief(repr(want))}")
        for field in want.__struct_fields__:
            mine, theirs = getattr(want, field), getattr(got, field)
            same = mine == theirs and getattr(mine, "text", None) == getattr(theirs, "text", None)
            self.expect(same, f"{what} has the {field} {brief(repr(theirs))} where {brief(repr(mine))} was appended")

    async def close_rooms(self, ends: dict[str, tuple[int, Position]]) -> dict[str, bool]:
        """Prove heads."""
        answers = await self.calls.call("close_rooms", ends)
        well = isinstance(answers, dict) and answers.keys() == ends.keys()
        self.expect(well, f"close_rooms answered {brief(repr(answers))}; it must answer for each room that it is given")
        return {room_id: self._truth("close_rooms", answers[room_id]) for room_id in ends}

    async def find(self, room_id: str, user_id: str, key: str) -> Entry | None:
        """Return what was stored under a key."""
        found = await self.calls.call("find", room_id, user_id, key)
        self.expect(
            found is None or isinstance(found, Entry),
            f"find(room, user, key) answered {brief(repr(found))}; it must answer an entry or None",
        )
        entry: Entry | None = found
        return entry

    def _truth(self, asked: str, answer: Any) -> bool:
        self.expect(answer is True or answer is False, f"{asked} answered {answer!r}; it must answer True or False")
        return bool(answer)


class Owner:
    """Whoever has a room of its own and appends to it.

    Attributes:
        stream: The room's messages.
        room_id: The room.
        term: The term that it holds.
        head: Where it stands.
        entries: What it has appended, in order.
    """

    def __init__(self, log: LogCalls) -> None:
        self.log: LogCalls = log
        self.stream: Stream = Stream()
        self.room_id: str = self.stream.room_id
        self.term: int = 0
        self.head: Position = Position(self.stream.epoch, 0)
        self.entries: list[Entry] = []

    @classmethod
    async def of_a_new_room(cls, log: LogCalls, *, said: int = 0) -> Owner:
        """Take a room over that nobody had yet, and append so many messages."""
        owner = cls(log)
        await owner.take()
        if said:
            await owner.say(said)
        return owner

    async def take(self) -> Opened:
        """Take the room over."""
        opened = await self.log.take_over(self.room_id)
        self.log.expect(
            opened.term > self.term, f"take_over answered the term {opened.term} after {self.term}; terms must rise"
        )
        self.term = opened.term
        return opened

    def begin(self) -> None:
        """Stand at the beginning of a new epoch."""
        self.stream.begin()
        self.head = Position(self.stream.epoch, 0)

    def draw(self, count: int = 1) -> list[Entry]:
        """Return the next messages, without appending them."""
        return [replace(each, stored=True) for each in self.stream.messages(count)]

    def append(
        self, entries: Sequence[Entry], *, keys: Sequence[str | None] = (), durable: bool = True, proven: bool = True
    ) -> Append:
        """Return the append of entries behind the head."""
        keyed = [*keys, *[None] * (len(entries) - len(keys))]
        records = tuple(Record(each, key) for each, key in zip(entries, keyed, strict=True))
        return Append(self.room_id, self.term, self.head, records, durable, proven)

    def appended(self, append: Append) -> None:
        """Take note that it was."""
        self.entries += [each.entry for each in append.records]
        last = append.records[-1].entry
        self.head = Position(last.epoch, last.offset)

    async def write(self, append: Append) -> None:
        """Append, which must succeed."""
        answer = (await self.log.append(append))[0]
        self.log.expect(
            answer is None, f"append behind the head, under the room's term, answered {answer!r}; it must be None"
        )
        self.appended(append)

    async def say(self, count: int = 1, *, durable: bool = True, proven: bool = True) -> list[Entry]:
        """Append the next messages."""
        entries = self.draw(count)
        await self.write(self.append(entries, durable=durable, proven=proven))
        return entries

    async def is_refused(self, append: Append, why: str, *, fenced: bool = False) -> None:
        """Expect that an append is refused and changes nothing."""
        answer = (await self.log.append(append))[0]
        self.log.expect(
            answer == FENCED if fenced else answer is not None,
            f"append {why} answered {answer!r}; it must be {'fenced' if fenced else 'refused'}",
        )
        await self.nothing_changed(f"append {why}")

    async def nothing_changed(self, what: str) -> None:
        """Expect that the room holds what was appended, and no more."""
        found = (await self.log.read(self.room_id, limit=len(self.entries) + 10)).entries
        self.log.expect(
            list(found) == self.entries,
            f"{what} changed the room: it has the places {places(found)}, and must have {places(self.entries)}",
        )

    async def is_proven(self) -> bool:
        """Take the room over, and return whether its head, which must be where it was left, is proven."""
        opened = await self.take()
        self.log.expect(
            opened.head == self.head, f"take_over answered the head {opened.head}; it must be {tuple(self.head)}"
        )
        return opened.proven


def at(entry: Entry) -> Position:
    """Return an entry's place."""
    return Position(entry.epoch, entry.offset)


def places(entries: Sequence[Entry]) -> str:
    """Return the places of entries, for an error."""
    shown_first = [f"{each.epoch}:{each.offset}" for each in entries[:20]]
    return "[" + ", ".join([*shown_first, *(["..."] if len(entries) > 20 else [])]) + "]"
