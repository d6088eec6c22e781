"""The sums of `Chat.statistics` equal what a recount gives, and cost the same however many rooms there are."""

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatx import CallbackSubscription, Chat, ChatError, Connection, Draft, RateLimit, Subscription
from chatx.runtime.readers import LOOKED_AT
from chatx.testing import VirtualLoop
from tests.faults import CrashingChat
from tests.virtual import virtual

ROOMS = ("a", "b", "c")
USERS = ("alice", "bob")
room_ids = st.sampled_from(ROOMS)
users = st.sampled_from(USERS)


async def hold(draft: Draft) -> Draft:
    """A middleware that takes a while."""
    await asyncio.sleep(2.0)
    return draft


def raise_at(text: str) -> Callable[[Any], None]:
    def callback(event: Any) -> None:
        if getattr(event, "content", "") == text:
            raise ValueError(text)

    return callback


def recount(chat: Chat) -> tuple[int, ...]:
    rooms = list(chat.engine.rooms)
    return (
        len(rooms),
        sum(len(process.room.presence) for process in rooms),
        sum(len(process.room.fanout.subscribers) for process in rooms),
        sum(process.admitted for process in rooms),
        sum(process.crashes for process in rooms),
        sum(reader.unread for reader in chat.engine.consumers),
    )


class Sums(RuleBasedStateMachine):
    """Whatever comes and goes, overflows, raises or crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.chat = CrashingChat(
            middlewares=(hold,),
            mailbox_size=3,
            room_idle_ms=5000,
            idle_rooms_limit=2,
            rate_limit=RateLimit(messages_per_sec=1e6, burst=10**6),
        )
        self.run(self.chat.start())
        self.connections: list[Connection] = []
        self.subscriptions: list[Subscription | CallbackSubscription] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def contained() -> Any:
            try:
                return await coroutine
            except (ChatError, StopAsyncIteration):
                return None

        return self.loop.run_until_complete(contained())

    @rule(room_id=room_ids, user=users, leave=st.booleans())
    def plain(self, room_id: str, user: str, leave: bool) -> None:
        self.run(self.chat.leave(room_id, user) if leave else self.chat.join(room_id, user))

    @rule(user=users)
    def connect(self, user: str) -> None:
        self.connections.append(self.run(self.chat.connect(user).__aenter__()))

    @rule(data=st.data(), room_id=room_ids, how=st.sampled_from(["join", "leave", "subscribe", "unsubscribe", "close"]))
    def use(self, data: st.DataObject, room_id: str, how: str) -> None:
        if self.connections:
            connection = data.draw(st.sampled_from(self.connections))
            self.run(connection.aclose() if how == "close" else getattr(connection, how)(room_id))

    @rule(room_id=room_ids, kind=st.sampled_from(["mailbox", "dropping", "callback"]))
    def subscribe(self, room_id: str, kind: str) -> None:
        opening: Any = self.chat.subscribe(room_id, presence=True)
        if kind == "dropping":
            opening = self.chat.subscribe(room_id, overflow="drop_oldest")
        elif kind == "callback":
            opening = self.chat.subscribe_callback(room_id, raise_at("poison"), user_id="alice", after=("x", 1))
        self.run(opening.__aenter__())
        self.subscriptions.append(opening)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.subscriptions:
            data.draw(st.sampled_from(self.subscriptions)).close()

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        readers = [each for each in self.subscriptions if isinstance(each, Subscription) and each.unread]
        if readers:
            self.run(anext(data.draw(st.sampled_from(readers))))

    @rule(room_id=room_ids, user=users, content=st.sampled_from(["hello", "poison"]), times=st.integers(1, 6))
    def send(self, room_id: str, user: str, content: str, times: int) -> None:
        for _ in range(times):
            self.run(self.chat.send_message(room_id, user, content, trusted=True))

    @rule(room_id=room_ids, user=users)
    def send_slowly(self, room_id: str, user: str) -> None:
        self.loop.create_task(self.chat.send_message(room_id, user, "slow")).add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )
        self.run(asyncio.sleep(0))

    @rule(user=users)
    def revoke(self, user: str) -> None:
        self.run(self.chat.revoke(user))

    @rule(
        room_id=room_ids,
        place=st.sampled_from(["publish: before", "publish: after", "flush: before", "join: after", "rebuilt: before"]),
        times=st.integers(1, 5),
    )
    def crash(self, room_id: str, place: str, times: int) -> None:
        self.chat.crash(place, room_id, times=times)

    @rule(seconds=st.sampled_from([0.0, 0.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def the_sums_equal_a_recount(self) -> None:
        found = self.chat.statistics()
        assert (
            found.rooms,
            found.members,
            found.subscriptions,
            found.admitted,
            found.room_crashes,
            found.unread,
        ) == recount(self.chat)

    def teardown(self) -> None:
        try:
            self.run(self.chat.stop())
        finally:
            self.loop.close()


TestSums = Sums.TestCase
TestSums.settings = settings(max_examples=80, stateful_step_count=40)


def calls_of(function: Callable[[], object]) -> int:
    """Return how many functions, of Python and of C, are called."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # what others have called at each collection is not its doing
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@virtual
async def test_what_it_costs_does_not_grow_with_rooms_and_connections() -> None:
    costs = []
    async with Chat() as chat:
        held: list[Any] = []
        for number in range(20 * LOOKED_AT):
            connection = await chat.connect(f"user {number % 7}").__aenter__()
            await connection.join(f"room {number}")
            held.append(connection)
            if len(held) in (2 * LOOKED_AT, 20 * LOOKED_AT):
                costs.append(calls_of(chat.statistics))
        assert chat.statistics().members == 20 * LOOKED_AT
        assert costs[0] == costs[1]
        assert costs[0] < 20 * LOOKED_AT


@pytest.mark.parametrize("readers", [LOOKED_AT, 3 * LOOKED_AT])
@virtual
async def test_what_is_unread_is_known_after_as_many_looks_as_it_takes(readers: int) -> None:
    async with Chat(middlewares=()) as chat:
        subscriptions = [await chat.subscribe("room") for _ in range(readers)]
        for _ in range(3):
            await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(0)
        for _ in range(readers // LOOKED_AT - 1):
            chat.statistics()
        assert chat.statistics().unread == 3 * readers
        for subscription in subscriptions[: readers // 2]:
            subscription.close()
        assert chat.statistics().unread == 3 * (readers - readers // 2)


async def test_another_thread_gets_what_is_at_most_a_sweep_old() -> None:
    async with Chat(room_idle_ms=40) as chat, chat.subscribe("room"):
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(0.2)
        found = await asyncio.to_thread(chat.statistics)
        assert (found.unread, found.members, found.subscriptions, found.sent) == (1, 0, 1, 1)
