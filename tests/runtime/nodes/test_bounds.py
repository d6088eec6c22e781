"""What nodes keep of each other has bounds, in count and in bytes, and what happens there is told."""

from __future__ import annotations

import asyncio

import pytest

from chatx import Gap
from chatx.cluster.entries import EntryRow, Placed
from chatx.cluster.fields import Place
from chatx.cluster.rpc import HandedOff, HandOff, Told
from chatx.runtime.nodes.fitting import size_of_all
from chatx.runtime.nodes.left_rooms import LeftRooms
from chatx.runtime.nodes.replica import Replica
from tests.runtime.nodes.fabric import Node, nodes, room_of
from tests.runtime.nodes.test_rooms_of_nodes import taken
from tests.virtual import virtual


def entries(count: int) -> list[Placed]:
    row = EntryRow("0190a3f0-0000-7000-8000-000000000000", "ann", "x" * 1000, 1, "message", None, None, False)
    return [Placed(Place("e", offset), row) for offset in range(1, count + 1)]


def test_beyond_its_bytes_what_was_left_first_keeps_its_newest_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    of_one = entries(10)
    monkeypatch.setattr("chatx.runtime.nodes.left_rooms.LEFT_BYTES", size_of_all(of_one) * 5 // 2)
    left = LeftRooms()
    for room in ("first", "second", "third", "third"):
        left.keep(room, Place("e", 10), of_one, 0.0)
    kept = {room: left.take(room, "take") for room in ("first", "second", "third")}
    assert [len(each.entries) for each in kept.values() if each is not None] == [1, 10, 10]
    assert all(each is not None and each.head == Place("e", 10) for each in kept.values())
    assert kept["first"] is not None
    assert kept["first"].entries[0].place.offset == 10
    for room in kept:
        assert left.take_back(room) is None
    for room in ("fourth", "fifth"):
        left.keep(room, Place("e", 10), of_one, 0.0)
    found = left.take_back("fourth")
    assert found is not None
    assert len(found.entries) == 10


@virtual
async def test_a_room_that_is_taken_over_beyond_the_bytes_goes_on_in_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatx.runtime.nodes.handing_over.INHERITED_BYTES", 4_000)
    async with nodes("a", "b") as (fabric, (a, b)):
        large, small = (room_of("c", "a", "b", number=number) for number in range(2))
        sent = [await a.chat.send_message(large, "ann", f"{number}") for number in range(30)]
        few = [await a.chat.send_message(small, "ann", f"{number}") for number in range(3)]
        c = Node(fabric, "c")
        fabric.see("a", "b", "c")
        after = [await c.chat.send_message(room, "ann", "after") for room in (large, small)]
        assert [(each.epoch, each.offset) for each in after] == [(sent[0].epoch, 31), (few[0].epoch, 4)]
        assert await b.chat.history(large) == [sent[-1], after[0]]
        assert await b.chat.history(small) == [*few, after[1]]
        async with b.chat.subscribe(large, after=sent[0]) as reader:
            gap = await anext(reader)
            assert isinstance(gap, Gap)
            assert gap.reason == "too_old"


@virtual
async def test_of_the_rooms_that_were_given_up_the_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.runtime.nodes.handing_over.GIVEN_UP_ROOMS", 2)
    async with nodes("a", "b") as (_, (a, b)):
        rooms = [room_of("a", "b", number=number) for number in range(3)]
        for room in rooms:
            await a.chat.send_message(room, "ann", "hi")
            assert isinstance(await b.ask(a.boot, HandOff(room, b.boot, f"take-{room}")), HandedOff)
        assert [a.abroad.owns(room) for room in rooms] == [True, False, False]


@virtual
async def test_words_beyond_the_bytes_that_may_wait_are_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.runtime.nodes.replica.WAITING_BYTES", 5_000)
    waited = []
    let_wait = Replica._let_wait

    def counted(self: Replica, told: Told) -> None:
        let_wait(self, told)
        waited.append(self._waiting_bytes)

    monkeypatch.setattr(Replica, "_let_wait", counted)
    async with nodes("a", "b") as (fabric, (a, b)):
        room = room_of("a", "b")
        async with b.chat.subscribe(room) as reader:
            fabric.lossy = 1.0
            sent = [await a.chat.send_message(room, "ann", "lost")]
            await asyncio.sleep(0)
            fabric.lossy = 0.0
            fabric.cut.add((b.boot, a.boot))  # so that it cannot ask
            for _ in range(20):
                sent.append(await a.chat.send_message(room, "ann", "x" * 1000))
                await asyncio.sleep(0.01)
            fabric.cut.clear()
            assert await taken(reader, 21) == sent
        assert len(waited) == 20
        assert 0 < max(waited) <= 5_000
