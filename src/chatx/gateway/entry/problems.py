"""A refusal over HTTP as RFC 9457 has it: what the API answers, and what a server answers ahead of any application."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType, json

CONTENT_TYPE: Final = "application/problem+json"


class Problem(Struct, frozen=True):
    """What was wrong, as RFC 9457 has it, with what the table of errors says of it."""

    type: Annotated[
        str,
        Meta(
            description="`urn:problem-type:chatx:` with the code; `about:blank` where the status says all that is to "
            "be said, and there is no code."
        ),
    ]
    title: Annotated[str, Meta(description="What the type means, for a person.")]
    status: Annotated[int, Meta(description="The HTTP status.")]
    detail: Annotated[str, Meta(description="What was wrong, what was expected and what to do, for a person.")]
    retryable: Annotated[bool, Meta(description="Whether the same request may succeed later, unchanged.")]
    code: Annotated[str | UnsetType, Meta(description="From the table of errors, or an application's own.")] = UNSET
    retry_after_ms: Annotated[
        int | UnsetType, Meta(description="Milliseconds to wait, left out where that is not known.")
    ] = UNSET


def plain_problem(status: int, detail: str) -> Problem:
    """Return a problem of which the status says all that is to be said, but for the detail."""
    return Problem("about:blank", HTTPStatus(status).phrase, status, detail, comes_back(status))


def encoded_problem(status: int, detail: str) -> bytes:
    """Return such a problem as the body of an answer."""
    return json.encode(plain_problem(status, detail))


def comes_back(status: int) -> bool:
    """Return whether what was refused with this status may succeed later, unchanged."""
    return status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
