"""Rooms over several nodes: one owner, one order, and everybody gets everything wherever they are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatx import (
    EpochChanged,
    Gap,
    InvalidMessage,
    Message,
    PresenceDiff,
    PresenceState,
    RateLimit,
    RateLimited,
    Revoked,
    RoomUnavailable,
)
from chatx.cluster.memberships import Membership
from chatx.cluster.rpc import Done, Members
from chatx.core.message import Position
from chatx.runtime.subscription import Subscription
from tests.runtime.nodes.fabric import Node, nodes, room_of
from tests.virtual import virtual


async def taken(subscription: Subscription, count: int) -> list[Message]:
    """Return the next messages."""
    found: list[Message] = []
    async with asyncio.timeout(30):
        async for event in subscription:
            assert isinstance(event, Message), event
            found.append(event)
            if len(found) == count:
                break
    return found


@virtual
async def test_what_is_sent_on_any_node_is_read_on_all_in_one_order() -> None:
    async with nodes("a", "b", "c") as (_, found):
        room = room_of("a", "b", "c")
        readers = [node.chat.subscribe(room) for node in found]
        for reader in readers:
            _ = await reader

        async def talk(node: Node, user: str) -> list[Message]:
            return [await node.chat.send_message(room, user, f"{user} {number}") for number in range(20)]

        said = await asyncio.gather(*(talk(node, f"user-{node.boot[0]}") for node in found))
        told = [await taken(reader, 60) for reader in readers]
        assert told[0] == told[1] == told[2]
        assert [each.offset for each in told[0]] == list(range(1, 61))
        for messages in said:
            own = [each for each in told[0] if each.user_id == messages[0].user_id]
            assert own == messages
        for reader in readers:
            reader.close()


@virtual
async def test_words_that_are_lost_are_caught_up() -> None:
    async with nodes("a", "b", seed=3) as (fabric, (a, b)):
        room = room_of("a", "b")
        async with b.chat.subscribe(room) as reader:
            fabric.lossy = 0.5
            sent = []
            for number in range(200):
                sent.append(await a.chat.send_message(room, "ann", f"{number}"))
                if not number % 10:
                    await asyncio.sleep(0.01)
            assert await taken(reader, 200) == sent
        assert fabric.lost > 3
        assert fabric.words > 3


@virtual
async def test_the_last_word_that_was_lost_is_noticed() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("a", "b")
        async with b.chat.subscribe(room) as reader:
            fabric.lossy = 1.0
            sent = await a.chat.send_message(room, "ann", "hi")
            await asyncio.sleep(0)
            fabric.lossy = 0.0
            assert await taken(reader, 1) == [sent]


@virtual
async def test_who_comes_back_on_another_node_gets_what_was_missed() -> None:
    async with nodes("a", "b", "c", history_size=10) as (_, (a, b, c)):
        room = room_of("a", "b", "c")
        sent = [await b.chat.send_message(room, "ann", f"{number}") for number in range(10)]
        async with c.chat.subscribe(room, after=sent[2]) as reader:
            assert await taken(reader, 7) == sent[3:]
        assert await c.chat.history(room, limit=4) == sent[-4:]
        assert await b.chat.history(room, before=sent[5], limit=3) == sent[2:5]
        assert await a.chat.history(room, after=sent[5], limit=3) == sent[6:9]


@virtual
async def test_two_devices_on_two_nodes_are_one_user_with_two_metas() -> None:
    async with nodes("a", "b", "c") as (_, (a, b, c)):
        room = room_of("a", "b", "c")
        async with c.chat.subscribe(room, presence=True) as watching:
            assert await anext(watching) == PresenceState(room, {})
            async with a.chat.connect("ann") as one, b.chat.connect("ann") as other:
                await one.join(room)
                await other.join(room)
                await asyncio.sleep(0.1)
                for node in (a, b, c):
                    assert [len(each) for each in (await node.chat.presence(room)).values()] == [2]
                    refs = {meta.ref for meta in (await node.chat.presence(room))["ann"]}
                    assert len(refs) == 2
            await asyncio.sleep(0.1)
            for node in (a, b, c):
                assert await node.chat.presence(room) == {}
            changes = [await anext(watching) for _ in range(2)]
            assert all(isinstance(each, PresenceDiff) for each in changes)


@virtual
async def test_the_members_of_a_node_that_is_gone_go_and_those_of_others_stay() -> None:
    async with nodes("a", "b", "c") as (fabric, (a, b, c)):
        room = room_of("a", "b", "c")
        connections = [node.chat.connect(f"user-{node.boot[0]}") for node in (b, c)]
        for connection in connections:
            await connection.__aenter__()
            await connection.join(room)
        await asyncio.sleep(0.1)
        assert set(await a.chat.presence(room)) == {"user-b", "user-c"}
        await c.crash()
        fabric.see("a", "b")
        await asyncio.sleep(0.1)
        assert set(await a.chat.presence(room)) == {"user-b"}
        assert set(await b.chat.presence(room)) == {"user-b"}
        connections[0].close()


@virtual
async def test_a_room_whose_owner_has_crashed_begins_anew_and_whoever_comes_back_is_told() -> None:
    async with nodes("a", "b", "c") as (fabric, (a, b, c)):
        room = room_of("a", "b", "c")
        first = await b.chat.send_message(room, "ann", "before")
        async with b.chat.subscribe(room, after=first) as reader:
            await a.crash()
            fabric.see("b", "c")
            with pytest.raises(Exception, match="goes on elsewhere"):
                await anext(reader)
        async with b.chat.subscribe(room, after=first) as reader:
            gap = await anext(reader)
            assert isinstance(gap, Gap)
            assert gap.reason == "epoch_changed"
            sent = await c.chat.send_message(room, "ann", "after")
            assert await taken(reader, 1) == [sent]
        assert sent.epoch != first.epoch


@virtual
async def test_a_room_that_moves_to_a_node_that_has_come_goes_on_in_its_stream() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("c", "a", "b")
        sent = [await a.chat.send_message(room, "ann", f"{number}") for number in range(5)]
        c = Node(fabric, "c")
        fabric.see("a", "b", "c")
        sent.append(await b.chat.send_message(room, "ann", "5"))
        assert [each.offset for each in sent] == [1, 2, 3, 4, 5, 6]
        assert len({each.epoch for each in sent}) == 1
        async with b.chat.subscribe(room, after=sent[0]) as reader:
            assert await taken(reader, 5) == sent[1:]
        assert await c.chat.history(room) == sent


@virtual
async def test_a_user_is_cut_off_on_all_nodes() -> None:
    async with nodes("a", "b") as (_, (a, b)), b.chat.connect("ann") as connection:
        await connection.join(room_of("a", "b"))
        await a.chat.revoke("ann")
        await asyncio.sleep(0.5)
        with pytest.raises(Revoked):
            await connection.join("other")
        assert await a.chat.presence(room_of("a", "b")) == {}


@virtual
async def test_a_plain_membership_lives_with_the_rooms_owner() -> None:
    async with nodes("a", "b") as (_, (a, b)):
        room = room_of("a", "b")
        await b.chat.join(room, "ann")
        await b.chat.join(room, "ann")
        assert [len(each) for each in (await a.chat.presence(room)).values()] == [1]
        assert set(await b.chat.presence(room)) == {"ann"}
        await b.chat.leave(room, "ann")
        assert await a.chat.presence(room) == {}


@virtual
async def test_refusals_of_the_owner_come_back_as_what_they_are() -> None:
    async with nodes("a", "b", rate_limit=RateLimit(messages_per_sec=1, burst=1)) as (_, (a, b)):
        room = room_of("a", "b")
        with pytest.raises(InvalidMessage):
            await b.chat.send_message(room, "ann", "")
        sent = await b.chat.send_message(room, "ann", "hi", idempotency_key="k", data={"a": [1]})
        again = await a.chat.send_message(room, "ann", "hi", idempotency_key="k")
        assert (again.id, again.duplicate, sent.duplicate) == (sent.id, True, False)
        assert (await b.chat.send_message(room, "ann", "hi", idempotency_key="k")).duplicate
        assert sent.data == {"a": [1]}
        for _ in range(3):
            with pytest.raises(RateLimited) as refused:
                for _ in range(9):
                    await b.chat.send_message(room, "ann", "too fast")
            assert 0 < (refused.value.retry_after or 0) <= 1


@virtual
async def test_who_comes_while_a_replica_catches_up_is_not_answered_with_what_was_asked_before() -> None:
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("a", "b")
        await a.chat.send_message(room, "ann", "first")
        async with b.chat.subscribe(room), asyncio.timeout(30):
            fabric.lossy = 1.0
            second = await a.chat.send_message(room, "ann", "second")
            process = b.engine.rooms.find(room)
            assert process is not None
            attach, coming = a.owned.attach, list[asyncio.Task[None]]()

            def attached(*args: Any) -> Any:
                answer = attach(*args)
                if not coming:
                    # Said behind the answer, and read elsewhere by somebody who comes here before it is here.
                    third = a.engine.send_at_once(room, "ann", "third", None)
                    assert isinstance(third, Message)
                    coming.append(asyncio.create_task(b.engine.reach(process, Position(third.epoch, third.offset))))
                return answer

            a.owned.attach = attached  # type: ignore[method-assign, assignment]
            await b.engine.reach(process, Position(second.epoch, second.offset))
            await coming[0]
            assert process.head.offset == 3


@virtual
async def test_a_node_speaks_for_its_own_memberships_only() -> None:
    async with nodes("a", "b", "c") as (_, (a, b, c)):
        room = room_of("a", "b", "c")
        async with b.chat.connect("ann") as ann, c.chat.connect("bob") as bob:
            await ann.join(room)
            await bob.join(room)
            await asyncio.sleep(0.1)
            present = await a.chat.presence(room)
            (meta,) = present["ann"]
            theirs = Membership("ann", meta.ref, 1)
            forged = Membership("eve", f"{a.boot}.1", 1)
            assert await c.ask(a.boot, Members(room, c.boot, (forged,), (theirs,), False)) == Done()
            assert await a.chat.presence(room) == present


@virtual
async def test_a_send_is_told_and_counted_once_wherever_it_was_sent() -> None:
    async with nodes("a", "b", rate_limit=RateLimit(messages_per_sec=1, burst=1)) as (_, (a, b)):
        room = room_of("a", "b")
        told: list[tuple[str, str]] = []
        for node in (a, b):
            for event in ("message_sent", "broadcast", "message_refused", "rate_limit_hit"):
                node.engine.telemetry.attach(event, lambda name, *_, boot=node.boot: told.append((boot[0], name)))
        await b.chat.send_message(room, "ann", "hi", idempotency_key="k")
        await b.chat.send_message(room, "ann", "hi", idempotency_key="k")
        assert sorted(told) == [("a", "broadcast"), ("a", "message_sent")]
        told.clear()
        with pytest.raises(RateLimited):
            await b.chat.send_message(room, "ann", "too fast")
        assert sorted(told) == [("a", "message_refused"), ("a", "rate_limit_hit")]
        figures = [node.chat.statistics() for node in (a, b)]
        assert [(each.sent, each.duplicates, each.refused) for each in figures] == [
            (1, 1, {"rate_limited": 1}),
            (0, 0, {}),
        ]
        told.clear()
        await a.crash()
        with pytest.raises(RoomUnavailable):
            await b.chat.send_message(room, "ann", "to nobody")
        assert told == [("b", "message_refused")]
        assert b.chat.statistics().refused == {"room_unavailable": 1}


@virtual
async def test_what_a_dead_owner_may_have_published_is_not_published_again_in_the_next_epoch() -> None:
    async with nodes("a", "b", "c", seed=1) as (fabric, (a, b, c)):
        room = room_of("a", "b", "c")
        before = await b.chat.send_message(room, "ann", "before")
        fabric.cut.add((a.boot, b.boot))  # its answer is lost
        open_send = asyncio.create_task(b.chat.send_message(room, "ann", "once", idempotency_key="k"))
        async with c.chat.subscribe(room, after=before) as reader:
            [seen] = await taken(reader, 1)
            await a.crash()
            fabric.see("b", "c")
        with pytest.raises(RoomUnavailable):
            await open_send
        edge = b if b.owner(room) == c.boot else c  # the next owner is the other one
        with pytest.raises(EpochChanged, match="One before it that had no answer may have been") as refused:
            await edge.chat.send_message(room, "ann", "once", idempotency_key="k", epoch=before.epoch)
        assert (seen.content, refused.value.retryable) == ("once", False)
        assert not [each for each in await b.chat.history(room) if each.content == "once"]
        # Nothing is kept against it: the same words as a new message go.
        sent = await b.chat.send_message(room, "ann", "once", idempotency_key="k")
        again = await b.chat.send_message(room, "ann", "once", idempotency_key="k", epoch=before.epoch)
        assert (again.id, again.duplicate) == (sent.id, True)
