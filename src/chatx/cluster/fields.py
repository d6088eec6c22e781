"""What the fields of records may hold: types and bounds that are checked when a record is read.

A node checks what it gets from another one as it checks what a client sends: a bug, an old version or a stranger with
credentials may be at the other end.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct, json

from chatx.core.data import valid_data
from chatx.core.node_names import BOOT_ID, NODE_NAME
from chatx.core.validation import ID_LIMIT, valid_content, valid_id
from chatx.errors import InvalidMessage

RECORD_BYTES: Final = 1_048_576
"""The largest record, in bytes: what a NATS server takes unless it is told otherwise."""

Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=ID_LIMIT)]
"""The id of a room, a user or an entry, an idempotency key, a ref."""

Word: TypeAlias = Annotated[str, Meta(pattern=r"\A[!-~]{1,64}\Z")]
"""A kind, a code, a hash, an entry's id: what this code made, so it is visible ASCII."""

Epoch: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
"""An epoch. Opaque, since a persistence adapter may have made it; it is compared and never shown as it is."""

Reason: TypeAlias = Annotated[str, Meta(max_length=1_000)]
"""Why, for a person."""

NodeName: TypeAlias = Annotated[str, Meta(pattern=NODE_NAME)]
"""A node's name."""

Boot: TypeAlias = Annotated[str, Meta(pattern=BOOT_ID)]
"""Which life of a node."""

Text: TypeAlias = Annotated[str, Meta(max_length=RECORD_BYTES)]
"""Content, or JSON."""

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A number that begins with 0: an offset, a term, a time in ms."""


class Part(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """A part of a record: an array in MessagePack, without names."""

    def check(self) -> None:
        """Check what types do not say.

        Raises:
            ChatError: An id, content or data is none.
        """


class Place(Part, frozen=True, gc=False):
    """A place in a room's stream.

    Attributes:
        epoch: Identity of the stream.
        offset: Place in it; 0 is before the first entry.
    """

    epoch: Epoch
    offset: Count


def check_ids(**ids: str | None) -> None:
    """Raise `InvalidMessage` for an id that is none; None is left out."""
    for name, value in ids.items():
        if value is not None:
            valid_id(value, name)


def check_content(content: str, data: str | None) -> None:
    """Check content that somebody sent.

    Raises:
        ChatError: Nobody could have sent it, or the data is no JSON object.
        msgspec.DecodeError: The data is not JSON.
    """
    valid_content(content, RECORD_BYTES, may_be_empty=True)
    check_data(data)


def check_data(data: str | None) -> None:
    """Check data as its JSON, or None.

    Raises:
        ChatError: It is no JSON object that could have travelled with a message.
        msgspec.DecodeError: It is not JSON.
    """
    if data is not None:
        decoded = json.decode(data)
        if not isinstance(decoded, dict):
            raise InvalidMessage(f"The data is a {type(decoded).__name__}, and must be a JSON object.")
        valid_data(decoded, RECORD_BYTES)
