"""The record of a room: what its owner appends to the log, where there is one, and tells every node that follows it.

A reader chains the records: each says which one was before it, and one that does not follow what was read last shows
that something is missing. A record of a lower term is that of an owner who lost the room.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from chatx.adapters.entry_rows import entry_of, row_of
from chatx.cluster.fields import (
    Boot,
    Count,
    Epoch,
    Id,
    NodeName,
    Part,
    Place,
    Text,
    Word,
    check_content,
    check_data,
    check_ids,
)
from chatx.core.data import Data
from chatx.core.message import Entry, Signal

ENTRIES_AT_ONCE: Final = 256
"""Entries in one record, and signals, at most: what one append may have."""


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
    kind: Word
    target: Word | None
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


class SignalRow(Part, frozen=True, gc=False):
    """A signal without what its record says already.

    Attributes:
        user_id: Whose act it is.
        kind: What it is.
        data: What it carries as JSON, or None.
    """

    user_id: Id
    kind: Word
    data: Text | None = None

    @classmethod
    def of(cls, signal: Signal) -> SignalRow:
        """Return the row of a signal."""
        return cls(signal.user_id, signal.kind, None if signal.data is None else signal.data.text)

    def signal(self, room_id: str) -> Signal:
        """Return the signal."""
        return Signal(room_id, self.user_id, self.kind, None if self.data is None else Data.from_text(self.data))

    def check(self) -> None:
        """Check the user's id and the data."""
        check_ids(user_id=self.user_id)
        check_data(self.data)


class RoomRecord(Part, frozen=True, gc=False):
    """What every record of a room says.

    Attributes:
        room_id: The room itself; a subject has only its token.
        node: The owner.
        boot: Which life of it.
        term: The term under which it has the room.
        epoch: Identity of the room's stream.
        after: The offset of the head ahead of what the record brings; 0 where the stream begins.
        prev: The number of the room's record before this one; 0 where there is none.
        back: The number of the newest record that has entries; 0 where there is none.
    """

    room_id: Id
    node: NodeName
    boot: Boot
    term: Count
    epoch: Epoch
    after: Count
    prev: Count
    back: Count

    def check(self) -> None:
        """Check the room's id."""
        check_ids(room_id=self.room_id)


class Opened(RoomRecord, frozen=True, gc=False, tag="open"):
    """The room was taken over, at the head that the record names: every lower term is fenced."""


class Closed(RoomRecord, frozen=True, gc=False, tag="close"):
    """The room was let go of, at the head that the record names, which is proven."""


class Live(RoomRecord, frozen=True, gc=False, tag="live"):
    """What happened in the room.

    Attributes:
        entries: At the places behind `after`, in order, at most `ENTRIES_AT_ONCE`.
        signals: What has no place, at most as many.
    """

    entries: Annotated[tuple[EntryRow, ...], Meta(max_length=ENTRIES_AT_ONCE)] = ()
    signals: Annotated[tuple[SignalRow, ...], Meta(max_length=ENTRIES_AT_ONCE)] = ()

    def placed(self) -> list[Entry]:
        """Return the entries at their places."""
        return [row.entry(self.room_id, self.epoch, offset) for offset, row in enumerate(self.entries, self.after + 1)]

    def check(self) -> None:
        """Check all that the record brings."""
        RoomRecord.check(self)
        for row in self.entries:
            row.check()
        for signal in self.signals:
            signal.check()
