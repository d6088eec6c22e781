"""A log as the engine reads it: rooms looked at, taken over under a term, and closed with a proof of where they stand.

Rules:
1. A room is taken over ahead of its first entry, and its term is kept until its end is recorded; who appends asks for
   it here.
2. A stream goes on under its epoch only where the log says that its head is proven.
3. What cannot be read is an `AdapterError`, never a shorter answer; so it is with any other persistence.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chatx.adapters.boundary import Boundary
from chatx.adapters.room_log import KEYS_AT_ONCE, Found, Keyed, LogUnavailable, Opened
from chatx.core.idempotency import WINDOW_S
from chatx.core.message import Entry, Position
from chatx.errors import AdapterError
from chatx.runtime.storage import CLOSED_AT_ONCE, Lost, Storage


class LogStorage(Storage):
    """The reading side of a log, and who owns which room.

    Attributes:
        on_keyed: Called with a room's id and its keyed entries when it is looked at or taken over.
        before_opening: Awaited with a room's id before it is opened: an earlier life may still be writing.
    """

    def __init__(self, log: Any, boundary: Boundary) -> None:
        super().__init__(log, boundary)
        self.serves_history = True
        self.marks = True
        self.is_log = True
        self._terms: dict[str, int] = {}
        self._all_keys: dict[str, float] = {}  # room id -> since when (loop time) no key of before needs asking for
        self._doubted: dict[str, int] = {}  # room id -> take-overs of ours that may come late
        self._looked_at: dict[
            str, Position | None
        ] = {}  # where the log's head was when it was opened, or then taken over
        self._taking: dict[str, asyncio.Task[bool]] = {}
        self.on_keyed: Callable[[str, Sequence[Keyed]], object] | None = None
        self.before_opening: Callable[[str], Any] | None = None

    def term(self, room_id: str) -> int | None:
        """Return the term under which the room was taken over, or None where it was not."""
        return self._terms.get(room_id)

    def knows_all_keys(self, room_id: str, now: float) -> bool:
        """Return whether all keys of the room were told that are to be answered still, so that another one is new.

        So it is only once the room is taken over: until then whoever had it may write under any key.
        """
        return room_id in self._terms and now >= self._all_keys.get(room_id, math.inf)

    def doubts(self, room_id: str) -> bool:
        """Return whether it may have been a late take-over of ours that has just fenced us; each is doubted once."""
        count = self._doubted.pop(room_id, 0)
        if count > 1:
            self._doubted[room_id] = count - 1
        return count > 0

    async def last_position(self, room_id: str) -> Position | None:
        """Return the place from which the room's stream goes on, or None where a new one begins.

        It is looked at and not taken over, so that a room in which nothing is said leaves no trace.

        Raises:
            AdapterError: The log failed, hung or gave a wrong answer.
        """
        if self.before_opening is not None:
            await self.before_opening(room_id)
        self._looked_at.pop(room_id, None)
        opened = await self._opened("look", room_id)
        self._looked_at[room_id] = opened.head
        return opened.head if opened.proven else None

    async def is_ahead(self, room_id: str, head: Position) -> bool:
        """Return whether somebody else has written behind this head of ours; errors as `last_position`.

        What is behind it under our own term is on its way to all, or being settled.
        """
        opened = await self._opened("look", room_id)
        there = opened.head
        if there is None or there.epoch != head.epoch or opened.term == self._terms.get(room_id):
            return False
        return there.offset > head.offset

    async def take_over(self, room_id: str) -> Opened:
        """Take the room over anew: whoever had it is fenced, an earlier call of this node too.

        Raises:
            AdapterError: As `last_position`.
        """
        try:
            opened = await self._opened("take_over", room_id)
        except AdapterError as error:
            if not isinstance(getattr(error.__context__, "__cause__", None), LogUnavailable):
                self._doubted[room_id] = self._doubted.get(room_id, 0) + 1
            raise
        self._terms[room_id] = opened.term
        return opened

    async def _opened(self, method: str, room_id: str) -> Opened:
        opened = await self._read(method, room_id)
        if not isinstance(opened, Opened):
            raise self._wrong(method, f"{type(opened).__name__}, not an Opened")
        if not _is_sound(opened, room_id):
            raise self._wrong(method, f"an Opened whose fields are not of the types that they must be: {opened!r:.200}")
        if len(opened.keyed) < KEYS_AT_ONCE:
            self._all_keys[room_id] = 0.0
        elif room_id not in self._terms:
            # Those that were not told are older than this moment.
            self._all_keys[room_id] = asyncio.get_running_loop().time() + WINDOW_S
        if self.on_keyed is not None and opened.keyed:
            self.on_keyed(room_id, opened.keyed)
        return opened

    async def owns(self, room_id: str, head: Position) -> bool:
        """Take the room over unless it was, ahead of its first entry; return False where it stands elsewhere by now.

        Args:
            room_id: The room.
            head: Where its owner thinks it stands; offset 0 where a new epoch is about to begin.

        Raises:
            AdapterError: As `last_position`.
        """
        if room_id in self._terms:
            return True
        taking = self._taking.get(room_id)
        if taking is None:
            # One for all who come meanwhile: a second one would fence what is appended under the first.
            taking = self._taking[room_id] = asyncio.get_running_loop().create_task(self._take_at(room_id, head))
            taking.add_done_callback(lambda _: self._taking.pop(room_id, None))
        return await asyncio.shield(taking)

    async def _take_at(self, room_id: str, head: Position) -> bool:
        opened = await self.take_over(room_id)
        if head.offset:
            # Where the proof was withdrawn since it was looked at, somebody may have seen what comes behind the head.
            stands = opened.proven and opened.head == head
        else:
            # A stream that somebody has begun since then is the one to go on in.
            stands = not opened.proven or opened.head == self._looked_at.get(room_id, opened.head)
        if stands:
            self._looked_at[room_id] = opened.head
            return True
        self._terms.pop(room_id, None)
        return False

    def unwritten(self, room_id: str, after: Position, opened: Opened) -> bool:
        """Return whether the log stands where a batch belongs, so that nobody has written since the room was ours.

        Args:
            room_id: The room, which was just taken over again.
            after: The place that the batch follows; with offset 0 it begins an epoch that the log does not have.
            opened: What the log knows of the room.
        """
        if after.offset:
            return opened.head is None or opened.head == after
        return opened.head == self._looked_at.get(room_id, opened.head)

    async def load(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> list[Entry]:
        """Return entries in order, at most `limit`; errors as `last_position`."""
        return list((await self.read(room_id, after=after, before=before, limit=limit)).entries)

    async def read(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Return entries in order, at most `limit`, and the oldest place that is kept; errors as `last_position`."""
        found = await self._read("read", room_id, after=after, before=before, limit=limit)
        if not isinstance(found, Found):
            raise self._wrong("read", f"{type(found).__name__}, not a Found")
        if not isinstance(found.entries, Sequence) or not all(isinstance(each, Entry) for each in found.entries):
            raise self._wrong("read", "a Found whose entries are no sequence of entries")
        if found.oldest is not None and not isinstance(found.oldest, Position):
            raise self._wrong("read", f"a Found whose oldest is {found.oldest!r:.100}, not a Position or None")
        self._check_order("read", found.entries[:limit], room_id, after, before)
        return found

    async def find(self, room_id: str, user_id: str, key: str) -> Entry | None:
        """Return the entry that was stored under a key, or None; errors as `last_position`."""
        entry = await self._read("find", room_id, user_id, key)
        if entry is None:
            return None
        if isinstance(entry, Entry):
            if (entry.room_id, entry.user_id) != (room_id, user_id):
                raise self._wrong("find", f"an entry of {entry.user_id!r} in room {entry.room_id!r}")
            return entry
        raise self._wrong("find", f"{type(entry).__name__}, not an entry or None")

    async def mark_open(self, room_id: str, head: Position) -> bool:
        """Withdraw the proof of the room's head; return whether that was done.

        Raises:
            Lost: Somebody else has the room.
        """
        try:
            if not await self.owns(room_id, head):
                raise Lost
            answer = await self._read("unproven", room_id, self._terms[room_id], head)
            if answer is False and self.doubts(room_id):
                self._terms.pop(room_id, None)
                if not await self.owns(room_id, head):
                    raise Lost
                answer = await self._read("unproven", room_id, self._terms[room_id], head)
        except AdapterError:
            return False
        if answer is False:
            raise Lost
        return answer is True

    async def mark_closed(self, ends: Sequence[tuple[str, Position]]) -> None:
        """Prove the heads of these rooms, as far as the log can, and let go of their terms."""
        for first in range(0, len(ends), CLOSED_AT_ONCE):
            some = {
                room_id: (self._terms[room_id], position)
                for room_id, position in ends[first : first + CLOSED_AT_ONCE]
                if room_id in self._terms
            }
            for room_id in some:
                self.forget(room_id)
            try:
                answer = await self._read("close_rooms", some)
            except AdapterError:
                continue
            if not isinstance(answer, Mapping):
                self._wrong("close_rooms", f"{type(answer).__name__}, not a mapping of room ids to True or False")

    def forget(self, room_id: str) -> None:
        """Let go of a room's term: its life is over."""
        self._terms.pop(room_id, None)
        self._looked_at.pop(room_id, None)
        self._all_keys.pop(room_id, None)
        self._doubted.pop(room_id, None)


def _is_sound(opened: Opened, room_id: str) -> bool:
    """Return whether what a log answered is of the types that it must be, and about this room."""
    return (
        type(opened.term) is int
        and (opened.head is None or isinstance(opened.head, Position))
        and type(opened.oldest) is int
        and type(opened.proven) is bool
        and isinstance(opened.keyed, Sequence)
        and all(
            isinstance(each, Keyed)
            and isinstance(each.key, str)
            and isinstance(each.entry, Entry)
            and each.entry.room_id == room_id
            for each in opened.keyed
        )
    )
