"""An entry as a row of a table: the columns, and what becomes of a kind that this version does not know."""

from __future__ import annotations

from typing import Any

from chatx.core.data import Data
from chatx.core.message import Entry, Message, UnknownEntry


def row_of(entry: Entry) -> tuple[Any, ...]:
    """Return (id, user_id, content, inserted_at, kind, target, data as text, stored) of an entry."""
    data: Data | None = entry.data
    stored = isinstance(entry, Message) and entry.stored
    text = None if data is None else data.text
    return entry.id, entry.user_id, entry.content, entry.inserted_at, entry.kind, entry.target, text, stored


def entry_of(room_id: str, epoch: str, offset: int, row: tuple[Any, ...]) -> Entry:
    """Return the entry that `row_of` made the row of."""
    id_, user_id, content, inserted_at, kind, target, text, stored = row
    data = None if text is None else Data.from_text(text)
    if kind == "message":
        return Message(id_, room_id, user_id, content, inserted_at, epoch, offset, False, bool(stored), data)
    return UnknownEntry(id_, room_id, user_id, content, inserted_at, epoch, offset, kind, target, data)
