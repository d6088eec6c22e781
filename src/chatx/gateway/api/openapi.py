"""The API as an OpenAPI 3.1 document, made of the table and the types that it runs on.

Source: the OpenAPI specification 3.1.1.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from msgspec import json
from msgspec.json import schema_components

from chatx import __version__
from chatx.core.validation import ID_LIMIT
from chatx.errors import ERRORS, http_status
from chatx.gateway.api.routes import DESCRIPTION, ROUTES, Operation
from chatx.gateway.entry.problems import Problem

Schema: TypeAlias = dict[str, Any]

_ABOUT: Final = """\
What a backend asks a chat, and has it say. Whoever may use it may say anything in anybody's name.

Every refusal is a problem of RFC 9457. Where it has a `code`, that is one of `x-error-codes`, or the application's own.
With 429 and 503 `Retry-After` says when to come back.
"""

_PROBLEMS: Final = {
    HTTPStatus.BAD_REQUEST: "The path, the query or the body is not valid.",
    HTTPStatus.UNAUTHORIZED: "The request may not use the API.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too fast; `Retry-After` says when.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too much is under way, or the chat, a room or an adapter is away.",
}


def document(server: str = "/api") -> dict[str, Any]:
    """Return the document.

    Args:
        server: Where the API is mounted, decoded.
    """
    kinds = {Problem} | {
        kind
        for methods in ROUTES.values()
        for operation in methods.values()
        for kind in (operation.body, operation.answered)
        if kind is not None
    }
    _, schemas = schema_components(sorted(kinds, key=lambda kind: kind.__name__), ref_template=_ref("{name}")["$ref"])
    for kind in kinds:
        schemas[kind.__name__]["description"] = inspect.getdoc(kind)
    return {
        "openapi": "3.1.1",
        "info": {"title": "chatx", "version": __version__, "description": _ABOUT, "license": {"name": "MIT"}},
        "servers": [{"url": quote(server)}],
        "security": [{"bearer": []}],
        "paths": {
            **{path: _path(path, methods) for path, methods in ROUTES.items()},
            DESCRIPTION: {"get": _own()},
        },
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": {
                "Problem": {
                    "description": "Any other refusal.",
                    "content": {"application/problem+json": {"schema": _ref("Problem")}},
                }
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "With `chatx serve` the token is `CHATX_ADMIN_TOKEN`. An application that mounts "
                    "the API may ask for something else.",
                }
            },
        },
        "x-error-codes": {
            code: {"status": http_status(error()), "retryable": error.retryable, "means": error.summary}
            for code, error in ERRORS.items()
        },
    }


@lru_cache(maxsize=4)
def encoded(server: str) -> bytes:
    """Return the document in JSON; anybody may ask for it, and it costs some ms to make."""
    return json.encode(document(server))


def text() -> str:
    """Return the document as JSON."""
    return json.format(json.encode(document()), indent=2).decode() + "\n"


def _path(path: str, methods: Any) -> dict[str, Any]:
    described = {method.lower(): _operation(operation) for method, operation in methods.items()}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if not names:
        return described
    return {"parameters": [_id(name) for name in names], **described}


def _id(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": f"The {name}'s id, percent-encoded, a slash in it as `%2F`: 1 to {ID_LIMIT} bytes of UTF-8.",
        "schema": {"type": "string", "minLength": 1, "maxLength": ID_LIMIT},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": operation.means}
    if operation.answered is not None:
        answer["content"] = {"application/json": {"schema": _ref(operation.answered.__name__)}}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {
            str(operation.status.value): answer,
            **{str(status.value): _problem(status, means) for status, means in _PROBLEMS.items()},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if operation.about:
        described["description"] = operation.about
    if operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body.__name__)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    _, found = schema_components([operation.query])
    fields: dict[str, Schema] = found[operation.query.__name__]["properties"]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in fields.items()
    ]
    if operation.key:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": f"Names this message among those of its user in its room: 1 to {ID_LIMIT} bytes, with "
                "quotes around them or without. The same key again is answered with the first message.",
                "schema": {"type": "string", "minLength": 1},
            }
        )
    return parameters


def _problem(status: HTTPStatus, means: str) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "description": means,
        "content": {"application/problem+json": {"schema": _ref("Problem")}},
    }
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        problem["headers"] = {
            "Retry-After": {"description": "Whole seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    return problem


def _own() -> dict[str, Any]:
    return {
        "operationId": "describe",
        "summary": "This document",
        "security": [],
        "responses": {
            "200": {
                "description": "An OpenAPI document.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            }
        },
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
