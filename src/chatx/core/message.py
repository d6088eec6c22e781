"""What travels through a room: a draft on its way in, entries and the other events on their way out.

An entry has a place in the room's stream, for ever; a message is the entry of kind `message`. A signal has none: it is
never stored, and the first that a full mailbox lets go of. Whoever does not know an entry's kind skips it and still
moves its place.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, final

from msgspec import Struct

from chatx.core.data import Data


@final
class Draft(Struct, frozen=True, gc=False):
    """A validated message before it has a place in the room's stream; what a middleware is given.

    A middleware returns the draft it was given, or a changed one: `msgspec.structs.replace(draft, content=...)`.

    Attributes:
        room_id: The room it is sent to.
        user_id: Who sends it.
        content: Text, within `message_size_limit` bytes of UTF-8; may be empty where there is `data`.
        data: A JSON object that travels with it, within `message_data_limit` bytes, or None.
        epoch: The only epoch in which it may be published, or None; a middleware cannot change it.
    """

    room_id: str
    user_id: str
    content: str
    data: Data | None = None
    epoch: str | None = None


class Entry(Struct, frozen=True, gc=False):
    """What has a place in a room's stream: the part that all kinds share. Each kind is a subclass.

    Attributes:
        id: A UUIDv7 as text.
        room_id: The room.
        user_id: Whose act it is.
        content: Text; what it says is for its kind.
        inserted_at: When it was placed, in ms since the Unix epoch.
        epoch: Opaque identity of the room's stream.
        offset: Place in that stream; contiguous from 1.
    """

    id: str
    room_id: str
    user_id: str
    content: str
    inserted_at: int
    epoch: str
    offset: int

    @property
    def kind(self) -> str:
        """What it is, as the log keeps it."""
        raise NotImplementedError

    @property
    def target(self) -> str | None:
        """The id of the entry that it is about, or None."""
        return None

    @property
    def data(self) -> Data | None:
        """The JSON object that travels with it, or None; the last field of each kind that has one."""
        return None


class Message(Entry, frozen=True, gc=False):
    """A message with its place in the room's stream.

    Attributes:
        id: A UUIDv7 as text.
        room_id: The room.
        user_id: Who sent it.
        content: Exactly what was accepted.
        inserted_at: When it was published, in ms since the Unix epoch.
        epoch: Opaque identity of the room's stream.
        offset: Place in that stream; contiguous from 1.
        duplicate: True only in the answer to a repeated idempotency key.
        stored: Whether its acknowledgement says that the log has it; else it is `sequenced`.
        data: The JSON object that travels with it, or None.
    """

    duplicate: bool = False
    stored: bool = False
    data: Data | None = None

    @property
    def kind(self) -> str:
        """What it is, as the log keeps it."""
        return "message"


class UnknownEntry(Entry, frozen=True, gc=False):
    """An entry of a kind that this version does not know: it holds its place, and nobody is told what it says.

    Attributes:
        kind: What it is.
        target: The id of the entry that it is about, or None.
        data: What it carries, or None.
    """

    kind: str
    target: str | None = None
    data: Data | None = None


ENTRIES = (Message, Entry)
"""Entries of every kind, for `isinstance`: the commonest first, since only an exact type is told apart quickly."""


class Signal(Struct, frozen=True, gc=False):
    """What has no place in the stream and is never stored; the first to be let go of, without a `Gap`.

    Attributes:
        room_id: The room.
        user_id: Whose act it is.
        kind: What it is.
        data: What it carries, or None.
    """

    room_id: str
    user_id: str
    kind: str
    data: Data | None = None


class Position(NamedTuple):
    """A place in a room's stream: what has been seen up to, inclusive. Offset 0 is before the first message."""

    epoch: str
    offset: int


Unrecovered: TypeAlias = Literal["epoch_changed", "too_old", "too_many"]
"""Why a resume brings nothing of what was missed."""

GapReason: TypeAlias = Literal["epoch_changed", "too_old", "too_many", "slow_consumer", "missing"]


class Gap(Struct, frozen=True, gc=False):
    """Messages are missing here, and this says so. What follows starts at `offset + 1`.

    Attributes:
        room_id: The room.
        reason: `epoch_changed` (the stream asked for is not this one), `too_old` (no longer kept), `too_many` (more
            than `resume_max_messages`), `slow_consumer` (dropped from a full mailbox), `missing` (a hole in the
            stored history).
        epoch: The stream that follows.
        offset: The place after which it follows.
        missed: How many messages are missing, or None where unknown.
    """

    room_id: str
    reason: GapReason
    epoch: str
    offset: int
    missed: int | None = None


class PresenceMeta(Struct, frozen=True, gc=False):
    """One membership of a user in a room: one connection, or the plain `chat.join`.

    Attributes:
        ref: Unique within the room; the wire calls it `phx_ref`.
        online_at: When it began, in ms since the Unix epoch.
    """

    ref: str
    online_at: int


Presences: TypeAlias = dict[str, list[PresenceMeta]]
"""User id to that user's memberships, none of them empty."""


class PresenceState(Struct, frozen=True):
    """Who is in the room when a subscription with presence begins, or begins anew after a loss.

    Attributes:
        room_id: The room.
        presences: User id to its memberships.
    """

    room_id: str
    presences: Presences


class PresenceDiff(Struct, frozen=True):
    """What changed since the state or diff before; a membership is in at most one of the two.

    Attributes:
        room_id: The room.
        joins: User id to the memberships that began.
        leaves: User id to the memberships that ended.
    """

    room_id: str
    joins: Presences
    leaves: Presences


class SubscriptionEnded(Struct, frozen=True, gc=False):
    """A room has ended what a connection held there, its subscription or its membership or both; its other rooms go on.

    Attributes:
        room_id: The room.
        code: Why, as in the table of errors.
        reason: Why, for a person.
    """

    room_id: str
    code: str
    reason: str


Event: TypeAlias = Entry | Signal | Gap | PresenceState | PresenceDiff | SubscriptionEnded
"""What a room tells: entries, of which this version knows `Message`; `Gap`, `PresenceState`, `PresenceDiff`; on a
connection also `SubscriptionEnded`."""

# What an event that is not a message weighs against a mailbox's byte bound: its own size without its strings.
EVENT_BYTES = 128


def weigh(event: Event) -> int:
    """Return the bytes an event counts for in a mailbox: its content, its data, and a constant for the rest."""
    if isinstance(event, ENTRIES):
        content = event.content
        size = len(content) if content.isascii() else len(content.encode())
        data = event.data
        return EVENT_BYTES + size if data is None else EVENT_BYTES + size + data.weight
    if isinstance(event, Signal):
        return EVENT_BYTES if event.data is None else EVENT_BYTES + event.data.weight
    if isinstance(event, PresenceState):
        return EVENT_BYTES * (1 + sum(map(len, event.presences.values())))
    if isinstance(event, PresenceDiff):
        return EVENT_BYTES * (1 + sum(map(len, event.joins.values())) + sum(map(len, event.leaves.values())))
    return EVENT_BYTES
