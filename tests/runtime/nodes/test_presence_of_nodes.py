"""Presence over nodes, whatever happens to them: when all is well again, all nodes agree, and say what is true."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from chatx.runtime.connection import Connection
from tests.runtime.nodes.fabric import Fabric, Node, nodes, room_of
from tests.virtual import virtual

BOOTS = ("a", "b", "c")
ROOM = "general"

SETTLED_S = 10.0
"""What a dead node's members may stay, in seconds."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("join"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("leave"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("cut"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("heal"), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 2), st.just(0)),
    ),
    min_size=8,
    max_size=25,
)


class Play:
    """Connections on nodes, and what befalls them."""

    def __init__(self, fabric: Fabric, found: Sequence[Node]) -> None:
        self.fabric = fabric
        self.nodes = list(found)
        self.there: list[tuple[Node, str, Connection]] = []
        self.born = 0

    async def step(self, what: str, which: int, user: int) -> None:
        node = self.nodes[which % len(self.nodes)]
        match what:
            case "join":
                connection = await node.chat.connect(f"user-{user}").__aenter__()
                self.there.append((node, f"user-{user}", connection))
                await self.join(connection)
            case "leave" if self.there:
                _, _, connection = self.there.pop(which % len(self.there))
                await connection.__aexit__(None, None, None)
            case "crash":
                await node.crash()
                self.there = [each for each in self.there if each[0] is not node]
                self.born += 1
                self.nodes[which] = Node(self.fabric, f"{BOOTS[which]}{self.born}")
                self.see_whom_they_reach()
            case "cut":
                others = [each for each in self.nodes if each is not node]
                self.fabric.cut |= {
                    pair for each in others for pair in ((each.boot, node.boot), (node.boot, each.boot))
                }
                self.see_whom_they_reach()
            case "lose":
                self.fabric.lossy = which / 4
            case "heal":
                await self.heal()
            case _:
                await asyncio.sleep(which)

    async def join(self, connection: Connection) -> None:
        """Join, though the room may be out of reach; who has fallen out of it joins again in the end."""
        try:
            async with asyncio.timeout(20):
                await connection.join(ROOM)
        except Exception:  # a room that moves is refused in many ways
            return

    def see_whom_they_reach(self) -> None:
        for node in self.nodes:
            reached = [each.boot for each in self.nodes if (node.boot, each.boot) not in self.fabric.cut]
            node.see(*reached)

    async def heal(self) -> None:
        self.fabric.cut.clear()
        self.fabric.lossy = 0.0
        self.see_whom_they_reach()
        await asyncio.sleep(SETTLED_S)

    async def told(self) -> list[dict[str, int]]:
        """Return what each node says: how many metas each user has."""
        return [{user: len(metas) for user, metas in (await each.chat.presence(ROOM)).items()} for each in self.nodes]


@given(STEPS)
@virtual
async def test_after_joins_leaves_crashes_and_partitions_all_nodes_agree_with_the_truth(
    steps: list[tuple[str, int, int]],
) -> None:
    async with nodes(*BOOTS) as (fabric, found):
        play = Play(fabric, found)
        for step in steps:
            await play.step(*step)
        await play.heal()
        first, *others = await play.told()
        assert others == [first, first]
        for _, _, connection in play.there:
            await connection.join(ROOM)
        await asyncio.sleep(SETTLED_S)
        truth = dict(Counter(user for _, user, _ in play.there))
        assert await play.told() == [truth, truth, truth]


@virtual
async def test_a_membership_that_begins_just_when_nothing_was_left_to_tell_is_told() -> None:
    async with nodes("a", "b") as (_, (a, b)):
        room = room_of("a", "b")
        async with b.chat.connect("ann") as one, b.chat.connect("ann") as other, b.chat.connect("ann") as third:
            await one.join(room)
            await asyncio.sleep(1)
            await other.join(room)
            await other.leave(room)  # before anything was told of it
            for _ in range(4):
                await asyncio.sleep(0)
                await third.join(room)
                await asyncio.sleep(1)
                assert len((await a.chat.presence(room))["ann"]) == 2
                await third.leave(room)
                await asyncio.sleep(1)
                await other.join(room)
                await other.leave(room)


@virtual
async def test_ten_thousand_members_on_three_nodes_are_the_same_on_each() -> None:
    async with nodes(*BOOTS, max_connections_per_user=0) as (_, found):
        # One node after the other, so that the later ones have to be told of thousands at once.
        for number in range(10_000):
            connection = found[number * 3 // 10_000].chat.connect(f"user-{number}")
            _ = await connection.__aenter__()
            await connection.join(ROOM)
        await asyncio.sleep(2)
        for node in found:
            assert len(await node.chat.presence(ROOM)) == 10_000
