"""Owners who append to a log as the engine does, whatever the server does, and what they leave there."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

from chatx.adapters.room_log import FENCED, Append, LogUnavailable, Opened, Record
from chatx.cluster.jetstream import JetStream
from chatx.cluster.jetstream_log import JetStreamLog
from chatx.cluster.jetstream_rooms import RoomReader
from chatx.cluster.log_record import Logged
from chatx.cluster.records import Records
from chatx.core.message import Message, Position

EPOCH = "e"

AT_ONCE = 3
"""Entries in one append."""

PACE_S = 0.002
"""Between two appends: what was said is read back by whoever takes the room over, and that is not to be endless."""


class Owner:
    """Takes a room over, and appends to it until it is told to end.

    Attributes:
        acked: Where each entry is that the log has acknowledged, by id.
        unavailable: How often surely nothing was written.
        doubted: How often nobody knew.
        fenced: How often another had the room.
    """

    def __init__(self, log: JetStreamLog, room: str, name: str = "a") -> None:
        self.acked: dict[str, int] = {}
        self.unavailable = self.doubted = self.fenced = 0
        self._log = log
        self._room = room
        self._ids = (f"{name}{number}" for number in itertools.count())
        self._opened: Opened | None = None
        self._unsettled: list[str] = []
        self._pause_s = 0.02

    async def run(self) -> None:
        """Append until this is cancelled."""
        while True:
            try:
                await self._append()
            except LogUnavailable:
                self.unavailable += 1
                await asyncio.sleep(0.02)
            except AssertionError:
                raise
            except Exception:
                self.doubted += 1
                self._opened = None  # whatever is there is fenced first, and looked at then
                await asyncio.sleep(0.02)

    def restart(self) -> None:
        """Take the room over anew, whoever has it."""
        self._opened = None

    async def _append(self) -> None:
        if self._opened is None:
            self._opened = await self._log.take_over(self._room)
            await self._settle()
        append = self.next_append()
        answer = (await self._log.append([append]))[0]
        if answer is None:
            self._committed(append.after.offset)
            head = append.after._replace(offset=append.after.offset + len(append.records))
            self._opened = Opened(append.term, head, 1, True)
            await asyncio.sleep(PACE_S)
        else:
            assert answer == FENCED
            self.fenced += 1
            self._opened = None
            # Or two of them do nothing but take it from each other: on a slow server each needs that long to begin.
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, 1.0)

    def next_append(self) -> Append:
        """Return what it appends next, which is the same until that is settled; it must have the room."""
        assert self._opened is not None
        ids = self._unsettled = self._unsettled or [next(self._ids) for _ in range(AT_ONCE)]
        after = self._opened.head or Position(EPOCH, 0)
        now_ms = time.time_ns() // 1_000_000  # of an older one the key would not be looked for
        records = tuple(
            Record(Message(each, self._room, "ann", "hi", now_ms, EPOCH, offset, stored=True), each)
            for offset, each in enumerate(ids, after.offset + 1)
        )
        return Append(self._room, self._opened.term, after, records, True)

    async def _settle(self) -> None:
        """Look whether what nobody knew of is there, now that nothing of it can come any more."""
        assert self._opened is not None
        if self._unsettled and self._opened.head is not None:
            found = await self._log.find(self._room, "ann", self._unsettled[0])
            if found is not None:
                self._committed(found.offset - 1)

    def _committed(self, after: int) -> None:
        self.acked |= {each: offset for offset, each in enumerate(self._unsettled, after + 1)}
        self._unsettled = []


async def check(stream: JetStream, room: str, *owners: Owner) -> int:
    """Check that a room's records are one chain, read as such, and have what was acknowledged; return how many."""
    records = [each async for each in _all_records(stream, room)]
    ids: list[str] = []
    term = 0
    for record in records:
        assert record.after is not None
        assert record.after.offset == len(ids), f"{len(ids)} entries are there, and one follows {record.after.offset}"
        assert record.term >= term
        term = record.term
        ids += [each.id for each in record.placed()]
    assert len(set(ids)) == len(ids), "an entry is there twice"
    for owner in owners:
        assert {each: offset for offset, each in enumerate(ids, 1) if each in owner.acked} == owner.acked
    # What was under way when its owner was ended may still come behind them.
    found = await JetStreamLog(stream).read(room, after=Position(EPOCH, 0), limit=len(ids))
    assert [each.id for each in found.entries] == ids
    return len(ids)


async def _all_records(stream: JetStream, room: str) -> AsyncIterator[Logged]:
    reader = RoomReader(stream, Records())
    async for record, _ in reader.from_the_oldest(room, await reader.newest(room)):
        yield record
