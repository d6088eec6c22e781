"""Long-polling sessions of all nodes: each is held by one, and asked for from any, in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

PollStatus: TypeAlias = Literal[200, 204, 410]
"""There is something, nothing yet, or the session is gone."""

PostStatus: TypeAlias = Literal[200, 408, 410, 413, 429]
"""Taken, not in time, no session, or too much of it, or at once."""


class HeldPoll(Struct, frozen=True):
    """What a session has for its client.

    Attributes:
        status: See `PollStatus`.
        number: That of the last batch.
        messages: The batch.
    """

    status: PollStatus
    number: int
    messages: Sequence[str]


class PollOfSession(Protocol):
    """One poll, from its beginning to its end."""

    @property
    def woken(self) -> asyncio.Future[bool]:
        """Has a result when to ask again, where there was nothing: whether there may be something now.

        Where there is not, a newer poll has taken its place.
        """
        ...

    async def ask(self, acknowledged: int) -> HeldPoll:
        """Return what the session has; at most twice.

        Args:
            acknowledged: The number of the last batch that the client has.

        Raises:
            RoomUnavailable: The node that holds the session cannot be reached.
        """
        ...

    def end(self, *, well: bool) -> None:
        """Take note that it was answered, or, where not `well`, that its client broke it off."""
        ...


class PolledSession(Protocol):
    """A session, of this node or of another."""

    def begin_poll(self) -> PollOfSession:
        """Begin a poll; its end must follow."""
        ...

    async def post(self, content_type: str, body: Callable[[], Awaitable[bytes]]) -> PostStatus:
        """Take what the client pushes; the body is asked for where it may be taken.

        Raises:
            RoomUnavailable: As `PollOfSession.ask`; what `body` raises goes through too, where another node has it.
        """
        ...


class Polls(Protocol):
    """The sessions of all nodes.

    Attributes:
        boot: What stands for this node in a session's token.
    """

    boot: str

    def hold(self, find: Callable[[str], PolledSession | None]) -> None:
        """Let the other nodes ask for sessions that this finds by their secrets; twice is harmless."""
        ...

    def session(self, boot: str, secret: str) -> PolledSession | None:
        """Return a session that another node holds, if it does; None where there is no such node."""
        ...
