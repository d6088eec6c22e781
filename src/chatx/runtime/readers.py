"""Who reads this chat, and about how much waits for them.

What waits changes with each event, and is not summed up there. At most `LOOKED_AT` readers are looked at in one go, in
turn; so the sum is exact up to so many, and beyond them it has for each what waited when it was looked at last.
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
    """What a user holds and loses when revoked."""

    @property
    def user_id(self) -> str | None:
        """Whose it is, or None: trusted code's."""
        ...

    def cut(self, error: ChatError) -> None:
        """The user is revoked: end it at once, with all that it has joined. Must not raise."""
        ...


class Consumes(Revocable, Protocol):
    """Whoever reads a mailbox of this chat."""

    @property
    def unread(self) -> int:
        """How many events wait for it."""
        ...

    def end(self, error: ChatError) -> None:
        """The chat stops."""
        ...


class Readers:
    """Who reads a mailbox or a socket of the chat, and about how much waits for them.

    Attributes:
        unread: What waits for them, as of the last look.
    """

    __slots__ = ("_seen", "unread")

    def __init__(self) -> None:
        self._seen: OrderedDict[Consumes, int] = OrderedDict()  # what waited at the last look; longest ago first
        self.unread: int = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._seen)

    def __iter__(self) -> Iterator[Consumes]:
        """Iterate over a copy of them."""
        return iter(list(self._seen))

    def add(self, reader: Consumes) -> None:
        """Take one in."""
        self._seen[reader] = 0

    def discard(self, reader: Consumes) -> None:
        """Forget one, if it is there."""
        self.unread -= self._seen.pop(reader, 0)

    def look(self) -> None:
        """Look at those that were looked at longest ago. On the chat's event loop only."""
        for reader in list(islice(self._seen, LOOKED_AT)):
            unread = reader.unread
            self.unread += unread - self._seen[reader]
            self._seen[reader] = unread
            self._seen.move_to_end(reader)
