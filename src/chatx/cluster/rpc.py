"""What a node asks another one, mostly the owner of a room, and what that answers.

An ask says what is to be done, an answer what came of it; `Request` and `Reply` are the envelopes. What is asked for
again, because no reply came, has the same id and the same key.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from chatx.cluster.fields import Boot, Count, Id, NodeName, Part, Place, Reason, Text, Word, check_content, check_ids
from chatx.cluster.live import ENTRIES_AT_ONCE, Placed
from chatx.cluster.presence_records import Memberships

LONGEST_MS: Final = 60_000
"""The longest that an asker waits, in ms."""


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
        content: What was accepted at the edge.
        data: The JSON object that travels with it, as text, or None.
        key: The idempotency key; a node makes one where the sender gave none.
        durability: Which acknowledgement is wanted.
        trusted: Whether no middleware is asked, since the application's own code sends.
    """

    content: Text
    data: Text | None
    key: Id
    durability: Literal["sequenced", "stored"]
    trusted: bool = False

    def check(self) -> None:
        """Check the ids, the content and the data."""
        _OfUser.check(self)
        check_ids(key=self.key)
        check_content(self.content, self.data)


class Attach(_OfRoom, frozen=True, gc=False, tag="attach"):
    """Follow a room: the asker has a subscriber in it.

    Attributes:
        room_id: The room.
        after: What the asker has seen of it up to, or None.
    """

    after: Place | None = None


class Detach(_OfRoom, frozen=True, gc=False, tag="detach"):
    """Follow a room no longer."""


class Read(_OfRoom, frozen=True, gc=False, tag="read"):
    """Read entries, as `RoomLog.read` does: with neither place the newest.

    Attributes:
        room_id: The room.
        after: Behind this place, or None.
        before: Ahead of this place, or None.
        limit: At most so many.
    """

    after: Place | None
    before: Place | None
    limit: Annotated[int, Meta(ge=1, le=ENTRIES_AT_ONCE)]


class Members(_OfRoom, frozen=True, gc=False, tag="members"):
    """Tell who is in a room.

    Attributes:
        room_id: The room.
        boot: Only those of this node, or None for all.
        part: Which part of the answer, from 0.
    """

    boot: Boot | None = None
    part: Annotated[int, Meta(ge=0, le=9_999)] = 0


class Join(_OfUser, frozen=True, gc=False, tag="join"):
    """Begin the plain membership of a user, which lives with the room's owner."""


class Leave(_OfUser, frozen=True, gc=False, tag="leave"):
    """End the plain membership of a user."""


class Revoke(Part, frozen=True, gc=False, tag="revoke"):
    """End what a user has on this node, in one room or in all.

    Attributes:
        user_id: The user.
        room_id: The room, or None for all.
        reason: Why, for a person.
    """

    user_id: Id
    room_id: Id | None
    reason: Reason = ""

    def check(self) -> None:
        """Check the ids."""
        check_ids(user_id=self.user_id, room_id=self.room_id)


Ask: TypeAlias = Submit | Attach | Detach | Read | Members | Join | Leave | Revoke


class Done(Part, frozen=True, gc=False, tag="done"):
    """It was done, and there is nothing to say of it."""


class Sent(Part, frozen=True, gc=False, tag="sent"):
    """The message has its place.

    Attributes:
        placed: It, with its place.
        duplicate: Whether its key was seen before.
    """

    placed: Placed
    duplicate: bool = False

    def check(self) -> None:
        """Check the message."""
        self.placed.check()


class Attached(Part, frozen=True, gc=False, tag="attached"):
    """The asker follows the room.

    Attributes:
        term: The term under which the room is had.
        head: Where the stream stands.
        number: The number of the room's newest record; the next one that comes says it as `prev`.
    """

    term: Count
    head: Place
    number: Count


class Found(Part, frozen=True, gc=False, tag="found"):
    """What a read brought.

    Attributes:
        entries: Oldest first.
        oldest: The oldest place that is kept, or None where the log has no such epoch.
    """

    entries: Annotated[tuple[Placed, ...], Meta(max_length=ENTRIES_AT_ONCE)]
    oldest: Place | None

    def check(self) -> None:
        """Check the entries."""
        for placed in self.entries:
            placed.check()


class Present(Part, frozen=True, gc=False, tag="present"):
    """Who is in the room, or a part of them.

    Attributes:
        part: Which part this is, from 0.
        parts: How many there are.
        present: The memberships of this part.
    """

    part: Count
    parts: Count
    present: Memberships

    def check(self) -> None:
        """Check the memberships."""
        for each in self.present:
            each.check()


class Moved(Part, frozen=True, gc=False, tag="moved"):
    """Another node has the room, as far as this one knows; nothing was done.

    Attributes:
        node: The other node, or None where this one knows no owner.
        boot: Which life of it, or None.
        view: The hash of the view by which it is so.
    """

    node: NodeName | None
    boot: Boot | None
    view: Word


class Refused(Part, frozen=True, gc=False, tag="refused"):
    """It was refused.

    Attributes:
        code: As in the table of errors.
        reason: Why, for a person.
        retry_after: Seconds to wait, or None where that is not known.
    """

    code: Word
    reason: Reason
    retry_after: Annotated[float, Meta(ge=0, le=86_400)] | None = None


Answer: TypeAlias = Done | Sent | Attached | Found | Present | Moved | Refused


class Request(Part, frozen=True, gc=False, tag="request"):
    """An ask on its way.

    Attributes:
        id: The asker's own number of it.
        node: The asker.
        boot: Which life of it.
        timeout_ms: How long the asker waits, 1 to `LONGEST_MS`; whoever comes to it later leaves it.
        ask: What is asked.
    """

    id: Count
    node: NodeName
    boot: Boot
    timeout_ms: Annotated[int, Meta(ge=1, le=LONGEST_MS)]
    ask: Ask

    def check(self) -> None:
        """Check the ask."""
        self.ask.check()


class Reply(Part, frozen=True, gc=False, tag="reply"):
    """An answer on its way.

    Attributes:
        id: That of the request.
        boot: Which life of which node answers.
        answer: What came of it.
    """

    id: Count
    boot: Boot
    answer: Answer

    def check(self) -> None:
        """Check the answer."""
        self.answer.check()
