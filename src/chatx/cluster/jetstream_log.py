"""A `RoomLog` in NATS JetStream: what all nodes of a `horde` share.

One stream has the records of all rooms, each room's on a subject of its own. Rules:
1. A record is appended only where the one that its writer has read is still the room's newest. That is the fence:
   whoever has taken the room over has appended a record, and nothing follows the older one any more.
2. What is remembered of a room saves a read ahead of an append, and nothing else: where it is wrong the append is
   refused, and the room is read anew. No question is answered from it, and it is forgotten where the link was lost, for
   a server that comes back with less than it had gives numbers out anew.
3. A room's newest record is never let go of: its numbers would begin anew.
4. What cannot be read raises. Less than there is would be taken for a hole.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from chatx.adapters.retention import Retention
from chatx.adapters.room_log import (
    FENCED,
    KEYS_AT_ONCE,
    KEYS_KEPT_MS,
    Answer,
    Append,
    Found,
    Keyed,
    LogUnavailable,
    Opened,
    Record,
    misplaced,
)
from chatx.cluster.backplane import BackplaneError, NoReply
from chatx.cluster.entries import EntryRow
from chatx.cluster.jetstream import JetStream, WrongNumber
from chatx.cluster.jetstream_keys import KeyIndex
from chatx.cluster.jetstream_rooms import RoomReader, at
from chatx.cluster.log_record import EPOCHS, Logged, RoomState, place_of, trail_of
from chatx.cluster.records import BadRecord, Records
from chatx.core.message import Entry, Position

LOGGED_BYTES: Final = 720_896
"""The largest record, in bytes: it comes back in base64, within what a server sends."""

REMEMBERED: Final = 20_000
"""Rooms whose newest record is remembered, at most, of up to 2 KB each; the one used longest ago is read anew."""

_T = TypeVar("_T")

TRIES: Final = 16
"""How often a record is tried to be appended that somebody else's has come before."""


class JetStreamLog:
    """The log of a cluster's rooms; its methods are async, and belong to one event loop.

    It has no outbox. `ensure` of the stream comes first.

    Args:
        stream: The stream, over a link that is connected.

    Attributes:
        transactions: How many appends of many rooms are under way at a time, at most: a room that takes long is not to
            hold up those that come behind it.
    """

    transactions: Final = 4

    def __init__(self, stream: JetStream) -> None:
        self._stream = stream
        self._records = Records()
        self._rooms = RoomReader(stream, self._records)
        self._keys = KeyIndex(stream, self._rooms)
        self._remembered: OrderedDict[str, tuple[int, RoomState]] = OrderedDict()  # and the link's losses till then
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._listed: list[str] = []

    # Whose a room is

    async def look(self, room_id: str, /) -> Opened:
        """Return what is known of a room; its term stands."""
        with _reading():
            return await self._opened(room_id, await self._rooms.newest(room_id))

    async def take_over(self, room_id: str, /) -> Opened:
        """Take a room over: from here on an append under an earlier term is fenced."""
        async with self._alone(room_id):
            for _ in range(TRIES):
                state = await self._newest(room_id)
                try:
                    state = await self._append(self._record(room_id, state, state.term + 1), state)
                except WrongNumber:
                    continue
                break
            else:
                raise LogUnavailable(f"Room {room_id!r} changes all the time; others take it over.")
        return await self._opened(room_id, state)

    async def _opened(self, room_id: str, state: RoomState) -> Opened:
        keyed: dict[tuple[str, str], Keyed] = {}  # newest first
        before_ms = _now_ms() - KEYS_KEPT_MS
        async for record, _, _ in self._rooms.keyed(room_id, state):
            for each in reversed(_keyed(record, state)):
                scope = (each.entry.user_id, each.key)
                keyed.pop(scope, None)  # the first is the one that counts
                keyed[scope] = each
            if len(keyed) >= KEYS_AT_ONCE or record.entries[-1].inserted_at < before_ms:
                break
        kept = tuple(keyed.values())[:KEYS_AT_ONCE][::-1]
        return Opened(state.term, state.head, state.oldest_offset, state.proven, kept)

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        """Withdraw the proof of the room's head; False: fenced."""
        return await self._prove(room_id, term, None, proven=False)

    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        """Prove the heads of rooms, and answer for each; one that is fenced, or ends elsewhere, proves nothing."""
        closing = (self._prove(room_id, term, head, proven=True) for room_id, (term, head) in ends.items())
        closed = _all_of(await asyncio.gather(*closing, return_exceptions=True))
        for room_id in ends:
            self._remembered.pop(room_id, None)
        return dict(zip(ends, closed, strict=True))

    async def _prove(self, room_id: str, term: int, head: Position | None, *, proven: bool) -> bool:
        async with self._alone(room_id):
            state = self._recalled(room_id, term)
            for _ in range(TRIES):
                recalled, state = state, state or await self._newest(room_id)
                fits = 0 < state.term == term and (head is None or state.head == head)
                if fits and state.proven is not proven:
                    try:
                        await self._append(self._record(room_id, state, term, proven=proven), state)
                    except WrongNumber:
                        pass
                    else:
                        return True
                elif recalled is None:
                    return fits
                state = None
        raise LogUnavailable(f"Room {room_id!r} changes all the time.")

    # What is said in it

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        """Append to many rooms at once, and answer for each in their order."""
        if len(appends) == 1:
            return [await self._appended(appends[0])]
        return _all_of(await asyncio.gather(*map(self._appended, appends), return_exceptions=True))

    async def _appended(self, append: Append) -> Answer:
        if (wrong := misplaced(append)) is not None:
            return wrong
        room_id = append.room_id
        async with self._alone(room_id):
            state = self._recalled(room_id, append.term)
            for _ in range(TRIES):
                recalled, state = state, state or await self._newest(room_id)
                has_it = 0 < state.term == append.term
                written = await self._written(state, append) if has_it else None
                record = None if written is None else self._with_entries(state, append, written)
                if record is not None and (record.entries or record.proven != state.proven):
                    try:
                        await self._append(record, state)
                    except WrongNumber:
                        pass
                    except (BadRecord, UnicodeEncodeError) as error:
                        return f"An entry of room {room_id!r} cannot be stored: {error}"
                    else:
                        return None
                elif recalled is None:
                    return FENCED if record is None else None
                state = None
        raise LogUnavailable(f"Room {room_id!r} changes all the time; others append to it.")

    async def _written(self, state: RoomState, append: Append) -> int | None:
        """Return how many of an append's entries are there already, at its beginning; None where it does not fit."""
        after, head = append.after, state.head
        if head is None or after.epoch != head.epoch:
            return 0 if after.offset == 0 and state.rank(after.epoch) is None else None
        if after.offset > head.offset:
            return None
        again = append.records[: head.offset - after.offset]
        if not again:
            return 0
        with _reading():
            there = (await self._rooms.behind(append.room_id, state, after, len(again))).entries
        return len(again) if [each.id for each in there] == [each.entry.id for each in again] else None

    def _with_entries(self, state: RoomState, append: Append, written: int) -> Logged:
        new = append.records[written:]
        record = self._record(append.room_id, state, append.term, proven=state.proven or append.proven)
        if not new:
            return record
        first = new[0].entry
        epochs, proven = record.epochs, record.proven
        if state.head is None or state.head.epoch != first.epoch:
            proven = append.proven
            if state.head is not None:
                epochs = (*epochs, place_of(state.head) or epochs[-1])[-EPOCHS:]
        return Logged(
            append.room_id,
            self._stream.boot,
            append.term,
            place_of(Position(first.epoch, first.offset - 1)),
            proven,
            record.oldest,
            epochs,
            record.trail,
            record.keyed,
            tuple(_row(each) for each in new),
        )

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Read entries, oldest first, at most `limit`."""
        with _reading():
            state = await self._rooms.newest(room_id)
            if after is not None:
                return await self._rooms.behind(room_id, state, after, limit)
            return await self._rooms.ahead(room_id, state, before, limit)

    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        """Return the entry that was stored under an idempotency key, or None; it is looked for as `KeyIndex` says."""
        with _reading():
            state = await self._rooms.newest(room_id)
            record = await self._keys.first(room_id, state, user_id, key)
        keyed = [] if record is None else _keyed(record, state)
        return next((each.entry for each in keyed if (each.entry.user_id, each.key) == (user_id, key)), None)

    # What it lets go of

    async def list_rooms(self, after: str, limit: int, /) -> list[str]:
        """Return the ids of rooms that have entries, or had, in order and behind one, at most `limit`.

        They are read when it begins, and all of them are kept in memory until it has come to the end.
        """
        if not after or not self._listed or self._listed[-1] <= after:
            self._listed = sorted(await self._rooms.all_ids())
        found: list[str] = []
        for room_id in self._listed:
            if room_id > after:
                if (await self._rooms.newest(room_id)).head is not None:
                    found.append(room_id)
                if len(found) == limit:
                    return found
        self._listed = []
        return found

    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        """Let go of the oldest entries of rooms, at most `limit` over all of them, and return how many went."""
        gone = 0
        for room_id in room_ids:
            if gone >= limit:
                break
            async with self._alone(room_id):
                gone += await self._trimmed(room_id, retention, limit - gone)
        return gone

    async def _trimmed(self, room_id: str, retention: Retention, limit: int) -> int:
        for _ in range(TRIES):
            state = await self._rooms.newest(room_id)
            gone, oldest, first = 0, state.oldest, 0
            async for record, number in self._rooms.from_the_oldest(room_id, state):
                for entry, row in zip(record.placed(), record.entries, strict=True):
                    place = at(entry)
                    if not state.keeps(place):
                        continue
                    lets_go = retention.lets_go(entry.inserted_at, state.newer(place), keyed=row.key is not None)
                    if gone >= limit or not lets_go:
                        oldest, first = place, number
                        break
                    gone += 1
                if first:
                    break
            else:  # nothing stays
                oldest = None if state.head is None else state.head._replace(offset=state.head.offset + 1)
            if not gone:
                return 0
            record = self._record(room_id, state, state.term, oldest=oldest)
            try:
                state = await self._append(record, state)
            except WrongNumber:
                continue
            await self._stream.purge(self._rooms.subject(room_id), first or state.number)
            return gone
        raise LogUnavailable(f"Room {room_id!r} changes all the time.")

    # One record

    def _record(
        self,
        room_id: str,
        state: RoomState,
        term: int,
        *,
        proven: bool | None = None,
        oldest: Position | None = None,
    ) -> Logged:
        return Logged(
            room_id,
            self._stream.boot,
            term,
            place_of(state.head),
            state.proven if proven is None else proven,
            place_of(oldest or state.oldest),
            tuple(each for each in map(place_of, state.epochs) if each is not None),
            trail_of(state.trail),
            trail_of(state.keyed),
        )

    async def _append(self, record: Logged, behind: RoomState) -> RoomState:
        """Append a record behind the one that was read; return what the room is then, and remember it."""
        room_id = record.room_id
        self._remembered.pop(room_id, None)  # whatever becomes of it, that is over
        losses = self._stream.losses
        content = self._records.encode(record)
        if len(content) > LOGGED_BYTES:
            raise BadRecord(f"it has {len(content)} bytes with its record, and {LOGGED_BYTES} are allowed")
        try:
            number = await self._stream.append(self._rooms.subject(room_id), content, behind.number)
        except (WrongNumber, NoReply):
            raise
        except BackplaneError as error:
            raise LogUnavailable(str(error)) from error
        state = RoomState.after(record, number)
        self._remembered[room_id] = losses, state
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return state

    def _recalled(self, room_id: str, term: int) -> RoomState | None:
        """Return what is remembered of a room for whoever has that term, or None where it must be read."""
        losses, state = self._remembered.get(room_id, (0, None))
        return state if state is not None and state.term == term and losses == self._stream.losses else None

    async def _newest(self, room_id: str) -> RoomState:
        with _reading():
            return await self._rooms.newest(room_id)

    @asynccontextmanager
    async def _alone(self, room_id: str) -> AsyncIterator[None]:
        """Be the only one of this process who writes to a room."""
        lock = self._turns.get(room_id)
        if lock is None:
            lock = self._turns[room_id] = asyncio.Lock()
        async with lock:
            yield


@contextmanager
def _reading() -> Iterator[None]:
    """Say that nothing was written where a read fails, ahead of all writing."""
    try:
        yield
    except BackplaneError as error:
        raise LogUnavailable(str(error)) from error


def _all_of(answers: Sequence[_T | BaseException]) -> list[_T]:
    """Return what became of several rooms; raise where it is not known of one of them.

    Surely nothing was written only where that holds of every room.
    """
    failures = [each for each in answers if isinstance(each, BaseException)]
    doubtful = next((each for each in failures if not isinstance(each, LogUnavailable)), None)
    if doubtful is None and failures and len(failures) < len(answers):
        doubtful = NoReply(f"A part of the rooms could not be written to: {failures[0]}")
    if failures:
        raise doubtful or failures[0]
    return [each for each in answers if not isinstance(each, BaseException)]


def _row(record: Record) -> EntryRow:
    return EntryRow.of(record.entry, record.key)


def _keyed(record: Logged, state: RoomState) -> list[Keyed]:
    """Return the entries of a record that have a key and are kept, oldest first."""
    rows = zip(record.placed(), record.entries, strict=True)
    return [Keyed(row.key, entry) for entry, row in rows if row.key is not None and state.keeps(at(entry))]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
