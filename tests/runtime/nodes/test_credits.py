"""How many sends go to another node at a time, and what waits: nobody is kept out, and what is too much is refused."""

from __future__ import annotations

import asyncio

import pytest

from chatx.core.message import Draft
from chatx.errors import RoomOverloaded
from chatx.runtime.nodes.at_once import AT_ONCE
from chatx.runtime.nodes.credits import Credits
from chatx.runtime.nodes.peers import AGAIN_S, HELD_S
from tests.virtual import virtual


class Edge:
    """Sends of one node to others, whose answers a test gives.

    Attributes:
        under_way: What is under way, in the order in which it went.
        owners: By room, the node that has it; `owner` where none is given.
    """

    def __init__(self, others: int = 1) -> None:
        self.owners: dict[str, str] = {}
        self.credits = Credits(lambda room_id: self.owners.get(room_id, "owner"), lambda: others)
        self.under_way: dict[str, asyncio.Event] = {}
        self.went: list[str] = []
        self.refused: list[RoomOverloaded] = []
        self.tasks: list[asyncio.Task[None]] = []

    def send(self, room_id: str, user_id: str, content: str) -> None:
        self.tasks.append(asyncio.ensure_future(self._send(Draft(room_id, user_id, content))))

    async def _send(self, draft: Draft) -> None:
        try:
            async with self.credits.one(draft):
                self.went.append(draft.content)
                answered = self.under_way[draft.content] = asyncio.Event()
                await answered.wait()
        except RoomOverloaded as error:
            self.refused.append(error)

    async def answer(self, *contents: str) -> None:
        for content in contents:
            self.under_way.pop(content).set()
        await settled()

    async def answer_all(self) -> None:
        while self.under_way:
            await self.answer(*self.under_way)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@virtual
async def test_a_node_has_its_share_of_what_another_takes_and_a_room_half_of_that() -> None:
    edge = Edge(others=4)
    share = AT_ONCE // 4
    for number in range(share):
        edge.send("slow", f"u{number}", f"slow {number}")
    await settled()
    assert len(edge.under_way) == share // 2
    for number in range(share):
        edge.send(f"room-{number}", "ann", f"other {number}")
    await settled()
    assert len(edge.under_way) == share
    # One that is answered lets go a room whose turn it is, not the one that has its half.
    await edge.answer("other 0")
    assert sum(each.startswith("slow") for each in edge.under_way) == share // 2
    await edge.answer_all()
    assert len(edge.went) == 2 * share
    assert edge.credits.waiting == edge.credits.waiting_bytes == 0


@virtual
async def test_one_user_has_one_under_way_in_a_room_and_their_order_stays() -> None:
    edge = Edge()
    for number in range(5):
        edge.send("a", "ann", f"{number}")
        edge.send("a", "bob", f"bob {number}")
    await settled()
    assert edge.went == ["0", "bob 0"]
    await edge.answer_all()
    assert [each for each in edge.went if each.isdigit()] == ["0", "1", "2", "3", "4"]


@virtual
async def test_rooms_take_turns() -> None:
    edge = Edge(others=AT_ONCE)  # a share of one
    for number in range(3):
        edge.send("a", f"u{number}", f"a{number}")
    for number in range(3):
        edge.send("b", f"u{number}", f"b{number}")
    await settled()
    await edge.answer_all()
    assert edge.went == ["a0", "a1", "b0", "a2", "b1", "b2"]


@virtual
async def test_what_has_waited_too_long_is_refused_and_was_not_sent() -> None:
    edge = Edge(others=AT_ONCE)
    edge.send("a", "ann", "0")
    edge.send("a", "bob", "1")
    edge.send("a", "ann", "2")
    await asyncio.sleep(HELD_S + 1)
    assert (edge.went, len(edge.refused)) == (["0"], 2)
    assert all("was not sent" in error.reason and (error.retry_after or 0) > 0 for error in edge.refused)
    await edge.answer_all()
    edge.send("a", "ann", "3")
    await settled()
    assert edge.went == ["0", "3"]


@virtual
@pytest.mark.parametrize("bound, count", [("WAITING", 3), ("WAITING_BYTES", 3 * 4)])
async def test_what_goes_beyond_a_bound_is_refused_at_once(
    bound: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"chatx.runtime.nodes.credits.{bound}", count)
    edge = Edge(others=AT_ONCE)
    for number in range(6):
        edge.send(f"r{number}", "ann", f"é {number}")
    await settled()
    assert (len(edge.went), len(edge.refused), edge.credits.waiting) == (1, 2, 3)
    await edge.answer_all()
    assert len(edge.went) == 4


@virtual
async def test_what_waits_for_a_node_that_goes_goes_to_the_next_owner() -> None:
    edge = Edge(others=AT_ONCE)
    for number in range(4):
        edge.send("a", f"u{number}", f"{number}")
    await settled()
    edge.owners["a"] = "next"
    edge.credits.gone("owner")
    await settled()
    assert edge.went == ["0", "1"]  # whatever becomes of the one that is under way
    await edge.answer_all()
    assert edge.went == ["0", "1", "2", "3"]
    assert edge.credits.waiting == 0


@virtual
async def test_whoever_is_called_off_takes_no_place_with_them() -> None:
    for called_off in ("waiting in a lane", "waiting for a turn", "as it goes", "under way"):
        edge = Edge(others=AT_ONCE)
        edge.send("a", "ann", "first")
        edge.send("a", "ann" if called_off == "waiting in a lane" else "bob", "second")
        edge.send("a", "cid", "third")
        first, second, _ = edge.tasks
        await settled()
        if called_off == "under way":
            first.cancel()
        elif called_off == "as it goes":
            edge.under_way.pop("first").set()
            await asyncio.sleep(0)
            second.cancel()
        else:
            second.cancel()
        await settled()
        await edge.answer_all()
        edge.send("a", "bob", "last")
        await settled()
        assert edge.went[-1] == "last"
        assert edge.credits.waiting == edge.credits.waiting_bytes == 0


@virtual
async def test_whoever_is_refused_is_told_to_come_back_when_those_ahead_are_through() -> None:
    edge = Edge(others=AT_ONCE // 8)  # a share of eight, four of one room
    assert edge.credits.retry_after(1) == AGAIN_S
    for number in range(400):
        edge.send(f"room-{number}", "ann", f"{number}")
        await settled()
        await asyncio.sleep(0.2)
        await edge.answer_all()
    assert edge.credits.retry_after(40) == pytest.approx(40 * 0.2 / 4, rel=0.05)
    assert edge.credits.retry_after(10_000) == HELD_S
