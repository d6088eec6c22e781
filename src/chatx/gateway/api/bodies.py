"""What a backend sends and is answered, typed and described: the checks and the OpenAPI document are made of these.

An unknown field is refused: a `trusted` that is misspelt would be one that is left out, which is true.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from chatx.core.message import PresenceMeta
from chatx.core.validation import ID_LIMIT
from chatx.gateway.operations.rooms import ROOMS_AT_ONCE
from chatx.gateway.wire.payloads import Published

USERS_AT_ONCE: Final = 1000
"""Users in one answer about presence at most, and where no limit is given."""

MESSAGES_AT_ONCE: Final = 200
"""Messages in one answer at most, as on the wire; 50 where no limit is given."""

# Said in the description only: an id has at least as many bytes as characters, and the engine counts bytes.
Id: TypeAlias = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": ID_LIMIT})]
Place: TypeAlias = Annotated[str, Meta(pattern="^.{1,128}:[0-9]{1,16}$")]


class NewMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """A message that a backend says in a user's name."""

    user_id: Annotated[Id, Meta(description="Who says it; needs not be in the room.")]
    content: Annotated[str, Meta(description="The text, at most `message_size_limit` bytes of UTF-8.")]
    data: Annotated[
        dict[str, Any] | None,
        Meta(
            description="What travels with it: an object of at most `message_data_limit` bytes of JSON, or null. The "
            "content may be empty where this is not."
        ),
    ] = None
    trusted: Annotated[
        bool,
        Meta(
            description="Whether no middleware is asked: not the auth adapter, the rate limit, the moderation or one "
            "of the application's own. Send false for what a person wrote."
        ),
    ] = True


class SentMessage(Published, frozen=True, gc=False):
    """The message that was sent: it has its place, and is on its way to all; where it is stored, the log has it too."""

    duplicate: Annotated[
        Literal[True] | UnsetType,
        Meta(description="True where the key had been used before, and this is the first message; else left out."),
    ] = UNSET
    stored: Annotated[
        Literal[True] | UnsetType, Meta(description="True where the log has it, so that it survives; else left out.")
    ] = UNSET


class HistoryQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which messages of a room are wanted: the newest, or those before or after a place. Not both."""

    before: Annotated[
        Place | UnsetType, Meta(description="`epoch:offset` of a message: the newest ahead of it are wanted.")
    ] = UNSET
    after: Annotated[
        Place | UnsetType, Meta(description="`epoch:offset` of a message: the oldest behind it are wanted.")
    ] = UNSET
    limit: Annotated[int, Meta(description="How many messages at most.", ge=1, le=MESSAGES_AT_ONCE)] = 50

    def __post_init__(self) -> None:
        """Check what no field can say: one of two places would be left out without a word."""
        if self.before is not UNSET and self.after is not UNSET:
            raise ValueError("Expected `before` or `after`, not both")
        for place in (self.before, self.after):
            # Beyond it an offset is exact in no client, and in no store.
            if place is not UNSET and int(place.rpartition(":")[2]) >= 2**53:
                raise ValueError("Expected an offset of at most 2**53 - 1")


class PresenceQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which users of a room are wanted."""

    after: Annotated[str, Meta(description="The user behind whom the page begins, in the order of ids.")] = ""
    limit: Annotated[int, Meta(description="How many users at most.", ge=1, le=USERS_AT_ONCE)] = USERS_AT_ONCE


class PresencePage(Struct, frozen=True):
    """Who is in a room now. A room that is not there has nobody in it."""

    users: Annotated[int, Meta(description="Users in the room, on all pages.")]
    presence: Annotated[
        dict[str, list[PresenceMeta]],
        Meta(description="By user id, in the order of ids: when each of a user's memberships began (`online_at`, ms)."),
    ]
    after: Annotated[str | None, Meta(description="The user behind whom the next page begins; null on the last one.")]


class RoomsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which rooms are wanted."""

    after: Annotated[str, Meta(description="The room behind which the page begins, in the order of ids.")] = ""
    limit: Annotated[int, Meta(description="How many rooms at most.", ge=1, le=ROOMS_AT_ONCE)] = 100


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing is asked for beside the path."""
