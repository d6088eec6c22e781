"""Why a request is not answered as it wishes: a status of HTTP, and a body as RFC 9457 has it.

What the engine refuses has its code from the one table, `chatx.errors`. What HTTP itself has a status for, as a path
that leads nowhere, has none: its type is `about:blank`.
"""

from __future__ import annotations

import math
from http import HTTPStatus

from msgspec import UNSET

from chatx.errors import ChatError, http_status
from chatx.gateway.entry.problems import Problem, comes_back, plain_problem

COME_BACK_S = 1.0
"""Seconds that `Retry-After` says with 429 and 503 where it is not known how long to wait."""

_TYPE = "urn:problem-type:chatx:"


class Refusal(Exception):
    """A request is refused.

    Attributes:
        status: The HTTP status.
        detail: What was wrong, what was expected and what to do.
        headers: Headers of the answer beside those that each has.
        error: What of the table of errors it is, or None.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str = "",
        *headers: tuple[bytes, bytes],
        error: ChatError | None = None,
    ) -> None:
        super().__init__(detail)
        self.status: int = status.value
        self.detail: str = detail if error is None else error.reason
        self.headers: tuple[tuple[bytes, bytes], ...] = headers
        self.error: ChatError | None = error


def refusal_of(error: ChatError) -> Refusal:
    """Return what an error of the table is over HTTP."""
    return Refusal(HTTPStatus(http_status(error)), error=error)


def problem_of(refusal: Refusal) -> Problem:
    """Return the body of an answer that refuses."""
    error = refusal.error
    if error is None:
        return plain_problem(refusal.status, refusal.detail)
    wait = UNSET if error.retry_after is None else math.ceil(error.retry_after * 1000)
    title = type(error).summary
    return Problem(_TYPE + error.code, title, refusal.status, refusal.detail, error.retryable, error.code, wait)


def headers_of(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that refuses; `Retry-After` in whole seconds, rounded up."""
    wait = None if refusal.error is None else refusal.error.retry_after
    if wait is None and comes_back(refusal.status):
        wait = COME_BACK_S
    return [*refusal.headers, *([] if wait is None else [(b"retry-after", b"%d" % math.ceil(wait))])]
