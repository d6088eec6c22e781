"""JSON Schemas of the wire: of the payloads, from their types, and of the frames around them.

They are of draft 7, which is AsyncAPI's own dialect. What a client sends has open schemas, since unknown fields are
ignored; a frame of the server's has its fields and no others.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.json import schema, schema_components

from chatx.core.validation import ID_LIMIT
from chatx.gateway.wire.frames import Frame, Ref
from chatx.gateway.wire.payloads import (
    AccessToken,
    Empty,
    ErrorResponse,
    Failed,
    History,
    HistoryPage,
    Joined,
    NewMessage,
    PhxDiff,
    PhxMeta,
    PhxMetas,
    Published,
    Renewed,
    Reply,
    Resume,
    Sent,
    Status,
    StreamPosition,
)
from chatx.gateway.wire.topics import room_topic

Schema: TypeAlias = dict[str, Any]

_KINDS: tuple[type[Struct], ...] = (
    AccessToken,
    Empty,
    ErrorResponse,
    Failed,
    History,
    HistoryPage,
    Joined,
    NewMessage,
    PhxDiff,
    PhxMeta,
    PhxMetas,
    Published,
    Renewed,
    Resume,
    Sent,
    StreamPosition,
)


def ref(name: str) -> Schema:
    """Return a reference to one of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def constant(text: str) -> Schema:
    """Return the schema of one text."""
    return {"type": "string", "const": text}


def schemas() -> dict[str, Schema]:
    """Return the schemas that the others refer to, by name."""
    found = _described(*_KINDS)
    # The check of its __post_init__, which no field can say.
    found["Resume"]["oneOf"] = [
        {"title": "fresh", "properties": {"epoch": {"type": "null"}, "offset": {"type": "null"}}},
        {
            "title": "from a position",
            "type": "object",
            "required": ["epoch", "offset"],
            "properties": {"epoch": {"type": "string"}, "offset": {"type": "integer"}},
        },
    ]
    for nothing_needed in ("Resume", "History"):
        found[nothing_needed]["type"] = ["object", "null"]
    # Nothing is added to it but by giving it another type.
    found["Empty"]["additionalProperties"] = False
    found["PhxMetas"]["properties"]["metas"]["minItems"] = 1
    return {
        "Ref": {"title": "Ref", "description": "What a reply echoes, or null.", **schema(Ref)},
        "RoomTopic": {
            "title": "RoomTopic",
            "description": "`room:` and the room's id: 1 to 128 bytes of UTF-8, no control or invisible characters.",
            "type": "string",
            "pattern": f"^{room_topic('')}[^\\u0000-\\u001f\\u007f-\\u009f]+$",
            "maxLength": len(room_topic("")) + ID_LIMIT,
        },
        "Ignored": {"title": "Ignored", "description": "Any JSON; it is not looked at."},
        "PresenceState": {
            "title": "PresenceState",
            "description": "Who is in the room, by user id.",
            "type": "object",
            "additionalProperties": ref("PhxMetas"),
        },
        **found,
    }


def reply(status: Status, response: Schema) -> Schema:
    """Return the payload of a `phx_reply` with this status and response."""
    narrowed = _described(Reply)["Reply"]
    narrowed["properties"]["status"] = constant(status)
    narrowed["properties"]["response"] = response
    return narrowed


def client_frame(topic: Schema, event: str, payload: Schema) -> Schema:
    """Return what a client sends, in either version."""
    fields = _fields(ref("Ref"), ref("Ref"), topic, event, payload)
    return {
        "oneOf": [
            {"title": "version 2", "type": "array", "items": list(fields.values()), "minItems": len(fields)},
            {
                "title": "version 1",
                "type": "object",
                "required": [name for name in fields if name != "join_ref"],
                "properties": fields,
            },
        ]
    }


def server_frame(topic: Schema, event: str, payload: Schema, *, broadcast: bool) -> Schema:
    """Return what the server sends, in either version; a broadcast has no join_ref and no ref."""
    named: Schema = {"type": "null"} if broadcast else ref("Ref")
    fields = _fields(named, named, topic, event, payload)
    version_1 = {name: field for name, field in fields.items() if name != "join_ref"}
    return {
        "oneOf": [
            {
                "title": "version 2",
                "type": "array",
                "items": list(fields.values()),
                "minItems": len(fields),
                "additionalItems": False,
            },
            {
                "title": "version 1",
                "type": "object",
                "required": list(version_1),
                "properties": version_1,
                "additionalProperties": False,
            },
        ]
    }


def _fields(join_ref: Schema, ref_: Schema, topic: Schema, event: str, payload: Schema) -> dict[str, Schema]:
    """Return the fields of a frame, in their order."""
    return dict(zip(Frame.__struct_fields__, (join_ref, ref_, topic, constant(event), payload), strict=True))


def _described(*kinds: type[Struct]) -> dict[str, Schema]:
    """Return the schemas of these types by name, with what their docstrings and their fields' metadata say of them."""
    _, found = schema_components(kinds, ref_template=ref("{name}")["$ref"])
    for kind in kinds:
        # Without the indentation, which Python leaves out by itself from 3.13 on only.
        found[kind.__name__]["description"] = inspect.getdoc(kind)
    return dict(sorted(found.items()))
