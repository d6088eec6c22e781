"""How a room's records are read: from its newest back along the trails, or forward from the oldest.

Rules:
1. The newest record is read first, and everything else as it says: what it no longer keeps is not looked for.
2. A record that is gone, and that the newest one still kept, went by retention meanwhile: then the newest one says so
   when it is read anew. Otherwise the log is damaged, and that is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from chatx.adapters.room_log import Found
from chatx.cluster.jetstream import JetStream, Stored
from chatx.cluster.log_record import Logged, RoomState, numbers
from chatx.cluster.records import BadRecord, Records
from chatx.cluster.tokens import room_of, room_token
from chatx.core.message import Entry, Position

TRIES: Final = 4
"""How often a read begins anew since retention was faster."""


class LogDamaged(Exception):
    """A record that should be there is not, or is none of this room."""


class _Trimmed(Exception):
    """What was to be read is gone; the newest record says whether it may be."""


class RoomReader:
    """Reads the records of rooms.

    Args:
        stream: Where they are.
        records: Reads what a record's bytes say.
    """

    def __init__(self, stream: JetStream, records: Records) -> None:
        self._stream = stream
        self._records = records

    def subject(self, room_id: str) -> str:
        """Return where a room's records are."""
        return self._stream.subjects + room_token(room_id)

    async def newest(self, room_id: str) -> RoomState:
        """Return what a room's newest record says."""
        stored = await self._stream.newest(self.subject(room_id))
        return RoomState() if stored is None else RoomState.after(self._read(stored, room_id), stored.seq)

    async def behind(self, room_id: str, state: RoomState, place: Position, limit: int) -> Found:
        """Return the first entries of a place's epoch that are behind it."""
        for _ in range(TRIES):
            try:
                return Found(tuple(await self._behind(room_id, state, place, limit)), state.oldest_of(place.epoch))
            except _Trimmed:
                state = await self._again(room_id, state)
        raise LogDamaged(f"The records of room {room_id!r} are let go of faster than they can be read.")

    async def _behind(self, room_id: str, state: RoomState, place: Position, limit: int) -> list[Entry]:
        rank = state.rank(place.epoch)
        if rank is None or (rank == len(state.epochs) and state.head and place.offset >= state.head.offset):
            return []
        # Back, a whole trail in a step, to the one that begins ahead of the place; then forward from there.
        trails = [state.trail]
        while trails[-1]:
            record = await self.numbered(room_id, trails[-1][-1])
            if record is None or not record.trail or self._first(state, record) <= (rank, place.offset + 1):
                break
            trails.append(numbers(record.trail))
        entries: list[Entry] = []
        for trail in reversed(trails):
            for record in reversed(await self._all_kept(room_id, state, trail)):
                entries += [
                    each
                    for each in record.placed()
                    if each.epoch == place.epoch and each.offset > place.offset and state.keeps(at(each))
                ]
            if len(entries) >= limit:
                break
        return entries[:limit]

    async def ahead(self, room_id: str, state: RoomState, place: Position | None, limit: int) -> Found:
        """Return the last entries ahead of a place, earlier epochs included; of all, where the place is None."""
        for _ in range(TRIES):
            try:
                epoch = place.epoch if place else state.head.epoch if state.head else ""
                return Found(tuple(await self._ahead(room_id, state, place, limit)), state.oldest_of(epoch))
            except _Trimmed:
                state = await self._again(room_id, state)
        raise LogDamaged(f"The records of room {room_id!r} are let go of faster than they can be read.")

    async def _ahead(self, room_id: str, state: RoomState, place: Position | None, limit: int) -> list[Entry]:
        rank = None if place is None else state.rank(place.epoch)
        end = (len(state.epochs) + 1, 0) if place is None or rank is None else (rank, place.offset)
        entries: list[Entry] = []  # newest first
        trail = state.trail
        while trail and len(entries) < limit:
            record = await self.numbered(room_id, trail[-1])
            if record is None or self._first(state, record) < end:
                # Each has an entry at least, so no more records are needed than entries; one may be cut by the place.
                wanted = trail if rank is not None else trail[: limit - len(entries)]
                for each in await self._all_kept(room_id, state, wanted):
                    placed = [it for it in each.placed() if state.keeps(at(it)) and self._at(state, it) < end]
                    entries += reversed(placed)
                if len(entries) >= limit:
                    break
            if record is None or not state.keeps(at(record.placed()[0])):
                break
            trail = numbers(record.trail)
        return entries[:limit][::-1]

    async def keyed(self, room_id: str, state: RoomState) -> AsyncIterator[tuple[Logged, int, str]]:
        """Give the records with idempotency keys, newest first, as far as they are kept, with number and time."""
        trail = state.keyed
        while trail:
            found = await asyncio.gather(*map(self._stream.numbered, trail))
            record: Logged | None = None
            for stored in found:
                if stored is None:  # retention spares keys that must answer
                    return
                record = self._read(stored, room_id)
                yield record, stored.seq, stored.time
            trail = () if record is None else numbers(record.keyed)

    async def from_the_oldest(self, room_id: str, state: RoomState) -> AsyncIterator[tuple[Logged, int]]:
        """Give a room's records with entries and their numbers, oldest first."""
        number = 1
        while number <= state.number:
            stored = await self._stream.next(self.subject(room_id), number)
            if stored is None or stored.seq > state.number:
                return
            record = self._read(stored, room_id)
            if record.entries:
                yield record, stored.seq
            number = stored.seq + 1

    async def all_ids(self) -> set[str]:
        """Return the ids of all rooms that have records."""
        found: set[str] = set()
        for token in await self._stream.all_subjects():
            room_id = room_of(token)
            if room_id is None:
                stored = await self._stream.newest(self._stream.subjects + token)
                if stored is None:
                    continue
                room_id = self._read(stored, None).room_id
            found.add(room_id)
        return found

    async def _all_kept(self, room_id: str, state: RoomState, trail: tuple[int, ...]) -> list[Logged]:
        """Return the records of a trail, newest first, as far as they are kept.

        Raises:
            _Trimmed: One is gone that was kept.
        """
        kept: list[Logged] = []
        for record in await self._all(room_id, trail):
            if record is not None:
                kept.append(record)
            elif kept and state.oldest is not None and not self._begins_behind(state, kept[-1]):
                break  # all ahead of the oldest place
            elif not kept and state.oldest is not None and state.head and state.oldest.offset > state.head.offset:
                break  # nothing is left
            else:
                raise _Trimmed
        return kept

    def _begins_behind(self, state: RoomState, record: Logged) -> bool:
        """Return whether something that is kept is ahead of a record."""
        first = record.placed()[0]
        return state.keeps(at(first)) and state.oldest != at(first)

    async def _all(self, room_id: str, trail: tuple[int, ...]) -> list[Logged | None]:
        return list(await asyncio.gather(*(self.numbered(room_id, each) for each in trail)))

    async def numbered(self, room_id: str, number: int) -> Logged | None:
        """Return a room's record by its number, or None where it is gone."""
        stored = await self._stream.numbered(number)
        return None if stored is None else self._read(stored, room_id)

    def _read(self, stored: Stored, room_id: str | None) -> Logged:
        try:
            record = self._records.decode(stored.data)
        except BadRecord as error:
            raise LogDamaged(f"Record {stored.seq} of room {room_id!r} cannot be read: {error}") from error
        if not isinstance(record, Logged) or room_id not in (None, record.room_id):
            raise LogDamaged(f"Record {stored.seq} is none of room {room_id!r}.")
        return record

    async def _again(self, room_id: str, state: RoomState) -> RoomState:
        newest = await self.newest(room_id)
        if newest.oldest == state.oldest:
            raise LogDamaged(f"Records of room {room_id!r} are gone that its newest one still counts on.")
        return newest

    def _first(self, state: RoomState, record: Logged) -> tuple[int, int]:
        return self._at(state, record.placed()[0])

    def _at(self, state: RoomState, entry: Entry) -> tuple[int, int]:
        """Return a place as what is compared: the rank of its epoch, which is -1 where it is forgotten, and offset."""
        rank = state.rank(entry.epoch)
        return (-1 if rank is None else rank, entry.offset)


def at(entry: Entry) -> Position:
    """Return an entry's place."""
    return Position(entry.epoch, entry.offset)
