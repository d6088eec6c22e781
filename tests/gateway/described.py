"""The document that describes the wire, as a client would use it: which of its messages is this frame?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft7Validator

from chatx.gateway.describe.asyncapi import document

DOCUMENT = document()
_MESSAGES = DOCUMENT["components"]["messages"]


def validator(*path: str) -> Draft7Validator:
    """The schema at this place of the document, with what it refers to."""
    return Draft7Validator({"$ref": "#/components/" + "/".join(path), "components": DOCUMENT["components"]})


def _sent(action: str) -> set[str]:
    """The messages of the server's operations with this action: `receive` are clients' messages."""
    return {
        reference["$ref"].rpartition("/")[2]
        for operation in DOCUMENT["operations"].values()
        if operation["action"] == action
        for reference in operation["messages"]
    }


FROM_CLIENTS = _sent("receive")
FROM_SERVER = set(_MESSAGES) - FROM_CLIENTS
_VALIDATORS = {name: validator("messages", name, "payload") for name in _MESSAGES}


def matches(frame: Any, names: set[str]) -> list[str]:
    """Which of these messages the frame is; exactly one, where the document is right."""
    return [name for name in sorted(names) if _VALIDATORS[name].is_valid(frame)]


def examples() -> Iterator[tuple[str, Any]]:
    """The name of each message, with each frame that the document shows of it."""
    for name, message in _MESSAGES.items():
        for example in message["examples"]:
            yield name, example["payload"]
