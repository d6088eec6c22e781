"""Rooms that move: what was acknowledged is never at two places, and never nowhere, while no node crashes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import Draft, RateLimit, RoomUnavailable, SubscriptionEnded
from chatx.adapters.memory_log import MemoryLog
from chatx.cluster.entries import Placed
from chatx.cluster.fields import Place
from chatx.cluster.memory_backplane import MemoryHub
from chatx.cluster.rpc import Answer, Ask, HandedOff, HandOff
from chatx.core.message import Position
from chatx.runtime.nodes.handing_over import OTHERS_S
from chatx.runtime.nodes.node import HANDED_OVER_S
from chatx.runtime.nodes.peers import HELD_S, Unreachable
from tests.runtime.nodes.fabric import ANSWERED_S, UNLIMITED, Node, nodes, room_of
from tests.runtime.nodes.test_large_records import filled, ids
from tests.runtime.nodes.test_nodes import boot_of, clustered, hub, three
from tests.virtual import virtual

__all__ = ["hub"]


class ForgetsAnAnswer(Node):
    """A node that the first hand-off does not reach."""

    forgotten = 0

    async def ask(self, boot: str, ask: Ask) -> Answer:
        answer = await super().ask(boot, ask)
        if isinstance(answer, HandedOff) and not self.forgotten:
            self.forgotten += 1
            raise Unreachable("it has not answered", surely=False)
        return answer


@virtual
async def test_a_room_with_a_large_history_is_handed_over_whole() -> None:
    async with nodes("a", "b", history_size=700) as (fabric, (a, _)):
        room = room_of("c", "a", "b")
        sent = await filled(a, room, 600)
        c = Node(fabric, "c", history_size=700)
        fabric.see("a", "b", "c")
        again = await c.chat.send_message(room, "ann", "whatever", idempotency_key="0")
        assert (again.id, again.duplicate) == (sent[0].id, True)
        assert ids(await c.chat.history(room, limit=1000)) == ids(sent)
        assert (await c.chat.send_message(room, "ann", "next")).offset == 601


@virtual
async def test_a_hand_off_whose_answer_is_lost_is_answered_again_and_to_nobody_else() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("c", "a", "b")
        first = await a.chat.send_message(room, "ann", "first")
        c = ForgetsAnAnswer(fabric, "c")
        fabric.see("a", "b", "c")
        second = await c.chat.send_message(room, "ann", "second")
        assert c.forgotten
        assert (second.epoch, second.offset) == (first.epoch, 2)
        # What was taken is nobody else's: it went on with entries that are not in it.
        assert await b.ask(a.boot, HandOff(room, b.boot, "another")) == HandedOff(None, ())


@virtual
async def test_a_room_that_was_taken_while_others_were_looked_at_is_not_left_again() -> None:
    async with nodes("a", "b") as (fabric, both):
        room = room_of("c", "a", "b")
        await both[0].chat.send_message(room, "ann", "first")
        (owner,) = (node for node in both if list(node.engine.rooms))
        looked_at = list(owner.engine.rooms)
        c = Node(fabric, "c")
        fabric.see("a", "b", "c")
        assert (await c.chat.send_message(room, "ann", "second")).offset == 2
        # Many rooms are looked at a part at a time, by what was there at first.
        owner.abroad.nodes_changed(looked_at)
        assert owner.abroad.left_behind == 0


@virtual
async def test_a_room_that_comes_back_before_anybody_asked_for_it_goes_on() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("c", "a", "b")
        first = await a.chat.send_message(room, "ann", "first")
        c = Node(fabric, "c")
        a.see("a", "b", "c")
        await c.crash()
        fabric.see("a", "b")
        second = await b.chat.send_message(room, "ann", "second")
        assert (second.epoch, second.offset) == (first.epoch, 2)


@virtual
async def test_a_room_that_moves_on_while_it_is_taken_over_goes_on_at_the_third_node() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        names = [f"room-{number}" for number in range(1000)]
        c = Node(fabric, "c")
        d = Node(fabric, "d")
        a.see("a", "b")
        first_owner = {each: a.owner(each) for each in names}
        c.see("a", "b", "c")
        then = {each: c.owner(each) for each in names}
        d.see("a", "b", "c", "d")
        last = {each: d.owner(each) for each in names}
        room = next(each for each in names if (first_owner[each], then[each], last[each]) == (a.boot, c.boot, d.boot))
        first = await a.chat.send_message(room, "ann", "first")
        a.see("a", "b", "c")
        opening = asyncio.create_task(c.chat.send_message(room, "ann", "second"))
        await asyncio.sleep(0.0005)  # it asks for the room
        fabric.see("a", "b", "c", "d")
        third = await d.chat.send_message(room, "ann", "third")
        await asyncio.gather(opening, return_exceptions=True)
        assert third.epoch == first.epoch
        history = await b.chat.history(room)
        assert history[0] == first
        assert [each.offset for each in history] == list(range(1, len(history) + 1))


@virtual
async def test_of_what_several_nodes_had_of_a_room_the_newest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = next(each for each in (room_of("c", "a", "b", number=n) for n in range(9)) if a.owner(each) == a.boot)
        old = await a.chat.send_message(room, "ann", "old")
        fabric.cut |= {(a.boot, b.boot), (b.boot, a.boot)}
        b.see("b")
        while time.time_ns() // 1_000_000 == old.inserted_at:
            pass  # a ms at most, which tells the streams apart
        new = await b.chat.send_message(room, "ann", "new")
        assert new.epoch != old.epoch
        fabric.cut.clear()
        c = Node(fabric, "c")
        fabric.see("a", "b", "c")  # of the others, the first that it asks is the one with the old stream
        third = await c.chat.send_message(room, "ann", "third")
        assert (third.epoch, third.offset) == (new.epoch, 2)
        assert await a.chat.history(room) == [new, third]
        assert f"{old.epoch} ends, at 1." in caplog.text


@virtual
async def test_who_has_found_a_room_does_not_wait_for_a_node_that_does_not_answer() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("c", "a", "b")
        first = await a.chat.send_message(room, "ann", "first")
        other = next(each for each in (a, b) if each.owner(room) != each.boot)
        c = Node(fabric, "c")
        fabric.cut.add((other.boot, c.boot))
        fabric.see("a", "b", "c")
        async with asyncio.timeout(ANSWERED_S):
            second = await c.chat.send_message(room, "ann", "second")
        assert (second.epoch, second.offset) == (first.epoch, 2)


@virtual
async def test_a_connection_that_has_joined_is_told_once_that_its_room_goes_on_elsewhere() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("a", "b")
        async with b.chat.connect("ann") as joined, b.chat.connect("bob") as reads, b.chat.connect("cid") as left:
            for each in (joined, reads, left):
                await each.join(room)
            await reads.subscribe(room)
            await left.leave(room)
            await a.crash()
            fabric.see("b")
            for each in (joined, reads):
                event = await anext(each)
                assert isinstance(event, SubscriptionEnded)
                assert (event.room_id, event.code) == (room, "room_unavailable")
                await each.join(room)
            assert {*await b.chat.presence(room)} == {"ann", "bob"}
            assert joined.unread == reads.unread == left.unread == 0


@virtual
async def test_a_subscription_is_held_until_the_owner_knows_that_the_room_is_its_own() -> None:
    async with nodes("a", "b") as (_, (a, b)):
        room = room_of("c", "a", "b")
        owner, other = (a, b) if a.owner(room) == a.boot else (b, a)
        owner.see("a", "b", "c")  # as it may after a start, while the other one does not
        reading = asyncio.create_task(other.chat.history(room))
        subscribing = asyncio.ensure_future(other.chat.subscribe(room).__aenter__())
        await asyncio.sleep(HELD_S - 1)
        owner.see("a", "b")
        assert await reading == []
        subscription = await subscribing
        sent = await owner.chat.send_message(room, "ann", "hi")
        assert await anext(subscription) == sent
        subscription.close()


@virtual
async def test_a_subscription_is_held_until_this_node_owns_the_room_itself() -> None:
    async with nodes("a", "b") as (_, (a, b)):
        room = room_of("a", "b")
        await a.crash()
        subscribing = asyncio.ensure_future(b.chat.subscribe(room).__aenter__())
        await asyncio.sleep(HELD_S - 1)
        b.see("b")
        subscription = await subscribing
        sent = await b.chat.send_message(room, "ann", "hi")
        assert await anext(subscription) == sent
        subscription.close()


class ProvesSlowly(MemoryLog):
    """A log that takes its time to take note of where rooms end."""

    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        await asyncio.sleep(2 * OTHERS_S)
        return await super().close_rooms(ends)


@virtual
async def test_over_a_log_a_room_waits_for_the_node_that_brings_there_what_was_said() -> None:
    options: dict[str, Any] = {"persistence": ProvesSlowly(), "history_size": 10}
    async with nodes("a", "b", **options) as (fabric, (a, b)):
        room = room_of("c", "a", "b")
        owner, other = (a, b) if a.owner(room) == a.boot else (b, a)
        first = await owner.chat.send_message(room, "ann", "first")
        await asyncio.sleep(1)  # it is in the log, and its place is not proven
        old = [Placed.of(replace(first, epoch="old", inserted_at=1))]
        other.abroad.handing_over._left.keep(room, Place("old", 1), old, asyncio.get_running_loop().time())
        c = Node(fabric, "c", rate_limit=UNLIMITED, **options)
        fabric.see("a", "b", "c")
        second = await c.chat.send_message(room, "ann", "second")
        assert (second.epoch, second.offset) == (first.epoch, 2)


class NeverAsksItself(Node):
    """A node that would not come to an end where it followed a room of its own."""

    async def ask(self, boot: str, ask: Ask) -> Answer:
        assert boot != self.boot
        return await super().ask(boot, ask)


@virtual
async def test_a_subscription_is_held_while_this_node_has_given_up_the_room_and_nobody_else_has_it() -> None:
    async with nodes("b") as (fabric, (b,)):
        a = NeverAsksItself(fabric, "a")
        fabric.see("a", "b")
        room = room_of("a", "b")
        first = await a.chat.send_message(room, "ann", "hi")
        await b.ask(a.boot, HandOff(room, b.boot, "a take that comes to nothing"))
        async with a.chat.subscribe(room) as subscription:
            second = await b.chat.send_message(room, "ann", "hi again")
            assert await anext(subscription) == second
        assert second.epoch != first.epoch


@virtual
async def test_a_subscription_is_refused_where_nobody_has_the_room_for_too_long_or_the_owner_refuses() -> None:
    async with nodes("a", "b") as (_, (a, b)):
        room = room_of("a", "b")
        a.engine.open = False
        with pytest.raises(RoomUnavailable, match="refuses: The chat is stopping"):
            _ = await b.chat.subscribe(room)
        await a.crash()
        with pytest.raises(RoomUnavailable, match="5 s"):
            _ = await b.chat.subscribe(room)


@virtual
async def test_a_node_that_stops_hands_over_rooms_that_nobody_is_in(hub: MemoryHub) -> None:
    async with three() as chats:
        rooms = [f"room-{number}" for number in range(30)]
        first = {room: await chats[0].send_message(room, "ann", "first") for room in rooms}
        await chats[1].stop()
        for room in rooms:
            second = await chats[0].send_message(room, "ann", "second")
            assert (second.epoch, second.offset) == (first[room].epoch, 2), room


@virtual
async def test_a_node_that_stops_goes_on_handing_over_for_as_long_as_its_rooms_are_taken(hub: MemoryHub) -> None:
    async with three(rate_limit=UNLIMITED) as chats:
        # A third of them, fifty at a time: each time takes a second, and how many they are is drawn.
        rooms = [f"room-{number}" for number in range(1_200)]
        first = {room: await chats[0].send_message(room, "ann", "first") for room in rooms}
        hub.chances.delay_s = 0.3
        stopped_at = asyncio.get_running_loop().time()
        await chats[1].stop()
        assert asyncio.get_running_loop().time() - stopped_at > 2 * HANDED_OVER_S
        hub.chances.delay_s = 0.0
        for room in rooms:
            second = await chats[0].send_message(room, "ann", "second")
            assert (second.epoch, second.offset) == (first[room].epoch, 2), room


@virtual
async def test_a_node_whose_rooms_nobody_takes_waits_no_longer(hub: MemoryHub) -> None:
    async with three() as chats:
        for number in range(30):
            await chats[0].send_message(f"room-{number}", "ann", "first")
        loop = asyncio.get_running_loop()
        hub.cut(boot_of(chats[1]), boot_of(chats[0]))
        hub.cut(boot_of(chats[1]), boot_of(chats[2]))
        since = loop.time()
        await chats[1].stop()
        assert loop.time() - since < HANDED_OVER_S + 3


@virtual
async def test_rooms_outlive_a_broker_that_is_away_for_a_minute(hub: MemoryHub) -> None:
    async with three() as chats:
        rooms = [f"room-{number}" for number in range(30)]
        first = {room: await chats[0].send_message(room, "ann", "first") for room in rooms}
        hub.stop()
        await asyncio.sleep(60)
        hub.start()
        await asyncio.sleep(5)
        for room in rooms:
            second = await chats[0].send_message(room, "ann", "second")
            assert (second.epoch, second.offset) == (first[room].epoch, 2), room


class Slow:
    """A middleware that takes its time."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, draft: Draft) -> Draft:
        await self.go_on.wait()
        return draft


@virtual
async def test_a_message_whose_middleware_outlasts_the_ownership_takes_no_place(hub: MemoryHub) -> None:
    slow = Slow()
    async with clustered("a", middlewares=(slow,), rate_limit=RateLimit(1e6, 1_000_000)) as chat:
        sending = asyncio.create_task(chat.send_message("general", "ann", "hi"))
        await asyncio.sleep(1)
        with hub._nodes[boot_of(chat)].paused():
            # No tick in between: as in a process that stood still.
            chat._node._membership._own_at -= 10  # type: ignore[union-attr]
            slow.go_on.set()
            with pytest.raises(RoomUnavailable, match="elsewhere"):
                await sending
