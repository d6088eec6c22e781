"""Asks `authenticate`, once for a handshake and again for each new token. Whatever it does, it fails closed."""

from __future__ import annotations

import inspect
import time

from chatx.adapters.boundary import AdapterFailure, is_async
from chatx.errors import AdapterError, ChatError, Closed, Revoked, Unauthorized
from chatx.gateway.entry.handshake import Authenticate, Handshake, Identity, identity_of
from chatx.gateway.entry.refusal import shortened
from chatx.runtime.engine import Engine


class NotIdentified(Exception):
    """There is nobody to let in.

    Attributes:
        code: Why, one of a few: `authenticate_no`, `authenticate_failed`, `authenticate_answer`, `expired`, `revoked`.
        reason: Why, for the log.
        error: What the client is told, where it was in and came with a new token.
        user_id: Who it would have been, where that is known.
    """

    def __init__(self, code: str, reason: str, error: ChatError, user_id: str | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.error = error
        self.user_id = user_id


async def identify(engine: Engine, authenticate: Authenticate, handshake: Handshake) -> Identity:
    """Return the identity of a handshake's client.

    Raises:
        NotIdentified: `authenticate` said no, failed, hung or answered wrongly, or the identity has expired.
        Closed: The chat is not running any more.
    """
    since = engine.revocations.count
    answer = await _asked(engine, authenticate, handshake)
    engine.check_open()
    identity = _identity(answer)
    if identity is None:
        raise NotIdentified(
            "authenticate_no", f"authenticate said no: it answered {answer!r}, and no user.", Unauthorized()
        )
    check_in_force(engine, identity, since)
    return identity


def check_in_force(engine: Engine, identity: Identity, since: int) -> None:
    """Check an identity whose user may have been revoked after `since` revocations, or that may have expired.

    Raises:
        NotIdentified: The identity is in force no more.
        Closed: The chat is not running any more.
    """
    engine.check_open()
    user_id, until = identity.user_id, identity.expires_at
    try:
        # What was answered may be older than the revocation.
        engine.revocations.check(user_id, since)
    except Revoked as error:
        raise NotIdentified(
            "revoked", f"the user {user_id!r} was revoked while they came in.", error.again(), user_id
        ) from None
    # It would be closed as soon as it is open, and phoenix.js comes back at once from where it has been open.
    if until is not None and until <= time.time():
        raise NotIdentified(
            "expired",
            f"the identity of {user_id!r} expired {time.time() - until:.1f} s ago by this clock; "
            "the client has to come with a new token.",
            Unauthorized(),
            user_id,
        )


async def _asked(engine: Engine, authenticate: Authenticate, handshake: Handshake) -> object:
    boundary = engine.boundary
    try:
        if is_async(authenticate):
            return await boundary.awaiting("authenticate", authenticate, handshake)  # type: ignore[arg-type]
        return boundary.plain("authenticate", authenticate, handshake)
    except Closed:
        raise
    except AdapterFailure as failure:
        if failure.failure == "stopped":
            raise Closed("The chat was stopped before authenticate answered.") from None
        raise NotIdentified(
            "authenticate_failed",
            f"authenticate failed ({failure.failure}): {shortened(str(failure))}. Its traceback is in the log where it "
            "raised; until it answers, nobody is let in.",
            AdapterError("The token could not be checked, so the present one stays in force; try again later."),
        ) from None
    except ChatError as error:
        raise NotIdentified(
            "authenticate_no", f"authenticate refused: {shortened(str(error))}", Unauthorized()
        ) from None


def _identity(answer: object) -> Identity | None:
    if inspect.iscoroutine(answer):
        answer.close()
    try:
        return identity_of(answer)
    except ChatError as error:
        raise NotIdentified(
            "authenticate_answer",
            f"authenticate answered a {type(answer).__name__}, which is no user's id, Identity or None: "
            f"{shortened(str(error))}",
            AdapterError("The token could not be checked, so the present one stays in force; try again later."),
        ) from None
