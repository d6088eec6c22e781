"""What other nodes read of a room of this one."""

from __future__ import annotations

from collections.abc import Sequence

from chatx.core.message import Entry, Position
from chatx.runtime.engine import Engine


async def own_entries(
    engine: Engine, room_id: str, place: Position | None, *, behind: bool, limit: int
) -> tuple[Sequence[Entry], Position | None]:
    """Return entries of a room of this node behind a place, ahead of one or the newest, and the oldest place kept.

    Raises:
        AdapterError: The store cannot be read now.
    """
    process = await engine.room(room_id)
    if behind and place is not None and not process.replica:
        await engine.reach(process, place)
    storage = engine.storage_of(room_id)
    with process.held():
        oldest = Position(process.head.epoch, process.oldest)
        if behind and place is not None:
            page = process.page(place, limit)
            if isinstance(page, list):
                return page, oldest
            if not storage.serves_history:
                return (), oldest
            found = await storage.read(room_id, after=place, limit=limit)
            return found.entries, found.oldest
        entries = process.newest(limit) if place is None else process.before(place, limit)
        if entries or not storage.serves_history:
            return entries, oldest
        return await storage.load(room_id, before=place, limit=limit), None
