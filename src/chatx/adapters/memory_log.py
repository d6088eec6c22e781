"""A room's log in memory: what a log does, in the fewest words; what it holds ends with the process.

It is for tests, and for trying out what needs a log. It is unbounded: every entry and key is kept until `forget`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from chatx.adapters.memory_outbox import MemoryOutbox
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import FENCED, KEYS_AT_ONCE, Answer, Append, Found, Keyed, Opened, Record, misplaced
from chatx.core.message import Entry, Position


class _Room:
    """What is kept of a room."""

    def __init__(self) -> None:
        self.term = 0
        self.head: Position | None = None
        self.proven = True
        self.oldest = 1  # in the newest epoch
        # By epoch, in the order in which they began, then by offset.
        self.epochs: dict[str, dict[int, Record]] = {}
        self.keys: dict[tuple[str, str], Keyed] = {}

    def written(self, append: Append) -> int | None:
        """Return how many of an append's entries are here already, at its beginning; None where it does not fit."""
        after = append.after
        if self.head is None or after.epoch != self.head.epoch:
            return 0 if after.offset == 0 and after.epoch not in self.epochs else None
        if after.offset > self.head.offset:
            return None
        there = self.epochs[after.epoch]
        again = append.records[: self.head.offset - after.offset]
        for each in (each.entry for each in again):
            if each.offset not in there or there[each.offset].entry.id != each.id:
                return None
        return len(again)


class MemoryLog(MemoryOutbox):
    """A `RoomLog` in memory with an outbox, whose methods are async and await nothing."""

    def __init__(self) -> None:
        super().__init__(self._at)
        self._rooms: dict[str, _Room] = {}

    async def look(self, room_id: str, /) -> Opened:
        """Return what is known of a room; its term stands."""
        return self._opened(self._rooms.get(room_id) or _Room())

    async def take_over(self, room_id: str, /) -> Opened:
        """Take a room over: from here on an append under an earlier term is fenced."""
        room = self._rooms.setdefault(room_id, _Room())
        room.term += 1
        return self._opened(room)

    def _opened(self, room: _Room) -> Opened:
        return Opened(room.term, room.head, room.oldest, room.proven, tuple(room.keys.values())[-KEYS_AT_ONCE:])

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        """Withdraw the proof of the room's head; False: fenced."""
        room = self._rooms.get(room_id)
        if room is None or room.term != term:
            return False
        room.proven = False
        return True

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        """Append to many rooms, and answer for each in their order."""
        return [self._appended(each) for each in appends]

    def _appended(self, append: Append) -> Answer:
        if (wrong := misplaced(append)) is not None:
            return wrong
        room = self._rooms.get(append.room_id)
        if room is None or room.term != append.term or (written := room.written(append)) is None:
            return FENCED
        if append.after.epoch not in room.epochs:
            room.epochs[append.after.epoch] = {}
            room.oldest, room.proven = 1, False
        room.proven = room.proven or append.proven
        for record in append.records[written:]:
            entry = record.entry
            room.epochs[entry.epoch][entry.offset] = record
            room.head = Position(entry.epoch, entry.offset)
            if record.key is not None:
                room.keys.setdefault((entry.user_id, record.key), Keyed(record.key, entry))
            self._keep(record)
        return None

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Read entries, oldest first, at most `limit`."""
        epochs = {} if (room := self._rooms.get(room_id)) is None else room.epochs
        asked = after or before
        epoch = asked.epoch if asked else next(reversed(epochs), "")
        records = epochs.get(epoch, {})
        oldest = Position(entry.epoch, entry.offset) if (entry := _first(records)) else None
        if room is not None and room.head is not None and room.head.epoch == epoch:
            oldest = Position(epoch, room.oldest)
        if after is not None:
            behind = [each.entry for offset, each in records.items() if offset > after.offset]
            return Found(tuple(behind[:limit]), oldest)
        ahead: list[Entry] = []
        for epoch, kept in epochs.items():
            if before is not None and epoch == before.epoch:
                ahead += [each.entry for offset, each in kept.items() if offset < before.offset]
                break
            ahead += [each.entry for each in kept.values()]
        return Found(tuple(ahead[-limit:]), oldest)

    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        """Prove the heads of rooms, and answer for each; one that is fenced, or ends elsewhere, proves nothing."""
        return {room_id: self._closed(room_id, term, head) for room_id, (term, head) in ends.items()}

    def _closed(self, room_id: str, term: int, head: Position) -> bool:
        room = self._rooms.get(room_id)
        if room is None or room.term != term or room.head != head:
            return False
        room.proven = True
        return True

    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        """Return the entry that was stored under an idempotency key, or None."""
        room = self._rooms.get(room_id)
        keyed = room.keys.get((user_id, key)) if room is not None else None
        return keyed.entry if keyed is not None else None

    def _at(self, room_id: str, epoch: str, offset: int) -> Entry | None:
        record = self._rooms[room_id].epochs.get(epoch, {}).get(offset)
        return None if record is None else record.entry

    async def list_rooms(self, after: str, limit: int, /) -> list[str]:
        """Return the ids of rooms that have entries, or had, in order and behind one, at most `limit`."""
        return sorted(each for each, room in self._rooms.items() if each > after and room.head is not None)[:limit]

    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        """Let go of the oldest entries of rooms, at most `limit` over all of them, and return how many went."""
        gone = 0
        for room_id in room_ids:
            records = self.records(room_id)
            for record, newer in zip(records, _newer([each.entry for each in records]), strict=True):
                entry = record.entry
                keyed = record.key is not None
                if gone >= limit or self._waits(entry.id):
                    break
                if not retention.lets_go(entry.inserted_at, newer, keyed=keyed):
                    break
                self.forget(room_id, Position(entry.epoch, entry.offset + 1))
                gone += 1
        return gone

    def forget(self, room_id: str, before: Position) -> None:
        """Let go of what is ahead of a place of the room, as retention does; the head stays where it is."""
        room = self._rooms[room_id]
        for epoch, records in room.epochs.items():
            ends_here = epoch == before.epoch
            for offset in [each for each in records if not ends_here or each < before.offset]:
                del records[offset]
            if ends_here:
                break
        if room.head is not None and room.head.epoch == before.epoch:
            room.oldest = max(room.oldest, min(before.offset, room.head.offset + 1))

    def records(self, room_id: str) -> list[Record]:
        """Return all that is kept of a room, as it was appended, in order."""
        room = self._rooms.get(room_id)
        return [] if room is None else list(chain.from_iterable(each.values() for each in room.epochs.values()))


def _newer(entries: Sequence[Entry]) -> list[int]:
    """Return for each of a room's entries, oldest first, how many places are newer; a hole counts as a place."""
    newer: list[int] = []
    behind: Entry | None = None
    for entry in reversed(entries):
        step = 1 if behind is None or behind.epoch != entry.epoch else behind.offset - entry.offset
        newer.append(0 if behind is None else newer[-1] + step)
        behind = entry
    return newer[::-1]


def _first(records: Mapping[int, Record]) -> Entry | None:
    return next((each.entry for each in records.values()), None)
