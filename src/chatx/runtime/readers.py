"""The readers of this chat, and about how many events wait for them.

That number changes with each event, and nothing is summed up then. `LOOKED_AT` readers at most are looked at in one go,
in turn. So the sum is exact up to so many readers; beyond them it has for each the number of its last look.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from chatx.errors import ChatError

LOOKED_AT = 100
"""Readers that are looked at in one go."""


class Revocable(Protocol):
    """Something that a user holds, and loses when revoked."""

    @property
    def user_id(self) -> str | None:
        """The user who holds it, or None: trusted code does."""
        ...

    def cut(self, error: ChatError) -> None:
        """End at once, with all memberships, since the user is revoked. Must not raise."""
        ...


class Consumes(Revocable, Protocol):
    """A reader of a mailbox or a socket of this chat."""

    @property
    def unread(self) -> int:
        """How many events wait for the reader."""
        ...

    def end(self, error: ChatError) -> None:
        """End with this error, since the chat stops."""
        ...


class Readers:
    """The readers of mailboxes and sockets of one chat, and about how many events wait for them.

    Attributes:
        unread: How many events wait for them all, each reader as of its last look.
    """

    __slots__ = ("_seen", "unread")

    def __init__(self) -> None:
        self._seen: OrderedDict[Consumes, int] = OrderedDict()  # what waited at the last look; longest ago first
        self.unread: int = 0

    def __len__(self) -> int:
        """Return how many readers there are."""
        return len(self._seen)

    def __iter__(self) -> Iterator[Consumes]:
        """Iterate over a copy of the readers."""
        return iter(list(self._seen))

    def add(self, reader: Consumes) -> None:
        """Add a reader."""
        self._seen[reader] = 0

    def discard(self, reader: Consumes) -> None:
        """Forget a reader, if it is there."""
        self.unread -= self._seen.pop(reader, 0)

    def look(self) -> None:
        """Look at the readers whose last look is longest ago. On the chat's event loop only."""
        for reader in list(islice(self._seen, LOOKED_AT)):
            unread = reader.unread
            self.unread += unread - self._seen[reader]
            self._seen[reader] = unread
            self._seen.move_to_end(reader)
