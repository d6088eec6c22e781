"""Nodes of a `horde` under faults drawn from seeds: those of `Play`, and a log that fails, nodes that fight for a room.

Whatever happens, a crash too: nothing that was acknowledged is lost or doubled, the room has one epoch without a hole,
and what each reader sees is the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import Message, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append, Opened
from chatx.core.idempotency import IdempotencyWindow
from chatx.runtime.log_storage import LogStorage
from chatx.testing.faulty_log import Chance, Fault, FaultyLog, Script
from chatx.testing.seeded import run_seeded
from tests.runtime.nodes.fabric import Fabric, nodes, room_of
from tests.runtime.nodes.play import Play
from tests.seeds import chunks
from tests.virtual import virtual

SEEDS = 500


class Horde(Play):
    """One schedule of a horde."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, crashes=True)
        self.kinds = ["lose", "cut", "come", "crash", "log", "log", "duel"]
        self.loses = False
        self.log = MemoryLog()
        self.between = FaultyLog(self.log)
        self.options["log"] = self.between

    async def fault(self, what: str, fabric: Fabric) -> None:
        if what == "log":
            faults: tuple[Fault, ...] = ("unavailable", "lost", "lost answer", "slow", "hang", "fenced")
            self.between.choose = Chance(self.random, 50, faults)
            await asyncio.sleep(self.random.random() * 2)
            self.between.choose = Script()
            await self.between.release()
        elif what == "duel":
            # Two that both believe the room to be theirs.
            for node in list(fabric.nodes.values()):
                node.see(node.boot)
            await asyncio.sleep(self.random.random())
            fabric.see(*sorted(fabric.nodes))
        else:
            await super().fault(what, fabric)

    def check_messages(self) -> None:
        super().check_messages()
        log = [record.entry for record in self.log.records(self.room)]
        assert [each.offset for each in log] == list(range(1, 38)), "the log has holes"
        assert len({each.epoch for each in log}) == 1, "another epoch"
        for reader in self.readers:
            assert [each.id for each in reader.seen] == [each.id for each in log], "not what the log has"


@pytest.mark.usefixtures("schedules")
@pytest.mark.parametrize("chunk", chunks(SEEDS, 50), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
def test_a_horde_loses_nothing_whatever_happens(chunk: range) -> None:
    for seed in chunk:
        run_seeded(seed, Horde(seed)())


def no_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    """Append whatever comes, behind whatever is there."""
    append = MemoryLog._appended

    def appended(self: MemoryLog, each: Append) -> Answer:
        room = self._rooms[each.room_id]
        if room.head is None or room.head.epoch != each.after.epoch:
            return append(self, replace(each, term=room.term))
        behind = room.head.offset - each.after.offset
        records = tuple(
            replace(record, entry=replace(record.entry, offset=record.entry.offset + behind)) for record in each.records
        )
        return append(self, replace(each, term=room.term, after=room.head, records=records))

    patch.setattr(MemoryLog, "_appended", appended)


def no_keys(patch: pytest.MonkeyPatch) -> None:
    """Keep no keys in the log, and hand none over."""
    opened = MemoryLog._opened

    def without(self: MemoryLog, room: Any) -> Opened:
        return replace(opened(self, room), keyed=())

    patch.setattr(MemoryLog, "_opened", without)
    patch.setattr(IdempotencyWindow, "keys_of", lambda self, room_id: {})


def blind_owner(patch: pytest.MonkeyPatch) -> None:
    """Never look whether somebody else has written in a room that one has."""

    async def is_ahead(self: LogStorage, *_: object) -> bool:
        return False

    patch.setattr(LogStorage, "is_ahead", is_ahead)


@pytest.mark.slow
@pytest.mark.usefixtures("schedules")
@pytest.mark.parametrize("sabotage", [no_compare_and_set, no_keys, blind_owner])
def test_the_checker_finds_each_sabotage(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):  # whichever seed it is that finds it
        for seed in range(1000):
            run_seeded(seed, Horde(seed)())


@virtual
async def test_a_log_that_is_back_is_tried_at_once_where_something_says_so() -> None:
    log, room = FaultyLog(MemoryLog()), room_of("a")
    async with nodes("a", log=log) as (_, (node,)):
        await node.chat.send_message(room, "ann", "before")
        log.choose = lambda method: "lost answer" if method == "append" else "unavailable"
        with pytest.raises(RoomUnavailable):
            await node.chat.send_message(room, "ann", "while it goes")
        await asyncio.sleep(60)  # by now it is tried every few seconds
        log.choose = Script()
        committing = node.engine.delivery.committing
        assert committing is not None
        assert committing.away
        async with node.chat.subscribe(room) as events:
            committing.try_at_once()
            async with asyncio.timeout(0.1):
                event = await anext(events)
            assert isinstance(event, Message)
            assert event.content == "while it goes"
        assert not committing.away
