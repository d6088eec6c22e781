"""A log as the engine reads it: rooms taken over under a term, read, and closed with a proof of where they stand.

Rules:
1. A room's term is kept from its opening until its end is recorded; who appends asks for it here.
2. A stream goes on under its epoch only where the log says that its head is proven.
3. What cannot be read is an `AdapterError`, never a shorter answer; so it is with any other persistence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chatx.adapters.boundary import Boundary
from chatx.adapters.room_log import KEYS_AT_ONCE, Found, Keyed, Opened
from chatx.core.message import Entry, Position
from chatx.errors import AdapterError
from chatx.runtime.storage import CLOSED_AT_ONCE, Storage


class LogStorage(Storage):
    """The reading side of a log, and who owns which room.

    Attributes:
        on_keyed: Called with a room's id and its keyed entries when it is opened.
        before_taking_over: Awaited with a room's id before it is opened: an earlier life may still be writing.
    """

    def __init__(self, log: Any, boundary: Boundary) -> None:
        super().__init__(log, boundary)
        self.serves_history = True
        self.marks = True
        self.is_log = True
        self._terms: dict[str, int] = {}
        self._partly_keyed: set[str] = set()
        self.on_keyed: Callable[[str, Sequence[Keyed]], object] | None = None
        self.before_taking_over: Callable[[str], Any] | None = None

    def term(self, room_id: str) -> int | None:
        """Return the term under which the room was taken over, or None where it was not."""
        return self._terms.get(room_id)

    def knows_all_keys(self, room_id: str) -> bool:
        """Return whether the room's opening told all its keys, so that another one is a new one."""
        return room_id in self._terms and room_id not in self._partly_keyed

    async def last_position(self, room_id: str) -> Position | None:
        """Take the room over; return the place from which its stream goes on, or None where a new one begins.

        Raises:
            AdapterError: The log failed, hung or gave a wrong answer.
        """
        if self.before_taking_over is not None:
            await self.before_taking_over(room_id)
        opened = await self.take_over(room_id)
        if self.on_keyed is not None and opened.keyed:
            self.on_keyed(room_id, opened.keyed)
        return opened.head if opened.proven else None

    async def take_over(self, room_id: str) -> Opened:
        """Take the room over anew: whoever had it is fenced, an earlier call of this node too.

        Raises:
            AdapterError: As `last_position`.
        """
        opened = await self._read("take_over", room_id)
        if not isinstance(opened, Opened):
            raise self._wrong("take_over", f"{type(opened).__name__}, not an Opened")
        self._terms[room_id] = opened.term
        if len(opened.keyed) >= KEYS_AT_ONCE:
            self._partly_keyed.add(room_id)
        return opened

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
        self._check_order("read", found.entries[:limit], room_id, after, before)
        return found

    async def find(self, room_id: str, user_id: str, key: str) -> Entry | None:
        """Return the entry that was stored under a key, or None; errors as `last_position`."""
        entry = await self._read("find", room_id, user_id, key)
        if entry is None or isinstance(entry, Entry):
            return entry
        raise self._wrong("find", f"{type(entry).__name__}, not an entry or None")

    async def mark_open(self, room_id: str, head: Position) -> bool:
        """Withdraw the proof of the room's head; return whether that was done."""
        term = self._terms.get(room_id)
        if term is None:
            return False
        try:
            answer = await self._read("unproven", room_id, term, head)
        except AdapterError:
            return False
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
        self._partly_keyed.discard(room_id)
