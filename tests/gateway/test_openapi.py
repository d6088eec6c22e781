"""The document that describes the API: valid, whole, and what the API really answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from httpx2 import Response
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from chatx import Chat, Unauthorized
from chatx.errors import ERRORS
from chatx.gateway.api.openapi import document, text
from chatx.gateway.api.routes import DESCRIPTION, ROUTES
from tests.gateway.test_api import asking, opened

DOCUMENT = document()
_STRICT = {name: kind | {"additionalProperties": False} for name, kind in DOCUMENT["components"]["schemas"].items()}
VALIDATORS = {
    name: Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": _STRICT}})
    for name in _STRICT
}
"""What says whether an answer is of a type that the document has, with no more than its fields."""

OPERATIONS = [(path, method) for path, methods in ROUTES.items() for method in methods]


def faults(described: dict[str, Any]) -> list[str]:
    return [error.message for error in OpenAPIV31SpecValidator(described).iter_errors()]


def test_it_is_valid() -> None:
    assert faults(DOCUMENT) == []
    assert msgspec.json.decode(text()) == DOCUMENT


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("info"),
        lambda found: found["paths"]["/rooms/{room}/messages"].pop("parameters"),
        lambda found: found["paths"]["/rooms"]["get"]["responses"].clear(),
        lambda found: found["components"]["schemas"].pop("Problem"),
    ],
)
def test_a_fault_would_be_found(change: Callable[[dict[str, Any]], object]) -> None:
    changed = copy.deepcopy(DOCUMENT)
    change(changed)
    try:
        found = faults(changed)
    except Exception as error:
        found = [str(error)]
    assert found


def test_every_field_and_parameter_is_described() -> None:
    for name, kind in DOCUMENT["components"]["schemas"].items():
        if name == "PresenceMeta":  # its docstring has them
            continue
        assert kind["description"], name
        for field, schema in kind["properties"].items():
            assert schema["description"], f"{name}.{field}"
    for path, method in OPERATIONS:
        for parameter in DOCUMENT["paths"][path][method.lower()]["parameters"]:
            assert parameter["description"], f"{method} {path}: {parameter['name']}"


def test_it_has_every_path_method_and_code() -> None:
    described = {
        (path, method.upper()) for path, item in DOCUMENT["paths"].items() for method in item.keys() - {"parameters"}
    }
    assert described == {*OPERATIONS, (DESCRIPTION, "GET")}
    assert {code: each["retryable"] for code, each in DOCUMENT["x-error-codes"].items()} == {
        code: error.retryable for code, error in ERRORS.items()
    }


class NotHere:
    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        raise Unauthorized("Not here.")


def check(answer: Response, path: str, method: str) -> None:
    """Check that an answer is one that the document describes for this operation."""
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    described = responses.get(str(answer.status_code), responses["default"])
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"]["Problem"]
    if "content" not in described:
        assert answer.content == b""
        return
    name = described["content"][answer.headers["content-type"]]["schema"]["$ref"].rpartition("/")[2]
    assert [error.message for error in VALIDATORS[name].iter_errors(answer.json())] == []


async def test_what_is_answered_is_what_it_describes() -> None:
    checked = set()
    async with Chat(auth=NotHere()) as chat, opened(chat) as client:
        await chat.engine.room("a")  # nobody may join here

        async def ask(path: str, method: str, status: int, **sent: Any) -> None:
            answer = await client.request(method, "/api" + path.replace("{room}", "a").replace("{user}", "ada"), **sent)
            assert answer.status_code == status
            check(answer, path, method)
            checked.add((path, method))

        said = {"user_id": "ada", "content": "x", "data": {"a": 1}}
        for _ in range(2):
            await ask("/rooms/{room}/messages", "POST", 201, json=said, headers={"Idempotency-Key": '"k"'})
        await ask("/rooms/{room}/messages", "POST", 403, json=said | {"trusted": False})
        await ask("/rooms/{room}/messages", "POST", 415, content=b"x")
        await ask("/rooms/{room}/messages", "GET", 200)
        await ask("/rooms/{room}/messages", "GET", 400, params={"limit": 0})
        await ask("/rooms/{room}/presence", "GET", 200)
        await ask("/rooms", "GET", 200)
        await ask("/users/{user}/sessions", "DELETE", 204)
        await chat.stop()
        for path, method in OPERATIONS:
            await ask(path, method, 503)
    assert checked == {*OPERATIONS}


async def test_it_is_served_to_anybody_with_the_place_that_it_is_mounted_at() -> None:
    async with asking(Chat()) as client:
        answer = await client.get("/api/openapi.json", headers={"authorization": ""})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == document("/api")
        assert answer.json()["servers"] == [{"url": "/api"}]
