"""Nodes as a whole over a broker in memory: who is there, what happens when they come, go, freeze or are cut off."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from chatx import AdapterError, Chat, ConfigError, Message, Revoked, RoomUnavailable
from chatx.cluster.memory_backplane import MemoryBackplane, MemoryHub
from chatx.config import ChatConfig
from chatx.core.message import Draft
from tests.virtual import virtual

Nodes = Callable[..., Any]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> MemoryHub:
    """The broker that all chats of the test have in common."""
    hub = MemoryHub()
    monkeypatch.setattr("chatx.chat.link_of", lambda config, boot: MemoryBackplane(hub, boot))
    return hub


def clustered(name: str, **options: Any) -> Chat:
    return Chat(
        config=ChatConfig(cluster_strategy="pg", cluster_url="nats://in.memory:4222", node_name=name, **options)
    )


@asynccontextmanager
async def three(**options: Any) -> AsyncIterator[list[Chat]]:
    async with AsyncExitStack() as stack:
        chats = [clustered(name, **options) for name in "abc"]
        await asyncio.gather(*(stack.enter_async_context(each) for each in chats))
        await asyncio.sleep(1)  # until each has heard that the others are up
        yield chats


def owner_of(chats: list[Chat], room: str) -> Chat:
    (owner,) = (each for each in chats if each.engine.elsewhere is not None and each.engine.elsewhere.owns(room))
    return owner


@virtual
async def test_nodes_find_each_other_and_each_room_has_one_owner(hub: MemoryHub) -> None:
    async with three() as chats:
        owners = {owner_of(chats, f"room-{number}") for number in range(50)}
        assert owners == {*chats}
        room = "general"
        async with AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(each.subscribe(room)) for each in chats]
            sent = [await each.send_message(room, "ann", f"{number}") for number, each in enumerate(chats * 3)]
            for reader in readers:
                assert [await anext(reader) for _ in sent] == sent


@virtual
async def test_a_node_that_stops_hands_its_rooms_over(hub: MemoryHub) -> None:
    async with three() as chats:
        room = "general"
        owner = owner_of(chats, room)
        others = [each for each in chats if each is not owner]
        before = [await others[0].send_message(room, "ann", f"{number}") for number in range(3)]
        stopping = asyncio.create_task(owner.stop())
        await asyncio.sleep(0.2)
        after = await others[1].send_message(room, "ann", "after")
        await stopping
        assert (after.epoch, after.offset) == (before[0].epoch, 4)
        assert await others[0].history(room) == [*before, after]


@virtual
async def test_a_room_whose_owner_is_cut_off_goes_on_elsewhere_and_comes_back_in_that_stream(hub: MemoryHub) -> None:
    async with three() as chats:
        room = "general"
        owner = owner_of(chats, room)
        other = next(each for each in chats if each is not owner)
        first = await other.send_message(room, "ann", "before")
        link = hub._nodes[boot_of(owner)]
        link.cut_off()
        with pytest.raises(RoomUnavailable):
            await asyncio.sleep(2)
            await owner.send_message(room, "ann", "where nobody hears it")
        second = await other.send_message(room, "ann", "meanwhile")
        assert second.epoch != first.epoch
        link.come_back()
        await asyncio.sleep(5)
        assert owner_of(chats, room) is owner
        third = await owner.send_message(room, "ann", "again")
        assert (third.epoch, third.offset) == (second.epoch, 2)
        assert await owner.history(room) == [second, third]


@virtual
async def test_while_the_broker_is_away_sends_are_refused_and_all_goes_on_when_it_is_back(hub: MemoryHub) -> None:
    async with three() as chats:
        room = "general"
        async with chats[0].subscribe(room) as reader:
            await chats[1].send_message(room, "ann", "before")
            await anext(reader)
            hub.stop()
            await asyncio.sleep(3)
            for chat in chats:
                with pytest.raises(RoomUnavailable):
                    await chat.send_message(room, "ann", "while it is away")
            hub.start()
            await asyncio.sleep(5)
        async with chats[0].subscribe(room) as reader:
            sent = [await each.send_message(room, "ann", "after") for each in chats]
            assert [await anext(reader) for _ in sent] == sent


def boot_of(chat: Chat) -> str:
    assert chat._node is not None
    return chat._node.boot


@virtual
async def test_a_node_that_froze_gives_up_what_the_others_have_by_now(hub: MemoryHub) -> None:
    async with three() as chats:
        room = "general"
        owner = owner_of(chats, room)
        others = [each for each in chats if each is not owner]
        await others[0].send_message(room, "ann", "before")
        with hub._nodes[boot_of(owner)].paused():
            await asyncio.sleep(4)
            taken = await others[0].send_message(room, "ann", "meanwhile")
        await asyncio.sleep(5)
        sent = [await each.send_message(room, "ann", "after") for each in chats]
        assert {each.epoch for each in sent} == {taken.epoch}
        pages = [await each.history(room) for each in chats]
        assert all(page == [taken, *sent] for page in pages)


@virtual
async def test_two_nodes_of_one_name_are_refused_and_so_is_a_broker_that_is_away(hub: MemoryHub) -> None:
    async with clustered("a"):
        with pytest.raises(ConfigError, match="node_name"):
            await clustered("a").start()
    hub.stop()
    with pytest.raises(AdapterError, match="broker"):
        await clustered("b").start()


@virtual
async def test_nothing_is_left_of_a_node_that_has_stopped(hub: MemoryHub) -> None:
    before = asyncio.all_tasks()
    async with three() as chats, chats[0].subscribe("general"):
        await chats[1].send_message("general", "ann", "hi")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert not hub._nodes


@virtual
async def test_members_on_many_nodes_converge(hub: MemoryHub) -> None:
    async with three() as chats, AsyncExitStack() as stack:
        for number, chat in zip(range(30), itertools.cycle(chats)):
            connection = await stack.enter_async_context(chat.connect(f"user-{number}"))
            await connection.join("general")
        await asyncio.sleep(1)
        for chat in chats:
            assert len(await chat.presence("general")) == 30
        found = await chats[0].history("general")
        assert found == []
        assert isinstance(await chats[0].send_message("general", "ann", "hi"), Message)


@virtual
async def test_plain_memberships_move_with_their_room(hub: MemoryHub) -> None:
    async with three() as chats:
        room = "general"
        owner = owner_of(chats, room)
        others = [each for each in chats if each is not owner]
        for user in ("ann", "bob"):
            await others[0].join(room, user)
        await owner.stop()
        await asyncio.sleep(1)
        for chat in others:
            assert {*await chat.presence(room)} == {"ann", "bob"}
        await others[0].leave(room, "ann")
        assert {*await others[1].presence(room)} == {"bob"}


@virtual
async def test_a_start_whose_broker_goes_meanwhile_fails_and_leaves_nothing(hub: MemoryHub) -> None:
    before = asyncio.all_tasks()
    chat = clustered("a")
    starting = asyncio.create_task(chat.start())
    await asyncio.sleep(0.1)
    hub.stop()
    with pytest.raises(AdapterError, match="has not heard itself"):
        async with asyncio.timeout(60):
            await starting
    assert asyncio.all_tasks() == before
    hub.start()
    async with chat:
        await chat.send_message("general", "ann", "hi")


@virtual
async def test_a_node_that_was_away_hears_who_was_revoked_meanwhile(hub: MemoryHub) -> None:
    async with three() as chats, chats[0].connect("ann") as connection:
        await connection.join("general")
        link = hub._nodes[boot_of(chats[0])]
        link.cut_off()
        await asyncio.sleep(10)
        await chats[1].revoke("ann")
        await asyncio.sleep(1)
        link.come_back()
        await asyncio.sleep(5)
        with pytest.raises(Revoked):
            await connection.join("general")


@virtual
async def test_an_owner_that_may_have_been_away_places_nothing_before_it_knows(hub: MemoryHub) -> None:
    async with three() as chats:
        owner = owner_of(chats, "general")
        await owner.send_message("general", "ann", "before")
        await asyncio.sleep(0.1)
        assert isinstance(owner.engine.send_at_once("general", "ann", "here", None), Message)
        assert owner._node is not None
        # As after a stop of the process, before its next tick.
        owner._node._membership._own_at -= 5
        assert isinstance(owner.engine.send_at_once("general", "ann", "perhaps not here", None), Draft)


@virtual
async def test_a_node_that_nobody_answers_for_is_gone_at_once_but_not_right_behind_a_broker_that_was_away(
    hub: MemoryHub,
) -> None:
    async with three() as chats:
        owner = owner_of(chats, "general")
        other, another = (each for each in chats if each is not owner)
        hub.stop()
        await asyncio.sleep(0.2)
        hub.start()
        link = hub._nodes[boot_of(owner)]
        link.cut_off()
        sending = asyncio.create_task(other.send_message("general", "ann", "hi"))
        await asyncio.sleep(0.6)
        assert other._node is not None
        assert other._node.owner("general") == boot_of(owner)
        link.come_back()
        await sending
        await asyncio.sleep(3)
        link.cut_off()
        sending = asyncio.create_task(another.send_message("general", "ann", "hi"))
        await asyncio.sleep(0.6)
        assert another._node is not None
        assert another._node.owner("general") != boot_of(owner)
        await sending


@virtual
async def test_a_stranger_who_says_what_nobody_reads_fills_no_log(
    hub: MemoryHub, caplog: pytest.LogCaptureFixture
) -> None:
    async with three() as chats:
        stranger = MemoryBackplane(hub, "f" * 16)
        await stranger.connect()
        caplog.clear()
        for _ in range(100):
            stranger.publish("hb", b"\x7f")
            stranger.publish("hb", b"\x01")
            await stranger.request(boot_of(chats[0]), b"\x01", 1)
        said = [each.getMessage() for each in caplog.records]
        assert 10 <= len(said) <= 3 * 2 * 10
        assert chats[0].statistics().records_refused == 300


@virtual
async def test_sends_that_wait_for_their_middlewares_keep_nothing_else_out(hub: MemoryHub) -> None:
    go_on = asyncio.Event()

    async def slow(draft: Draft) -> Draft:
        await go_on.wait()
        return draft

    async with three(middlewares=(slow,)) as chats:
        owner = owner_of(chats, "general")
        other = next(each for each in chats if each is not owner)
        async with owner.connect("ann") as connection:
            await connection.join("general")
            sending = [
                asyncio.create_task(other.send_message("general", f"user-{number}", "hi")) for number in range(600)
            ]
            await asyncio.sleep(0.5)
            async with other.subscribe("general", presence=True) as reader:  # an attach, and a membership's end
                assert "ann" in (await anext(reader)).presences  # type: ignore[union-attr]
                await other.revoke("ann")
                await asyncio.sleep(0.5)
                with pytest.raises(Revoked):
                    await connection.join("general")
            go_on.set()
            assert len({each.id for each in await asyncio.gather(*sending)}) == 600


@virtual
async def test_nobody_waits_for_the_answer_of_a_node_that_is_gone(hub: MemoryHub) -> None:
    async with three() as chats:
        room = "general"
        owner = owner_of(chats, room)
        other = next(each for each in chats if each is not owner)
        await other.send_message(room, "ann", "before")
        loop = asyncio.get_running_loop()
        with hub.partition(boot_of(owner)):
            began = loop.time()
            first, second = (asyncio.ensure_future(other.send_message(room, "ann", each)) for each in "12")
            with pytest.raises(RoomUnavailable, match="not known whether"):
                await first
            assert (await second).content == "2"  # of the next owner
            assert loop.time() - began < 3.5
