"""`check_room_log`: what keeps the contract passes, and each way to break it is found and named."""

import asyncio
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from chatx.adapters.memory_log import MemoryLog, _Room
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import FENCED, Answer, Append, Found, Keyed, Opened, misplaced
from chatx.core.data import Data
from chatx.core.message import Entry, Message, Position, UnknownEntry
from chatx.testing import check_room_log
from chatx.testing.faulty_log import FaultyLog
from tests.virtual import virtual


@virtual
async def test_a_log_that_keeps_the_contract_passes() -> None:
    await check_room_log(MemoryLog)


@virtual
async def test_one_log_for_all_checks_passes_however_often_and_slowly() -> None:
    log = FaultyLog(MemoryLog(), lambda method: "slow", slow_s=0.01)

    async def make() -> FaultyLog:
        return log

    await check_room_log(make)
    await check_room_log(lambda: log)


class Refuses(MemoryLog):
    """Keeps the contract too: it says of a lone surrogate that it cannot be stored."""

    def _appended(self, append: Append) -> Answer:
        for record in append.records:
            try:
                record.entry.content.encode()
            except UnicodeEncodeError as error:
                return str(error)
        return super()._appended(append)


@virtual
async def test_a_log_that_cannot_store_everything_passes() -> None:
    await check_room_log(Refuses)


class Changes(MemoryLog):
    """Rewrites what it is given."""

    def rewrite(self, entry: Entry) -> Entry:
        return entry

    def _appended(self, append: Append) -> Answer:
        if misplaced(append):
            return super()._appended(append)
        records = tuple(replace(each, entry=self.rewrite(each.entry)) for each in append.records)
        return super()._appended(replace(append, records=records))


def with_content(rewrite: Callable[[str], str]) -> type[MemoryLog]:
    class ChangesContent(Changes):
        def rewrite(self, entry: Entry) -> Entry:
            return replace(entry, content=rewrite(entry.content))

    return ChangesContent


class LosesData(Changes):
    def rewrite(self, entry: Entry) -> Entry:
        return replace(entry, data=None) if isinstance(entry, Message) else entry


class WritesDataAnew(Changes):
    def rewrite(self, entry: Entry) -> Entry:
        data = getattr(entry, "data", None)
        return entry if data is None else replace(entry, data=Data.of(dict(sorted(data.items()))))


class LosesStored(Changes):
    def rewrite(self, entry: Entry) -> Entry:
        return replace(entry, stored=False) if isinstance(entry, Message) else entry


class StoresEveryEntry(Changes):
    def rewrite(self, entry: Entry) -> Entry:
        return replace(entry, stored=True) if isinstance(entry, Message) else entry


class LosesTargets(Changes):
    def rewrite(self, entry: Entry) -> Entry:
        return replace(entry, target=None) if isinstance(entry, UnknownEntry) else entry


class TakesEveryKindForAMessage(Changes):
    def rewrite(self, entry: Entry) -> Entry:
        fields = [getattr(entry, each) for each in Entry.__struct_fields__]
        return Message(*fields) if isinstance(entry, UnknownEntry) else entry


class LosesKinds(MemoryLog):
    """Skips what it does not know when it reads."""

    async def read(self, room_id: str, /, **place: Any) -> Found:
        found = await super().read(room_id, **place)
        return replace(found, entries=tuple(each for each in found.entries if isinstance(each, Message)))


class SameTerm(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        self._rooms[room_id].term = 1
        return replace(opened, term=1)


class OneTermForAll(MemoryLog):
    """Counts terms over all rooms, and takes the newest for every room's."""

    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        term = max(each.term for each in self._rooms.values()) + 1
        for each in self._rooms.values():
            each.term = term
        return replace(opened, term=term)


class NoFence(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        return super()._appended(append if room is None else replace(append, term=room.term))


class TakesLaterTerms(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and append.term > room.term:
            append = replace(append, term=room.term)
        return super()._appended(append)


class FencesNoNewEpoch(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and append.after.offset == 0 and append.after.epoch not in room.epochs:
            append = replace(append, term=room.term)
        return super()._appended(append)


class ServesUnknownRooms(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        if append.room_id not in self._rooms:
            self._rooms[append.room_id] = _Room()
            self._rooms[append.room_id].term = append.term
        return super()._appended(append)


class UnprovenWithoutFence(MemoryLog):
    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        await super().unproven(room_id, self._rooms[room_id].term, head)
        return term == self._rooms[room_id].term


class UnprovenIsAlwaysTrue(MemoryLog):
    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        await super().unproven(room_id, term, head)
        return True


class NeverUnproven(MemoryLog):
    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        return term == self._rooms[room_id].term


class UnprovenEverywhere(MemoryLog):
    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        withdrawn = await super().unproven(room_id, term, head)
        for each in self._rooms.values():
            each.proven = each.proven and not withdrawn
        return withdrawn


class UnprovenOnlyWhereTheEpochIsThere(MemoryLog):
    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        return head.epoch in self._rooms[room_id].epochs and await super().unproven(room_id, term, head)


class ClosesWithoutFence(MemoryLog):
    def _closed(self, room_id: str, term: int, head: Position) -> bool:
        room = self._rooms.get(room_id)
        return super()._closed(room_id, room.term if room is not None else term, head)


class ClosesAnywhere(MemoryLog):
    def _closed(self, room_id: str, term: int, head: Position) -> bool:
        room = self._rooms.get(room_id)
        return super()._closed(room_id, term, room.head if room is not None and room.head is not None else head)


class ClosesBehindTheHead(MemoryLog):
    """Takes a place that was never stored for the end."""

    def _closed(self, room_id: str, term: int, head: Position) -> bool:
        room = self._rooms.get(room_id)
        if room is not None and room.head is not None and head > room.head:
            head = room.head
        return super()._closed(room_id, term, head)


class ClosesNothing(MemoryLog):
    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        return dict.fromkeys(ends, True)


class ClosesAllOrNone(MemoryLog):
    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        if not all(room_id in self._rooms and self._rooms[room_id].term == term for room_id, (term, _) in ends.items()):
            return dict.fromkeys(ends, False)
        return await super().close_rooms(ends)


class AnswersForThoseItClosed(MemoryLog):
    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        return {room_id: True for room_id, closed in (await super().close_rooms(ends)).items() if closed}


class AppendsProve(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        if answer is None and append.durable and append.after.offset:
            self._rooms[append.room_id].proven = True
        return answer


class AppendsWithdraw(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        if answer is None and append.after.offset:
            self._rooms[append.room_id].proven = False
        return answer


class AppendsNeverProve(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        return super()._appended(replace(append, proven=append.proven and not append.after.offset))


class EpochsBeginProven(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        return super()._appended(replace(append, proven=append.proven or not append.after.offset))


class EpochsBeginUnproven(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        return super()._appended(replace(append, proven=False))


class TakesTheAppendsProof(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        if answer is None:
            self._rooms[append.room_id].proven = append.proven
        return answer


class LosesHeads(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        return replace(await super().take_over(room_id), head=None)


class OldestIsTheHead(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        return replace(opened, oldest=opened.head.offset if opened.head is not None else 1)


class LooksByTakingOver(MemoryLog):
    async def look(self, room_id: str, /) -> Opened:
        return await self.take_over(room_id)


class LooksAtTheTermAlone(MemoryLog):
    async def look(self, room_id: str, /) -> Opened:
        opened = await super().look(room_id)
        return replace(opened, head=None)


class HeadBehindTheEnd(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        head = opened.head
        return opened if head is None else replace(opened, head=head._replace(offset=head.offset + 1))


class AppendsAgain(MemoryLog):
    """Takes what comes again for new: it is there under a second place."""

    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is None or room.head is None or append.after.epoch != room.head.epoch or misplaced(append):
            return super()._appended(append)
        head = room.head
        entries = [
            replace(each, entry=replace(each.entry, offset=head.offset + n)) for n, each in enumerate(append.records, 1)
        ]
        return super()._appended(replace(append, after=head, records=tuple(entries)))


class FencesWhatComesAgain(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and append.after.epoch in room.epochs and append.after != room.head:
            return misplaced(append) or FENCED
        return super()._appended(append)


class FencesWhatComesAgainAndIsNotTheNewest(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room, last = self._rooms.get(append.room_id), append.records[-1:]
        newest = room.head.offset if room is not None and room.head is not None else 0
        if room is not None and append.after.epoch in room.epochs and last and last[0].entry.offset < newest:
            return misplaced(append) or FENCED
        return super()._appended(append)


class WritesOverWhatIsThere(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and append.term == room.term and not misplaced(append):
            for record in append.records:
                there = room.epochs.get(record.entry.epoch, {})
                if record.entry.offset in there:
                    there[record.entry.offset] = record
        return super()._appended(append)


class IgnoresTheIdThatIsThere(MemoryLog):
    """Answers that it was appended, whatever has the place."""

    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        there = room.epochs.get(append.after.epoch, {}) if room is not None else {}
        there_already = append.records and all(each.entry.offset in there for each in append.records)
        if room is not None and append.term == room.term and there_already and not misplaced(append):
            return None
        return super()._appended(append)


class NoPlacesLookedAt(MemoryLog):
    """Appends whatever it is given, wherever."""

    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and append.term == room.term:
            for record in append.records:
                entry = record.entry
                room.epochs.setdefault(entry.epoch, {}).setdefault(entry.offset, record)
                room.head = Position(entry.epoch, entry.offset)
                if record.key is not None:
                    room.keys.setdefault((entry.user_id, record.key), Keyed(record.key, entry))
            return None
        return super()._appended(append)


class HolesBehindTheHead(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and room.head is not None and append.after > room.head and append.term == room.term:
            room.head = append.after
        return super()._appended(append)


class EpochsBeginAnywhere(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        fits = room is not None and append.term == room.term and misplaced(append) is None
        if room is not None and fits and append.after.epoch not in room.epochs:
            room.epochs[append.after.epoch] = {}
            room.head, room.proven = append.after, append.proven
        return super()._appended(append)


class GoesOnInOldEpochs(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        if room is not None and append.term == room.term and append.after.epoch in room.epochs:
            room.head = Position(append.after.epoch, max(room.epochs[append.after.epoch], default=0))
        return super()._appended(append)


class KeepsOneEpoch(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        room = self._rooms.get(append.room_id)
        if room is not None and room.head is not None:
            room.epochs = {room.head.epoch: room.epochs[room.head.epoch]}
        return answer


class OldestStaysAsItWas(MemoryLog):
    """The oldest place of the epoch before."""

    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        epochs = [*self._rooms[room_id].epochs.values()]
        return replace(opened, oldest=max(epochs[-2])) if len(epochs) > 1 else opened


class AllOrNoRoom(MemoryLog):
    """One refused room takes the others with it."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        answers = []
        for each in appends:
            room = self._rooms.get(each.room_id)
            answers.append(FENCED if room is None or room.term != each.term else misplaced(each))
        if any(answers):
            return [each or "another room of the transaction was refused" for each in answers]
        return await super().append(appends)


class AnswersInAnotherOrder(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        answers = list(await super().append(appends))
        return sorted(answers, key=lambda each: each is not None)


class AnswersForTheRefused(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        return [each for each in await super().append(appends) if each is not None]


class AnswersFalse(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Any:
        return [each is None for each in await super().append(appends)]


class AnswersNothing(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Any:
        await super().append(appends)


class RaisesWhereItIsFenced(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        answers = await super().append(appends)
        if FENCED in answers:
            raise PermissionError("fenced")
        return answers


class HalfAppends(Refuses):
    """Writes what is ahead of an entry that cannot be stored."""

    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        if answer is not None and "surrogate" in answer:
            super()._appended(replace(append, records=append.records[:1]))
        return answer


class RaisesWhereAnEntryCannotBeStored(Refuses):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        answers = await super().append(appends)
        if any(each and "surrogate" in each for each in answers):
            raise ValueError("surrogates not allowed")
        return answers


class FencesWhatCannotBeStored(Refuses):
    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        return FENCED if answer is not None and "surrogate" in answer else answer


class Reads(MemoryLog):
    """Reads in some other way."""

    def all(self, room_id: str) -> list[Entry]:
        return [each.entry for each in self.records(room_id)]

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        found = await super().read(room_id, after=after, before=before, limit=limit)
        entries = self.found(self.all(room_id), found, after, before, limit)
        return replace(found, entries=tuple(entries))

    def found(
        self, entries: list[Entry], found: Found, after: Position | None, before: Position | None, limit: int
    ) -> Sequence[Entry]:
        return found.entries


class NewestFirst(Reads):
    def found(self, entries: list[Entry], found: Found, *place: Any) -> Sequence[Entry]:
        return found.entries[::-1]


class NoLimit(Reads):
    async def read(self, room_id: str, /, *, limit: int, **place: Any) -> Found:
        return await super().read(room_id, limit=10**6, **place)


class AfterInclusive(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        if after is None:
            return found.entries
        return [each for each in entries if each.epoch == after.epoch and each.offset >= after.offset][:limit]


class AfterInAnyEpoch(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        return found.entries if after is None else [each for each in entries if each.offset > after.offset][:limit]


class AfterAcrossEpochs(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        epochs = list(dict.fromkeys(each.epoch for each in entries))
        if after is None or after.epoch not in epochs:
            return found.entries
        place = (epochs.index(after.epoch), after.offset)
        return [each for each in entries if (epochs.index(each.epoch), each.offset) > place][:limit]


class AfterAsText(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        if after is None:
            return found.entries
        return [each for each in entries if each.epoch == after.epoch and str(each.offset) > str(after.offset)][:limit]


class AfterGivesTheLastOnes(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        if after is None:
            return found.entries
        return [each for each in entries if each.epoch == after.epoch and each.offset > after.offset][-limit:]


class AfterAnUnknownEpochIsEverything(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        if after is not None and all(each.epoch != after.epoch for each in entries):
            return entries[:limit]
        return found.entries


class BeforeInclusive(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        if before is None or before not in [(each.epoch, each.offset) for each in entries]:
            return found.entries
        return entries[: [(each.epoch, each.offset) for each in entries].index(before) + 1][-limit:]


class BeforeInOneEpoch(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        return found.entries if before is None else [each for each in found.entries if each.epoch == before.epoch]


class BeforeGivesTheFirstOnes(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        return found.entries if before is None else entries[:limit]


class BeforeAnUnknownEpochIsNothing(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        if before is not None and all(each.epoch != before.epoch for each in entries):
            return []
        return found.entries


class EpochsByTheirNames(Reads):
    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        return sorted(found.entries, key=lambda each: (each.epoch, each.offset))


class NoRooms(Reads):
    def all(self, room_id: str) -> list[Entry]:
        return [each for room in self._rooms for each in super(NoRooms, self).all(room)]

    def found(self, entries: list[Entry], found: Found, after: Any, before: Any, limit: int) -> Sequence[Entry]:
        return found.entries if after or before else entries[-limit:]


class AnswersWithLess(Reads):
    """Reads a page of its own size."""

    def found(self, entries: list[Entry], found: Found, *place: Any) -> Sequence[Entry]:
        return found.entries[:50]


class NoOldest(MemoryLog):
    async def read(self, room_id: str, /, **place: Any) -> Found:
        return replace(await super().read(room_id, **place), oldest=None)


class OldestOfWhatWasFound(MemoryLog):
    async def read(self, room_id: str, /, **place: Any) -> Found:
        found = await super().read(room_id, **place)
        first = found.entries[:1]
        return replace(found, oldest=Position(first[0].epoch, first[0].offset) if first else None)


class OldestOfTheNewestEpoch(MemoryLog):
    async def read(self, room_id: str, /, **place: Any) -> Found:
        found, newest = await super().read(room_id, **place), await super().read(room_id, limit=1)
        return replace(found, oldest=newest.oldest)


class AnswersEntriesAlone(MemoryLog):
    async def read(self, room_id: str, /, **place: Any) -> Any:
        return (await super().read(room_id, **place)).entries


class NoKeys(MemoryLog):
    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        return None


class KeysOfAnybody(MemoryLog):
    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        room = self._rooms.get(room_id)
        return next((each.entry for each in room.keys.values() if each.key == key), None) if room is not None else None


class KeysOfAnyRoom(MemoryLog):
    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        for each in self._rooms:
            if (found := await super().find(each, user_id, key)) is not None:
                return found
        return None


class KeysInAnyCase(MemoryLog):
    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        room = self._rooms.get(room_id)
        keys = {(user, each.lower()): keyed.entry for (user, each), keyed in room.keys.items()} if room else {}
        return keys.get((user_id, key.lower()))


class TheLastOfAKey(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        answer = super()._appended(append)
        if answer is None:
            for record in append.records:
                if record.key is not None:
                    self._rooms[append.room_id].keys[record.entry.user_id, record.key] = Keyed(record.key, record.entry)
        return answer


class RefusesAKeyTwice(MemoryLog):
    def _appended(self, append: Append) -> Answer:
        room = self._rooms.get(append.room_id)
        for record in append.records:
            there = room.keys.get((record.entry.user_id, record.key or "")) if room is not None else None
            if there is not None and there.entry.id != record.entry.id:
                return "UNIQUE constraint failed"
        return super()._appended(append)


class TakesOverWithoutKeys(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        return replace(await super().take_over(room_id), keyed=())


class NewestKeysFirst(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        return replace(opened, keyed=opened.keyed[::-1])


class AllKeysAtOnce(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        return replace(await super().take_over(room_id), keyed=tuple(self._rooms[room_id].keys.values()))


class OldestKeys(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        return replace(await super().take_over(room_id), keyed=tuple(self._rooms[room_id].keys.values())[:1000])


class KeepsSoManyKeys(MemoryLog):
    """Lets go of the keys that do not come with a room."""

    async def take_over(self, room_id: str, /) -> Opened:
        opened = await super().take_over(room_id)
        self._rooms[room_id].keys = {(each.entry.user_id, each.key): each for each in opened.keyed}
        return opened


class LooksThenWrites(MemoryLog):
    """Lets another one in between its look at the head and its writing."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        looked = [(room := self._rooms.get(each.room_id)) and (room.term, room.head) for each in appends]
        await asyncio.sleep(0.01)
        answers: list[Answer] = []
        for append, seen in zip(appends, looked, strict=True):
            room = self._rooms.get(append.room_id)
            if room is not None and seen == (append.term, append.after) and misplaced(append) is None:
                room.epochs[append.after.epoch].update({each.entry.offset: each for each in append.records})
                room.keys |= {
                    (each.entry.user_id, each.key): Keyed(each.key, each.entry) for each in append.records if each.key
                }
                room.head = Position(append.after.epoch, append.records[-1].entry.offset)
                answers.append(None)
            else:
                answers.append(self._appended(append))
        return answers


class TermsWithoutALock(MemoryLog):
    async def take_over(self, room_id: str, /) -> Opened:
        room = self._rooms.get(room_id)
        term = room.term + 1 if room is not None else 1
        await asyncio.sleep(0.01)
        opened = await super().take_over(room_id)
        self._rooms[room_id].term = term
        return replace(opened, term=term)


class Down(MemoryLog):
    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        raise ConnectionError("no database")


class OnlyRecords(MemoryLog):
    async def take_over(self, room_id: str, /) -> Any:
        opened = await super().take_over(room_id)
        return (opened.term, opened.head)


class TrimsNothing(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        return 0


class TrimsBeyondTheLimit(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        return await super().trim(room_ids, retention, limit + 1)


class SparesNoKeys(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        return await super().trim(room_ids, replace(retention, keys_spared_ms=retention.spared_ms), limit)


class SparesNothing(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        return await super().trim(room_ids, replace(retention, spared_ms=2**62), limit)


class TrimsEveryRoom(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        gone = await super().trim(room_ids, retention, limit)
        await super().trim([each for each in self._rooms if each not in room_ids], replace(retention, keep=1), limit)
        return gone


class TrimsTheHead(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        gone = await super().trim(room_ids, retention, limit)
        for room_id in room_ids:
            room = self._rooms[room_id]
            if not self.records(room_id) and room.head is not None:
                room.head = Position(room.head.epoch, 0)
        return gone


class ForgetsItsEpochs(MemoryLog):
    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        gone = await super().trim(room_ids, retention, limit)
        for room_id in room_ids:
            room = self._rooms[room_id]
            room.epochs = {epoch: each for epoch, each in room.epochs.items() if each}
        return gone


class ListsRoomsFromTheFirst(MemoryLog):
    async def list_rooms(self, after: str, limit: int, /) -> list[str]:
        return await super().list_rooms("", limit)


BROKEN: list[tuple[type[MemoryLog], str]] = [
    (TrimsNothing, "answered 0; 4 entries of the room go"),
    (TrimsBeyondTheLimit, "answered 5; 4 entries of the room go"),
    (SparesNoKeys, "answered 11; 3 entries"),
    (SparesNothing, "answered 3; 0 entries"),
    (TrimsEveryRoom, "trim of another room changed the room"),
    (TrimsTheHead, "after trim; it must be|after trim; they must be"),
    (ForgetsItsEpochs, "of which nothing is left"),
    (ListsRoomsFromTheFirst, "the next room behind that"),
    (with_content(str.strip), "has the content ' spaces around '|has the content 'spaces around' where"),
    (with_content(lambda content: unicodedata.normalize("NFC", content)), "has the content"),
    (with_content(lambda content: content.replace("\r\n", "\n")), "has the content"),
    (with_content(lambda content: content.replace("\u2028", "\n")), "has the content"),
    (with_content(lambda content: content[:255]), "has the content"),
    (with_content(lambda content: content or "-"), "has the content"),
    (LosesData, "has the data None where"),
    (WritesDataAnew, "has the data"),
    (LosesStored, "has the stored False where True was appended"),
    (StoresEveryEntry, "has the stored True where False was appended"),
    (LosesTargets, "has the target None where"),
    (TakesEveryKindForAMessage, "it must be UnknownEntry"),
    (LosesKinds, "answered the places"),
    (SameTerm, "terms must rise"),
    (OneTermForAll, "append behind the head, under the room's term, answered 'fenced'"),
    (NoFence, "the second is fenced|under an earlier term answered None; it must be fenced"),
    (TakesLaterTerms, "under a term that nobody was given answered None; it must be fenced"),
    (FencesNoNewEpoch, "of a new epoch under an earlier term answered None; it must be fenced|is fenced"),
    (ServesUnknownRooms, "to a room that nobody took over answered None; it must be fenced"),
    (UnprovenWithoutFence, "unproven under an earlier term withdrew the proof"),
    (UnprovenIsAlwaysTrue, "unproven under an earlier term is True"),
    (NeverUnproven, "close_rooms under an earlier term proved the head|the head is proven after unproven"),
    (UnprovenEverywhere, "unproven of one room withdrew the proof of another"),
    (UnprovenOnlyWhereTheEpochIsThere, "at the beginning of an epoch that is not known, is not True"),
    (ClosesWithoutFence, "close_rooms under an earlier term is True"),
    (ClosesAnywhere, "it is elsewhere"),
    (ClosesBehindTheHead, "it is elsewhere"),
    (ClosesNothing, "close_rooms under an earlier term is True"),
    (ClosesAllOrNone, "of which the second is fenced and the last is not there, answered"),
    (AnswersForThoseItClosed, "it must answer for each room that it is given"),
    (AppendsProve, "an append of proven=False proved the head again"),
    (AppendsNeverProve, "within an epoch did not prove its head"),
    (AppendsWithdraw, "the head is not proven|withdrew the proof"),
    (EpochsBeginProven, "begins with an append of proven=False is proven"),
    (EpochsBeginUnproven, "is not proven"),
    (TakesTheAppendsProof, "withdrew its proof"),
    (LosesHeads, "take_over answered the head None"),
    (OldestIsTheHead, "and the oldest 4 of a room that holds 1 to 4"),
    (LooksByTakingOver, "look answered the term"),
    (LooksAtTheTermAlone, "look answered the term [0-9]+, the head None"),
    (HeadBehindTheEnd, "take_over answered the head"),
    (AppendsAgain, "changed the room|answered None; it must be refused"),
    (FencesWhatComesAgain, "the same append again answered 'fenced'; it must be None"),
    (FencesWhatComesAgainAndIsNotTheNewest, "the same append again, when others are behind it answered 'fenced'"),
    (WritesOverWhatIsThere, "of another entry at a place that is taken (answered None|changed the room)"),
    (IgnoresTheIdThatIsThere, "of another entry at a place that is taken answered None; it must be refused"),
    (NoPlacesLookedAt, "append .* answered None; it must be refused"),
    (HolesBehindTheHead, "behind a place that nothing is at answered None; it must be refused"),
    (EpochsBeginAnywhere, "of a new epoch that does not begin at offset 1 answered None; it must be refused"),
    (GoesOnInOldEpochs, "to an epoch that is over answered None; it must be refused"),
    (KeepsOneEpoch, "answered the places|changed the room"),
    (OldestStaysAsItWas, "and the oldest 3 after a new epoch began; they must be"),
    (AllOrNoRoom, "these two must be refused, and the others appended"),
    (AnswersInAnotherOrder, "append to five rooms"),
    (AnswersForTheRefused, "it must answer for each in their order"),
    (AnswersFalse, "it must answer for each in their order"),
    (AnswersNothing, "it must answer for each in their order"),
    (RaisesWhereItIsFenced, r"append\(.*\) failed: PermissionError"),
    (HalfAppends, "append of an entry that cannot be stored changed the room"),
    (RaisesWhereAnEntryCannotBeStored, r"append\(.*\) failed: ValueError"),
    (FencesWhatCannotBeStored, "it must say what is wrong with the entry"),
    (NewestFirst, "answered the places|changed the room"),
    (NoLimit, "limit=70"),
    (AfterInclusive, "after="),
    (AfterInAnyEpoch, "after="),
    (AfterAcrossEpochs, "after="),
    (AfterAsText, "after="),
    (AfterGivesTheLastOnes, "after="),
    (AfterAnUnknownEpochIsEverything, "after="),
    (BeforeInclusive, "before="),
    (BeforeInOneEpoch, "before="),
    (BeforeGivesTheFirstOnes, "before="),
    (BeforeAnUnknownEpochIsNothing, "before="),
    (EpochsByTheirNames, "it has the places .*, and must have"),
    (NoRooms, "changed the room"),
    (AnswersWithLess, "answered the places"),
    (NoOldest, "answered that the oldest place is None"),
    (OldestOfWhatWasFound, "answered that the oldest place is"),
    (OldestOfTheNewestEpoch, "answered that the oldest place is"),
    (AnswersEntriesAlone, "it must answer a Found with entries"),
    (NoKeys, "what find|answered None; it must answer with the first entry"),
    (KeysOfAnybody, r"find\(room, 'bob', 'key'\) answered .*; it must answer with the first entry"),
    (KeysOfAnyRoom, r"find\(room, .* it must answer with the first entry|what find"),
    (KeysInAnyCase, r"find\(room, .*, 'Key'\) answered|what find"),
    (TheLastOfAKey, "it must answer with the first entry of that room, user and key"),
    (RefusesAKeyTwice, "answered 'UNIQUE constraint failed'; it must be None"),
    (TakesOverWithoutKeys, "keyed entries"),
    (NewestKeysFirst, "keyed entries"),
    (AllKeysAtOnce, "keyed entries of 1024; they must be the newest 1000"),
    (OldestKeys, "keyed entries of 1024; they must be the newest 1000"),
    (KeepsSoManyKeys, "find does not know a key that was too old"),
    (LooksThenWrites, "eight appends of different entries at one place"),
    (TermsWithoutALock, "eight calls of take_over at once answered the terms"),
    (Down, r"Down breaks its contract: append\(.* failed: ConnectionError\('no database'\)"),
    (OnlyRecords, "it must answer a well-formed Opened"),
]


@pytest.mark.parametrize("log,what", BROKEN, ids=[f"{each.__name__}-{n}" for n, (each, _) in enumerate(BROKEN)])
@virtual
async def test_each_way_to_break_the_contract_is_found_and_named(log: type[MemoryLog], what: str) -> None:
    with pytest.raises(AssertionError, match=what) as failure:
        await check_room_log(log)
    assert str(failure.value).startswith(f"The log adapter {log.__qualname__} breaks its contract: ")


@virtual
async def test_a_log_that_hangs_is_found() -> None:
    class Hangs(MemoryLog):
        async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match=r"append\(.*failed: .*no answer within 3\.0 s"):
        await check_room_log(Hangs, timeout_s=3)


@pytest.mark.parametrize(
    "log,what",
    [
        (type("Empty", (), {}), r"has no method look\(\)"),
        (type("Half", (MemoryLog,), {"find": None}), r"has no method find\(\)"),
        (type("Few", (MemoryLog,), {"append": lambda self: []}), r"must take \(<appends>\)"),
        (type("Named", (MemoryLog,), {"read": lambda self, room_id, limit: None}), "after="),
        (type("Locked", (MemoryLog,), {"hold": lambda self, wait_ms: True}), r"has no method let_go\(\)"),
    ],
)
@virtual
async def test_a_signature_that_a_chat_refuses_is_found(log: Any, what: str) -> None:
    with pytest.raises(AssertionError, match=f"breaks its contract: a Chat refuses it: .*{what}"):
        await check_room_log(log)
