"""`RoomLog`: where a room's entries are, in order, and who may append to them.

A store that is a log makes three promises that one which only saves does not. An append takes places, or surely does
not: two writers never share one. Whoever takes a room over *fences* whoever had it before. And it can be asked where a
room stands, so that a room goes on after a crash where all that anybody saw of it was stored.

Words: the *head* is the newest place; the *term* is a number that rises each time a room is taken over, and is the
proof of being the one who may append (the fence). A head is *proven* where nobody can have seen a later place.

Methods may be plain or async; plain ones are called in threads. What a call cannot answer it raises:

| raised | means | the engine then |
|---|---|---|
| `LogUnavailable` | surely nothing was written | tries again later; a send that waits for it is refused |
| anything else, or a timeout | perhaps it was written | takes the room over anew, and reads behind the head |

A log that cannot be read raises. It never answers with less: less is taken for a hole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from chatx.adapters.boundary import check_method
from chatx.adapters.outbox import check_outbox, keeps_some
from chatx.adapters.retention import check_retention
from chatx.core.message import Entry, Position

APPENDED_AT_ONCE = 256
"""Entries of one room in one append, at most."""

APPENDED_BYTES = 256 * 1024
"""Bytes of one room's entries in one append, at most; a larger entry goes alone."""

KEYS_KEPT_MS = 24 * 60 * 60 * 1000
"""How long an idempotency key is kept, in ms. Much longer than it has to answer: clocks are set forward and back."""

KEYS_AT_ONCE = 1_000
"""Keyed entries in one answer of `take_over`, at most, the newest; `find` knows the others."""


class LogUnavailable(Exception):
    """The log cannot be used now, and surely nothing was written."""


class Recipients(Struct, frozen=True, gc=False):
    """Whom the notifier is to tell of an entry, for the outbox.

    Attributes:
        users: The members of the moment, the sender left out; None where the notifier's `recipients` says whom.
        due_at: Since when they are to be told, in ms since the Unix epoch.
    """

    users: tuple[str, ...] | None
    due_at: int = 0


class Record(Struct, frozen=True, gc=False):
    """An entry as it is appended.

    Attributes:
        entry: With its place.
        key: The idempotency key that it was sent with, or None.
        notify: What goes into the outbox in the same transaction, or None. A log without an outbox gets none.
    """

    entry: Entry
    key: str | None = None
    notify: Recipients | None = None


class Append(Struct, frozen=True, gc=False):
    """What is appended to one room: all of it or nothing.

    Attributes:
        room_id: The room.
        term: The term that its owner holds.
        after: The head as its owner knows it. Another epoch than the log's, with offset 0, begins that epoch.
        records: At the places behind `after`, in order; at least one.
        durable: Whether it must survive a power cut; else the end of the process is enough.
        proven: Whether the head that it makes is proven with it: all that was seen is stored then. Otherwise an epoch
            that it begins is not proven, and within an epoch the proof stays as it is.
    """

    room_id: str
    term: int
    after: Position
    records: tuple[Record, ...]
    durable: bool
    proven: bool = True


class Keyed(Struct, frozen=True, gc=False):
    """An entry that was stored with an idempotency key."""

    key: str
    entry: Entry


class Opened(Struct, frozen=True, gc=False):
    """What a log knows of a room that was just taken over, or looked at.

    Attributes:
        term: The term of whoever has it; every earlier one is fenced. 0 where nobody ever took it over.
        head: The newest place, or None where nothing was ever appended.
        oldest: The offset of the oldest entry kept in the head's epoch; one past the head where there is none.
        proven: Whether nobody can have seen a place behind the head.
        keyed: The newest `KEYS_AT_ONCE` entries that have a key still, oldest first; as many as that where there may
            be more.
    """

    term: int
    head: Position | None
    oldest: int
    proven: bool
    keyed: tuple[Keyed, ...] = ()


class Found(Struct, frozen=True, gc=False):
    """What a read brought.

    Attributes:
        entries: Oldest first.
        oldest: The oldest place that is kept in the epoch that was asked for, or in the newest one; one past the head
            where the newest has nothing left, and None where there is no such epoch, or nothing left of an older one.
            What is below it is gone by retention: it is too old, not missing.
    """

    entries: tuple[Entry, ...]
    oldest: Position | None


Answer: TypeAlias = str | None
"""What became of one room's append: None where it was appended, `"fenced"` where somebody else has the room, or, for
an entry that cannot be stored, what is wrong with it."""

FENCED = "fenced"
"""The answer where somebody else has the room."""


class RoomLog(Protocol):
    """A store that is a log. `chatx.testing.contracts` has a suite that holds for every one."""

    def look(self, room_id: str, /) -> Opened | Awaitable[Opened]:
        """Return what is known of a room as `take_over` does, with the term that stands, and write nothing.

        A room is looked at when it is opened, and taken over ahead of its first entry: to be read leaves no trace.
        """
        ...

    def take_over(self, room_id: str, /) -> Opened | Awaitable[Opened]:
        """Take a room over: from here on an append under an earlier term is fenced."""
        ...

    def unproven(self, room_id: str, term: int, head: Position, /) -> bool | Awaitable[bool]:
        """Withdraw the proof of the room's head, before something is seen that is not stored; False: fenced.

        `head` is where its owner stands; in an epoch that the log does not have there is no proof to withdraw.
        It survives a power cut, or what was seen would be given out again.
        """
        ...

    def append(self, appends: Sequence[Append], /) -> Sequence[Answer] | Awaitable[Sequence[Answer]]:
        """Append to many rooms in one transaction, and answer for each in their order.

        A room that is refused fails alone; the others are appended. When this returns they are as durable as asked.
        An entry that is at its place already, under the same id, is not written twice: the same append may come again.
        """
        ...

    def read(
        self,
        room_id: str,
        /,
        *,
        after: Position | None = None,
        before: Position | None = None,
        limit: int,
    ) -> Found | Awaitable[Found]:
        """Read entries, oldest first, at most `limit`.

        With `after`: the first ones of that epoch behind that offset. With `before`: the last ones ahead of that place,
        earlier epochs included. With neither: the newest. An epoch that the log does not have has nothing after any
        place, and everything before it.
        """
        ...

    def close_rooms(
        self, ends: Mapping[str, tuple[int, Position]], /
    ) -> Mapping[str, bool] | Awaitable[Mapping[str, bool]]:
        """Prove the heads of rooms, (term, head) by room id, and answer for each.

        A fenced room proves nothing, nor does one whose head is elsewhere: then something was seen that is not stored.
        """
        ...

    def find(self, room_id: str, user_id: str, key: str, /) -> Entry | Awaitable[Entry | None] | None:
        """Return the entry that was stored under an idempotency key, or None; keys are kept for `KEYS_KEPT_MS`."""
        ...


class LockedLog(RoomLog, Protocol):
    """A log that has one writer at a time; optional. The lock dies with its holder."""

    def hold(self, wait_ms: int, /) -> bool | Awaitable[bool]:
        """Become the one who writes, waiting for at most so long for another to end; return whether that is so.

        A start asks again and again for half a second at most, until `drain_timeout_ms` is over.
        """
        ...

    def let_go(self) -> object:
        """Let another one write; twice is harmless."""
        ...


def is_log(store: Any) -> bool:
    """Return whether a persistence adapter is a log."""
    return all(
        hasattr(store, each) for each in ("look", "take_over", "unproven", "append", "read", "close_rooms", "find")
    )


def check_log(store: object) -> None:
    """Check that a log has its methods, all or none of an outbox, and that the engine can call them.

    Raises:
        ConfigError: They cannot.
    """
    check_method("persistence", store, "look", "room_id")
    check_method("persistence", store, "take_over", "room_id")
    check_method("persistence", store, "unproven", "room_id", "term", "head")
    check_method("persistence", store, "append", "appends")
    check_method("persistence", store, "read", "room_id", after=None, before=None, limit=1)
    check_method("persistence", store, "close_rooms", "ends")
    check_method("persistence", store, "find", "room_id", "user_id", "key")
    if hasattr(store, "hold") or hasattr(store, "let_go"):
        check_method("persistence", store, "hold", "wait_ms")
        check_method("persistence", store, "let_go")
    check_retention(store)
    if keeps_some(store):
        check_outbox(store)


def misplaced(append: Append) -> str | None:
    """Return what is wrong with the places of an append's entries, or None where each is behind the one before it."""
    if not append.records:
        return "An append has no entries; give at least one."
    expected = append.after.offset
    for record in append.records:
        entry, expected = record.entry, expected + 1
        if (entry.room_id, entry.epoch, entry.offset) != (append.room_id, append.after.epoch, expected):
            return (
                f"An entry of room {entry.room_id!r} has the place {entry.epoch}:{entry.offset}; behind the one before "
                f"it is {append.after.epoch}:{expected} of room {append.room_id!r}."
            )
    return None
