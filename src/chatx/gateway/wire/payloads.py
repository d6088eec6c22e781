"""The payloads of the wire, typed and described: what clients may send, and what they are sent.

Unknown fields are ignored, since strangers' clients add some. Bounds on content and ids are the engine's; they are
here for `asyncapi` alone, which makes the protocol's description of these types. Those that are checked here keep
numbers within what the wire and the stores hold. What is said of a field is metadata, since that document tells it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType
from msgspec.json import decode

from chatx.core.message import Presences, Unrecovered
from chatx.core.validation import EPOCH_LIMIT, ID_LIMIT
from chatx.errors import ChatError, InvalidMessage

T = TypeVar("T", bound=Struct)

NULL: Final = Raw(b"null")
"""The payload of a frame that has none. Clients in some languages send it for an empty object."""

Status: TypeAlias = Literal["ok", "error"]

# 2**53 - 1 is the largest offset that JavaScript holds exactly.
Offset = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Epoch = Annotated[str, Meta(max_length=EPOCH_LIMIT)]

SentEpoch = Annotated[str, Meta(min_length=1, max_length=EPOCH_LIMIT)]

# What the engine asks of a text, said in the description only: an id has at least as many bytes as characters.
Key = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": ID_LIMIT})]


class NewMessage(Struct, frozen=True, gc=False):
    """The payload of `new_message` from a client."""

    content: Annotated[
        str,
        Meta(
            description="The text, at most `message_size_limit` bytes of UTF-8, without control characters but "
            "newline, return and tab."
        ),
    ]
    key: Annotated[Key | None, Meta(description="An idempotency key of at most 128 bytes of UTF-8, or null.")] = None
    data: Annotated[
        dict[str, Any] | None,
        Meta(
            description="What travels with it: an object of at most `message_data_limit` bytes of JSON, or null. The "
            "content may be empty where this is not."
        ),
    ] = None
    epoch: Annotated[
        SentEpoch | None,
        Meta(
            description="The only epoch in which it may be published, 1 to 128 characters, or null. A known key "
            "answers whatever the epoch; else this is refused with `epoch_changed` where the room is in another one."
        ),
    ] = None


class StreamPosition(Struct, frozen=True, gc=False):
    """A place in a room's stream."""

    epoch: Annotated[Epoch, Meta(description="At most 128 characters.")]
    offset: Annotated[Offset, Meta(description="0 to 2**53 - 1.")]


class Resume(Struct, frozen=True, gc=False):
    """The payload of `phx_join`: the position seen last, or nothing for a fresh join.

    Half a position is refused: taken as fresh it would lose messages without a word.
    """

    epoch: Annotated[Epoch | None, Meta(description="At most 128 characters, or null.")] = None
    offset: Annotated[Offset | None, Meta(description="0 to 2**53 - 1, or null.")] = None

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
    """The payload of `history`: how many messages, and before or after which place.

    Both places are refused: one of them would be left out without a word.
    """

    limit: Annotated[int, Meta(description="Messages, 1 to 200.", ge=1, le=200)] = 50
    before: Annotated[
        StreamPosition | None,
        Meta(description="The newest messages before this place; null, without `after` too, for the newest of all."),
    ] = None
    after: Annotated[
        StreamPosition | None,
        Meta(description="The oldest messages after this place, or null. Not together with `before`."),
    ] = None

    def __post_init__(self) -> None:
        if self.before is not None and self.after is not None:
            raise ValueError("Expected `before` or `after`, not both")


class AccessToken(Struct, frozen=True, gc=False):
    """The payload of `access_token`: a token for the time after the present one's."""

    token: Annotated[str, Meta(description="1 to 8,192 characters.", min_length=1, max_length=8192)]


class Empty(Struct, frozen=True, gc=False):
    """An empty object: nothing is to be told."""


class Joined(Struct, frozen=True, gc=False):
    """The response to `phx_join`: the head of the room's stream."""

    epoch: Annotated[str, Meta(description="Opaque identity of the stream.")]
    offset: Annotated[Offset, Meta(description="The newest message's; on a fresh join live messages start behind it.")]
    recovered: Annotated[bool, Meta(description="Whether the missed messages follow, all of them.")]
    reason: Annotated[Unrecovered | UnsetType, Meta(description="Why they do not; left out on a fresh join.")] = UNSET


class Sent(Struct, frozen=True, gc=False):
    """The response to `new_message`: the message is sequenced, or stored where it says so."""

    id: Annotated[str, Meta(description="A UUIDv7 as text.")]
    epoch: Annotated[str, Meta(description="Opaque identity of the room's stream.")]
    offset: Annotated[Offset, Meta(description="Place in that stream.")]
    inserted_at: Annotated[int, Meta(description="When it was published, in ms since the Unix epoch.")]
    duplicate: Annotated[
        Literal[True] | UnsetType,
        Meta(
            description="True where the key had been used before, and left out otherwise; all else is the first "
            "message's."
        ),
    ] = UNSET
    stored: Annotated[
        Literal[True] | UnsetType,
        Meta(description="True where the store has it, so that it survives the server's end; left out otherwise."),
    ] = UNSET


class Published(Struct, frozen=True, gc=False):
    """The payload of `new_message` from the server."""

    id: Annotated[str, Meta(description="A UUIDv7 as text.")]
    room_id: Annotated[str, Meta(description="The room.")]
    user_id: Annotated[str, Meta(description="Who sent it.")]
    content: Annotated[str, Meta(description="Exactly what was accepted.")]
    inserted_at: Annotated[int, Meta(description="When it was published, in ms since the Unix epoch.")]
    epoch: Annotated[str, Meta(description="Opaque identity of the room's stream.")]
    offset: Annotated[Offset, Meta(description="Place in that stream; contiguous from 1.")]
    data: Annotated[
        dict[str, Any] | UnsetType, Meta(description="What travels with it; left out where there is nothing.")
    ] = UNSET


class HistoryPage(Struct, frozen=True, gc=False):
    """The response to `history`."""

    messages: Annotated[list[Published], Meta(description="Oldest first.")]
    more: Annotated[bool, Meta(description="Whether there are older ones, or, where `after` was given, newer ones.")]


class Renewed(Struct, frozen=True, gc=False):
    """The response to `access_token`."""

    expires_at: Annotated[
        float | None,
        Meta(
            description="When the socket's time is over now, in seconds since the Unix epoch; null where it does not "
            "expire."
        ),
    ]


class PhxMeta(Struct, frozen=True, gc=False):
    """One membership of a user in a room, in the shape that phoenix.js reads.

    There is no `phx_ref_prev`: a meta never changes, it only begins and ends.
    """

    phx_ref: Annotated[str, Meta(description="Unique in the room.")]
    online_at: Annotated[int, Meta(description="When it began, in ms since the Unix epoch.")]


class PhxMetas(Struct, frozen=True, gc=False):
    """A user's memberships."""

    metas: Annotated[list[PhxMeta], Meta(description="One or more.")]


class PhxDiff(Struct, frozen=True, gc=False):
    """The payload of `presence_diff`: which memberships began and which ended. None is in both."""

    joins: Annotated[dict[str, PhxMetas], Meta(description="By user id.")]
    leaves: Annotated[dict[str, PhxMetas], Meta(description="By user id.")]


class Failed(Struct, frozen=True, gc=False):
    """The payload of `phx_error`: the membership failed. Join again."""

    reason: Annotated[str, Meta(description="For a person.")]


class ErrorResponse(Struct, frozen=True, gc=False):
    """The response of an error reply."""

    code: Annotated[str, Meta(description="From the errors table, or an application's own.")]
    reason: Annotated[str, Meta(description="For a person.")]
    retryable: Annotated[bool, Meta(description="Whether the same push may succeed later, unchanged.")]
    retry_after_ms: Annotated[
        int | UnsetType, Meta(description="Milliseconds to wait, left out where that is not known.")
    ] = UNSET


class Reply(Struct, frozen=True, gc=False):
    """The payload of `phx_reply`."""

    status: Annotated[Status, Meta(description="Whether it was done.")]
    response: Annotated[Any, Meta(description="What came of it, by the event; with `error` an `ErrorResponse`.")]


_EMPTY_OBJECT: Final = Raw(b"{}")


def parse(payload: Raw, kind: type[T]) -> T:
    """Return the payload of a frame as one of the types above; `null` is an empty object.

    Raises:
        InvalidMessage: It is not one; `error_response` makes the reply.
    """
    try:
        return decode(payload, type=kind)
    except (DecodeError, UnicodeError, RecursionError) as error:
        # What a UnicodeError says quotes the input.
        problem = "Expected valid UTF-8" if isinstance(error, UnicodeError) else str(error)
    if payload == NULL:  # asked only here: nearly every payload is an object
        return parse(_EMPTY_OBJECT, kind)
    fields = ", ".join(kind.__struct_fields__)
    raise InvalidMessage(f"The payload is not valid: {problem}. Send an object with {fields}.")


def error_response(error: ChatError) -> ErrorResponse:
    """Return what an error reply says about a refusal; `retry_after` becomes milliseconds, rounded up."""
    wait = UNSET if error.retry_after is None else math.ceil(error.retry_after * 1000)
    return ErrorResponse(error.code, error.reason, error.retryable, wait)


def presence_state(presences: Presences) -> dict[str, PhxMetas]:
    """Return the payload of `presence_state`: who is in the room."""
    return {
        user_id: PhxMetas([PhxMeta(meta.ref, meta.online_at) for meta in metas]) for user_id, metas in presences.items()
    }


def presence_diff(joins: Presences, leaves: Presences) -> PhxDiff:
    """Return the payload of `presence_diff`: which metas began and which ended."""
    return PhxDiff(presence_state(joins), presence_state(leaves))
