"""What the protocol asks of a shell, one type for each thing to do."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Raw, Struct

from chatx.gateway.wire.frames import Ref


class Write(Struct, frozen=True, gc=False):
    """Write this text message to the client now.

    Attributes:
        text: A whole frame.
    """

    text: str


class Join(Struct, frozen=True, gc=False):
    """The client wants to join; answer with `join_ok` or `join_error`.

    Attributes:
        topic: `room:<room_id>`.
        room_id: Not empty; otherwise not yet validated.
        join_ref: Names the membership; the frame's ref where it gave none.
        ref: What the reply echoes.
        payload: Parse it as `payloads.Resume`.
    """

    topic: str
    room_id: str
    join_ref: Ref
    ref: Ref
    payload: Raw


class Leave(Struct, frozen=True, gc=False):
    """The client wants to leave; end the membership, then call `left`."""

    topic: str
    room_id: str
    join_ref: Ref
    ref: Ref


class Superseded(Struct, frozen=True, gc=False):
    """The client joins a topic anew: end this membership, before the `Join` that follows; there is no answer.

    The caller must stop the topic's broadcasts at once: a client takes one that comes after `phx_close` for
    news of the membership it is asking for.
    """

    topic: str
    room_id: str
    join_ref: Ref


class Push(Struct, frozen=True, gc=False):
    """The client pushed an event to a joined topic; answer once with `reply`, whenever that is.

    Attributes:
        topic: `room:<room_id>`.
        room_id: The room.
        join_ref: The membership's, whether the frame named it or not.
        ref: What the reply echoes.
        event: Any text; an unknown one is an error reply.
        payload: Parse it by the event.
    """

    topic: str
    room_id: str
    join_ref: Ref
    ref: Ref
    event: str
    payload: Raw


class Close(Struct, frozen=True, gc=False):
    """Close the WebSocket and end every membership of this connection; the machine does nothing more.

    Attributes:
        code: 1007, 1008 or 1009.
        reason: At most 123 bytes.
    """

    code: int
    reason: str


Action: TypeAlias = Write | Join | Leave | Superseded | Push | Close
