"""Subscriptions: what a reader gets, when it is slow, and how it ends."""

# An open subscription can be awaited again, which only raises; mypy takes it for something to be awaited.
# mypy: disable-error-code="unused-awaitable"

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatx import (
    Chat,
    ChatError,
    Closed,
    ConfigError,
    Gap,
    InvalidMessage,
    Message,
    PresenceDiff,
    PresenceState,
    RoomUnavailable,
    SlowConsumer,
    SubscriberFailed,
    Unauthorized,
)
from chatx.core.fanout import Fanout, Subscriber
from chatx.core.message import EVENT_BYTES, Event, Presences
from chatx.core.presence import Presence
from chatx.testing import VirtualLoop, run_virtual
from tests.faults import Violent
from tests.virtual import turns, unlimited, virtual

Policy = Literal["disconnect", "drop_oldest"]


async def send(chat: Chat, count: int, room_id: str = "general") -> list[Message]:
    return [await chat.send_message(room_id, "alice", f"text {number}") for number in range(count)]


async def read_all(events: AsyncIterator[Event]) -> tuple[list[Event], ChatError | None]:
    """Read to the end; return what was read, and the error that ended it."""
    seen: list[Event] = []
    try:
        while True:
            seen.append(await anext(events))
    except StopAsyncIteration:
        return seen, None
    except ChatError as error:
        return seen, error


def offsets(events: list[Event]) -> list[int]:
    return [event.offset for event in events if isinstance(event, Message)]


@virtual
async def test_every_subscriber_sees_the_same_messages_in_the_same_order() -> None:
    async with unlimited() as chat:
        called: list[Event] = []
        async with (
            chat.subscribe("general") as one,
            chat.subscribe("general") as two,
            chat.subscribe("other") as other,
            chat.subscribe_callback("general", called.append),
        ):
            users = [chat.send_message("general", f"user {number % 7}", str(number)) for number in range(200)]
            messages = await asyncio.gather(*users)
            seen = [[await anext(each) for _ in range(200)] for each in (one, two)]
            assert other.unread == 0
        in_order = sorted(messages, key=lambda message: message.offset)
        assert seen == [in_order, in_order]
        assert called == in_order
        assert [message.offset for message in in_order] == list(range(1, 201))


@virtual
async def test_one_stalled_subscriber_among_a_thousand_delays_nobody_and_its_memory_is_bounded() -> None:
    async with unlimited(mailbox_size=8) as chat:
        loop = asyncio.get_running_loop()
        counts = [0] * 999

        async def read(number: int) -> None:
            async with chat.subscribe("general") as subscription:
                async for _ in subscription:
                    counts[number] += 1

        readers = [asyncio.create_task(read(number)) for number in range(len(counts))]
        async with chat.subscribe("general") as stalled:
            await turns()
            most = 0
            for number in range(1, 31):
                await chat.send_message("general", "alice", "hi")
                await turns()
                assert counts == [number] * len(counts)
                most = max(most, stalled.unread)
            assert loop.time() == 0
            assert most <= 8
            assert chat.statistics().subscriptions == len(counts)
            seen, error = await read_all(stalled)
            assert offsets(seen) == list(range(1, 9))
            assert isinstance(error, SlowConsumer)
        # It resumes where it stood, and missed nothing.
        async with chat.subscribe("general", after=seen[-1]) as resumed:
            rest = [await anext(resumed) for _ in range(22)]
        assert offsets(rest) == list(range(9, 31))
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


@virtual
async def test_a_slow_consumer_reads_what_is_held_and_then_its_error_again_and_again() -> None:
    async with unlimited(mailbox_size=3) as chat:
        told: list[Any] = []
        chat.telemetry.attach("slow_consumer", lambda *event: told.append(event))
        async with chat.subscribe("general") as subscription:
            for _ in range(6):
                await send(chat, 1)
                await turns()
            seen, error = await read_all(subscription)
            assert offsets(seen) == [1, 2, 3]
            assert isinstance(error, SlowConsumer)
            for _ in range(2):
                with pytest.raises(SlowConsumer, match="subscribe again after the last position"):
                    await anext(subscription)
        assert told == [("slow_consumer", {"unread": 3, "bytes": 3 * (EVENT_BYTES + 6)}, {"room_id": "general"})]
        assert chat.statistics().connections == 0


@virtual
async def test_a_mailbox_is_bounded_in_bytes() -> None:
    async with unlimited(mailbox_bytes=10_000, mailbox_size=10**6) as chat, chat.subscribe("general") as subscription:
        for _ in range(20):
            await chat.send_message("general", "alice", "x" * 1000)
            await turns()
        seen, error = await read_all(subscription)
        assert len(seen) == 10_000 // (1000 + EVENT_BYTES)
        assert isinstance(error, SlowConsumer)


@virtual
async def test_drop_oldest_gets_a_gap_that_counts_exactly_and_then_the_newest() -> None:
    async with unlimited(mailbox_size=4) as chat, chat.subscribe("general", overflow="drop_oldest") as subscription:
        for _ in range(30):
            await send(chat, 1)
            await turns()
            assert subscription.unread <= 4
        assert await anext(subscription) == Gap("general", "slow_consumer", (await newest(chat)).epoch, 26, 26)
        assert offsets([await anext(subscription) for _ in range(4)]) == [27, 28, 29, 30]
        await send(chat, 1)
        assert offsets([await anext(subscription)]) == [31]


async def newest(chat: Chat, room_id: str = "general") -> Message:
    return (await chat.history(room_id, limit=1))[0]


Reading = Callable[[Any, Callable[[Event], None]], Any]


async def iterate(subscription: Any, take: Callable[[Event], None]) -> None:
    async for event in subscription:
        take(event)


async def within_a_timeout(subscription: Any, take: Callable[[Event], None]) -> None:
    while True:
        async with asyncio.timeout(5):
            take(await anext(subscription))


@pytest.mark.parametrize("read", [iterate, within_a_timeout])
@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest"])
@virtual
async def test_a_live_reader_with_a_small_mailbox_loses_nothing_to_a_tight_loop_of_sends(
    read: Reading, overflow: Policy
) -> None:
    async with unlimited(mailbox_size=4) as chat:
        seen: list[Event] = []
        also: list[Event] = []

        async def subscribe() -> None:
            async with chat.subscribe("general", overflow=overflow) as subscription:
                await read(subscription, seen.append)

        async def connect() -> None:
            async with chat.connect("bob", overflow=overflow) as connection:
                await connection.subscribe("general")
                await read(connection, also.append)

        readers = [asyncio.create_task(subscribe()), asyncio.create_task(connect())]
        await turns()
        messages = await send(chat, 500)
        await turns()
        assert seen == messages
        assert also == messages
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


@given(st.lists(st.sampled_from(["send", "read", "cancel", "turn", "turn", "tick"]), max_size=60))
@settings(max_examples=100)
def test_cancelling_a_pending_anext_loses_nothing(steps: list[str]) -> None:
    async def main() -> None:
        async with unlimited() as chat:
            seen: list[Event] = []

            async def take() -> None:
                # Nothing may happen between taking an event and keeping it, as in a real reader.
                seen.append(await anext(subscription))

            async with chat.subscribe("general") as subscription:
                reader: asyncio.Task[None] | None = None
                sent = 0
                for step in steps:
                    if step == "send":
                        await send(chat, 1)
                        sent += 1
                    elif step == "read" and (reader is None or reader.done()):
                        reader = asyncio.create_task(take())
                    elif step == "cancel" and reader is not None:
                        reader.cancel()
                    elif step == "turn":
                        await turns(1)
                    elif step == "tick":
                        await asyncio.sleep(0.01)
                if reader is not None:
                    await asyncio.sleep(0.01)
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
                while len(seen) < sent:
                    seen.append(await anext(subscription))
                assert offsets(seen) == list(range(1, sent + 1))
                assert subscription.unread == 0

    run_virtual(main())


@virtual
async def test_a_reader_whose_timeout_passes_goes_on_where_it_was() -> None:
    async with unlimited() as chat, chat.subscribe("general") as subscription:
        for number in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(subscription)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(subscription), 1)
            (message,) = await send(chat, 1)
            assert await anext(subscription) == message
            assert message.offset == number + 1


@virtual
async def test_one_mailbox_has_one_reader() -> None:
    async with unlimited() as chat, chat.subscribe("general") as subscription:
        first = asyncio.ensure_future(anext(subscription))
        await turns()
        with pytest.raises(Closed, match="one reader"):
            await anext(subscription)
        (message,) = await send(chat, 1)
        assert await first == message


@virtual
async def test_closing_ends_a_pending_iteration_and_is_harmless_twice() -> None:
    async with unlimited() as chat:
        subscription = await chat.subscribe("general")
        reading = asyncio.create_task(read_all(subscription))
        await turns()
        subscription.close()
        await subscription.aclose()
        assert await reading == ([], None)
        assert (await read_all(subscription)) == ([], None)
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections) == (0, 0)


@virtual
async def test_closing_in_the_middle_of_a_batch_ends_the_iteration() -> None:
    async with unlimited() as chat, chat.subscribe("general") as subscription:
        first, *_ = await send(chat, 3)
        assert await anext(subscription) == first
        subscription.close()
        assert await read_all(subscription) == ([], None)


@virtual
async def test_a_subscription_must_be_open_and_opens_once() -> None:
    async with unlimited() as chat:
        subscription = chat.subscribe("general")
        with pytest.raises(Closed, match="async with"):
            await anext(subscription)
        async with subscription:
            with pytest.raises(Closed, match="opened once"):
                await subscription
        with pytest.raises(Closed, match="opened once"):
            await subscription
        never = chat.subscribe("general")
        never.close()
        with pytest.raises(Closed):
            await never
        assert chat.statistics().subscriptions == 0


@virtual
async def test_a_stop_gives_readers_what_is_unread_and_then_closed() -> None:
    chat = unlimited()
    await chat.start()
    ended: list[str] = []
    subscription = await chat.subscribe("general")
    waiting = asyncio.create_task(read_all(await chat.subscribe("quiet")))
    callback = await chat.subscribe_callback("general", print, on_closed=lambda error: ended.append(error.code))
    callback.close()
    await chat.subscribe_callback("quiet", print, on_closed=lambda error: ended.append(error.code))
    await turns()
    messages = await send(chat, 3)
    await chat.stop()
    seen, error = await read_all(subscription)
    assert seen == messages
    assert isinstance(error, Closed)
    assert await waiting == ([], waiting.result()[1])
    assert isinstance(waiting.result()[1], Closed)
    assert ended == ["closed"]
    subscription.close()


def test_closing_after_the_loop_is_gone_never_raises() -> None:
    held: list[Any] = []

    async def main() -> None:
        chat = unlimited()
        await chat.start()
        connection = await chat.connect("bob").__aenter__()
        await connection.join("general")
        await connection.subscribe("general", presence=True)
        await chat.send_message("general", "alice", "hi")
        held.extend(
            [chat, connection, await chat.subscribe("general"), await chat.subscribe_callback("general", print)]
        )

    loop = VirtualLoop()
    loop.run_until_complete(main())
    loop.close()
    for each in held[1:]:
        each.close()
        each.close()
    assert held[0].statistics().members == 0


@virtual
async def test_the_overflow_policy_is_checked_at_once() -> None:
    with pytest.raises(ConfigError, match="overflow is 'drop_newest'; it must be one of disconnect, drop_oldest"):
        Chat().subscribe("general", overflow="drop_newest")  # type: ignore[arg-type]


class AsyncAuth:
    """Answers after a second; refuses mallory."""

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(1)
        return user_id != "mallory" and action == "subscribe"


@virtual
async def test_auth_runs_where_a_user_is_given_and_a_refusal_leaves_nothing() -> None:
    async with Chat(auth=AsyncAuth()) as chat:
        async with chat.subscribe("general"):  # trusted code
            assert asyncio.get_running_loop().time() == 0
        async with chat.subscribe("general", user_id="bob"):
            assert asyncio.get_running_loop().time() == 1
        for opening in (
            chat.subscribe("general", user_id="mallory"),
            chat.subscribe_callback("general", print, user_id="mallory"),
        ):
            with pytest.raises(Unauthorized):
                await opening
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections) == (0, 0)


@virtual
async def test_cancelling_the_opening_leaves_nothing_and_a_stop_meanwhile_refuses() -> None:
    async with Chat(auth=AsyncAuth()) as chat:
        for opening in (
            chat.subscribe("general", user_id="bob"),
            chat.subscribe_callback("general", print, user_id="bob"),
        ):
            task = asyncio.ensure_future(opening.__aenter__())
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections) == (0, 0)
        late = asyncio.ensure_future(chat.subscribe("general", user_id="bob").__aenter__())
        await turns()
    with pytest.raises(ChatError):
        await late


class NoRoomForMore(Fanout):
    """Fails when a subscriber is added, as code of ours with a defect would."""

    def add(self, subscriber: Subscriber) -> None:
        raise ValueError("a defect")


@virtual
async def test_a_room_that_fails_while_it_is_subscribed_to_holds_nothing() -> None:
    async with unlimited() as chat:
        await send(chat, 1)
        process = chat.engine.rooms.find("general")
        assert process is not None
        for opening in (chat.subscribe("general"), chat.subscribe_callback("general", print)):
            process.room.fanout = NoRoomForMore()
            with pytest.raises(RoomUnavailable):
                await opening
        statistics = chat.statistics()
        assert (statistics.subscriptions, statistics.connections, statistics.room_crashes) == (0, 0, 2)


@virtual
async def test_a_room_that_closes_for_good_gives_readers_what_is_unread_and_the_error() -> None:
    async with unlimited() as chat:
        ended: list[ChatError] = []
        await chat.subscribe_callback("general", print, on_closed=ended.append)
        async with chat.subscribe("general") as subscription, chat.subscribe("other") as other:
            (message,) = await send(chat, 1)
            await turns()
            await close_by_crashes(chat, "general")
            seen, error = await read_all(subscription)
            assert seen == [message]
            assert isinstance(error, RoomUnavailable)
            assert [each.code for each in ended] == ["room_unavailable"]
            # Other rooms do not notice, and the next use begins a new life.
            (elsewhere,) = await send(chat, 1, "other")
            assert await anext(other) == elsewhere
            async with chat.subscribe("general", after=message) as again:
                assert isinstance(gap := await anext(again), Gap)
                assert gap.reason == "epoch_changed"
                (fresh,) = await send(chat, 1)
                assert await anext(again) == fresh
                assert (gap.epoch, gap.offset + 1) == (fresh.epoch, fresh.offset)


async def close_by_crashes(chat: Chat, room_id: str) -> None:
    """Crash a room until it is closed."""
    process = chat.engine.rooms.find(room_id)
    assert process is not None
    while chat.engine.rooms.find(room_id) is process:
        process.room.fanout = Broken.like(process.room.fanout)
        with pytest.raises(RoomUnavailable):
            await chat.send_message(room_id, "mallory", "crash")


class Broken(Fanout):
    """Fails to publish; its subscribers are another's."""

    @classmethod
    def like(cls, other: Fanout) -> "Broken":
        broken = cls()
        broken.subscribers = other.subscribers
        return broken

    def publish(self, event: Event) -> Any:
        raise ValueError("a defect")

    def rebuilt(self) -> Fanout:
        fresh = Fanout()
        fresh.subscribers = dict(self.subscribers)
        return fresh


class FailsToTell(Presence):
    """Fails when its changes are told."""

    def take_diff(self) -> tuple[Presences, Presences]:
        raise ValueError("a defect")

    def rebuilt(self) -> Presence:
        return Presence()


@virtual
async def test_a_room_that_fails_at_the_end_of_a_turn_still_brings_what_was_pending() -> None:
    async with unlimited() as chat, chat.subscribe("general") as subscription:
        process = chat.engine.rooms.find("general")
        assert process is not None
        process.room.presence = FailsToTell()
        await chat.join("general", "alice")
        (message,) = await send(chat, 1)
        assert await anext(subscription) == message
        assert asyncio.get_running_loop().time() == 0
        assert chat.statistics().room_crashes == 1


# Callbacks.


@virtual
async def test_a_callback_is_called_within_the_send() -> None:
    async with unlimited() as chat:
        called: list[Event] = []
        subscription = chat.subscribe_callback("general", called.append)
        async with subscription:
            for message in await send(chat, 3):
                assert called[message.offset - 1] == message
        await send(chat, 1)
        assert offsets(called) == [1, 2, 3]
        with pytest.raises(Closed, match="opened once"):
            await subscription


@virtual
async def test_a_callback_first_gets_the_state_and_what_it_missed() -> None:
    async with unlimited() as chat:
        await chat.join("general", "alice")
        first, second, third = await send(chat, 3)
        called: list[Event] = []
        async with chat.subscribe_callback("general", called.append, after=first, presence=True):
            state = called[0]
            assert isinstance(state, PresenceState)
            assert list(state.presences) == ["alice"]
            assert called[1:] == [second, third]
            await chat.join("general", "bob")
            (fourth,) = await send(chat, 1)
            await turns()
        assert called[2:4] == [third, fourth]
        diff = called[4]
        assert isinstance(diff, PresenceDiff)
        assert (list(diff.joins), list(diff.leaves)) == (["bob"], [])
        assert len(called) == 5


# A cancelled future that a callback asks for its result raises CancelledError, which is no Exception.
RAISED = [ValueError("mine"), asyncio.CancelledError(), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Violent()]


@pytest.mark.parametrize("error", RAISED, ids=repr)
@virtual
async def test_a_callback_that_raises_is_out_and_nobody_else_notices(error: BaseException) -> None:
    async with unlimited() as chat:
        ended: list[ChatError] = []
        called: list[Event] = []

        def fails(event: Event) -> None:
            raise error

        def fails_too(closed: ChatError) -> None:
            ended.append(closed)
            raise error

        failing = await chat.subscribe_callback("general", fails, on_closed=fails_too)
        await chat.subscribe_callback("general", called.append)
        async with chat.subscribe("general") as subscription:
            messages = await send(chat, 3)
            assert called == messages
            assert [await anext(subscription) for _ in messages] == messages
        assert [type(each) for each in ended] == [SubscriberFailed]
        assert chat.statistics().subscriptions == 1
        failing.close()
        # Presence is told when the turn ends, outside of any send.
        await chat.subscribe_callback("general", fails, presence=True, on_closed=ended.append)
        assert len(ended) == 2
        await chat.join("general", "bob")
        await turns()
        assert await send(chat, 1) == called[3:]


@pytest.mark.parametrize("error", RAISED, ids=repr)
@virtual
async def test_a_callback_that_raises_while_it_catches_up_is_out(error: BaseException) -> None:
    async with unlimited() as chat:
        messages = await send(chat, 3)
        called: list[Event] = []
        ended: list[ChatError] = []

        def fails(event: Event) -> None:
            called.append(event)
            if event == messages[1]:
                raise error

        await chat.subscribe_callback("general", fails, after=(messages[0].epoch, 0), on_closed=ended.append)
        assert called == messages[:2]
        assert [each.code for each in ended] == ["subscriber_failed"]
        assert chat.statistics().subscriptions == 0


@virtual
async def test_a_callback_that_closes_its_subscription_and_raises_is_told_of_no_end() -> None:
    async with unlimited() as chat:
        messages = await send(chat, 2)
        ended: list[ChatError] = []

        def fails(_: Event) -> None:
            subscription.close()
            raise ValueError("mine")

        for after in (None, messages[0]):
            subscription = chat.subscribe_callback("general", fails, after=after, on_closed=ended.append)
            await subscription
            await send(chat, 1)
        assert ended == []
        assert chat.statistics().subscriptions == 0


@virtual
async def test_a_callback_may_close_its_subscription_while_it_catches_up() -> None:
    async with unlimited() as chat:
        first, *_ = await send(chat, 3)
        called: list[Event] = []

        def once(event: Event) -> None:
            called.append(event)
            subscription.close()

        subscription = chat.subscribe_callback("general", once, after=(first.epoch, 0))
        await subscription
        await send(chat, 1)
        assert called == [first]


@virtual
async def test_an_async_callback_or_none_is_refused_at_once() -> None:
    async def callback(event: Event) -> None:
        """Would never be awaited."""

    for wrong in (callback, None, "print"):
        with pytest.raises(ConfigError, match="plain function of one event"):
            Chat().subscribe_callback("general", wrong)  # type: ignore[arg-type]


@virtual
async def test_what_a_callback_sends_comes_after_what_it_was_called_with_for_everybody() -> None:
    async with unlimited() as chat:
        called: list[Event] = []

        def answers(event: Event) -> None:
            if isinstance(event, Message) and event.user_id == "alice":
                chat.engine.send_at_once("general", "bot", f"re: {event.content}", None)

        await chat.subscribe_callback("general", answers)
        await chat.subscribe_callback("general", called.append)
        async with chat.subscribe("general") as subscription:
            await send(chat, 3)
            seen = [await anext(subscription) for _ in range(6)]
        assert called == seen
        assert offsets(seen) == [1, 2, 3, 4, 5, 6]


@virtual
async def test_who_comes_while_a_callback_greets_gets_the_greeting_once() -> None:
    """Opening a subscription first tells the others what is pending; what they send then comes once."""
    async with unlimited() as chat:

        def greets(event: Event) -> None:
            if isinstance(event, PresenceDiff):
                for user_id in event.joins:
                    chat.engine.send_at_once("general", "bot", f"welcome, {user_id}", None)

        await chat.subscribe_callback("general", greets, presence=True)
        (message,) = await send(chat, 1)
        await chat.join("general", "alice")
        called: list[Event] = []
        async with (
            chat.subscribe("general", after=message, presence=True) as subscription,
            chat.subscribe_callback("general", called.append, after=message),
        ):
            (last,) = await send(chat, 1)
            await turns()
            state, greeting, after = [await anext(subscription) for _ in range(3)]
            assert isinstance(state, PresenceState)
            assert isinstance(greeting, Message)
            assert greeting.content == "welcome, alice"
            assert after == last
            assert called == [greeting, last]
            assert subscription.unread == 0


@virtual
async def test_after_must_be_a_place() -> None:
    async with unlimited() as chat:
        for wrong in ("e", ("e",), ("e", -1), ("e", True), (1, 1), ("e", 1, 2), 7, PresenceState("general", {})):
            with pytest.raises(InvalidMessage, match="after is "):
                await chat.subscribe("general", after=wrong)  # type: ignore[arg-type]
            async with chat.connect("bob") as connection:
                with pytest.raises(InvalidMessage, match="after is "):
                    await connection.subscribe("general", after=wrong)
        assert chat.statistics().subscriptions == 0
