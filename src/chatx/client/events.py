"""What a room tells whoever iterates it.

A message is decoded from the wire straight into `Message`: its fields have the names that read well in a program, and
the wire's names are given beside them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from chatx.client.errors import ClientError
from chatx.core.message import GapReason, PresenceMeta


class Message(Struct, frozen=True, gc=False, rename={"room": "room_id", "user": "user_id", "at": "inserted_at"}):
    """A message with its place in the room's stream.

    Attributes:
        id: A UUIDv7 as text.
        room: The room's id.
        user: Who sent it. Empty only in what `Room.send` returns, where the connection ended before the message itself
            had come and this client had not seen a message of its own before.
        content: Text; may be empty where there is `data`.
        at: When it was published, in ms since the Unix epoch.
        epoch: Opaque identity of the room's stream.
        offset: Place in that stream; contiguous from 1.
        data: The JSON object that travels with it, or None.
        duplicate: True only in what `Room.send` returns: an earlier attempt had published it, and the answer was lost.
        stored: In what `Room.send` returns, whether the server's log has it.
    """

    id: str
    room: str
    user: str
    content: str
    at: int
    epoch: str
    offset: int
    data: dict[str, Any] | None = None
    duplicate: bool = False
    stored: bool = False


class Gap(Struct, frozen=True, gc=False):
    """Messages are missing here, and this says so. What follows starts at `offset + 1`.

    Attributes:
        room: The room's id.
        reason: `epoch_changed` (another stream than before), `too_old` (no longer kept), `too_many` (away for too
            long to be sent it all), `missing` (a hole in what is kept).
        epoch: The stream that follows.
        offset: The place after which it follows.
        missed: How many messages are missing, or None where unknown.
    """

    room: str
    reason: GapReason
    epoch: str
    offset: int
    missed: int | None = None


class Presence(Struct, frozen=True):
    """Who is in the room now; it replaces the one before.

    Attributes:
        room: The room's id.
        members: User id to that user's memberships: one for each of their connections, none without.
    """

    room: str
    members: dict[str, tuple[PresenceMeta, ...]]


Standing: TypeAlias = Literal["joining", "joined", "away", "left"]
"""`joining` (nothing has come yet), `joined`, `away` (the connection or the membership is lost, and is being made
anew), `left` (for good)."""


class State(Struct, frozen=True, gc=False):
    """How this client stands to the room now; it replaces the one before.

    Attributes:
        room: The room's id.
        state: `joined`, or `away` while the connection is made anew.
        reason: Why it is away, for a person; empty while it is joined.
    """

    room: str
    state: Standing
    reason: str = ""


class Sent(Struct, frozen=True, gc=False):
    """A send that nobody awaits any more is acknowledged: it was restored from a storage, or its caller was cancelled.

    Attributes:
        room: The room's id.
        key: Its idempotency key.
        message: What `Room.send` would have returned.
    """

    room: str
    key: str
    message: Message


class NotSent(Struct, frozen=True, gc=False):
    """A send that nobody awaits any more has failed.

    Attributes:
        room: The room's id.
        key: Its idempotency key.
        content: What it said.
        data: The JSON object that was to travel with it, or None.
        error: What `Room.send` would have raised; `SendUnknown` where it may be published.
    """

    room: str
    key: str
    content: str
    data: dict[str, Any] | None
    error: ClientError


Event: TypeAlias = Message | Gap | Presence | State | Sent | NotSent
"""What `async for event in room` yields."""
