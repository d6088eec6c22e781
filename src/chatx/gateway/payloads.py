"""The payloads of a room's topic: what clients may send, typed, and the shape of what they are sent.

Unknown fields are ignored, since strangers' clients add some. Bounds on content and ids are the engine's;
those here keep numbers within what the wire and the stores hold.
"""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType
from msgspec.json import decode

from chatx.core.message import Presences
from chatx.errors import ChatError, InvalidMessage

T = TypeVar("T", bound=Struct)

# 2**53 - 1 is the largest offset that JavaScript holds exactly.
Offset = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Epoch = Annotated[str, Meta(max_length=128)]


class NewMessage(Struct, frozen=True, gc=False):
    """The payload of `new_message` from a client.

    Attributes:
        content: The text; the engine validates it.
        key: An idempotency key, or None.
    """

    content: str
    key: str | None = None


class StreamPosition(Struct, frozen=True, gc=False):
    """A place in a room's stream.

    Attributes:
        epoch: At most 128 characters.
        offset: 0 to 2**53 - 1.
    """

    epoch: Epoch
    offset: Offset


class Resume(Struct, frozen=True, gc=False):
    """The payload of `phx_join`: the position seen last, or nothing for a fresh join.

    Half a position is refused: taken as fresh it would lose messages without a word.

    Attributes:
        epoch: At most 128 characters, or None.
        offset: 0 to 2**53 - 1, or None.
    """

    epoch: Epoch | None = None
    offset: Offset | None = None

    def __post_init__(self) -> None:
        if (self.epoch is None) is not (self.offset is None):
            raise ValueError("Expected both `epoch` and `offset`, or neither")

    @property
    def position(self) -> StreamPosition | None:
        """The position to go on from, or None for a fresh join."""
        if self.epoch is None or self.offset is None:
            return None
        return StreamPosition(self.epoch, self.offset)


class History(Struct, frozen=True, gc=False):
    """The payload of `history`: how many messages, and before which place.

    Attributes:
        limit: Messages, 1 to 200.
        before: The messages before this place, or None for the newest.
    """

    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    before: StreamPosition | None = None


class AccessToken(Struct, frozen=True, gc=False):
    """The payload of `access_token`: a token for the time after the present one's.

    Attributes:
        token: 1 to 8,192 characters.
    """

    token: Annotated[str, Meta(min_length=1, max_length=8192)]


class ErrorResponse(Struct, frozen=True, gc=False):
    """The response of an error reply.

    Attributes:
        code: From the errors table, or from `phoenix.REFUSALS`.
        reason: For a person.
        retryable: Whether the same push may succeed later, unchanged.
        retry_after_ms: Milliseconds to wait, left out where that is not known.
    """

    code: str
    reason: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET


class _Meta(Struct, frozen=True, gc=False):
    phx_ref: str
    online_at: int


class _Metas(Struct, frozen=True, gc=False):
    metas: list[_Meta]


def parse(payload: Raw, kind: type[T]) -> T:
    """Return the payload of a frame as one of the types above.

    Raises:
        InvalidMessage: It is not one; `error_response` makes the reply.
    """
    try:
        return decode(payload, type=kind)
    except (DecodeError, UnicodeError, RecursionError) as error:
        # What a UnicodeError says quotes the input.
        problem = "Expected valid UTF-8" if isinstance(error, UnicodeError) else str(error)
        fields = ", ".join(kind.__struct_fields__)
        raise InvalidMessage(f"The payload is not valid: {problem}. Send an object with {fields}.") from error


def error_response(error: ChatError) -> ErrorResponse:
    """Return what an error reply says about a refusal; `retry_after` becomes milliseconds, rounded up."""
    wait = UNSET if error.retry_after is None else math.ceil(error.retry_after * 1000)
    return ErrorResponse(error.code, error.reason, error.retryable, wait)


def presence_state(presences: Presences) -> dict[str, _Metas]:
    """Return the payload of `presence_state`: who is in the room, in the shape that phoenix.js reads.

    There is no `phx_ref_prev`: a membership's meta never changes, it only begins and ends.
    """
    return {
        user_id: _Metas([_Meta(meta.ref, meta.online_at) for meta in metas]) for user_id, metas in presences.items()
    }


def presence_diff(joins: Presences, leaves: Presences) -> dict[str, dict[str, _Metas]]:
    """Return the payload of `presence_diff`: which metas began and which ended."""
    return {"joins": presence_state(joins), "leaves": presence_state(leaves)}
