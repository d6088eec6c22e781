"""A store behind the nodes' log: it gets all that the log has, in order and once, whoever has the room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import Message
from chatx.adapters.boundary import Boundary
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import RoomLog
from chatx.core.message import Position
from chatx.runtime.nodes import handing_on
from chatx.runtime.nodes.log_over_store import LogOverStore
from chatx.telemetry import Telemetry
from chatx.testing.faulty_log import Chance, FaultyLog, Script
from chatx.testing.seeded import run_seeded
from tests.runtime.nodes.fabric import Fabric, Node, nodes, room_of
from tests.runtime.nodes.test_horde_schedules import Horde
from tests.seeds import chunks
from tests.virtual import virtual

SEEDS = 100


class Saver:
    """A persistence adapter that saves and loads, and nothing else."""

    def __init__(self) -> None:
        self.saved: dict[tuple[str, str, int], Message] = {}
        self.calls = 0
        self.away = False
        self.hangs = False

    async def save_messages(self, messages: Sequence[Message]) -> None:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise OSError("away")
        for each in messages:
            known = self.saved.setdefault((each.room_id, each.epoch, each.offset), each)
            assert known.id == each.id

    async def load_messages(
        self, room_id: str, *, after: Any = None, before: Any = None, limit: int
    ) -> Sequence[Message]:
        of_room = [each for (room, _, _), each in sorted(self.saved.items()) if room == room_id]
        if after is not None:
            return [each for each in of_room if each.epoch == after[0] and each.offset > after[1]][:limit]
        if before is not None:
            of_room = [each for each in of_room if each.epoch == before[0] and each.offset < before[1]]
        return of_room[-limit:]

    async def last_position(self, room_id: str) -> None:
        raise AssertionError("nobody asks this of a store behind a log")

    def of(self, room_id: str) -> list[Message]:
        return [each for (room, _, _), each in sorted(self.saved.items()) if room == room_id]


def over(log: RoomLog, store: object) -> LogOverStore:
    """Return the log with a store behind it, as one node has it."""
    made = LogOverStore(log, store, Boundary(5000, Telemetry()))
    made.handing_on.start()
    return made


class HordeOverStore(Horde):
    """One schedule in which the store behind the log fails too."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.kinds = [*self.kinds, "store", "store"]
        self.store = MemoryLog()
        self.before_store = FaultyLog(self.store)
        self.made: list[LogOverStore] = []

    def node_options(self) -> dict[str, Any]:
        self.made.append(over(self.between, self.before_store))
        return {**self.options, "log": self.made[-1]}

    async def fault(self, what: str, fabric: Fabric) -> None:
        if what == "store":
            self.before_store.choose = Chance(self.random, 50, ("unavailable", "lost", "lost answer", "slow", "fenced"))
            await asyncio.sleep(self.random.random() * 2)
            self.before_store.choose = Script()
        else:
            await super().fault(what, fabric)

    def check_messages(self) -> None:
        super().check_messages()
        log = [record.entry.id for record in self.log.records(self.room)]
        assert [record.entry.id for record in self.store.records(self.room)] == log, "the store has something else"

    async def __call__(self) -> None:
        try:
            await super().__call__()
        finally:
            for each in self.made:
                await each.close(0)


@pytest.mark.usefixtures("schedules")
@pytest.mark.parametrize("chunk", chunks(SEEDS, 50), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
def test_the_store_gets_all_that_the_log_has(chunk: range) -> None:
    for seed in chunk:
        run_seeded(seed, HordeOverStore(seed)())


async def said(node: Node, room: str, first: int, last: int) -> None:
    for number in range(first, last):
        await node.chat.send_message(room, "alice", f"{number}")


def contents(messages: Sequence[Message]) -> list[str]:
    return [each.content for each in messages]


@virtual
async def test_what_an_owner_had_not_handed_on_when_it_crashed_the_next_one_does() -> None:
    log, store, room = MemoryLog(), Saver(), room_of("a", "b")
    made: list[LogOverStore] = []

    def options() -> dict[str, Any]:
        made.append(over(log, store))
        return {"log": made[-1]}

    async with nodes("a", "b", options=options) as (fabric, (one, other)):
        await said(one, room, 0, 3)
        await asyncio.sleep(1)
        store.away = True
        await said(one, room, 3, 6)
        await asyncio.sleep(1)
        assert contents(store.of(room)) == ["0", "1", "2"]
        await one.crash()
        await made[0].close(0)
        store.away = False
        fabric.see("b")
        await other.chat.history(room)  # it is enough that somebody reads
        async with other.chat.subscribe(room):
            await asyncio.sleep(1)
        assert contents(store.of(room)) == [f"{number}" for number in range(6)]


@virtual
async def test_a_store_that_is_away_holds_up_no_send_and_gets_all_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store, room = MemoryLog(), Saver(), room_of("a")
    store.away = True
    async with nodes("a", options=lambda: {"log": over(log, store)}) as (_, (node,)):
        await said(node, room, 0, 200)
        await asyncio.sleep(60)
        assert store.saved == {}
        assert node.chat.statistics().rooms_unsaved == 1
        assert store.calls < 30  # it is left alone in between
        store.away = False
        await asyncio.sleep(handing_on.LONGEST_S)
        assert contents(store.of(room)) == [f"{number}" for number in range(200)]
        assert node.chat.statistics().rooms_unsaved == 0
    told = [each.getMessage() for each in caplog.records if "handed on" in each.getMessage()]
    assert len(told) == 2
    assert "could not be handed on to the store Saver" in told[0]
    assert "is handed on to again" in told[1]


@virtual
async def test_the_log_lets_go_of_what_the_store_has_and_readers_get_it_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handing_on, "SPARED_MS", -1)
    log, store, room = MemoryLog(), Saver(), room_of("a", "b")
    shared = {"history_size": 10}
    async with nodes("a", "b", options=lambda: {"log": over(log, store), **shared}) as (_, (one, other)):
        await said(one, room, 0, 400)
        await asyncio.sleep(2 * handing_on.TRIM_S)
        assert [record.entry.offset for record in log.records(room)] == list(range(400 - handing_on.KEPT + 1, 401))
        await said(one, room, 400, 401)  # the log is trimmed once more
        await asyncio.sleep(1)
        store.hangs = True
        await said(one, room, 401, 800)
        await asyncio.sleep(2 * handing_on.TRIM_S)
        assert len(log.records(room)) >= 399 + handing_on.KEPT  # nothing that the store lacks goes
        store.hangs = False
        first = store.of(room)[0]
        for node in (one, other):
            assert contents(await node.chat.history(room, limit=450)) == [f"{number}" for number in range(350, 800)]
            assert contents(await node.chat.history(room, after=first, limit=20)) == [f"{n}" for n in range(1, 21)]
            async with node.chat.subscribe(room, after=first) as events:
                missed = [await anext(events) for _ in range(799)]
                assert [each.content for each in missed if isinstance(each, Message)] == [f"{n}" for n in range(1, 800)]


@virtual
async def test_a_store_that_has_lost_what_the_log_let_go_of_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    log, room = MemoryLog(), room_of("a")
    async with nodes("a", options=lambda: {"log": over(log, MemoryLog())}) as (_, (node,)):
        await said(node, room, 0, 5)
        await asyncio.sleep(1)
    log.forget(room, Position(log.records(room)[0].entry.epoch, 4))
    empty = MemoryLog()
    async with nodes("a", options=lambda: {"log": over(log, empty)}) as (_, (node,)):
        await said(node, room, 5, 6)
        await asyncio.sleep(1)
    assert empty.records(room) == []
    assert [each for each in caplog.records if getattr(each, "code", "") == "behind"]
