"""Long-polling sessions of all nodes: held by one, asked for from any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from msgspec import Struct

PollStatus = Literal[200, 204, 410]
PostStatus = Literal[200, 408, 410, 413, 429]


class HeldPoll(Struct, frozen=True):
    """What a session has for its client.

    Attributes:
        status: 200 where there are messages, 204 where there are none yet, 410 where the session is gone.
        number: That of the last batch.
        messages: The batch.
    """

    status: PollStatus
    number: int
    messages: Sequence[str]


class HoldsPolls(Protocol):
    """Sessions of this node."""

    def held(self, secret: str) -> bool:
        """Return whether a session is one of these."""
        ...

    def poll_held(self, secret: str, acknowledged: int, *, again: bool, woken: Callable[[bool], object]) -> HeldPoll:
        """Return what a session has; where that is nothing yet, `woken` is called when to ask again.

        Args:
            secret: The session.
            acknowledged: The number of the last batch that the client has.
            again: Whether the poll has asked before.
            woken: Called with whether there may be something; else a newer poll has taken its place.
        """
        ...

    def poll_ended(self, secret: str, *, well: bool) -> None:
        """Take note that a poll has ended; `well` is false where the client broke it off."""
        ...

    async def post_held(self, secret: str, content_type: str, body: bytes) -> PostStatus:
        """Take what a client pushes."""
        ...


class PollElsewhere(Protocol):
    """A poll of a session that another node holds.

    Attributes:
        woken: Has a result when to ask again: whether there may be something.
    """

    woken: asyncio.Future[bool]

    async def ask(self, acknowledged: int) -> HeldPoll:
        """Return what the session has.

        Raises:
            RoomUnavailable: The node that holds it cannot be reached.
        """
        ...

    def end(self, *, well: bool) -> None:
        """Take note that it was answered, or broken off."""
        ...


class Polls(Protocol):
    """The sessions of all nodes.

    Attributes:
        boot: What stands for this node in a session's token.
    """

    boot: str

    def hold(self, holds: HoldsPolls) -> None:
        """Let the other nodes ask for these sessions too; twice is harmless."""
        ...

    def begin(self, boot: str, secret: str) -> PollElsewhere | None:
        """Begin a poll of a session that a node holds; None where there is no such node."""
        ...

    async def post(self, boot: str, secret: str, content_type: str, body: bytes) -> PostStatus:
        """Have the node that holds a session take what its client pushes.

        Raises:
            RoomUnavailable: It cannot be reached, or has not answered.
        """
        ...
