"""Who may use the API: the application's own `authenticate`, or a token. Whatever either does, it fails closed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeAlias

from chatx.adapters.boundary import AdapterFailure, check_arguments, is_async
from chatx.errors import AdapterError, Closed, ConfigError, Unauthorized
from chatx.gateway.api.problems import Refusal
from chatx.gateway.operations.bearer import is_shown
from chatx.runtime.engine import Engine

ApiAuthenticate: TypeAlias = Callable[[Mapping[str, str]], "bool | Awaitable[bool]"]
"""Given the headers of a request by lower-case name, returns whether it may use the API; plain or async."""


def check_authenticate(authenticate: object) -> None:
    """Check that this can be asked who may use the API.

    Raises:
        ConfigError: It cannot. There is no default: without it anybody could say anything in anybody's name.
    """
    if not callable(authenticate):
        raise ConfigError(
            f"authenticate is {authenticate!r}; give a function of a request's headers that returns True for those "
            "that may say anything in anybody's name, and False for all others."
        )
    check_arguments("authenticate", authenticate, "headers")


def token_shown(token: str) -> ApiAuthenticate:
    """Return an `authenticate` that wants this bearer token; an empty one opens to nobody."""

    def authenticate(headers: Mapping[str, str]) -> bool:
        if not token:
            raise Unauthorized("The API is shut: the server has no admin token. Set CHATX_ADMIN_TOKEN.")
        return is_shown(token, headers.get("authorization", ""))

    return authenticate


async def check_access(engine: Engine, authenticate: ApiAuthenticate, headers: Mapping[str, str]) -> None:
    """Check that a request may use the API.

    Raises:
        Refusal: It may not.
        ChatError: `authenticate` raised it, or failed.
    """
    try:
        if is_async(authenticate):
            answer: object = await engine.boundary.awaiting("authenticate", authenticate, headers)  # type: ignore[arg-type]
        else:
            answer = engine.boundary.plain("authenticate", authenticate, headers)
        if inspect.iscoroutine(answer):
            answer.close()
        if answer is not True and answer is not False:
            engine.boundary.failed("authenticate", "wrong_answer", f"it answered a {type(answer).__name__}, not a bool")
    except Unauthorized as error:
        raise _unauthorized(error.reason) from None
    except AdapterFailure as failure:
        if failure.failure == "stopped":
            raise Closed("The chat was stopped before authenticate answered.") from None
        raise AdapterError("Whether this request may use the API could not be found out; try again later.") from None
    if answer is not True:
        raise _unauthorized("Show what opens the API, such as a token as Authorization: Bearer.")


def _unauthorized(reason: str) -> Refusal:
    # Not the error of that name, which is what a user may not do in a room.
    return Refusal(HTTPStatus.UNAUTHORIZED, reason, (b"www-authenticate", b"Bearer"))
