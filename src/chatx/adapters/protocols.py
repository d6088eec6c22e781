"""What an adapter must have. Each method may be plain or async; which one is decided once, when the chat is built.

All four are optional. Arguments are positional unless the signature says otherwise.

Contract: the engine calls `authorize` and `check` concurrently for different users. It saves the messages of a room in
order, but a message that failed is saved again later, alone, and after younger ones: order by `offset` when reading.
A message may be saved twice, after a timeout whose outcome was not known: (room_id, epoch, offset) names it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Literal, Protocol, TypeAlias

from chatx.core.message import Draft, Message

Action: TypeAlias = Literal["join", "subscribe", "send"]
"""What a user asks to do in a room."""


class Auth(Protocol):
    """Says who may do what in which room."""

    def authorize(self, user_id: str, room_id: str, action: Action, /) -> bool | Awaitable[bool]:
        """Return exactly True or False, or raise `Unauthorized(reason)`. Anything else refuses. Must not block."""
        ...


class Moderation(Protocol):
    """Says which content may be sent."""

    def check(self, content: str, /) -> bool | Awaitable[bool]:
        """Return exactly True or False, or raise `Blocked(reason)`. Anything else refuses. Must not block."""
        ...


class ModeratesMessages(Protocol):
    """Says which messages may be sent, by all that they have: the data that travels with them too."""

    def check_message(self, draft: Draft, /) -> bool | Awaitable[bool]:
        """Answer as `Moderation.check`, which is not asked where there is this."""
        ...


class SavesEach(Protocol):
    """Persistence that saves one message at a time."""

    def save_message(self, message: Message, /) -> object:
        """Save one message. An exception or a timeout is a failure and is retried; the answer is ignored."""
        ...


class SavesBatches(Protocol):
    """Persistence that saves many messages at a time."""

    def save_messages(self, messages: Sequence[Message], /) -> object:
        """Save all of the messages or none. After a failure each is tried again alone."""
        ...


Persistence: TypeAlias = SavesEach | SavesBatches
"""Saves messages as `SavesEach` or `SavesBatches`; may also be `ServesHistory` and `MarksStreams`."""


class ServesHistory(Protocol):
    """Persistence that can be read again. Its two methods are optional, but only together."""

    def load_messages(
        self,
        room_id: str,
        /,
        *,
        after: tuple[str, int] | None = None,
        before: tuple[str, int] | None = None,
        limit: int,
    ) -> Sequence[Message] | Awaitable[Sequence[Message]]:
        """Return messages in the room's order, oldest first, at most `limit`.

        With `after` an (epoch, offset): the first ones of that epoch past that offset. With `before`: the last ones
        ahead of that place, earlier epochs included. With neither: the newest.

        The room's order is that of its epochs, and of the offsets within each. Epochs are in the order in which they
        began: by `mark_open`, or else by their first message. Their names and the times of their messages say nothing.
        One of which nothing is stored when the next begins may count from its first message.

        A place needs no message: what is before or after an offset that was never saved is told by number. In an epoch
        that the store does not have, nothing is after any place; before it is everything that is stored, as of an epoch
        of which nothing is saved yet, or nothing. What cannot be read is an exception, never a shorter answer: a reader
        takes what is not in it for a hole.
        """
        ...

    def last_position(self, room_id: str, /) -> tuple[str, int] | Awaitable[tuple[str, int] | None] | None:
        """Return the (epoch, offset) up to which the room's stream is known to have gone, or None.

        The stream goes on from there under the same epoch, so answer only with what is proven: nobody has seen a
        later offset of that epoch. None begins a new epoch, which is always safe.
        """
        ...


class MarksStreams(Protocol):
    """Persistence that is told when a stream is open, and can so prove a clean stop; optional."""

    def mark_open(self, room_id: str, epoch: str, /) -> object:
        """Withdraw the proof: from now on offsets may be seen that were never saved.

        It precedes the first message of each of the room's lives; a life in which nothing is said has none.
        """
        ...

    def mark_closed(self, room_id: str, epoch: str, offset: int, /) -> object:
        """Record that the stream ended at `offset` with everything saved: `last_position` may answer with it."""
        ...


class MarksManyStreams(MarksStreams, Protocol):
    """Persistence that records many ends at once; optional, for a stop with thousands of rooms."""

    def mark_all_closed(self, ends: Sequence[tuple[str, str, int]], /) -> object:
        """Record the ends (room id, epoch, offset) of streams, all or none; after a failure each is tried alone."""
        ...


class Notifier(Protocol):
    """Tells users of messages. May also have `recipients(message)`, which names the users to notify."""

    def notify(self, user_id: str, message: Message, /) -> object:
        """Notify one user. An exception or a timeout is a failure and is retried; the answer is ignored."""
        ...
