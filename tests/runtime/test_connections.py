"""Connections: what one client joined and subscribed to ends with its block, however that ends."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from chatx import (
    Chat,
    ChatError,
    Closed,
    ConfigError,
    Event,
    Gap,
    InvalidMessage,
    Message,
    PresenceState,
    RateLimit,
    RateLimited,
    RoomUnavailable,
    SlowConsumer,
    SubscriptionEnded,
    Unauthorized,
)
from chatx.core.fanout import Fanout, Subscriber
from chatx.core.message import PresenceMeta
from chatx.core.presence import Presence
from chatx.testing import VirtualLoop, run_virtual
from tests.virtual import turns, unlimited, virtual


def nobody_is_left(chat: Chat) -> bool:
    statistics = chat.statistics()
    return (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)


@virtual
async def test_one_mailbox_serves_all_the_rooms_of_a_connection() -> None:
    async with unlimited() as chat, chat.connect("alice") as alice, chat.connect("bob") as bob:
        for room_id in ("a", "b"):
            await alice.join(room_id)
            await alice.subscribe(room_id)
        sent = [await bob.send_message(room_id, "hi") for room_id in ("a", "b", "c", "b")]
        seen = [await anext(alice) for _ in range(3)]
        assert sorted(seen, key=lambda event: event.room_id) == [sent[0], sent[1], sent[3]]
        assert {message.user_id for message in sent} == {"bob"}
        await alice.send_message("a", "hello")
        echo = await anext(alice)
        assert isinstance(echo, Message)
        assert (echo.user_id, echo.content) == ("alice", "hello")


@virtual
async def test_each_connection_is_one_meta_and_joining_twice_is_harmless() -> None:
    async with unlimited() as chat, chat.connect("alice") as phone:
        async with chat.connect("alice") as laptop:
            for connection in (phone, laptop, phone):
                await connection.join("general")
            await asyncio.gather(phone.join("general"), phone.join("general"))
            await chat.join("general", "alice")
            await chat.join("general", "alice")
            assert len((await chat.presence("general"))["alice"]) == 3
        assert len((await chat.presence("general"))["alice"]) == 2
        await chat.leave("general", "alice")
        await chat.leave("general", "alice")
        assert len((await chat.presence("general"))["alice"]) == 1
        await phone.leave("general")
        await phone.leave("general")
        await phone.leave("never joined")
        assert await chat.presence("general") == {}


async def use(connection: Any) -> None:
    for room_id in ("a", "b"):
        await connection.join(room_id)
        await connection.subscribe(room_id, presence=True)


@pytest.mark.parametrize("error", [ValueError, KeyError, asyncio.CancelledError, GeneratorExit])
@virtual
async def test_a_block_that_ends_by_an_exception_leaves_no_ghost(error: type[BaseException]) -> None:
    async with unlimited() as chat:
        with pytest.raises(error):
            async with chat.connect("alice") as connection:
                await use(connection)
                assert chat.statistics().members == 2
                raise error
        assert nobody_is_left(chat)
        assert await chat.presence("a") == {}


@pytest.mark.parametrize("after_turns", range(9))
@virtual
async def test_a_block_that_is_cancelled_wherever_it_awaits_leaves_no_ghost(after_turns: int) -> None:
    class Auth:
        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            await asyncio.sleep(0)
            return True

    async with unlimited(auth=Auth()) as chat:

        async def block() -> None:
            async with chat.connect("alice") as connection:
                await use(connection)
                await connection.send_message("a", "hi")
                await anext(connection)
                await asyncio.sleep(1000)

        task = asyncio.create_task(block())
        await turns(after_turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns()
        assert nobody_is_left(chat)
        assert chat.statistics().admitted == 0
        assert await chat.presence("a") == {}


def test_blocks_that_end_with_the_loop_leave_no_ghost() -> None:
    """`asyncio.run` cancels what is left when its main coroutine returns."""
    chats: list[Chat] = []
    presences: list[Any] = []

    async def block(chat: Chat) -> None:
        async with chat.connect("alice") as connection:
            await use(connection)
            await asyncio.sleep(1000)

    async def generator(chat: Chat) -> Any:
        async with chat.connect("bob") as connection:
            await use(connection)
            yield
            await asyncio.sleep(1000)

    async def main() -> None:
        chat = unlimited()
        await chat.start()
        chats.append(chat)
        held.append(asyncio.create_task(block(chat)))
        held.append(generator(chat))
        await anext(held[-1])
        await turns()
        presences.append(sorted(await chat.presence("a")))

    held: list[Any] = []
    run_virtual(main())
    assert presences == [["alice", "bob"]]
    assert nobody_is_left(chats[0])


@virtual
async def test_a_connection_that_outlives_the_chat_ends_quietly() -> None:
    chat = unlimited()
    await chat.start()
    async with chat.connect("alice") as connection:
        await use(connection)
        await chat.stop()
        for call in (
            connection.join("c"),
            connection.leave("a"),
            connection.subscribe("c"),
            connection.unsubscribe("a"),
            connection.send_message("a", "hi"),
        ):
            with pytest.raises(Closed):
                await call
        for _ in ("a", "b"):
            assert isinstance(await anext(connection), PresenceState)
        while not isinstance(error := await outcome(connection), Closed):
            pass
        assert "stopped" in error.reason
    # It is of the chat's earlier life, and has no part in the next.
    async with chat:
        assert nobody_is_left(chat)
        with pytest.raises(Closed, match="opened once"):
            await connection.__aenter__()


async def outcome(connection: Any) -> Event | ChatError:
    try:
        event: Event = await anext(connection)
    except ChatError as error:
        return error
    return event


@virtual
async def test_a_closed_connection_takes_no_calls_and_its_iteration_ends() -> None:
    async with unlimited() as chat:
        connection = chat.connect("alice")
        with pytest.raises(Closed, match="not open"):
            await connection.join("a")
        async with connection:
            await use(connection)
            reading = asyncio.ensure_future(anext(connection, None))
            assert isinstance(await reading, PresenceState)
            await anext(connection)
            reading = asyncio.ensure_future(anext(connection, None))
            await turns()
            connection.close()
            await connection.aclose()
            assert await reading is None
            with pytest.raises(Closed, match="not open"):
                await connection.join("a")
        assert nobody_is_left(chat)


@virtual
async def test_what_is_under_way_when_a_connection_closes_leaves_nothing() -> None:
    class Auth:
        async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            await asyncio.sleep(1)
            return True

    async with unlimited(auth=Auth()) as chat:
        connection = await chat.connect("alice").__aenter__()
        calls = [asyncio.ensure_future(connection.join("a")), asyncio.ensure_future(connection.subscribe("a"))]
        await asyncio.sleep(0.5)
        connection.close()
        for call in calls:
            with pytest.raises(Closed):
                await call
        assert nobody_is_left(chat)


@virtual
async def test_a_join_is_authorized_and_a_refusal_leaves_nothing() -> None:
    class Auth:
        def authorize(self, user_id: str, room_id: str, action: str) -> bool:
            asked.append((user_id, room_id, action))
            return room_id != "secret"

    asked: list[tuple[str, str, str]] = []
    async with unlimited(auth=Auth()) as chat:
        async with chat.connect("alice") as connection:
            for call in (connection.join, connection.subscribe):
                with pytest.raises(Unauthorized):
                    await call("secret")
            with pytest.raises(Unauthorized):
                await connection.send_message("secret", "hi")
            await connection.join("a")
            await connection.subscribe("a")
            await connection.send_message("a", "hi")
        assert asked == [
            ("alice", room_id, action) for room_id in ("secret", "a") for action in ("join", "subscribe", "send")
        ]
        assert nobody_is_left(chat)


@virtual
async def test_ids_and_the_policy_are_checked() -> None:
    with pytest.raises(ConfigError, match="overflow"):
        Chat().connect("alice", overflow="block")  # type: ignore[arg-type]
    async with unlimited() as chat:
        with pytest.raises(InvalidMessage, match="user_id"):
            await chat.connect("").__aenter__()
        async with chat.connect("alice") as connection:
            for call in (connection.join, connection.subscribe):
                with pytest.raises(InvalidMessage, match="room_id"):
                    await call("a\n")


@virtual
async def test_unsubscribing_drops_what_is_unread_of_that_room_only() -> None:
    async with unlimited() as chat:
        first = await chat.send_message("a", "bob", "missed")
        async with chat.connect("alice") as connection:
            await connection.subscribe("a", after=(first.epoch, 0), presence=True)
            await connection.subscribe("b")
            kept = []
            for number in range(4):
                await chat.send_message("a", "bob", str(number))
                kept.append(await chat.send_message("b", "bob", str(number)))
                if number == 1:
                    await turns()
            await connection.unsubscribe("a")
            await connection.unsubscribe("never")
            assert [await anext(connection) for _ in kept] == kept
            assert connection.unread == 0
            await chat.send_message("a", "bob", "unheard")
            await turns()
            assert connection.unread == 0


@virtual
async def test_unsubscribing_in_the_middle_of_a_batch_drops_the_rest_of_it() -> None:
    async with unlimited() as chat, chat.connect("alice") as connection:
        await connection.subscribe("a")
        await connection.subscribe("b")
        messages = [await chat.send_message("a", "bob", str(number)) for number in range(4)]
        other = await chat.send_message("b", "bob", "other")
        assert await anext(connection) == messages[0]
        await connection.unsubscribe("a")
        assert await anext(connection) == other
        assert connection.unread == 0


@virtual
async def test_subscribing_twice_keeps_the_first_and_wakes_a_waiting_reader() -> None:
    async with unlimited() as chat:
        first = await chat.send_message("a", "bob", "missed")
        async with chat.connect("alice") as connection:
            await connection.subscribe("b")
            reader = asyncio.ensure_future(anext(connection))
            await turns()
            await asyncio.gather(
                connection.subscribe("a", after=(first.epoch, 0)), connection.subscribe("a", after=(first.epoch, 0))
            )
            await connection.subscribe("a", after=(first.epoch, 0))
            assert await reader == first
            assert connection.unread == 0
            second = await chat.send_message("a", "bob", "once")
            assert await anext(connection) == second
            await turns()
            assert connection.unread == 0


@virtual
async def test_a_slow_connection_is_cut_off_as_a_whole_and_leaves_with_its_block() -> None:
    async with unlimited(mailbox_size=4) as chat:
        async with chat.connect("alice") as slow, chat.connect("bob") as quick:
            for connection in (slow, quick):
                await use(connection)
                for _ in ("a", "b"):
                    await anext(connection)
            seen = []
            for number in range(8):
                await chat.send_message("ab"[number % 2], "carol", str(number))
                seen += [event for event in [await anext(quick)] if isinstance(event, Message)]
            events = []
            while not isinstance(event := await outcome(slow), ChatError):
                events.append(event)
            assert isinstance(event, SlowConsumer)
            messages = [each for each in events if isinstance(each, Message)]
            assert 2 <= len(messages) <= 4
            assert messages == seen[: len(messages)]
            # Its memberships last until it leaves its block.
            assert len(await chat.presence("a")) == 2
        assert nobody_is_left(chat)


class Broken(Fanout):
    """Fails to publish or to take a subscriber, as code of ours with a defect would."""

    def add(self, subscriber: Subscriber) -> None:
        raise ValueError("a defect")

    def publish(self, event: Event) -> Any:
        raise ValueError("a defect")

    def rebuilt(self) -> Fanout:
        fresh = Fanout()
        fresh.subscribers = dict(self.subscribers)
        return fresh


def break_room(chat: Chat, room_id: str) -> None:
    process = chat.engine.rooms.find(room_id)
    assert process is not None
    broken = Broken()
    broken.subscribers = process.room.fanout.subscribers
    process.room.fanout = broken


async def close_by_crashes(chat: Chat, room_id: str) -> None:
    process = chat.engine.rooms.find(room_id)
    while chat.engine.rooms.find(room_id) is process:
        break_room(chat, room_id)
        with pytest.raises(RoomUnavailable):
            await chat.send_message(room_id, "mallory", "crash")


@virtual
async def test_a_room_keeps_no_connection_that_has_left_it() -> None:
    async with unlimited() as chat, chat.connect("bob") as stays:
        await stays.join("a")
        async with chat.connect("alice") as connection:
            await connection.join("a")
        gone = weakref.ref(connection)
        del connection
        gc.collect()
        assert gone() is None
        assert chat.engine.rooms.find("a") is not None


@virtual
async def test_a_room_that_ends_is_told_and_the_other_rooms_go_on() -> None:
    async with unlimited() as chat:
        async with chat.connect("alice") as connection:
            await use(connection)
            for _ in ("a", "b"):
                await anext(connection)
            before = await chat.send_message("a", "bob", "before")
            await turns()
            await close_by_crashes(chat, "a")
            elsewhere = await chat.send_message("b", "bob", "elsewhere")
            events = [await anext(connection) for _ in range(3)]
            assert events[0] == before
            assert isinstance(events[1], SubscriptionEnded)
            assert (events[1].room_id, events[1].code) == ("a", "room_unavailable")
            assert events[2] == elsewhere
            # It comes back, in the room's next life.
            await connection.join("a")
            await connection.subscribe("a", after=before)
            gap = await anext(connection)
            assert isinstance(gap, Gap)
            assert gap.reason == "epoch_changed"
            again = await chat.send_message("a", "bob", "again")
            assert await anext(connection) == again
            assert list(await chat.presence("a")) == ["alice"]
        assert nobody_is_left(chat)


@virtual
async def test_subscribing_anew_before_the_end_was_read_begins_with_what_was_missed() -> None:
    async with unlimited() as chat, chat.connect("alice") as connection:
        await connection.subscribe("a", presence=True)
        for number in range(3):
            await chat.send_message("a", "bob", str(number))
        await turns()
        last = await chat.send_message("a", "bob", "last")
        await turns()
        await close_by_crashes(chat, "a")
        await connection.subscribe("a", after=last, presence=True)
        fresh = await chat.send_message("a", "bob", "fresh")
        state, gap, message = [await anext(connection) for _ in range(3)]
        assert isinstance(state, PresenceState)
        assert isinstance(gap, Gap)
        assert message == fresh
        assert connection.unread == 0


@virtual
async def test_a_room_that_fails_while_it_is_subscribed_to_can_be_subscribed_to_again() -> None:
    async with unlimited() as chat:
        async with chat.connect("alice") as connection:
            await connection.join("a")
            await turns()
            break_room(chat, "a")
            with pytest.raises(RoomUnavailable):
                await connection.subscribe("a")
            await connection.subscribe("a")
            message = await chat.send_message("a", "bob", "hi")
            assert await anext(connection) == message
        assert nobody_is_left(chat)


class FailsAfter(Presence):
    """Fails once a membership has begun."""

    def add(self, user_id: str, meta: PresenceMeta) -> None:
        super().add(user_id, meta)
        raise ValueError("a defect")

    def rebuilt(self) -> Presence:
        fresh = Presence()
        for user_id, metas in self.snapshot().items():
            for meta in metas:
                fresh.add(user_id, meta)
        return fresh


@virtual
async def test_a_join_that_fails_half_way_leaves_no_ghost() -> None:
    async with unlimited() as chat:
        async with chat.connect("alice") as connection:
            await connection.subscribe("a")
            process = chat.engine.rooms.find("a")
            assert process is not None
            for join in (connection.join, lambda room_id: chat.join(room_id, "bob")):
                process.room.presence = FailsAfter()
                with pytest.raises(RoomUnavailable):
                    await join("a")
                assert await chat.presence("a") == {}
            await connection.join("a")
            assert list(await chat.presence("a")) == ["alice"]
        assert await chat.presence("a") == {}


@virtual
async def test_drop_oldest_tells_of_each_room_and_of_ends() -> None:
    async with unlimited(mailbox_size=2) as chat, chat.connect("alice", overflow="drop_oldest") as connection:
        await connection.subscribe("a")
        await connection.subscribe("b")
        await chat.send_message("a", "bob", "lost")
        await turns()
        await close_by_crashes(chat, "a")
        for number in range(5):
            await chat.send_message("b", "bob", str(number))
            await turns()
        events = [await anext(connection) for _ in range(5)]
        assert connection.unread == 0
        assert [type(event) for event in events] == [Gap, SubscriptionEnded, Gap, Message, Message]
        assert [event.missed for event in events if isinstance(event, Gap)] == [1, 3]


@virtual
async def test_presence_that_was_lost_with_its_subscription_is_not_made_good() -> None:
    async with unlimited(mailbox_size=1) as chat, chat.connect("bob", overflow="drop_oldest") as connection:
        await connection.subscribe("a", presence=True)
        await connection.subscribe("b")
        assert isinstance(await anext(connection), PresenceState)
        for number in range(3):
            await chat.join("a", f"user {number}")
            await turns()
        await close_by_crashes(chat, "a")
        await chat.join("a", "somebody else")
        message = await chat.send_message("b", "alice", "hi")
        ended, last = [await anext(connection) for _ in range(2)]
        assert isinstance(ended, SubscriptionEnded)
        assert last == message
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(connection)


@virtual
async def test_a_lone_sender_that_waits_as_told_succeeds() -> None:
    async with Chat(rate_limit=RateLimit(3, 2)) as chat, chat.connect("alice") as connection:
        refusals = 0
        for number in range(20):
            try:
                await connection.send_message("a", str(number))
            except RateLimited as refusal:
                refusals += 1
                await asyncio.sleep(refusal.retry_after or 0)
                await connection.send_message("a", str(number))
        assert refusals == 18
        assert asyncio.get_running_loop().time() == pytest.approx(6)


def test_a_chat_runs_again_on_another_loop() -> None:
    chat = unlimited()

    async def main() -> None:
        async with chat, chat.connect("alice") as connection:
            await connection.subscribe("a")
            message = await connection.send_message("a", "hi")
            assert await anext(connection) == message

    for _ in range(2):
        loop = VirtualLoop()
        loop.run_until_complete(main())
        loop.close()
