"""What a node says to the one that holds a long-polling session, for a request that has reached another one.

A poll that finds nothing is answered at once; `Woken` says when to ask again. So none waits in the link.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from chatx.cluster.fields import RECORD_BYTES, Boot, Count, Part

POSTED_BYTES: Final = 262_144
"""The largest body of a post, in bytes."""

Secret: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")]
"""What stands for a session: who knows it is its client."""

Status: TypeAlias = Literal[200, 204, 410]
"""What the protocol's status is: there is something, nothing yet, or the session is gone."""


class Poll(Part, frozen=True, gc=False, tag="poll"):
    """Bring what a session has for its client.

    Attributes:
        secret: The session.
        boot: The node that asks.
        number: Which of its polls this is.
        acknowledged: The number of the last batch that the client has.
    """

    secret: Secret
    boot: Boot
    number: Count
    acknowledged: Count


class PollEnded(Part, frozen=True, gc=False, tag="pollended"):
    """A poll was answered, or its client has broken it off.

    Attributes:
        secret: The session.
        boot: The node that had it.
        number: Which of its polls it was.
        well: Whether it was answered.
    """

    secret: Secret
    boot: Boot
    number: Count
    well: bool


class Woken(Part, frozen=True, gc=False, tag="woken"):
    """A poll need wait no more.

    Attributes:
        number: Which of the node's polls.
        fresh: Whether there may be something to bring; else a newer poll has taken its place.
    """

    number: Count
    fresh: bool


class Post(Part, frozen=True, gc=False, tag="post"):
    """Take what a client pushes.

    Attributes:
        secret: The session.
        content_type: That of the body.
        body: As it came.
    """

    secret: Secret
    content_type: Annotated[str, Meta(max_length=255)]
    body: Annotated[bytes, Meta(max_length=POSTED_BYTES)]


class Polled(Part, frozen=True, gc=False, tag="polled"):
    """What a session has for its client.

    Attributes:
        status: See `Status`.
        number: That of the last batch.
        messages: The batch.
    """

    status: Status
    number: Count
    messages: tuple[Annotated[str, Meta(max_length=RECORD_BYTES)], ...]


class Posted(Part, frozen=True, gc=False, tag="posted"):
    """What became of a post.

    Attributes:
        status: The protocol's, or one of HTTP where a bound says no.
    """

    status: Literal[200, 408, 410, 413, 429]


PollsAsk: TypeAlias = Poll | PollEnded | Woken | Post

PollsAnswer: TypeAlias = Polled | Posted
