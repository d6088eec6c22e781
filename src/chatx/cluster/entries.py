"""An entry as records have it, which nodes tell each other and which are kept in their log."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from chatx.adapters.entry_rows import entry_of, row_of
from chatx.cluster.fields import Count, Id, Part, Place, Text, Word, check_content, check_ids
from chatx.core.message import Entry

ENTRIES_AT_ONCE: Final = 256
"""Entries in one record, at most: what one append may have."""

Kind: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,128}\Z")]
"""What an entry is, or the id of the one that it is about; a later version may have other ones than this."""


class EntryRow(Part, frozen=True, gc=False):
    """An entry without what its record says already: the columns that a store has for it, and its key.

    Attributes:
        id: A UUIDv7 as text.
        user_id: Whose act it is.
        content: Text.
        inserted_at: When it was placed, in ms since the Unix epoch.
        kind: What it is.
        target: The id of the entry that it is about, or None.
        data: The JSON object that travels with it, as text, or None.
        stored: Whether its acknowledgement says that the log has it.
        key: The idempotency key that it was sent with, or None.
    """

    id: Word
    user_id: Id
    content: Text
    inserted_at: Count
    kind: Kind
    target: Kind | None
    data: Text | None
    stored: bool
    key: Id | None = None

    @classmethod
    def of(cls, entry: Entry, key: str | None = None) -> EntryRow:
        """Return the row of an entry."""
        id_, user_id, content, inserted_at, kind, target, data, stored = row_of(entry)
        return cls(id_, user_id, content, inserted_at, kind, target, data, stored, key)

    def entry(self, room_id: str, epoch: str, offset: int) -> Entry:
        """Return the entry at its place."""
        row = (
            self.id,
            self.user_id,
            self.content,
            self.inserted_at,
            self.kind,
            self.target,
            self.data,
            self.stored,
        )
        return entry_of(room_id, epoch, offset, row)

    def check(self) -> None:
        """Check the user's id, the key, the content and the data."""
        check_ids(user_id=self.user_id, key=self.key)
        check_content(self.content, self.data)


class Placed(Part, frozen=True, gc=False):
    """An entry with its place, where a record has those of many epochs, or of one entry.

    Attributes:
        place: Where it is.
        row: What it is.
    """

    place: Place
    row: EntryRow

    @classmethod
    def of(cls, entry: Entry, key: str | None = None) -> Placed:
        """Return an entry with its place."""
        return cls(Place(entry.epoch, entry.offset), EntryRow.of(entry, key))

    def entry(self, room_id: str) -> Entry:
        """Return the entry."""
        return self.row.entry(room_id, self.place.epoch, self.place.offset)

    def check(self) -> None:
        """Check the row."""
        self.row.check()
