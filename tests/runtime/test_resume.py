"""Resuming: nothing missed and nothing doubled, or an explicit gap, whatever the joins, drops and sends."""

# An open subscription can be awaited again, which only raises; mypy takes it for something to be awaited.
# mypy: disable-error-code="unused-awaitable"

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatx import Chat, Gap, Message, Position, SlowConsumer
from chatx.core.message import Event
from chatx.runtime.subscription import Subscription
from chatx.testing import VirtualLoop
from tests.virtual import unlimited, virtual


async def send(chat: Chat, count: int) -> list[Message]:
    return [await chat.send_message("general", "alice", f"text {number}") for number in range(count)]


async def read(chat: Chat, count: int, **options: Any) -> list[Event]:
    async with chat.subscribe("general", **options) as subscription:
        events = [await anext(subscription) for _ in range(count)]
        assert subscription.unread == 0
        return events


class Store:
    """Persistence in memory, within the loop; it outlives the chat, and can lose messages or be down."""

    def __init__(self) -> None:
        self.messages: dict[tuple[str, str, int], Message] = {}
        self.epochs: list[str] = []
        self.closed: tuple[str, int] | None = None
        self.loses: set[int] = set()
        self.loads = 0
        self.down = False
        self.slow_s = 0.0

    async def save_messages(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.epoch not in self.epochs:
                self.epochs.append(message.epoch)
            if message.offset not in self.loses:
                self.messages[message.room_id, message.epoch, message.offset] = message

    async def load_messages(
        self,
        room_id: str,
        *,
        after: tuple[str, int] | None = None,
        before: tuple[str, int] | None = None,
        limit: int,
    ) -> list[Message]:
        self.loads += 1
        await asyncio.sleep(self.slow_s)
        if self.down:
            raise OSError("the disk is gone")
        found = sorted(
            (message for message in self.messages.values() if message.room_id == room_id),
            key=lambda message: (self.epochs.index(message.epoch), message.offset),
        )
        if after is not None:
            return [each for each in found if each.epoch == after[0] and each.offset > after[1]][:limit]
        if before is not None:
            rank = self.epochs.index(before[0])
            found = [each for each in found if (self.epochs.index(each.epoch), each.offset) < (rank, before[1])]
        return found[-limit:]

    async def last_position(self, room_id: str) -> tuple[str, int] | None:
        return self.closed

    async def mark_open(self, room_id: str, epoch: str) -> None:
        self.closed = None

    async def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        self.closed = (epoch, offset)


@virtual
async def test_a_new_reader_begins_with_what_is_published_from_now_on() -> None:
    async with unlimited() as chat:
        await send(chat, 3)
        async with chat.subscribe("general") as subscription:
            (fourth,) = await send(chat, 1)
            assert await anext(subscription) == fourth
            assert subscription.unread == 0


@virtual
async def test_after_takes_a_message_a_gap_and_a_place() -> None:
    async with unlimited() as chat:
        first, second, third = await send(chat, 3)
        epoch = first.epoch
        for after in (
            first,
            Gap("general", "too_old", epoch, 1),
            Position(epoch, 1),
            (epoch, 1),
        ):
            assert await read(chat, 2, after=after) == [second, third]
        assert await read(chat, 3, after=(epoch, 0)) == [first, second, third]
        assert await read(chat, 0, after=third) == []


@virtual
async def test_what_was_missed_comes_first_and_goes_on_live_within_one_turn() -> None:
    async with unlimited() as chat, chat.subscribe("general") as early:
        first, second = await send(chat, 2)
        # Nothing was flushed yet: these are pending for the others and missed by this one.
        async with chat.subscribe("general", after=first) as subscription:
            third, fourth = await send(chat, 2)
            assert [await anext(subscription) for _ in range(3)] == [second, third, fourth]
            assert subscription.unread == 0
        assert [await anext(early) for _ in range(4)] == [first, second, third, fourth]


@virtual
async def test_what_is_no_longer_kept_is_a_gap_and_what_follows_goes_on_behind_it() -> None:
    async with unlimited(history_size=4) as chat:
        first, *_, last = await send(chat, 10)
        async with chat.subscribe("general", after=first) as subscription:
            (eleventh,) = await send(chat, 1)
            assert await anext(subscription) == Gap("general", "too_old", first.epoch, 10, 9)
            assert await anext(subscription) == eleventh
        # The edge: the ring holds 8 to 11.
        assert await read(chat, 1, after=(first.epoch, 6)) == [Gap("general", "too_old", first.epoch, 11, 5)]
        assert await read(chat, 4, after=(first.epoch, 7)) == await chat.history("general", limit=4)
        assert last.offset == 10


@virtual
async def test_more_than_a_resume_replays_is_a_gap() -> None:
    async with unlimited(resume_max_messages=3) as chat:
        first, *rest = await send(chat, 5)
        assert await read(chat, 1, after=first) == [Gap("general", "too_many", first.epoch, 5, 4)]
        assert await read(chat, 3, after=rest[0]) == rest[1:]


@virtual
async def test_a_stream_that_is_not_this_one_is_a_gap_of_unknown_size() -> None:
    async with unlimited(room_idle_ms=1000) as chat:
        async with chat.subscribe("general") as subscription:
            _, last = await send(chat, 2)
            assert [(await anext(subscription)) for _ in range(2)][-1] == last
        await asyncio.sleep(10)
        assert chat.statistics().rooms == 0
        (fresh,) = await send(chat, 1)
        assert fresh.epoch != last.epoch
        gap = Gap("general", "epoch_changed", fresh.epoch, 1, None)
        assert await read(chat, 1, after=last) == [gap]
        # A place that this stream has not reached is of another stream too.
        assert await read(chat, 1, after=(fresh.epoch, 5)) == [gap]
        # Reading on from the gap misses nothing.
        (second,) = await send(chat, 1)
        assert await read(chat, 1, after=gap) == [second]


@virtual
async def test_what_memory_no_longer_has_comes_from_persistence() -> None:
    store = Store()
    async with unlimited(history_size=4, persistence=store) as chat:
        messages = await send(chat, 1200)
        await asyncio.sleep(10)
        assert await read(chat, 1200, after=(messages[0].epoch, 0)) == messages
        assert await read(chat, 7, after=messages[-8]) == messages[-7:]
        store.loads = 0
        assert await read(chat, 4, after=messages[-5]) == messages[-4:]
        assert store.loads == 0


@virtual
async def test_what_is_published_while_persistence_is_read_is_neither_missed_nor_doubled() -> None:
    store = Store()
    async with unlimited(history_size=4, persistence=store) as chat:
        messages = await send(chat, 20)
        await asyncio.sleep(10)
        store.slow_s = 1.0
        opening = asyncio.ensure_future(chat.subscribe("general", after=messages[0]).__aenter__())
        for _ in range(30):
            await asyncio.sleep(0.2)
            messages += await send(chat, 1)
        subscription = await opening
        messages += await send(chat, 3)
        assert [await anext(subscription) for _ in messages[1:]] == messages[1:]
        assert subscription.unread == 0
        subscription.close()


@virtual
async def test_a_room_is_not_forgotten_while_a_reader_waits_for_what_it_missed() -> None:
    store = Store()
    async with unlimited(history_size=4, persistence=store, room_idle_ms=1000) as chat:
        messages = await send(chat, 10)
        await asyncio.sleep(0.5)
        store.slow_s = 4.0  # longer than the room may be idle
        async with chat.subscribe("general", after=messages[0]) as subscription:
            assert asyncio.get_running_loop().time() < 9
            messages += await send(chat, 1)
            assert [await anext(subscription) for _ in messages[1:]] == messages[1:]
        store.slow_s = 0.0
        await asyncio.sleep(5)
        assert chat.statistics().rooms == 0


@virtual
async def test_a_resume_loses_nothing_to_what_is_published_while_it_reads() -> None:
    store = Store()
    async with unlimited(history_size=2, persistence=store, resume_max_messages=12) as chat:
        messages = await send(chat, 10)
        await asyncio.sleep(10)
        store.slow_s = 1.0
        opening = asyncio.ensure_future(chat.subscribe("general", after=messages[0]).__aenter__())
        await asyncio.sleep(0.5)
        # More than a resume replays lies between its first message and its last; it is never that far behind.
        messages += await send(chat, 5)
        subscription = await opening
        assert [await anext(subscription) for _ in messages[1:]] == messages[1:]
        subscription.close()


@virtual
async def test_a_hole_in_what_is_stored_is_a_gap_in_its_place() -> None:
    store = Store()
    store.loses = {3, 4, 9}
    async with unlimited(history_size=2, persistence=store) as chat:
        messages = await send(chat, 10)
        await asyncio.sleep(10)
        epoch = messages[0].epoch
        assert await read(chat, 9, after=(epoch, 0)) == [
            *messages[:2],
            Gap("general", "missing", epoch, 4, 2),
            *messages[4:],
        ]


@virtual
async def test_cancelling_a_resume_that_reads_persistence_leaves_nothing() -> None:
    store = Store()
    async with unlimited(history_size=2, persistence=store, room_idle_ms=1000) as chat:
        messages = await send(chat, 10)
        await asyncio.sleep(0.5)
        store.slow_s = 4.0
        opening = asyncio.ensure_future(chat.subscribe("general", after=messages[0]).__aenter__())
        await asyncio.sleep(3)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections, statistics.rooms) == (0, 0, 1)
        await asyncio.sleep(5)
        assert chat.statistics().rooms == 0


@dataclass
class Reader:
    """A reader as an application writes one: it keeps its last event, and resumes there.

    Attributes:
        subscription: Open, or None while it is away.
        place: Where it stands: what it has seen up to, or was told that it missed.
        last: What it resumes after.
    """

    subscription: Subscription | None
    place: Position
    last: Any


class ResumeMachine(RuleBasedStateMachine):
    """Readers that come, stall, go away and come back, while others send and the room is forgotten when idle."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        # Every message ever published, over all the room's epochs.
        self.published: dict[tuple[str, int], Message] = {}
        self.readers: list[Reader] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(
        stored=st.booleans(),
        history=st.integers(1, 6),
        most=st.sampled_from([5, 1000]),
        page=st.sampled_from([1, 2, 3, 500]),
    )
    def begin(self, stored: bool, history: int, most: int, page: int) -> None:
        self.store = Store() if stored else None
        # A gap must be one that could not be avoided: more was missed than this.
        self.least_missed = {"too_many": most, "missing": 0} if stored else {"too_many": most, "too_old": history}

        async def start() -> None:
            self.chat = unlimited(
                history_size=history,
                mailbox_size=6,
                message_size_limit=1_048_576 // page,
                resume_max_messages=most,
                room_idle_ms=5000,
                persistence=self.store,
            )
            await self.chat.start()

        self.run(start())

    @rule(count=st.integers(1, 9), yields=st.booleans())
    def send(self, count: int, yields: bool) -> None:
        async def main() -> None:
            for _ in range(count):
                message = await self.chat.send_message("general", "alice", "hi")
                self.published[message.epoch, message.offset] = message
                if yields:
                    await asyncio.sleep(0)

        self.run(main())

    @rule(seconds=st.sampled_from([0.0, 0.3, 4.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: len(self.readers) < 4)
    @rule()
    def come(self) -> None:
        async def main() -> None:
            subscription = await self.chat.subscribe("general")
            head = self.head()
            self.readers.append(Reader(subscription, head, head))

        self.run(main())

    def head(self) -> Position:
        process = self.chat.engine.rooms.find("general")
        assert process is not None
        return process.room.history.position

    def pick(self, data: st.DataObject, away: bool) -> Reader | None:
        found = [reader for reader in self.readers if (reader.subscription is None) == away]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data(), count=st.integers(1, 8))
    def read(self, data: st.DataObject, count: int) -> None:
        reader = self.pick(data, away=False)
        if reader is not None:
            self.run(self.take(reader, count))

    async def take(self, reader: Reader, at_most: int) -> None:
        subscription = reader.subscription
        assert subscription is not None
        for _ in range(at_most):
            try:
                async with asyncio.timeout(0.001):
                    event = await anext(subscription)
            except TimeoutError:
                return
            except SlowConsumer:
                subscription.close()
                reader.subscription = None
                return
            self.check(reader, event)

    def check(self, reader: Reader, event: Event) -> None:
        reader.last = event
        epoch, offset = reader.place
        if isinstance(event, Message):
            assert (event.epoch, event.offset) == (epoch, offset + 1), "missed, doubled or out of order"
            assert event == self.published[event.epoch, event.offset]
        else:
            assert isinstance(event, Gap)
            if event.reason == "epoch_changed":
                assert event.epoch != epoch
                assert event.missed is None
            else:
                assert event.epoch == epoch
                assert event.missed == event.offset - offset
                assert event.missed > self.least_missed[event.reason]
        reader.place = Position(event.epoch, event.offset)

    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        reader = self.pick(data, away=False)
        if reader is not None:
            assert reader.subscription is not None
            self.run(reader.subscription.aclose())
            reader.subscription = None

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        reader = self.pick(data, away=True)
        if reader is not None:
            self.run(self.resume(reader))

    async def resume(self, reader: Reader) -> None:
        reader.subscription = await self.chat.subscribe("general", after=reader.last)

    @invariant()
    def no_reader_holds_more_than_its_bound(self) -> None:
        for reader in self.readers:
            if reader.subscription is not None:
                mailbox = reader.subscription._mailbox
                assert mailbox is not None
                assert mailbox.unread <= 6 + 9

    def teardown(self) -> None:
        async def main() -> None:
            for reader in self.readers:
                while True:
                    if reader.subscription is None:
                        await self.resume(reader)
                    await self.take(reader, 10**6)
                    if reader.subscription is not None:
                        break
                assert reader.place == self.head()
                reader.subscription.close()
            await self.chat.stop()

        try:
            if hasattr(self, "chat"):
                self.run(main())
        finally:
            self.loop.close()


TestResumeMachine = ResumeMachine.TestCase
TestResumeMachine.settings = settings(max_examples=60, stateful_step_count=30)
