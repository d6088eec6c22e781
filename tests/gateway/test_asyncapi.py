"""The document that describes the wire: valid, whole, and the one that is in the documentation."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from chatx.errors import ERRORS, ChatError
from chatx.gateway.describe.asyncapi import document, text
from chatx.gateway.wire.closes import CLOSES
from chatx.gateway.wire.frames import negotiate
from chatx.gateway.wire.phoenix import REFUSALS
from tests.gateway.described import DOCUMENT, FROM_CLIENTS, FROM_SERVER, examples, matches

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "asyncapi.json"
SPECIFICATION = ROOT / "tests" / "npm" / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
GATEWAY = ROOT / "src" / "chatx" / "gateway"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def specification() -> Draft7Validator:
    return Draft7Validator(msgspec.json.decode(SPECIFICATION.read_bytes()))


def test_the_committed_document_is_the_one_that_the_code_makes() -> None:
    if os.environ.get("WRITE_ASYNCAPI") == "1":
        COMMITTED.write_text(text(), encoding="utf-8")
    assert COMMITTED.read_text(encoding="utf-8") == text(), "run this test with WRITE_ASYNCAPI=1, and look at it"


def test_the_text_is_the_document() -> None:
    assert msgspec.json.decode(text()) == document()


def test_every_payload_and_each_of_its_fields_is_described() -> None:
    for name, kind in DOCUMENT["components"]["schemas"].items():
        assert kind["description"], name
        for field, schema in kind.get("properties", {}).items():
            assert schema["description"], f"{name}.{field}"


def test_it_is_valid_by_the_official_schema(specification: Draft7Validator) -> None:
    assert [error.message for error in specification.iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda changed: changed.update(asyncapi="2.6.0"),
        lambda changed: changed["info"].pop("version"),
        lambda changed: changed["channels"]["room"].update(adress="room:{room_id}"),
        lambda changed: changed["operations"]["join"].update(action="publish"),
        lambda changed: changed["components"]["messages"]["join"].update(payload=5),
        lambda changed: changed["components"]["channelBindings"]["socket"]["ws"].update(method="PUT"),
        lambda changed: changed["components"]["securitySchemes"]["cookie"].pop("in"),
    ],
)
def test_the_official_schema_finds_what_is_wrong(specification: Draft7Validator, change: Change) -> None:
    changed = copy.deepcopy(DOCUMENT)
    change(changed)
    assert not specification.is_valid(changed)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from _references(each)
    elif isinstance(part, list):
        for each in part:
            yield from _references(each)


def _at(reference: str) -> Any:
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    references = set(_references(DOCUMENT))
    for reference in references:
        assert isinstance(_at(reference), dict), reference
    used = {reference.rpartition("/")[2] for reference in references if "/schemas/" in reference}
    assert used == set(DOCUMENT["components"]["schemas"])


def test_the_messages_of_an_operation_are_those_of_its_channel_and_each_is_in_one() -> None:
    in_operations = []
    for operation in DOCUMENT["operations"].values():
        channel = operation["channel"]["$ref"]
        reply = operation.get("reply", {"channel": operation["channel"], "messages": []})
        assert reply["channel"]["$ref"] == channel
        for reference in (*operation["messages"], *reply["messages"]):
            place, _, name = reference["$ref"].rpartition("/messages/")
            assert place == channel
            assert name in _at(channel)["messages"]
            in_operations.append(name)
    assert set(in_operations) == FROM_CLIENTS | FROM_SERVER


def test_every_example_is_one_message_and_no_other_and_each_is_shown_in_both_versions() -> None:
    shown: dict[str, set[type]] = {}
    for name, frame in examples():
        names = FROM_CLIENTS if name in FROM_CLIENTS else FROM_SERVER
        assert matches(frame, names) == [name]
        shown.setdefault(name, set()).add(type(frame))
    assert shown == {name: {list, dict} for name in FROM_CLIENTS | FROM_SERVER}


def test_everything_says_what_it_means() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema.get("description"), name
        if schema.get("type") == "object":
            for field, described in schema.get("properties", {}).items():
                assert described.get("description"), f"{name}.{field}"


def test_a_schema_has_no_description_of_its_types_insides() -> None:
    assert not re.search(r"Attributes:|Raises:|`None`|or None\b", text())


def test_every_close_code_that_the_gateway_gives_is_in_the_table() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in GATEWAY.rglob("*.py"))
    given_out = re.findall(r"^CLOSE_[A-Z_]+(?:: Final)? = (\d{4})$|\bclose\((\d{4}),", source, re.MULTILINE)
    codes = {int(code) for pair in given_out for code in pair if code}
    assert codes == set(CLOSES)
    assert {int(code) for code in DOCUMENT["x-close-codes"]} == set(CLOSES)
    assert 1000 not in CLOSES


def test_the_error_codes_are_those_of_the_table_that_a_client_can_meet() -> None:
    codes = DOCUMENT["x-error-codes"]
    assert set(ERRORS) - set(codes) == {
        "config_error",
        "revoked",
        "slow_consumer",
        "subscriber_failed",
        "already_started",
        "store_in_use",
        "wrong_loop",
    }
    assert set(REFUSALS) < set(codes)
    for code, described in codes.items():
        kind: type[ChatError] = ERRORS[code]
        assert described == {"retryable": kind.retryable, "means": kind.summary}


@given(
    st.from_regex(r"[0-3]\.[0-9]\.[0-9]{1,3}(\+[a-z.-]{0,4})?", fullmatch=True)
    | st.sampled_from(["1.0.0", "2.0.0", "2.0.10+x-1", "2.0.0-rc.1", "2.0", "2", "", "2.0.01", "2.0.0\n", "x2.0.0"])
)
def test_the_versions_it_names_are_those_that_are_spoken(vsn: str) -> None:
    pattern = DOCUMENT["components"]["channelBindings"]["socket"]["ws"]["query"]["properties"]["vsn"]["pattern"]
    try:
        negotiate(vsn)
        spoken = True
    except ValueError:
        spoken = False
    # In ECMA-262, the dialect of JSON Schema, $ is the very end; in Python it may stand before a last newline.
    assert (re.search(pattern.replace("$", r"\Z"), vsn) is not None) is spoken
