"""The nodes' log with a store behind it, as one log: what is appended is safe in the first, and soon in the second.

Who reads gets what the log has, and from the store what the log has let go of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatx.adapters.boundary import Boundary
from chatx.adapters.retention import trims
from chatx.adapters.room_log import Answer, Append, Found, Opened, RoomLog
from chatx.core.message import Entry, Position
from chatx.runtime.nodes.handing_on import HandingOn
from chatx.runtime.nodes.stores_behind import store_behind


class LogOverStore:
    """A `RoomLog`, made of two stores.

    Args:
        log: The nodes' log.
        store: A log or a persistence adapter, which all nodes share.
        boundary: Calls the store.

    Attributes:
        handing_on: Brings to the store what the log has.
        transactions: How many appends the log takes at a time.
    """

    def __init__(self, log: RoomLog, store: object, boundary: Boundary) -> None:
        self._log: Any = log
        self._kept: Any = store
        self._store = store_behind(store, boundary)
        self._boundary = boundary
        self.handing_on: HandingOn = HandingOn(log, self._store)
        self.transactions: int = getattr(log, "transactions", 1)

    @property
    def rooms_unsaved(self) -> int:
        """Of how many rooms the store lacks the end."""
        return len(self.handing_on)

    async def close(self, within_s: float) -> None:
        """Hand on what is left, within so many seconds."""
        await self.handing_on.close(within_s)
        await self._boundary.close(0)

    async def look(self, room_id: str, /) -> Opened:
        """Return what is known of a room, whose owner this node is."""
        return self._opened(room_id, await self._log.look(room_id))

    async def take_over(self, room_id: str, /) -> Opened:
        """Take a room over: from here on an append under an earlier term is fenced."""
        return self._opened(room_id, await self._log.take_over(room_id))

    def _opened(self, room_id: str, opened: Opened) -> Opened:
        if opened.head is not None:
            self.handing_on.stands(room_id, opened.head)  # the one before may not have come to the end of it
        return opened

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        """Withdraw the proof of the room's head; False: fenced."""
        done: bool = await self._log.unproven(room_id, term, head)
        return done

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        """Append to many rooms, and answer for each in their order."""
        answers: Sequence[Answer] = await self._log.append(appends)
        for append, answer in zip(appends, answers, strict=True):
            if answer is None:
                after = append.after
                head = Position(after.epoch, after.offset + len(append.records))
                self.handing_on.stands(append.room_id, head)
            else:
                self.handing_on.forget(append.room_id)
        return answers

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Read entries, oldest first, at most `limit`; what the log does not have any more comes from the store."""
        found: Found = await self._log.read(room_id, after=after, before=before, limit=limit)
        if not self._store.serves_history:
            return found
        if after is not None:
            if found.oldest is not None and found.oldest.offset <= after.offset + 1:
                return found
            kept = await self._store.read(room_id, after, None, limit)
            # Of an epoch that the log knows it has what the store does not have yet.
            if not kept.entries:
                return Found(found.entries, kept.oldest or found.oldest)
            return Found(kept.entries, kept.oldest or _place(kept.entries[0]))
        if len(found.entries) >= limit:
            return found
        place = _place(found.entries[0]) if found.entries else before
        kept = await self._store.read(room_id, None, place, limit - len(found.entries))
        oldest = kept.oldest or (_place(kept.entries[0]) if kept.entries else found.oldest)
        return Found((*kept.entries, *found.entries), oldest)

    async def close_rooms(self, ends: Mapping[str, tuple[int, Position]], /) -> Mapping[str, bool]:
        """Prove the heads of rooms, and answer for each."""
        answers: Mapping[str, bool] = await self._log.close_rooms(ends)
        return answers

    async def find(self, room_id: str, user_id: str, key: str, /) -> Entry | None:
        """Return the entry that was stored under an idempotency key, or None; the log keeps those that must answer."""
        entry: Entry | None = await self._log.find(room_id, user_id, key)
        return entry

    def __getattr__(self, name: str) -> Any:
        # Retention is about what the store keeps; what the log keeps beside that, it need not.
        if name in ("list_rooms", "trim") and trims(self._kept):
            return getattr(self._kept, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _place(entry: Entry) -> Position:
    return Position(entry.epoch, entry.offset)
