"""The log in JetStream beside the one in memory: whatever is said, trimmed and taken over, both answer alike."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import Append, Opened, Record, RoomLog
from chatx.cluster import jetstream_log
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.core.message import Message, Position
from tests.cluster.memory_stream import MemoryStream

ROOMS = ("plain", "ein Raum ü", "x" * 120)
LONG_AGO = 2**62


class Logs(RuleBasedStateMachine):
    """Two nodes' logs over one stream, and one in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        stream = MemoryStream("a" * 16)
        self.logs = [JetStreamLog(stream), JetStreamLog(stream.of("b" * 16))]
        self.model = MemoryLog()
        self.terms = dict.fromkeys(ROOMS, 0)
        self.heads: dict[str, Position] = {}
        self.epochs = 0
        self.said = 0

    @initialize()
    def now(self) -> None:
        self.now_ms = 1_000
        # Keys of a day ago still answer; the model forgets none.
        self.patched = jetstream_log._now_ms
        jetstream_log._now_ms = lambda: self.now_ms

    def teardown(self) -> None:
        jetstream_log._now_ms = self.patched
        self.loop.close()

    def both(self, node: int, method: str, *args: Any, **given: Any) -> Any:
        answer = self.loop.run_until_complete(getattr(self.logs[node], method)(*args, **given))
        expected = self.loop.run_until_complete(getattr(self.model, method)(*args, **given))
        if isinstance(answer, Opened):
            assert answer.head == expected.head
        assert answer == expected, (method, args, given)
        return answer

    @rule(node=st.integers(0, 1), room=st.sampled_from(ROOMS))
    def take(self, node: int, room: str) -> None:
        self.terms[room] = self.both(node, "take_over", room).term

    @rule(
        node=st.integers(0, 1),
        room=st.sampled_from(ROOMS),
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=70),
        keyed=st.sampled_from((0, 1, 3, 50)),
        fenced=st.booleans(),
        back=st.sampled_from((0, 0, 0, 1, 5)),
        begins=st.booleans(),
        proven=st.booleans(),
    )
    def say(
        self, node: int, room: str, sizes: list[int], keyed: int, fenced: bool, back: int, begins: bool, proven: bool
    ) -> None:
        term = self.terms[room] - fenced
        for size in sizes:
            head = self.heads.get(room)
            if head is None or (begins and size == sizes[0]):
                self.epochs += 1
                head = Position(f"e{self.epochs:03}", 0)
            after = head._replace(offset=max(0, head.offset - back))
            records = []
            for offset in range(after.offset + 1, after.offset + size + 1):
                self.said += 1
                self.now_ms += 1
                entry = Message(f"m{self.said}", room, "alice", "hi", self.now_ms, after.epoch, offset, stored=True)
                records.append(Record(entry, f"key {self.said % 7}" if keyed and self.said % keyed == 0 else None))
            append = Append(room, term, after, tuple(records), True, proven)
            if self.both(node, "append", [append]) == [None]:
                self.heads[room] = after._replace(offset=after.offset + size)
                if self.said % 3 == 0:
                    self.both(1 - node, "append", [append])  # the same again, by whoever has the room

    @rule(node=st.integers(0, 1), room=st.sampled_from(ROOMS), proven=st.booleans(), fenced=st.booleans())
    def prove(self, node: int, room: str, proven: bool, fenced: bool) -> None:
        head = self.heads.get(room, Position("none", 0))
        if not self.terms[room]:
            return
        if proven:
            self.both(node, "close_rooms", {room: (self.terms[room] - fenced, head)})
        else:
            self.both(node, "unproven", room, self.terms[room] - fenced, head)

    @rule(
        node=st.integers(0, 1),
        room=st.sampled_from(ROOMS),
        keep=st.sampled_from((None, 0, 1, 10, 100)),
        age=st.integers(0, 300),
        limit=st.sampled_from((1, 7, 256)),
        spares=st.booleans(),
    )
    def trim(self, node: int, room: str, keep: int | None, age: int, limit: int, spares: bool) -> None:
        before_ms = self.now_ms - age
        spared = self.now_ms - 50 if spares else LONG_AGO
        self.both(node, "trim", [room], Retention(before_ms, keep, spared, LONG_AGO), limit)

    @rule(
        node=st.integers(0, 1),
        room=st.sampled_from(ROOMS),
        back=st.integers(0, 200),
        epochs=st.integers(0, 3),
        limit=st.sampled_from((1, 2, 50, 1_000)),
        behind=st.booleans(),
    )
    def read(self, node: int, room: str, back: int, epochs: int, limit: int, behind: bool) -> None:
        head = self.heads.get(room, Position("e001", 0))
        place = Position(f"e{max(0, int(head.epoch[1:]) - epochs):03}", max(0, head.offset - back))
        given = {"after": place} if behind else {"before": place}
        answer = self.loop.run_until_complete(self.logs[node].read(room, limit=limit, **given))
        expected = self.loop.run_until_complete(self.model.read(room, limit=limit, **given))
        assert answer.entries == expected.entries

    @invariant()
    def newest(self) -> None:
        for room in ROOMS:
            answer = self.loop.run_until_complete(self.logs[0].read(room, limit=40))
            expected = self.loop.run_until_complete(self.model.read(room, limit=40))
            assert answer == expected


Logs.TestCase.settings = settings(max_examples=50, stateful_step_count=15)
TestLogs = Logs.TestCase


async def test_reading_far_back_takes_few_steps() -> None:
    stream = MemoryStream("a" * 16)
    log: RoomLog = JetStreamLog(stream)
    opened = await log.take_over("room")  # type: ignore[misc]
    head = Position("e", 0)
    for offset in range(1, 2001):
        entry = Message(f"m{offset}", "room", "alice", "hi", offset, "e", offset, stored=True)
        assert await log.append([Append("room", opened.term, head, (Record(entry),), True)]) == [None]  # type: ignore[misc]
        head = Position("e", offset)
    before = stream.reads
    found = await log.read("room", after=Position("e", 10), limit=5)  # type: ignore[misc]
    assert [each.offset for each in found.entries] == [11, 12, 13, 14, 15]
    assert stream.reads - before < 150
