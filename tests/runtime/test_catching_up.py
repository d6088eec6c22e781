"""What a reader missed comes page by page: one page is held, and nothing is missed or doubled where it goes live."""

# An open subscription can be awaited again, which only raises; mypy takes it for something to be awaited.
# mypy: disable-error-code="unused-awaitable"

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from chatx import (
    AdapterError,
    Chat,
    ChatError,
    Closed,
    Event,
    Gap,
    Message,
    PresenceDiff,
    PresenceState,
    Revoked,
    RoomUnavailable,
    SlowConsumer,
    SubscriptionEnded,
)
from chatx.core.history import History
from chatx.testing import VirtualLoop
from tests.faults import Stored
from tests.virtual import turns, unlimited, virtual

PAGE = 4


def paged(**options: Any) -> Chat:
    """Return a chat whose pages have four messages at most, and whose memory has two."""
    return unlimited(**{"history_size": 2, "message_size_limit": 100, "mailbox_bytes": 100 * PAGE, **options})


async def stored(chat: Chat, count: int, room_id: str = "general") -> list[Message]:
    """Send messages, and return them when they are saved."""
    messages = [await chat.send_message(room_id, "alice", f"text {number}") for number in range(count)]
    await asyncio.sleep(1)
    return messages


def start(message: Message) -> tuple[str, int]:
    return message.epoch, 0


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    return [await anext(events) for _ in range(count)]


@virtual
async def test_the_next_page_is_read_when_the_one_before_it_was_taken() -> None:
    store = Stored()
    async with paged(persistence=store) as chat:
        messages = await stored(chat, 20)
        store.calls.clear()
        async with chat.subscribe("general", after=start(messages[0])) as subscription:
            assert subscription.unread == PAGE
            for taken in range(20):
                assert store.calls.count("load_messages") <= 1 + taken // PAGE
                assert await anext(subscription) == messages[taken]
                assert subscription.unread <= PAGE
            live = await stored(chat, 2)
            assert await take(subscription, 2) == live
            assert subscription.unread == 0


@virtual
async def test_who_reads_behind_is_no_slow_consumer_however_much_is_published() -> None:
    async with paged(persistence=Stored(), mailbox_size=2) as chat:
        messages = await stored(chat, 10)
        async with chat.subscribe("general", after=start(messages[0])) as subscription:
            for _ in range(10):
                messages += await stored(chat, 3)
            assert await take(subscription, 40) == messages
            assert subscription.unread == 0


@virtual
async def test_who_falls_behind_by_more_than_a_resume_replays_gets_a_gap_where_it_stands() -> None:
    async with paged(persistence=Stored(), resume_max_messages=12) as chat:
        messages = await stored(chat, 12)
        async with chat.subscribe("general", after=start(messages[0])) as subscription:
            await stored(chat, 5)
            assert await take(subscription, PAGE) == messages[:PAGE]
            assert await anext(subscription) == Gap("general", "too_many", messages[0].epoch, 17, 13)
            assert await take(subscription, 0) == []
            live = await stored(chat, 1)
            assert await anext(subscription) == live[0]


@virtual
async def test_what_memory_loses_while_it_is_read_is_a_gap_where_the_reader_stands() -> None:
    async with paged(history_size=8) as chat:
        messages = await stored(chat, 8)
        async with chat.subscribe("general", after=start(messages[0])) as subscription:
            await stored(chat, 8)
            assert await take(subscription, PAGE) == messages[:PAGE]
            assert await anext(subscription) == Gap("general", "too_old", messages[0].epoch, 16, 12)
            live = await stored(chat, 1)
            assert await take(subscription, 1) == live


@virtual
async def test_presence_is_the_state_first_and_one_diff_of_what_changed_meanwhile() -> None:
    async with paged(persistence=Stored()) as chat:
        for user_id in ("ann", "bob"):
            await chat.join("general", user_id)
        messages = await stored(chat, 9)
        called: list[Event] = []

        async def changes() -> None:
            await chat.leave("general", "ann")
            for user_id in ("cy", "dora"):
                await chat.join("general", user_id)
            await chat.leave("general", "dora")

        def callback(event: Event) -> None:
            called.append(event)
            if len(called) == 3:
                changing.append(asyncio.ensure_future(changes()))

        changing: list[asyncio.Future[None]] = []
        async with (
            chat.subscribe("general", after=start(messages[0]), presence=True) as subscription,
            chat.connect("eve") as connection,
        ):
            await connection.subscribe("general", after=start(messages[0]), presence=True)
            await chat.subscribe_callback("general", callback, after=start(messages[0]), presence=True)
            for seen in (await take(subscription, 11), await take(connection, 11), called):
                state, diff = seen[0], seen[-1]
                assert isinstance(state, PresenceState)
                assert list(state.presences) == ["ann", "bob"]
                assert seen[1:-1] == messages
                assert isinstance(diff, PresenceDiff)
                assert (list(diff.joins), list(diff.leaves)) == (["cy"], ["ann"])
            await chat.leave("general", "bob")
            await turns()
            for reader in (subscription, connection):
                diff = await anext(reader)
                assert isinstance(diff, PresenceDiff)
                assert list(diff.leaves) == ["bob"]
            assert len(called) == 12


@virtual
async def test_a_connection_holds_a_page_however_many_rooms_it_has_missed() -> None:
    rooms = [f"room {number}" for number in range(20)]
    async with paged(persistence=Stored()) as chat, chat.connect("bob") as connection:
        messages = {room_id: await stored(chat, 9, room_id) for room_id in rooms}
        for room_id in rooms:
            await connection.subscribe(room_id, after=start(messages[room_id][0]))
        seen: dict[str, list[Event]] = {room_id: [] for room_id in rooms}
        for _ in range(9 * len(rooms)):
            event = await anext(connection)
            seen[event.room_id].append(event)
            assert connection.unread <= 2 * PAGE
        assert seen == messages
        assert connection.unread == 0


@virtual
async def test_a_store_that_hangs_holds_up_neither_what_is_live_nor_what_memory_has() -> None:
    store = Stored()
    async with (
        paged(persistence=store, history_size=6, adapter_timeout_ms=60_000) as chat,
        chat.connect("bob") as connection,
    ):
        old = await stored(chat, 11, "old")
        new = await stored(chat, 5, "new")
        await connection.subscribe("live")
        await connection.subscribe("old", after=start(old[0]))
        await connection.subscribe("new", after=start(new[0]))
        store.wait_ms = 50_000
        assert await take(connection, 9) == old[:PAGE] + new
        for _ in range(5):
            live = await chat.send_message("live", "alice", "hi")
            async with asyncio.timeout(1):
                assert await anext(connection) == live
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(connection)
        # Giving up that wait has lost nothing.
        assert await take(connection, 7) == old[PAGE:]


@virtual
async def test_a_page_that_cannot_be_read_is_an_error_behind_what_was_given() -> None:
    store = Stored()
    async with paged(persistence=store) as chat, chat.connect("bob") as connection:
        messages = await stored(chat, 10)
        subscription = await chat.subscribe("general", after=start(messages[0]))
        await connection.subscribe("general", after=start(messages[0]))
        await connection.subscribe("other")
        called: list[Event] = []

        def callback(event: Event) -> None:
            called.append(event)
            store.fail.add("load_messages")

        ended: list[ChatError] = []
        with pytest.raises(AdapterError):
            await chat.subscribe_callback("general", callback, after=start(messages[0]), on_closed=ended.append)
        assert called == messages[:PAGE]
        assert ended == []
        assert await take(subscription, PAGE) == messages[:PAGE]
        for _ in range(2):
            with pytest.raises(AdapterError) as refused:
                await anext(subscription)
            assert refused.value.retryable
        subscription.close()
        *seen, end = await take(connection, PAGE + 1)
        assert seen == messages[:PAGE]
        assert isinstance(end, SubscriptionEnded)
        assert (end.room_id, end.code) == ("general", "adapter_error")
        assert await take(connection, 0) == []
        other = await stored(chat, 1, "other")
        assert await anext(connection) == other[0]
        # Each comes back to where it stood.
        store.fail.clear()
        await connection.subscribe("general", after=seen[-1])
        assert await take(connection, 6) == messages[PAGE:]
        async with chat.subscribe("general", after=seen[-1]) as again:
            assert await take(again, 6) == messages[PAGE:]
        await connection.unsubscribe("general")
        assert chat.statistics().subscriptions == 1


End = Callable[[Chat, Any], Awaitable[object]]


async def closes(chat: Chat, reader: Any) -> None:
    reader.close()


async def revokes(chat: Chat, reader: Any) -> None:
    await chat.revoke("bob")


async def stops(chat: Chat, reader: Any) -> None:
    await chat.stop()


ENDS: list[tuple[End, type[Exception]]] = [(closes, StopAsyncIteration), (revokes, Revoked), (stops, Closed)]


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("end, error", ENDS)
@virtual
async def test_an_end_while_a_page_is_read_is_at_once_and_leaves_nothing(
    end: End, error: type[Exception], connected: bool
) -> None:
    store = Stored()
    chat = paged(persistence=store, room_idle_ms=1000)
    await chat.start()
    messages = await stored(chat, 12)
    async with contextlib.AsyncExitStack() as stack:
        reader: Any
        if connected:
            reader = await stack.enter_async_context(chat.connect("bob"))
            await reader.subscribe("general", after=start(messages[0]), presence=True)
        else:
            reader = await stack.enter_async_context(
                chat.subscribe("general", after=start(messages[0]), user_id="bob", presence=True)
            )
        await take(reader, 1 + PAGE)
        store.hang.add("load_messages")
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert chat.statistics().subscriptions == 1
        await end(chat, reader)
        with pytest.raises(error):
            await waiting
        if end is not stops:
            assert chat.statistics().subscriptions == 0
            store.hang.clear()
            await asyncio.sleep(10)
            assert chat.statistics().rooms == 0
    await chat.stop()
    await turns()
    assert len(asyncio.all_tasks()) == 1


@virtual
async def test_a_callback_is_ended_while_it_catches_up() -> None:
    # A stop fails the opening; there is nothing yet that could be told to have closed.
    for end, told in ((closes, []), (revokes, ["revoked"]), (stops, [])):
        chat = paged(persistence=Stored())
        await chat.start()
        messages = await stored(chat, 12)
        called: list[Event] = []
        ended: list[str] = []

        given = asyncio.Event()

        def callback(event: Event, called: list[Event] = called, given: asyncio.Event = given) -> None:
            called.append(event)
            given.set()

        subscription = chat.subscribe_callback(
            "general",
            callback,
            after=start(messages[0]),
            user_id="bob",
            on_closed=lambda error, ended=ended: ended.append(error.code),  # type: ignore[misc]
        )
        opening = asyncio.ensure_future(subscription.__aenter__())
        await given.wait()
        await end(chat, subscription)
        if end is stops:
            with pytest.raises(Closed):
                await opening
        else:
            await opening
        assert called == messages[: len(called)]
        assert len(called) < 12
        assert ended == told
        assert chat.statistics().subscriptions == 0
        await chat.stop()


@virtual
async def test_cancelling_a_callbacks_catch_up_leaves_nothing() -> None:
    store = Stored()
    async with paged(persistence=store) as chat:
        messages = await stored(chat, 12)
        called: list[Event] = []

        def callback(event: Event) -> None:
            called.append(event)
            store.hang.add("load_messages")

        opening = asyncio.ensure_future(
            chat.subscribe_callback("general", callback, after=start(messages[0]), user_id="bob").__aenter__()
        )
        await asyncio.sleep(0.1)
        assert called == messages[:PAGE]
        assert chat.statistics().subscriptions == 1
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert chat.statistics().subscriptions == 0
        assert not chat.engine.callbacks


@virtual
async def test_others_have_their_turn_between_the_pages_of_a_callback() -> None:
    async with paged(history_size=100) as chat:
        messages = await stored(chat, 20)
        called: list[Event] = []
        at: list[int] = []

        async def look() -> None:
            while len(called) < 20:
                at.append(len(called))
                await asyncio.sleep(0)

        looking = asyncio.ensure_future(look())
        await chat.subscribe_callback("general", called.append, after=start(messages[0]))
        await looking
        assert called == messages
        assert {4, 8, 12, 16} <= set(at)


@virtual
async def test_a_room_that_ends_while_its_reader_is_behind_tells_it() -> None:
    async with paged(persistence=Stored()) as chat, chat.connect("bob") as connection:
        messages = await stored(chat, 12)
        subscription = await chat.subscribe("general", after=start(messages[0]))
        await connection.subscribe("general", after=start(messages[0]))
        process = chat.engine.rooms.find("general")
        assert process is not None
        for _ in range(5):
            with pytest.raises(RoomUnavailable):
                process._contained(lambda: 1 / 0)
        assert await take(subscription, PAGE) == messages[:PAGE]
        with pytest.raises(RoomUnavailable):
            await anext(subscription)
        *seen, end = await take(connection, PAGE + 1)
        assert seen == messages[:PAGE]
        assert isinstance(end, SubscriptionEnded)
        assert end.code == "room_unavailable"


def test_closing_after_the_loop_is_gone_never_raises_while_a_page_is_read() -> None:
    held: list[Any] = []

    async def main() -> None:
        store = Stored()
        chat = paged(persistence=store)
        await chat.start()
        messages = await stored(chat, 12)
        subscription = await chat.subscribe("general", after=start(messages[0]))
        await take(subscription, PAGE)
        store.hang.add("load_messages")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(subscription)
        held.append(subscription)

    loop = VirtualLoop()
    loop.run_until_complete(main())
    loop.close()
    held[0].close()
    held[0].close()


@virtual
async def test_a_room_left_and_read_anew_while_a_page_is_read_is_read_once() -> None:
    store = Stored()
    async with paged(persistence=store) as chat, chat.connect("bob") as connection:
        messages = await stored(chat, 12)
        await connection.subscribe("general", after=start(messages[0]))
        store.wait_ms = 1000
        await take(connection, PAGE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(connection)
        await connection.unsubscribe("general")
        await connection.subscribe("general", after=messages[1])
        assert await take(connection, 10) == messages[2:]
        assert connection.unread == 0


@pytest.mark.parametrize("connected", [False, True])
@virtual
async def test_a_callback_may_close_a_reader_that_takes_its_last_page(connected: bool) -> None:
    """Taking a page first tells the others what is pending, and whoever is told may do anything."""
    async with paged(history_size=100) as chat, contextlib.AsyncExitStack() as stack:
        messages = await stored(chat, 6)
        reader: Any
        if connected:
            reader = await stack.enter_async_context(chat.connect("bob"))
            await reader.subscribe("other")
            await reader.subscribe("general", after=start(messages[0]))
        else:
            reader = await stack.enter_async_context(chat.subscribe("general", after=start(messages[0])))

        def closes_reader(event: Event) -> None:
            if isinstance(event, PresenceDiff):
                reader.close()

        await chat.subscribe_callback("general", closes_reader, presence=True)
        assert await take(reader, PAGE) == messages[:PAGE]
        await chat.join("general", "alice")
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        await turns()
        await stored(chat, 1)
        assert chat.statistics().subscriptions == 1
        assert reader.unread == 0


class Careless(History):
    """Fails when it is asked how far back it reaches, behind its twelfth message."""

    __slots__ = ()

    @property
    def start(self) -> int:
        if self.offset > 12:
            raise RuntimeError("a mistake")
        return super().start


@virtual
async def test_a_mistake_while_a_page_is_read_is_told_and_lets_nobody_wait(caplog: pytest.LogCaptureFixture) -> None:
    store = Stored()
    async with paged(persistence=store) as chat:
        messages = await stored(chat, 12)
        process = chat.engine.rooms.find("general")
        assert process is not None
        careless = Careless(2, process.head)
        careless._ring = process.room.history._ring
        process.room.history = careless
        async with chat.subscribe("general", after=start(messages[0])) as subscription:
            await take(subscription, PAGE)
            store.wait_ms = 1000
            waiting = asyncio.ensure_future(anext(subscription))
            await asyncio.sleep(0.5)
            await chat.send_message("general", "alice", "one more")
            with pytest.raises(RoomUnavailable):
                await waiting
        told = [record for record in caplog.records if record.name == "chatx"]
        assert [record.room for record in told] == ["general"]  # type: ignore[attr-defined]


@virtual
async def test_who_was_too_slow_for_one_room_gets_nothing_more_of_another_behind_its_error() -> None:
    store = Stored()
    async with paged(persistence=store, mailbox_size=2) as chat, chat.connect("bob") as connection:
        messages = await stored(chat, 12)
        await stored(chat, 1, "live")  # its first message awaits the store
        await connection.subscribe("live")
        await connection.subscribe("general", after=start(messages[0]))
        await take(connection, PAGE)
        store.wait_ms = 1000
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(connection)
        for _ in range(4):
            await chat.send_message("live", "alice", "hi")
            await turns()
        await take(connection, 2)
        with pytest.raises(SlowConsumer):
            await anext(connection)
        await asyncio.sleep(2)
        with pytest.raises(SlowConsumer):
            await anext(connection)


@virtual
async def test_a_gap_that_is_found_while_a_page_is_to_be_read_has_no_seam_behind_it() -> None:
    async with paged(persistence=Stored(), resume_max_messages=12) as chat:
        messages = await stored(chat, 10)
        async with chat.subscribe("general", after=start(messages[0])) as subscription:
            assert await take(subscription, PAGE) == messages[:PAGE]
            reading = asyncio.ensure_future(take(subscription, 5))
            await asyncio.sleep(0)  # it asks for the page, and what is published now puts it too far behind
            published = []
            for count in (10, 4, 4, 4):
                published += [await chat.send_message("general", "alice", "hi") for _ in range(count)]
                await asyncio.sleep(0)
            gap, *following = await reading
            assert isinstance(gap, Gap)
            assert gap.reason == "too_many"
            behind = gap.offset - len(messages)
            assert following == published[behind : behind + 4]


LARGE = "x" * 4000


class Large(Stored):
    """Makes each message when it is read, so that whoever keeps it pays for it."""

    async def load_messages(self, room_id: str, **place: Any) -> list[Message]:
        found = await super().load_messages(room_id, **place)
        return [
            Message(each.id, room_id, "alice", f"{LARGE}{each.offset}", 0, each.epoch, each.offset) for each in found
        ]


Read = Callable[[Chat, dict[str, tuple[str, int]], int], Awaitable[int]]


async def subscribes(chat: Chat, places: dict[str, tuple[str, int]], count: int) -> int:
    read = 0
    async with contextlib.AsyncExitStack() as stack:
        for subscription in [
            await stack.enter_async_context(chat.subscribe(room_id, after=place)) for room_id, place in places.items()
        ]:
            for _ in range(count):
                await anext(subscription)
                read += 1
    return read


async def connects(chat: Chat, places: dict[str, tuple[str, int]], count: int) -> int:
    async with chat.connect("bob") as connection:
        for room_id, place in places.items():
            await connection.subscribe(room_id, after=place)
        for _ in range(count * len(places)):
            await anext(connection)
    return count * len(places)


async def calls_back(chat: Chat, places: dict[str, tuple[str, int]], count: int) -> int:
    called = 0

    def callback(_: Event) -> None:
        nonlocal called
        called += 1

    for room_id, place in places.items():
        await chat.subscribe_callback(room_id, callback, after=place)
    return called


@pytest.mark.parametrize("read", [subscribes, connects, calls_back])
@virtual
async def test_a_catch_up_takes_the_memory_of_a_few_pages(read: Read) -> None:
    count = 1500
    async with unlimited(persistence=Large(), delivery_queue_limit=100_000, middlewares=()) as chat:
        rooms = ["red", "green", "blue"]
        places = {room_id: start((await stored(chat, count, room_id))[0]) for room_id in rooms}
        gc.collect()
        tracemalloc.start()
        try:
            assert await read(chat, places, count) == count * len(rooms)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Read whole it was 16 MB, and 6 MB for the callbacks, one room after the other.
        assert most < 5_000_000, f"{most} bytes"
