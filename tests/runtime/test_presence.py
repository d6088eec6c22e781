"""Presence through a chat: told once per real change, in batches, and right whatever the interleaving."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from chatx import Connection, Message, PresenceDiff, PresenceState
from chatx.core.message import Event, PresenceMeta, Presences
from chatx.runtime.subscription import Subscription
from chatx.testing import VirtualLoop
from tests.virtual import turns, unlimited, virtual


class Watcher:
    """Replays presence as strictly as can be: what begins is new, what ends is there."""

    def __init__(self) -> None:
        self.presences: Presences | None = None
        self.diffs: list[PresenceDiff] = []

    def take(self, event: Event) -> None:
        if isinstance(event, PresenceState):
            self.presences = {user_id: list(metas) for user_id, metas in event.presences.items()}
        elif isinstance(event, PresenceDiff):
            self.diffs.append(event)
            assert self.presences is not None, "a diff came before the state"
            assert event.joins or event.leaves, "a diff says nothing"
            self.replay(event)

    def replay(self, diff: PresenceDiff) -> None:
        assert self.presences is not None
        for user_id, metas in diff.joins.items():
            mine = self.presences.setdefault(user_id, [])
            for meta in metas:
                assert meta not in mine, "a membership began twice"
                mine.append(meta)
        for user_id, metas in diff.leaves.items():
            for meta in metas:
                self.presences[user_id].remove(meta)
            if not self.presences[user_id]:
                del self.presences[user_id]

    def sets(self) -> dict[str, set[PresenceMeta]]:
        assert self.presences is not None
        return {user_id: set(metas) for user_id, metas in self.presences.items()}


async def events_of(subscription: Any) -> list[Event]:
    """Read all that is there now, whatever it takes to be told of it."""
    events: list[Event] = []
    try:
        while True:
            async with asyncio.timeout(0.001):
                events.append(await anext(subscription))
    except TimeoutError:
        return events


@virtual
async def test_the_state_comes_first_and_then_each_change_once() -> None:
    async with unlimited() as chat:
        await chat.join("general", "alice")
        async with chat.subscribe("general", presence=True) as subscription:
            state = await anext(subscription)
            assert isinstance(state, PresenceState)
            assert state.presences == await chat.presence("general")
            assert list(state.presences) == ["alice"]
            await chat.join("general", "bob")
            await chat.join("general", "bob")
            joined = await anext(subscription)
            assert isinstance(joined, PresenceDiff)
            assert (list(joined.joins), joined.leaves) == (["bob"], {})
            await chat.leave("general", "alice")
            await chat.leave("general", "alice")
            left = await anext(subscription)
            assert left == PresenceDiff("general", {}, {"alice": state.presences["alice"]})
            assert await events_of(subscription) == []


@virtual
async def test_a_room_that_is_not_there_is_empty_and_is_not_begun_by_looking() -> None:
    async with unlimited() as chat:
        assert await chat.presence("general") == {}
        await chat.leave("general", "alice")
        assert chat.statistics().rooms == 0


@virtual
async def test_churn_within_a_turn_is_one_diff_and_what_undoes_itself_is_none() -> None:
    async with unlimited() as chat:
        watcher = Watcher()
        async with chat.subscribe_callback("general", watcher.take, presence=True):
            for number in range(500):
                await chat.join("general", f"user {number}")
                await chat.join("general", "flapping")
                await chat.leave("general", "flapping")
            await turns()
            assert len(watcher.diffs) == 1
            assert len(watcher.diffs[0].joins) == 500
            await chat.join("general", "flapping")
            await chat.leave("general", "flapping")
            await turns()
            assert len(watcher.diffs) == 1


@virtual
async def test_only_those_who_ask_are_told_of_presence() -> None:
    async with unlimited() as chat, chat.subscribe("general") as subscription:
        await chat.join("general", "alice")
        await turns()
        assert subscription.unread == 0


@virtual
async def test_joins_and_messages_keep_their_order_for_one_reader() -> None:
    """A member's messages may be told before their joining, as both leave in one turn; never in a later turn."""
    async with unlimited() as chat, chat.subscribe("general", presence=True) as subscription:
        await anext(subscription)
        await chat.join("general", "alice")
        await turns()
        await chat.send_message("general", "alice", "hi")
        await turns()
        await chat.leave("general", "alice")
        events = await events_of(subscription)
        assert [type(event) for event in events] == [PresenceDiff, Message, PresenceDiff]


@virtual
async def test_presence_is_replayable_after_drop_oldest_lost_some_of_it() -> None:
    async with unlimited(mailbox_size=2) as chat:
        watcher = Watcher()
        async with chat.subscribe("general", presence=True, overflow="drop_oldest") as subscription:
            for event in await events_of(subscription):
                watcher.take(event)
            for number in range(10):
                await chat.join("general", f"user {number}")
                await turns()
            # A change that is untold yet when the loss is made good.
            await chat.leave("general", "user 3")
            # What is left of the diffs cannot be replayed, and is told by the state that is owed.
            state = await anext(subscription)
            assert isinstance(state, PresenceState)
            watcher.take(state)
            await chat.join("general", "late")
            for event in await events_of(subscription):
                watcher.take(event)
            assert len(watcher.diffs) == 1
            assert watcher.presences == await chat.presence("general")
            await chat.leave("general", "user 4")
            for event in await events_of(subscription):
                watcher.take(event)
            assert watcher.presences == await chat.presence("general")


@virtual
async def test_each_room_whose_presence_was_lost_is_made_good() -> None:
    async with unlimited(mailbox_size=1) as chat, chat.connect("bob", overflow="drop_oldest") as connection:
        watchers = {room_id: Watcher() for room_id in ("a", "b")}
        for room_id in watchers:
            await connection.subscribe(room_id, presence=True)
        for number in range(4):
            for room_id in watchers:
                await chat.join(room_id, f"user {number}")
                await turns()
        for event in await events_of(connection):
            watchers[event.room_id].take(event)
        for room_id, watcher in watchers.items():
            assert watcher.presences == await chat.presence(room_id)
            assert len(watcher.presences) == 4


@virtual
async def test_what_watchers_change_when_they_are_told_comes_before_a_state_is_handed_out() -> None:
    async with unlimited() as chat:
        chain = [await chat.connect(f"user {number}").__aenter__() for number in range(4)]
        for connection in chain[1:]:
            await connection.join("general")
        await turns()

        def throws_out(event: Event) -> None:
            """The first who comes is thrown out, and each who goes takes the next along."""
            if isinstance(event, PresenceDiff):
                for place, connection in enumerate(chain):
                    if connection.user_id in event.leaves:
                        chain[min(place + 1, 3)].close()
                if "user 0" in event.joins:
                    chain[0].close()

        async with chat.subscribe_callback("general", throws_out, presence=True):
            await chain[0].join("general")
            watcher = Watcher()
            async with chat.subscribe("general", presence=True) as subscription:
                for event in await events_of(subscription):
                    watcher.take(event)
                assert watcher.presences == {}
                assert watcher.diffs == []


@virtual
async def test_a_lost_presence_of_an_ended_subscription_is_not_made_good() -> None:
    async with unlimited(mailbox_size=1) as chat, chat.connect("bob", overflow="drop_oldest") as connection:
        await connection.subscribe("general", presence=True)
        await connection.subscribe("other")
        assert isinstance(await anext(connection), PresenceState)
        for number in range(3):
            await chat.join("general", f"user {number}")
            await turns()
        await connection.unsubscribe("general")
        message = await chat.send_message("other", "alice", "hi")
        assert await events_of(connection) == [message]


class PresenceMachine(RuleBasedStateMachine):
    """Members and watchers come and go in any interleaving of steps and turns of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.connections: list[Connection] = []
        self.joined: set[Connection] = set()
        self.plain: set[str] = set()
        self.readers: list[tuple[Subscription, Watcher]] = []
        self.called: list[Watcher] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(overflow=st.booleans())
    def begin(self, overflow: bool) -> None:
        self.chat = unlimited(mailbox_size=3 if overflow else 10**6)
        self.run(self.chat.start())

    # Steps that take no turn of the loop are driven by hand, so that many fall into one turn.
    def at_once(self, coroutine: Any) -> Any:
        async def main() -> Any:
            return await coroutine

        if self.turn_each_step:
            return self.run(main())
        asyncio._set_running_loop(self.loop)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            asyncio._set_running_loop(None)
        raise AssertionError("it waited")

    turn_each_step = False

    @rule(each=st.booleans())
    def set_pace(self, each: bool) -> None:
        self.turn_each_step = each

    @rule(user=st.sampled_from(["alice", "bob"]))
    def connect(self, user: str) -> None:
        self.connections.append(self.at_once(self.chat.connect(user).__aenter__()))

    @rule(data=st.data(), how=st.sampled_from(["join", "leave", "close"]))
    def use(self, data: st.DataObject, how: str) -> None:
        if not self.connections:
            return
        connection = data.draw(st.sampled_from(self.connections))
        if how == "join":
            self.at_once(connection.join("general"))
            self.joined.add(connection)
            return
        self.joined.discard(connection)
        if how == "leave":
            self.at_once(connection.leave("general"))
        else:
            self.connections.remove(connection)
            self.at_once(connection.aclose())

    @rule(user=st.sampled_from(["alice", "carol"]), join=st.booleans())
    def plain_membership(self, user: str, join: bool) -> None:
        if join:
            self.at_once(self.chat.join("general", user))
            self.plain.add(user)
        else:
            self.at_once(self.chat.leave("general", user))
            self.plain.discard(user)

    @rule()
    def send(self) -> None:
        self.at_once(self.chat.send_message("general", "alice", "hi"))

    @rule(callback=st.booleans())
    def watch(self, callback: bool) -> None:
        watcher = Watcher()
        if callback:
            self.at_once(self.chat.subscribe_callback("general", watcher.take, presence=True).__aenter__())
            self.called.append(watcher)
        else:
            opening = self.chat.subscribe("general", presence=True, overflow="drop_oldest")
            self.readers.append((self.at_once(opening.__aenter__()), watcher))

    @rule(count=st.integers(1, 4))
    def turns_pass(self, count: int) -> None:
        self.run(turns(count))

    @rule()
    def compare(self) -> None:
        self.run(turns(2))
        expected = {user: set(metas) for user, metas in self.run(self.chat.presence("general")).items()}
        users = [connection.user_id for connection in self.joined] + list(self.plain)
        assert {user: len(metas) for user, metas in expected.items()} == {user: users.count(user) for user in users}
        for watcher in self.called:
            assert watcher.sets() == expected
        for subscription, watcher in self.readers:
            for event in self.run(events_of(subscription)):
                # Whether a diff was lost or not: every one that is told can be replayed.
                watcher.take(event)
            assert watcher.sets() == expected

    def teardown(self) -> None:
        try:
            if hasattr(self, "chat"):
                self.compare()
                for connection in self.connections:
                    connection.close()
                self.run(turns())
                assert self.run(self.chat.presence("general")).keys() == self.plain
                self.run(self.chat.stop())
        finally:
            self.loop.close()


TestPresenceMachine = PresenceMachine.TestCase
TestPresenceMachine.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("how", ["exception", "cancellation", "close"])
@virtual
async def test_watchers_are_told_of_a_connection_that_ends_however_it_ends(how: str) -> None:
    async with unlimited() as chat:
        watcher = Watcher()
        async with chat.subscribe_callback("general", watcher.take, presence=True):

            async def block() -> None:
                async with chat.connect("alice") as connection:
                    await connection.join("general")
                    await turns()
                    if how == "exception":
                        raise KeyError("mine")
                    if how == "close":
                        connection.close()
                        return
                    await asyncio.sleep(1000)

            task = asyncio.create_task(block())
            await turns(6)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await turns()
            assert [(list(diff.joins), list(diff.leaves)) for diff in watcher.diffs] == [
                (["alice"], []),
                ([], ["alice"]),
            ]
            assert watcher.presences == {}
