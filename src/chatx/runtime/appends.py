"""What a log is told of a room's batch: its entries, how durable they must be, and whether they prove the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chatx.adapters.room_log import Append, Recipients, Record
from chatx.core.idempotency import key_of
from chatx.core.message import Entry, Message
from chatx.core.sequencer import Flight
from chatx.runtime.process import RoomProcess

PROVEN_AGAIN_S = 10.0
"""How long nothing unstored must have been said in a room until a stored message proves its head again, in seconds. The
next unstored one awaits that the proof is withdrawn, so it is not to be so each time where both are said."""


class Names(Protocol):
    """Who says whom the notifier is to tell of a message, by the log's outbox."""

    @property
    def full(self) -> bool:
        """Whether the outbox takes no more."""
        ...

    def recipients(self, process: RoomProcess, message: Message) -> Recipients | None:
        """Return whom of one message, or None where that is nobody."""
        ...

    def named(self, process: RoomProcess) -> int:
        """Return how many users are written down with each of the room's messages, at most."""
        ...

    def wrote(self, rows: int) -> None:
        """Take note of rows that were written."""
        ...

    def left_out(self, process: RoomProcess, messages: Sequence[Message]) -> None:
        """Give up the notifications of messages that were stored while the outbox took no more."""
        ...


def append_of(process: RoomProcess, flight: Flight, term: int | None, now: float, names: Names | None) -> Append:
    """Return a room's batch as it is appended under a term, `now` being the loop's time.

    The flight notes whether it proves the head, and what it has for the outbox, or that there was no room.
    """
    flight.untold = names is not None and names.full
    if flight.untold:
        names = None
    records = tuple(
        Record(entry, None if scope is None else key_of(scope), _notified(process, entry, names))
        for entry, scope in flight.entries
    )
    flight.told = 0 if names is None else sum(each.notify is not None for each in records)
    stored = any(each.stored for each in flight.drafts)
    # Nothing unstored is seen while drafts are in flight, and what is owed is ahead of them.
    flight.stood = process.proven
    flight.proves = bool(flight.drafts) and (
        not process.unstored_seen or (stored and now >= process.unstored_at + PROVEN_AGAIN_S)
    )
    # A power cut that took back entries and left the proof of the head before them would have places used again.
    durable = stored or process.proven or flight.proves
    return Append(process.room_id, term or 0, flight.after, records, durable, flight.proves)


def _notified(process: RoomProcess, entry: Entry, names: Names | None) -> Recipients | None:
    if names is None or not isinstance(entry, Message) or not entry.stored:
        return None
    return names.recipients(process, entry)
