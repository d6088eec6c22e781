"""`check_persistence`: what keeps the contract passes, and each way to break it is found and named."""

import asyncio
import json
import sqlite3
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chatx import Message
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.validation import valid_content, valid_id
from chatx.testing import check_persistence
from chatx.testing.contracts import CONTENTS, USER_IDS
from chatx.testing.contracts.texts import LINE_BREAKS
from tests.testing.stores import AwaitingStore, MemoryStore, Place
from tests.virtual import virtual


async def test_a_plain_adapter_that_keeps_the_contract_passes() -> None:
    await check_persistence(MemoryStore)


@virtual
async def test_an_async_adapter_that_keeps_the_contract_passes() -> None:
    await check_persistence(AwaitingStore)


async def test_one_adapter_for_all_checks_passes_however_often() -> None:
    store = MemoryStore()

    async def make() -> MemoryStore:
        return store

    await check_persistence(make)
    await check_persistence(lambda: store)


@pytest.mark.parametrize("answer", [[], None], ids=["answers nothing", "raises"])
async def test_an_adapter_that_cannot_place_an_epoch_it_does_not_have_passes(answer: list[Message] | None) -> None:
    class Strict(MemoryStore):
        def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
            if before[0] in self.epochs[room_id]:
                return super().before(messages, room_id, before)
            if answer is None:
                raise KeyError(before[0])
            return answer

    await check_persistence(Strict)


async def test_an_adapter_that_only_saves_passes() -> None:
    class SavesEach:
        def __init__(self) -> None:
            self.contents: list[str] = []

        def save_message(self, message: Message) -> None:
            self.contents.append(message.content)

    adapter = SavesEach()
    await check_persistence(lambda: adapter)
    assert set(CONTENTS) <= set(adapter.contents)


async def test_an_adapter_without_marks_that_proves_no_position_passes() -> None:
    class Unmarked:
        def __init__(self) -> None:
            self.store = MemoryStore()
            self.save_messages = self.store.save_messages
            self.load_messages = self.store.load_messages
            self.last_position = self.store.last_position

    await check_persistence(Unmarked)


async def test_sqlite_in_memory_passes() -> None:
    persistence = SQLitePersistence()
    await check_persistence(lambda: persistence)
    persistence.close()


@pytest.mark.parametrize("content", CONTENTS)
def test_what_the_checks_send_is_what_the_engine_accepts(content: str) -> None:
    assert valid_content(content, 4096) == content


@pytest.mark.parametrize("user_id", USER_IDS)
def test_whom_the_checks_name_is_who_the_engine_accepts(user_id: str) -> None:
    assert valid_id(user_id, "user_id") == user_id


class Changes(MemoryStore):
    """Rewrites what it saves."""

    def rewrite(self, message: Message) -> Message:
        return message

    def save_messages(self, messages: Sequence[Message]) -> None:
        super().save_messages([self.rewrite(each) for each in messages])


def with_content(rewrite: Callable[[str], str]) -> type[MemoryStore]:
    class ChangesContent(Changes):
        def rewrite(self, message: Message) -> Message:
            return _replaced(message, content=rewrite(message.content))

    return ChangesContent


class LowersNames(Changes):
    def rewrite(self, message: Message) -> Message:
        return _replaced(message, user_id=message.user_id.lower())


class SecondsOnly(Changes):
    def rewrite(self, message: Message) -> Message:
        return _replaced(message, inserted_at=message.inserted_at // 1000 * 1000)


class NewIds(Changes):
    def rewrite(self, message: Message) -> Message:
        return _replaced(message, id=f"{message.offset}")


class SavesTwice(MemoryStore):
    def room(self, room_id: str) -> list[Message]:
        return [each for each in self.again if each.room_id == room_id]

    def __init__(self) -> None:
        super().__init__()
        self.again: list[Message] = []

    def save_messages(self, messages: Sequence[Message]) -> None:
        super().save_messages(messages)
        self.again += messages
        self.again.sort(key=self.place)


class RefusesRepeats(MemoryStore):
    def save_messages(self, messages: Sequence[Message]) -> None:
        if any(self.key(each) in self.saved for each in messages):
            raise KeyError("UNIQUE constraint failed")
        super().save_messages(messages)


class IgnoresBatchesWithRepeats(MemoryStore):
    def save_messages(self, messages: Sequence[Message]) -> None:
        if not any(self.key(each) in self.saved for each in messages):
            super().save_messages(messages)


class OrderOfArrival(MemoryStore):
    def room(self, room_id: str) -> list[Message]:
        return [each for each in self.saved.values() if each.room_id == room_id]


class OrderOfEpochTexts(MemoryStore):
    def place(self, message: Message) -> Any:
        return message.epoch, message.offset

    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        return [each for each in messages if (each.epoch, each.offset) < before]


class OrderOfOffsetsOnly(MemoryStore):
    def place(self, message: Message) -> tuple[int, int]:
        return 0, message.offset


class OffsetsAsText(MemoryStore):
    def after(self, messages: list[Message], after: Place) -> list[Message]:
        return [each for each in messages if each.epoch == after[0] and str(each.offset) > str(after[1])]


class KeyWithoutRoom(MemoryStore):
    def key(self, message: Message) -> tuple[str, str, int]:
        return ("", message.epoch, message.offset)


class KeyWithoutEpoch(MemoryStore):
    def key(self, message: Message) -> tuple[str, str, int]:
        return (message.room_id, "", message.offset)


class RoomsInAnyCase(MemoryStore):
    def room(self, room_id: str) -> list[Message]:
        return sorted((each for each in self.saved.values() if each.room_id.lower() == room_id.lower()), key=self.place)


class NoRooms(MemoryStore):
    def room(self, room_id: str) -> list[Message]:
        return list(self.saved.values())


class AfterInclusive(MemoryStore):
    def after(self, messages: list[Message], after: Place) -> list[Message]:
        return super().after(messages, (after[0], after[1] - 1))


class AfterInAnyEpoch(MemoryStore):
    def after(self, messages: list[Message], after: Place) -> list[Message]:
        return [each for each in messages if each.offset > after[1]]


class AfterAcrossEpochs(MemoryStore):
    def after(self, messages: list[Message], after: Place) -> list[Message]:
        if not messages or after[0] not in self.epochs[messages[0].room_id]:
            return []
        place = (self.epochs[messages[0].room_id].index(after[0]), after[1])
        return [each for each in messages if self.place(each) > place]


class AfterGivesTheLastOnes(MemoryStore):
    def load_messages(
        self, room_id: str, *, after: Place | None = None, before: Place | None = None, limit: int
    ) -> Sequence[Message]:
        if after is not None:
            return self.after(self.room(room_id), after)[-limit:]
        return super().load_messages(room_id, before=before, limit=limit)


class BeforeInclusive(MemoryStore):
    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        return super().before(messages, room_id, (before[0], before[1] + 1))


class BeforeInOneEpoch(MemoryStore):
    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        return [each for each in messages if each.epoch == before[0] and each.offset < before[1]]


class BeforeAPlaceWithoutAMessageIsTheNewest(MemoryStore):
    """Looks the place up, and where it is not there looks at none: paging then never ends."""

    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        if all((each.epoch, each.offset) != before for each in messages):
            return messages
        return super().before(messages, room_id, before)


class BeforeAPlaceWithoutAMessageIsNothing(MemoryStore):
    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        if all((each.epoch, each.offset) != before for each in messages):
            return []
        return super().before(messages, room_id, before)


class BeforeAnUnknownEpochIsTheOldest(MemoryStore):
    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        if before[0] not in self.epochs[room_id]:
            return messages[:3]
        return super().before(messages, room_id, before)


class EpochsByTheirNewestMessage(MemoryStore):
    """A message that is saved late moves its epoch."""

    def save_messages(self, messages: Sequence[Message]) -> None:
        super().save_messages(messages)
        for message in messages:
            self.epochs[message.room_id].remove(message.epoch)
            self.epochs[message.room_id].append(message.epoch)


class EpochsByTheirNames(MemoryStore):
    def see(self, room_id: str, epoch: str) -> None:
        super().see(room_id, epoch)
        self.epochs[room_id].sort()


class SplitsLines(MemoryStore):
    """Keeps one message a line, and takes for the end of one what it should not."""

    breaks: tuple[str, ...] = ()

    def load_messages(self, room_id: str, **place: Any) -> Any:
        found = super().load_messages(room_id, **place)
        if any(each in message.content for message in found for each in self.breaks):
            raise json.JSONDecodeError("Unterminated string", "", 0)
        return found


def splitting_at(*breaks: str) -> type[MemoryStore]:
    return type("SplitsLines", (SplitsLines,), {"breaks": breaks})


class ClosesManyByHalves(MemoryStore):
    def mark_all_closed(self, ends: Sequence[tuple[str, str, int]]) -> None:
        self.mark_closed(*ends[0])


class ClosesManyAndMore(MemoryStore):
    def mark_all_closed(self, ends: Sequence[tuple[str, str, int]]) -> None:
        for room_id, epochs in self.epochs.items():
            self.mark_closed(room_id, epochs[-1], 2)


class OldestNotNewest(MemoryStore):
    def load_messages(
        self, room_id: str, *, after: Place | None = None, before: Place | None = None, limit: int
    ) -> Sequence[Message]:
        return super().load_messages(room_id, after=after, before=before, limit=10**6)[:limit]


class NewestFirst(MemoryStore):
    def load_messages(
        self, room_id: str, *, after: Place | None = None, before: Place | None = None, limit: int
    ) -> Sequence[Message]:
        return super().load_messages(room_id, after=after, before=before, limit=limit)[::-1]


class NoLimit(MemoryStore):
    def load_messages(
        self, room_id: str, *, after: Place | None = None, before: Place | None = None, limit: int
    ) -> Sequence[Message]:
        return super().load_messages(room_id, after=after, before=before, limit=10**6)


class HalfBatches(MemoryStore):
    def save_messages(self, messages: Sequence[Message]) -> None:
        for message in messages:
            super().save_messages([message])


class AnswersNone(MemoryStore):
    def load_messages(self, room_id: str, **place: Any) -> Any:
        return super().load_messages(room_id, **place) or None


class AnswersDicts(MemoryStore):
    def load_messages(self, room_id: str, **place: Any) -> Any:
        return [json.loads("{}") for _ in super().load_messages(room_id, **place)]


class AnswersIterators(MemoryStore):
    def load_messages(self, room_id: str, **place: Any) -> Any:
        return iter(super().load_messages(room_id, **place))


class LargestOffset(MemoryStore):
    """Answers with what it has saved, which others may have seen more of."""

    def last_position(self, room_id: str) -> Place | None:
        room = self.room(room_id)
        return (room[-1].epoch, room[-1].offset) if room else None


class StalePosition(MemoryStore):
    def last_position(self, room_id: str) -> Place | None:
        room = self.room(room_id)
        return (room[-1].epoch, 1) if room else None


class PositionOfNothing(MemoryStore):
    def last_position(self, room_id: str) -> Place | None:
        return super().last_position(room_id) or ("new", 0)


class PositionAsText(MemoryStore):
    def last_position(self, room_id: str) -> Any:
        place = super().last_position(room_id)
        return place and f"{place[0]}:{place[1]}"


class OpensForEver(MemoryStore):
    def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        pass


class ClosesForEver(MemoryStore):
    def mark_open(self, room_id: str, epoch: str) -> None:
        self.see(room_id, epoch)


class ClosesOnce(MemoryStore):
    """Withdraws the proof, but gives the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[tuple[str, str], int] = {}

    def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        super().mark_closed(room_id, epoch, self.first.setdefault((room_id, epoch), offset))


class ClosesAllRooms(MemoryStore):
    def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        for each in self.epochs:
            super().mark_closed(each, epoch, offset)


class OldEpochStaysProven(MemoryStore):
    def last_position(self, room_id: str) -> Place | None:
        proven = [epoch for epoch in self.epochs.get(room_id, ()) if (room_id, epoch) in self.closed]
        return (proven[-1], self.closed[room_id, proven[-1]]) if proven else None


class FailsToSave(MemoryStore):
    def save_messages(self, messages: Sequence[Message]) -> None:
        raise ConnectionError("no database")


BROKEN: list[tuple[type[MemoryStore], str]] = [
    (BeforeAPlaceWithoutAMessageIsTheNewest, r"load_messages\("),
    (BeforeAPlaceWithoutAMessageIsNothing, r"load_messages\("),
    (BeforeAnUnknownEpochIsTheOldest, "of an epoch that is not known everything is before it, or nothing"),
    (EpochsByTheirNewestMessage, r"load_messages\("),
    (EpochsByTheirNames, r"load_messages\("),
    *((splitting_at(each), "JSONDecodeError") for each in LINE_BREAKS),
    (splitting_at("\u2028", "\u2029", "\x85"), "JSONDecodeError"),
    (ClosesManyByHalves, r"after mark_all_closed\("),
    (ClosesManyAndMore, r"after mark_all_closed\("),
    (with_content(str.strip), "changed a message: content 'spaces around' where ' spaces around ' was saved"),
    (with_content(lambda content: unicodedata.normalize("NFC", content)), "changed a message: content"),
    (with_content(lambda content: content.replace("\r\n", "\n")), "changed a message: content"),
    (with_content(lambda content: content.encode("ascii", "replace").decode()), "changed a message: content"),
    (with_content(lambda content: content[:255]), "changed a message: content"),
    (with_content(lambda content: content.replace("null", "")), "changed a message: content"),
    (LowersNames, "changed a message: user_id 'alice' where 'Alice' was saved"),
    (SecondsOnly, "changed a message: inserted_at"),
    (NewIds, "changed a message: id"),
    (SavesTwice, r"answered the places \[\w+-\w+:1, \w+-\w+:2, \w+-\w+:2, "),
    (RefusesRepeats, r"save_messages\(.*\) failed: KeyError\('UNIQUE constraint failed'\); it must not"),
    (IgnoresBatchesWithRepeats, "answered the places"),
    (OrderOfArrival, "answered the places"),
    (OrderOfEpochTexts, "answered the places"),
    (OrderOfOffsetsOnly, "answered the places"),
    (OffsetsAsText, "answered the places"),
    (KeyWithoutRoom, "answered the places"),
    (KeyWithoutEpoch, "answered the places"),
    (RoomsInAnyCase, "answered the places"),
    (NoRooms, "answered the places"),
    (AfterInclusive, "after="),
    (AfterInAnyEpoch, "after="),
    (AfterAcrossEpochs, "after="),
    (AfterGivesTheLastOnes, "after="),
    (BeforeInclusive, "before="),
    (BeforeInOneEpoch, "before="),
    (OldestNotNewest, "limit=2"),
    (NewestFirst, "answered the places"),
    (NoLimit, "limit=2"),
    (HalfBatches, "answered the places"),
    (AnswersNone, "answered None; it must answer a sequence of chatx.Message"),
    (AnswersDicts, "it must answer a sequence of chatx.Message"),
    (AnswersIterators, "it must answer a sequence of chatx.Message"),
    (LargestOffset, "last_position is not None while the stream is open"),
    (StalePosition, "last_position answered .* after offset 3"),
    (PositionOfNothing, "last_position of a room without messages is not None"),
    (PositionAsText, r"last_position answered '.*'; it must answer \(epoch, offset\) or None"),
    (OpensForEver, r"last_position answered None after mark_closed\(room, "),
    (ClosesForEver, "it must withdraw the proof of mark_closed"),
    (ClosesOnce, r"last_position answered \(.*, 3\) after mark_closed\(room, .*, 5\)"),
    (ClosesAllRooms, "mark_closed of one room closed another too"),
    (OldEpochStaysProven, "last_position answers for an old epoch while a newer one is open"),
    (FailsToSave, r"FailsToSave breaks its contract: save_messages\(.* failed: ConnectionError\('no database'\)"),
]


@pytest.mark.parametrize("store,what", BROKEN, ids=[f"{each.__name__}-{n}" for n, (each, _) in enumerate(BROKEN)])
async def test_each_way_to_break_the_contract_is_found_and_named(store: type[MemoryStore], what: str) -> None:
    with pytest.raises(AssertionError, match=what) as failure:
        await check_persistence(store)
    assert str(failure.value).startswith(f"The persistence adapter {store.__qualname__} breaks its contract: ")


@virtual
async def test_an_adapter_that_hangs_is_found() -> None:
    class Hangs:
        async def save_message(self, message: Message) -> None:
            await asyncio.Event().wait()

    with pytest.raises(AssertionError, match=r"save_message\(.*failed: .*no answer within 3\.0 s"):
        await check_persistence(Hangs, timeout_s=3)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_adapter_that_is_bound_to_one_thread_is_found() -> None:
    # The commonest mistake with a driver that blocks.
    class OneThread(SQLitePersistence):
        def __init__(self) -> None:
            super().__init__()
            self._opened().close()
            self._db = sqlite3.connect(":memory:", isolation_level=None)

    adapter = OneThread()
    with pytest.raises(AssertionError, match=r"failed: .*thread"):
        await check_persistence(lambda: adapter)
    assert adapter._db is not None
    adapter._db.close()


@pytest.mark.parametrize(
    "adapter,what",
    [
        (type("Empty", (), {}), r"has no method save_message\(\)"),
        (type("Few", (), {"save_message": lambda self: None}), r"must take \(<message>\)"),
        (type("Half", (MemoryStore,), {"last_position": None}), r"has no method last_position\(\)"),
        (type("Named", (MemoryStore,), {"load_messages": lambda self, room_id, limit: []}), "after="),
    ],
)
@virtual
async def test_a_signature_that_a_chat_refuses_is_found(adapter: Any, what: str) -> None:
    with pytest.raises(AssertionError, match=f"breaks its contract: a Chat refuses it: .*{what}"):
        await check_persistence(adapter)


def _replaced(message: Message, **changes: Any) -> Message:
    fields = {name: getattr(message, name) for name in Message.__struct_fields__}
    return Message(**{**fields, **changes})
