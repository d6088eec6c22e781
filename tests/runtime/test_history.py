"""History by places: memory's ring, the log behind it, what the log has not got yet; each without a seam."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chatx import AdapterError, Chat, EpochChanged, InvalidMessage, Message, Position, TooOld
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Append, Record
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Entry, UnknownEntry
from chatx.testing import run_virtual
from chatx.testing.faulty_log import FaultyLog
from tests.logs import chat_on, sent
from tests.virtual import virtual


async def written(chat: Chat) -> None:
    committing = chat.engine.delivery.committing
    if committing is not None:
        await committing.drained.wait()
    else:
        await asyncio.sleep(1)  # of virtual time


async def unstored(chat: Chat, log: FaultyLog, count: int) -> list[Message]:
    """Send so many messages that the log does not get before it is there again."""
    log.choose = lambda method: "unavailable" if method == "append" else "ok"
    return await sent(chat, count)


@given(
    stored=st.integers(0, 12),
    owed=st.integers(0, 12),
    ring=st.integers(1, 8),
    place=st.integers(0, 26),
    limit=st.integers(1, 30),
)
@settings(deadline=None)
def test_there_is_no_seam_between_memory_and_the_log_nor_behind_what_it_has_not_got(
    stored: int, owed: int, ring: int, place: int, limit: int
) -> None:
    async def run() -> None:
        log = FaultyLog(MemoryLog())
        async with chat_on(log, history_size=ring) as chat:
            everything = await sent(chat, stored)
            await written(chat)
            everything += await unstored(chat, log, owed)
            if not everything:
                return
            at = (everything[0].epoch, place)
            assert await chat.history("room", before=at, limit=limit) == everything[: max(0, place - 1)][-limit:]
            assert await chat.history("room", limit=limit) == everything[-limit:]
            if place <= len(everything):
                assert await chat.history("room", after=at, limit=limit) == everything[place:][:limit]
            else:
                with pytest.raises(EpochChanged):
                    await chat.history("room", after=at, limit=limit)
            log.choose = lambda method: "ok"

    run_virtual(run())


@virtual
async def test_what_the_log_has_not_got_is_more_than_memory_keeps_and_is_caught_up_with() -> None:
    log = FaultyLog(MemoryLog())
    async with chat_on(log, history_size=2) as chat:
        everything = await sent(chat, 3)
        await written(chat)
        everything += await unstored(chat, log, 20)
        async with chat.subscribe("room", after=everything[0]) as subscription:
            assert [await anext(subscription) for _ in everything[1:]] == everything[1:]
        log.choose = lambda method: "ok"


@virtual
async def test_a_room_that_is_gone_from_memory_is_asked_of_its_log_and_not_begun() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as chat:
        everything = await sent(chat, 10)
    async with chat_on(log) as chat:
        assert await chat.history("room", after=everything[2], limit=4) == everything[3:7]
        assert await chat.history("room", after=everything[8]) == everything[9:]
        assert await chat.history("room", after=everything[9]) == []
        assert await chat.history("room", before=everything[2]) == everything[:2]
        for wrong in (("another", 1), (everything[0].epoch, 11)):
            with pytest.raises(EpochChanged, match=f"{everything[9].epoch}:10"):
                await chat.history("room", after=wrong)
        with pytest.raises(EpochChanged):
            await chat.history("nobody was here", after=("another", 0))
        assert chat.statistics().rooms == 0


@virtual
async def test_an_older_epoch_is_never_taken_for_the_room_though_its_log_has_it() -> None:
    log = MemoryLog()
    async with chat_on(log) as chat:
        old = await sent(chat, 5)
        await written(chat)
        async with chat_on(log, durability="stored") as after_a_crash:
            new = await sent(after_a_crash, 3)
            assert new[0].epoch != old[0].epoch
            for here in (after_a_crash, chat_on(log)):
                if here is not after_a_crash:
                    await here.start()
                with pytest.raises(EpochChanged):
                    await here.history("room", after=old[1], limit=2)
                assert await here.history("room", after=(new[0].epoch, 0)) == new
                assert await here.history("room", before=new[1]) == old + new[:1]
                if here is not after_a_crash:
                    await here.stop()


@virtual
async def test_a_place_below_what_is_kept_is_too_old_and_the_error_names_the_oldest() -> None:
    async with Chat(history_size=3, middlewares=()) as chat:
        everything = await sent(chat, 10)
        assert await chat.history("room", after=everything[6]) == everything[7:]
        with pytest.raises(TooOld, match=f"oldest that is kept is {everything[0].epoch}:8"):
            await chat.history("room", after=everything[5])


@virtual
async def test_holes_of_a_store_that_is_no_log_are_passed_over_but_its_beginning_is_told() -> None:
    class Forgetful:
        def __init__(self) -> None:
            self.lost = {3, 4}
            self.messages: list[Message] = []

        async def save_messages(self, messages: list[Message]) -> None:
            self.messages += messages

        async def load_messages(
            self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
        ) -> list[Message]:
            here = [each for each in self.messages if each.offset not in self.lost]
            if after is not None:
                return [each for each in here if each.epoch == after.epoch and each.offset > after.offset][:limit]
            return [each for each in here if before is None or each.offset < before.offset][-limit:]

        async def last_position(self, room_id: str) -> None:
            return None

    store = Forgetful()
    async with chat_on(store, history_size=2) as chat:
        everything = await sent(chat, 9)
        await written(chat)
        epoch = everything[0].epoch
        assert await chat.history("room", after=everything[0]) == [everything[1], *everything[4:]]
        assert await chat.history("room", after=everything[1], limit=2) == everything[4:6]
        store.lost = set(range(1, 6))
        assert await chat.history("room", after=(epoch, 5)) == everything[5:]
        with pytest.raises(TooOld):
            await chat.history("room", after=(epoch, 3))
        store.lost = set(range(5, 8))
        assert await chat.history("room", after=(epoch, 4)) == everything[7:]
    async with chat_on(store) as chat:
        store.lost = {1, 2, 4}
        assert await chat.history("room", after=(epoch, 3)) == everything[4:]
        with pytest.raises(TooOld):
            await chat.history("room", after=(epoch, 0))
        with pytest.raises(EpochChanged):
            await chat.history("room", after=("another", 0))


@virtual
async def test_entries_of_kinds_that_nobody_knows_here_end_no_page() -> None:
    log = MemoryLog()
    epoch = "e"
    entries: list[Entry] = [
        Message(f"{n}", "room", "ada", str(n), n, epoch, n)
        if n % 5 == 0
        else UnknownEntry(f"{n}", "room", "ada", "", n, epoch, n, "edit")
        for n in range(1, 31)
    ]
    opened = await log.take_over("room")
    records = tuple(map(Record, entries))
    assert await log.append([Append("room", opened.term, Position(epoch, 0), records, durable=True)]) == [None]
    messages = [each for each in entries if isinstance(each, Message)]
    async with chat_on(log) as chat:
        assert await chat.history("room", limit=4) == messages[-4:]
        assert await chat.history("room", before=messages[4], limit=3) == messages[1:4]
        assert await chat.history("room", after=(epoch, 0), limit=4) == messages[:4]
        assert await chat.history("room", after=(epoch, 26)) == messages[5:]
        assert await chat.history("room", after=(epoch, 30)) == []


@virtual
async def test_two_places_at_once_are_refused_and_say_so() -> None:
    async with Chat() as chat:
        with pytest.raises(InvalidMessage, match="give one of them"):
            await chat.history("room", before=("e", 2), after=("e", 1))


@pytest.mark.parametrize("asked", [{"after": ("e", 1)}, {"before": ("e", 2)}, {}], ids=["after", "before", "newest"])
@virtual
async def test_a_log_that_cannot_be_read_is_an_error_that_can_be_tried_again(asked: dict[str, Any]) -> None:
    log = FaultyLog(MemoryLog(), lambda method: "unavailable")
    async with chat_on(log) as chat:
        with pytest.raises(AdapterError) as refused:
            await chat.history("room", **asked)
        assert refused.value.retryable


@virtual
async def test_what_a_room_that_crashed_too_often_owes_to_its_log_is_in_its_history(
    crash: Callable[[Chat], None],
) -> None:
    log = FaultyLog(MemoryLog())
    async with chat_on(log, history_size=2) as chat:
        everything = await sent(chat, 2)
        await written(chat)
        everything += await unstored(chat, log, 6)
        crash(chat)
        assert chat.statistics().rooms == 0
        assert await chat.history("room") == everything
        assert await chat.history("room", after=everything[0]) == everything[1:]
        log.choose = lambda method: "ok"
        await written(chat)
        assert await chat.history("room") == everything


@pytest.fixture
def crash() -> Callable[[Chat], None]:
    def crash(chat: Chat) -> None:
        from chatx import RoomUnavailable

        process = chat.engine.rooms.find("room")
        assert process is not None
        process.shut(RoomUnavailable())

    return crash


class Histories(RuleBasedStateMachine):
    """One room over a log in SQLite: sent to, forgotten, killed; read from any place, forwards and backwards.

    The model is all that was stored or may still be seen, by epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = SQLitePersistence()
        self.log = FaultyLog(self.store)
        self.runner = asyncio.Runner()
        self.chat = self.fresh()
        self.everything: list[Message] = []

    def fresh(self) -> Chat:
        chat = chat_on(self.log, history_size=3, delivery_tick_ms=1, delivery_retry_base_ms=1)
        self.runner.run(chat.start())
        return chat

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize()
    def begin(self) -> None:
        self.everything += self.run(sent(self.chat, 1))

    @rule(count=st.integers(1, 5), durability=st.sampled_from(["stored", "sequenced"]))
    def send(self, count: int, durability: Any) -> None:
        async def send() -> None:
            for number in range(count):
                if durability == "stored":
                    self.log.choose = lambda method: "ok"
                self.everything.append(await self.chat.send_message("room", "ada", str(number), durability=durability))

        self.run(send())

    @rule(away=st.booleans())
    def the_log_goes_and_comes(self, away: bool) -> None:
        self.log.choose = lambda method: "unavailable" if away and method == "append" else "ok"

    @rule()
    def stop_and_start(self) -> None:
        self.log.choose = lambda method: "ok"
        self.run(self.chat.stop())
        self.chat = self.fresh()

    @rule()
    def send_from_a_chat_that_begins_anew(self) -> None:
        self.log.choose = lambda method: "ok"
        self.run(written(self.chat))
        old, self.chat = self.chat, self.fresh()
        self.everything += self.run(sent(self.chat, 1))
        self.run(old.stop())

    @rule(place=st.integers(0, 40), limit=st.integers(1, 9))
    def read_ahead(self, place: int, limit: int) -> None:
        place = min(place, len(self.everything) - 1)
        found = self.run(self.chat.history("room", before=self.everything[place], limit=limit))
        assert found == self.everything[:place][-limit:]

    @rule(place=st.integers(0, 40), limit=st.integers(1, 9))
    def read_behind(self, place: int, limit: int) -> None:
        place = min(place, len(self.everything) - 1)
        at = self.everything[place]
        if at.epoch != self.everything[-1].epoch:
            with pytest.raises(EpochChanged):
                self.run(self.chat.history("room", after=at, limit=limit))
            return
        found = self.run(self.chat.history("room", after=at, limit=limit))
        assert found == self.everything[place + 1 :][:limit]

    @rule(limit=st.integers(1, 9))
    def page_through(self, limit: int) -> None:
        first = next(each for each in self.everything if each.epoch == self.everything[-1].epoch)
        place: Any = (first.epoch, 0)
        seen: list[Message] = []
        while page := self.run(self.chat.history("room", after=place, limit=limit)):
            seen += page
            place = page[-1]
        assert seen == [each for each in self.everything if each.epoch == first.epoch]

    @invariant()
    def the_newest_are_the_newest(self) -> None:
        assert self.run(self.chat.history("room", limit=4)) == self.everything[-4:]

    def teardown(self) -> None:
        self.log.choose = lambda method: "ok"
        self.run(self.chat.stop())
        self.runner.close()
        self.store.close()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
