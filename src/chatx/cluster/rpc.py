"""What a node asks another one, what that answers, and what the owner of a room tells whoever follows it.

An ask says what is to be done, an answer what came of it. Who tells and answers is known by the way it came.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from chatx.cluster.entries import ENTRIES_AT_ONCE, Placed
from chatx.cluster.fields import Boot, Count, Epoch, Id, Part, Place, Reason, Text, Word, check_content, check_ids
from chatx.cluster.memberships import Memberships
from chatx.cluster.operating import OperatorsAnswer, OperatorsAsk
from chatx.cluster.polling import PollsAnswer, PollsAsk

ROOMS_AT_ONCE: Final = 1_000
"""Rooms in one record, at most."""

Entries: TypeAlias = Annotated[tuple[Placed, ...], Meta(max_length=ENTRIES_AT_ONCE)]


class _OfRoom(Part, frozen=True, gc=False):
    room_id: Id

    def check(self) -> None:
        """Check the room's id."""
        check_ids(room_id=self.room_id)


class _OfUser(_OfRoom, frozen=True, gc=False):
    user_id: Id

    def check(self) -> None:
        """Check the ids."""
        check_ids(room_id=self.room_id, user_id=self.user_id)


class Submit(_OfUser, frozen=True, gc=False, tag="submit"):
    """Send a message: the owner runs the middlewares.

    Attributes:
        room_id: The room.
        user_id: Who sends.
        content: What was accepted where it was sent.
        data: The JSON object that travels with it, as text, or None.
        key: The idempotency key, or None.
        trusted: Whether no middleware is asked, since the application's own code sends.
        stored: Whether it is to be stored before it is acknowledged.
        epoch: The only epoch in which it may be published, or None.
    """

    content: Text
    data: Text | None
    key: Id | None
    trusted: bool
    stored: bool
    epoch: Epoch | None = None

    def check(self) -> None:
        """Check the ids, the content and the data."""
        check_ids(room_id=self.room_id, user_id=self.user_id, key=self.key)
        check_content(self.content, self.data)


class Attach(_OfRoom, frozen=True, gc=False, tag="attach"):
    """Tell a node from now on what is placed in a room.

    Attributes:
        room_id: The room.
        boot: Who asks.
        after: The place up to which its replica has the stream; None where it has nothing of it yet.
        most: Entries in the answer, at most.
        members: That node's own memberships in the room, or the first of them.
        more: Whether `Members` brings others. Where none do, it has no memberships but these.
    """

    boot: Boot
    after: Place | None
    most: Count
    members: Memberships
    more: bool

    def check(self) -> None:
        """Check all ids."""
        check_ids(room_id=self.room_id)
        for each in self.members:
            each.check()


class Members(_OfRoom, frozen=True, gc=False, tag="members"):
    """Memberships have begun, and others have ended, on a node that follows a room.

    Attributes:
        room_id: The room.
        boot: Which node.
        joins: What has begun.
        leaves: What has ended.
        more: Whether more of what `Attach` began is to come.
    """

    boot: Boot
    joins: Memberships
    leaves: Memberships
    more: bool

    def check(self) -> None:
        """Check all ids."""
        check_ids(room_id=self.room_id)
        for each in (*self.joins, *self.leaves):
            each.check()


class Follow(Part, frozen=True, gc=False, tag="follow"):
    """A node follows rooms still.

    Attributes:
        boot: Which node.
        rooms: Room id to the number of the last `Told` that it has.
    """

    boot: Boot
    rooms: Annotated[dict[Id, Count], Meta(max_length=ROOMS_AT_ONCE)]

    def check(self) -> None:
        """Check the rooms' ids."""
        for room_id in self.rooms:
            check_ids(room_id=room_id)


class Detach(_OfRoom, frozen=True, gc=False, tag="detach"):
    """A node follows a room no longer, and has no memberships there."""

    boot: Boot


class Read(_OfRoom, frozen=True, gc=False, tag="read"):
    """Bring entries.

    Attributes:
        room_id: The room.
        place: The place; None for the newest entries.
        behind: Whether those behind the place are wanted, or those ahead of it.
        limit: How many, at most.
    """

    place: Place | None
    behind: bool
    limit: Annotated[int, Meta(ge=1, le=ENTRIES_AT_ONCE)]


class Join(_OfUser, frozen=True, gc=False, tag="join"):
    """Begin a user's plain membership, which lives with the room's owner."""


class Leave(_OfUser, frozen=True, gc=False, tag="leave"):
    """End a user's plain membership."""


class Present(_OfRoom, frozen=True, gc=False, tag="present"):
    """Say who is in a room.

    Attributes:
        room_id: The room.
        behind: The ref behind which to go on, in the order of refs; empty for the first.
    """

    behind: Annotated[str, Meta(max_length=255)] = ""


class Revoke(Part, frozen=True, gc=False, tag="revoke"):
    """Cut off all that a user holds on a node."""

    user_id: Id

    def check(self) -> None:
        """Check the id."""
        check_ids(user_id=self.user_id)


class HandOff(_OfRoom, frozen=True, gc=False, tag="handoff"):
    """Give up a room that the node which asks owns now, and bring what is there of its stream.

    Attributes:
        room_id: The room.
        boot: Who asks.
        take: The one take that the question is a part of: who asks again under it gets the same answer.
        before: The offset ahead of which entries are wanted; None for the newest.
    """

    boot: Boot
    take: Id
    before: Count | None = None


RoomsAsk: TypeAlias = Submit | Attach | Members | Follow | Detach | Read | Join | Leave | Present | Revoke | HandOff

Ask: TypeAlias = RoomsAsk | OperatorsAsk | PollsAsk


class Done(Part, frozen=True, gc=False, tag="done"):
    """It is done."""


class Moved(Part, frozen=True, gc=False, tag="moved"):
    """The room is not this node's, as far as it knows, or it cannot be handed off yet."""


class Refused(Part, frozen=True, gc=False, tag="refused"):
    """It is refused, as `ChatError` says it.

    Attributes:
        code: As in the table of errors, or an application's own.
        reason: Why, for a person.
        retry_after: In seconds, or None.
    """

    code: Word
    reason: Reason
    retry_after: Annotated[float, Meta(ge=0, le=86_400)] | None = None


class Sent(Part, frozen=True, gc=False, tag="sent"):
    """What was sent.

    Attributes:
        placed: The message.
        duplicate: Whether the key had made it before.
    """

    placed: Placed
    duplicate: bool

    def check(self) -> None:
        """Check the message."""
        self.placed.check()


class Attached(Part, frozen=True, gc=False, tag="attached"):
    """What brings a replica up to date.

    Attributes:
        head: The newest place of the room's stream.
        number: That of the last `Told`; the next one follows it.
        entries: What comes behind the replica's place, or, where that cannot be had whole, the newest.
        whole: Whether nothing is missing between the replica's place and the entries.
        present: The memberships that are not of the node that asks, or the first of them in the order of their refs.
        more: Whether there are others, for which `Present` asks.
    """

    head: Place
    number: Count
    entries: Entries
    whole: bool
    present: Memberships
    more: bool

    def check(self) -> None:
        """Check all that it brings."""
        for each in (*self.entries, *self.present):
            each.check()


class Differ(Part, frozen=True, gc=False, tag="differ"):
    """The rooms of which the node that asks does not have the newest, or does not follow any more."""

    room_ids: Annotated[tuple[Id, ...], Meta(max_length=ROOMS_AT_ONCE)]

    def check(self) -> None:
        """Check the rooms' ids."""
        for room_id in self.room_ids:
            check_ids(room_id=room_id)


class Found(Part, frozen=True, gc=False, tag="found"):
    """Entries, oldest first.

    Attributes:
        entries: The entries.
        oldest: The oldest place that is kept, or None where that is not known.
    """

    entries: Entries
    oldest: Place | None

    def check(self) -> None:
        """Check the entries."""
        for each in self.entries:
            each.check()


class Presence(Part, frozen=True, gc=False, tag="presence"):
    """Who is in a room, in the order of refs.

    Attributes:
        present: Memberships.
        more: Whether there are others behind them.
    """

    present: Memberships
    more: bool

    def check(self) -> None:
        """Check all ids."""
        for each in self.present:
            each.check()


class HandedOff(Part, frozen=True, gc=False, tag="handedoff"):
    """What was there of a room's stream.

    Attributes:
        head: The newest place; None where nothing was there.
        entries: Entries, with their keys: as many of the newest that were asked for as go at once.
        more: Whether older ones are there.
    """

    head: Place | None
    entries: Entries
    more: bool = False

    def check(self) -> None:
        """Check the entries."""
        for each in self.entries:
            each.check()


Answer: TypeAlias = (
    Done | Moved | Refused | Sent | Attached | Differ | Found | Presence | HandedOff | OperatorsAnswer | PollsAnswer
)


class Told(_OfRoom, frozen=True, gc=False, tag="told"):
    """What an owner tells whoever follows a room.

    Attributes:
        room_id: The room.
        boot: The owner.
        number: Of this among all that this owner tells of the room, without a hole.
        entries: What was placed, in order.
        joins: Memberships that have begun.
        leaves: Memberships that have ended.
    """

    boot: Boot
    number: Count
    entries: Entries
    joins: Memberships
    leaves: Memberships

    def check(self) -> None:
        """Check all that it brings."""
        check_ids(room_id=self.room_id)
        for each in (*self.entries, *self.joins, *self.leaves):
            each.check()
