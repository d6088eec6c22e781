"""Nodes under faults drawn from seeds: words lost, ways cut, nodes gone and come; and a checker of what everybody saw.

Without a crash: nothing that was acknowledged is lost or doubled, a room has one entry at each place of an epoch, all
readers see the same order, and presence is the same everywhere in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import ChatError, Gap, Message
from chatx.adapters.memory_log import MemoryLog
from chatx.cluster.rpc import Attach, Attached, Differ, HandedOff, HandOff, Told
from chatx.core.idempotency import IdempotencyWindow
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.handing_over import HandingOver
from chatx.runtime.nodes.owned import FollowedRoom, Owned
from chatx.runtime.nodes.replica import Replica
from chatx.runtime.process import RoomProcess
from chatx.testing.seeded import run_seeded
from tests.runtime.nodes.fabric import UNLIMITED, Fabric, Node, nodes, room_of

SEEDS = 500
LOG_SEEDS = 200


class Reader:
    """Somebody who reads a room on whatever node, and comes back from where they stand."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.gaps: list[Gap] = []
        self.place: Message | Gap | None = None

    async def read(self, at: Callable[[], Node], room: str) -> None:
        while True:
            with contextlib.suppress(ChatError):
                async with at().chat.subscribe(room, after=self.place) as events:
                    async for event in events:
                        if isinstance(event, Message):
                            self.seen.append(event)
                            self.place = event
                        elif isinstance(event, Gap):
                            self.gaps.append(event)
                            self.place = event
            await asyncio.sleep(0.05)


class Play:
    """One schedule."""

    def __init__(self, seed: int, *, crashes: bool, durability: str | None = None) -> None:
        """`durability` is that of a log which all nodes share; None is no log."""
        self.random = random.Random(seed)
        self.seed = seed
        self.crashes = crashes
        # What is stored outlives a crash, and so does the stream.
        self.loses = crashes and durability != "stored"
        self.options: dict[str, Any] = {"rate_limit": UNLIMITED}
        if durability is not None:
            self.options |= {"persistence": MemoryLog(), "durability": durability}
        self.settled = False
        self.acked: list[Message] = []
        self.readers = [Reader() for _ in range(4)]
        self.room = room_of("a", "b", "c", number=seed % 3)

    def somebody(self, fabric: Fabric) -> Node:
        return self.random.choice(list(fabric.nodes.values()))

    async def __call__(self) -> None:
        async with nodes("a", "b", "c", seed=self.seed, **self.options) as (fabric, _):
            reading = [
                asyncio.create_task(each.read(lambda: self.somebody(fabric), self.room)) for each in self.readers
            ]
            members = [asyncio.create_task(self.be_there(fabric, f"user-{number}")) for number in range(3)]
            await asyncio.sleep(0.5)
            # From here on each reader stands at a place.
            self.acked.append(await self.somebody(fabric).chat.send_message(self.room, "first", "first"))
            await asyncio.sleep(0.5)
            sending = [asyncio.create_task(self.send(fabric, f"user-{number}")) for number in range(3)]
            await self.faults(fabric)
            await asyncio.gather(*sending)
            self.settled = True  # from here on whoever is there stays
            await asyncio.sleep(8)
            self.check_messages()
            await self.check_presence(fabric)
            for task in (*reading, *members):
                task.cancel()
            await asyncio.gather(*reading, *members, return_exceptions=True)

    async def send(self, fabric: Fabric, user: str) -> None:
        for number in range(12):
            key = f"{user} {number}"
            for _ in range(40):
                with contextlib.suppress(ChatError):
                    sent = await self.somebody(fabric).chat.send_message(self.room, user, key, idempotency_key=key)
                    self.acked.append(sent)
                    break
                await asyncio.sleep(0.2)
            await asyncio.sleep(self.random.random() / 5)

    async def be_there(self, fabric: Fabric, user: str) -> None:
        while True:
            with contextlib.suppress(ChatError, TimeoutError):
                async with (
                    asyncio.timeout(None if self.settled else self.random.random() * 2),
                    self.somebody(fabric).chat.connect(user) as connection,
                ):
                    await connection.join(self.room)
                    await connection.subscribe(self.room)
                    async for event in connection:
                        if not isinstance(event, Message):
                            break
            await asyncio.sleep(0.05)

    async def faults(self, fabric: Fabric) -> None:
        for _ in range(self.random.randrange(1, 5)):
            await asyncio.sleep(self.random.random() / 2)
            what = self.random.choice(["lose", "cut", "come", "crash" if self.crashes else "lose"])
            if what == "lose":
                fabric.lossy = self.random.choice([0.1, 0.5, 1.0])
                await asyncio.sleep(self.random.random())
                fabric.lossy = 0.0
            elif what == "cut":
                one, other = self.random.sample(sorted(fabric.nodes), 2)
                fabric.cut.add((one, other))
                if self.random.random() < 0.5:
                    fabric.cut.add((other, one))
                await asyncio.sleep(self.random.random())
                fabric.cut.clear()
            elif what == "come" and len(fabric.nodes) < 5:
                come = Node(fabric, f"n{self.random.randrange(10**6)}", **self.options)
                come.see(*sorted(fabric.nodes))  # it serves nobody before
                await self.see_each_other(fabric)
            elif what == "crash" and len(fabric.nodes) > 2:
                gone = self.random.choice(sorted(fabric.nodes))
                await fabric.nodes[gone].crash()
                await self.see_each_other(fabric)

    async def see_each_other(self, fabric: Fabric) -> None:
        """Let each node learn of the others at a moment of its own."""
        for boot in self.random.sample(sorted(fabric.nodes), len(fabric.nodes)):
            if boot in fabric.nodes:
                fabric.nodes[boot].see(*sorted(fabric.nodes))
            await asyncio.sleep(self.random.random() / 20)
        fabric.see(*sorted(fabric.nodes))

    def check_messages(self) -> None:
        places: dict[tuple[str, int], str] = {}
        for reader in self.readers:
            last: Message | None = None
            assert len({each.id for each in reader.seen}) == len(reader.seen), "something came twice"
            for each in reader.seen:
                assert places.setdefault((each.epoch, each.offset), each.id) == each.id, "two at one place"
                if last is not None and last.epoch == each.epoch:
                    assert each.offset == last.offset + 1, "a hole without a gap"
                last = each
        if self.loses:
            return
        wanted = {each.id for each in self.acked}
        assert len(self.acked) == 37, "a send that never came through"
        for reader in self.readers:
            assert not reader.gaps
            assert wanted <= {each.id for each in reader.seen}, "acknowledged and not seen"
        assert {each.content for each in self.acked} == {each.content for each in self.readers[0].seen}
        assert len(self.readers[0].seen) == 37, "doubled"

    async def check_presence(self, fabric: Fabric) -> None:
        wanted = {f"user-{number}" for number in range(3)}
        pictures = [await each.chat.presence(self.room) for each in fabric.nodes.values()]
        for picture in pictures:
            assert set(picture) == wanted
            assert all(len(metas) == 1 for metas in picture.values())
        as_sets = [{meta.ref for metas in each.values() for meta in metas} for each in pictures]
        assert all(each == as_sets[0] for each in as_sets)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
@pytest.mark.parametrize("crashes", [False, True])
def test_nothing_is_lost_between_nodes(first: int, *, crashes: bool) -> None:
    for seed in range(first, first + 50):
        run_seeded(seed, Play(seed, crashes=crashes)())


@pytest.mark.parametrize("first", range(0, LOG_SEEDS, 50))
@pytest.mark.parametrize("durability, crashes", [("stored", True), ("stored", False), ("sequenced", False)])
def test_over_a_log_that_the_nodes_share_each_room_goes_on_in_its_stream(
    first: int, durability: str, *, crashes: bool
) -> None:
    for seed in range(first, first + 50):
        run_seeded(seed, Play(seed, crashes=crashes, durability=durability)())


def deaf_to_holes(patch: pytest.MonkeyPatch) -> None:
    """Take each word as the next one, and each entry as the one behind the head."""
    take = Replica._take

    def taken(self: Replica, told: Told) -> None:
        self.number = told.number - 1
        take(self, told)

    patch.setattr(Replica, "_take", taken)


def no_last_word(patch: pytest.MonkeyPatch) -> None:
    """Never ask whether the newest word has come."""
    patch.setattr(Owned, "follow", lambda self, ask, now: Differ(()))


def no_keys(patch: pytest.MonkeyPatch) -> None:
    """Hand a room off without the keys of what was said."""
    patch.setattr(IdempotencyWindow, "keys_of", lambda self, room_ids: {})


def nothing_handed_off(patch: pytest.MonkeyPatch) -> None:
    """Begin each room anew that has moved."""

    async def nothing(self: HandingOver, ask: HandOff, process: RoomProcess | None) -> HandedOff:
        return HandedOff(None, ())

    patch.setattr(HandingOver, "hand_off", nothing)


def not_settled(patch: pytest.MonkeyPatch) -> None:
    """Hand a room off before its log has what was said there."""

    async def nothing(self: Engine, process: RoomProcess) -> None:
        pass

    patch.setattr(Engine, "settle", nothing)


def no_members_again(patch: pytest.MonkeyPatch) -> None:
    """Tell the owner of memberships once, and not when a replica attaches."""
    attach = FollowedRoom.attach

    def attached(self: FollowedRoom, ask: Attach, now: float) -> Attached:
        before = {boot: dict(members) for boot, members in self._members.items()}
        return attach(self, replace(ask, members=(), more=bool(before)), now)

    patch.setattr(FollowedRoom, "attach", attached)


@pytest.mark.parametrize(
    "sabotage", [deaf_to_holes, no_last_word, no_keys, nothing_handed_off, not_settled, no_members_again]
)
def test_the_checker_finds_each_sabotage(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):  # whichever seed it is that finds it
        for seed in range(2000):
            durability = "sequenced" if sabotage is not_settled else None
            run_seeded(seed, Play(seed, crashes=False, durability=durability)())
