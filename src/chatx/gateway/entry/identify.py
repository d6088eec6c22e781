"""Asks `authenticate`, once for a handshake and again for each new token. Whatever it does, it fails closed."""

from __future__ import annotations

import inspect
import logging
import time

from chatx.adapters.boundary import AdapterFailure, is_async
from chatx.errors import ChatError, Closed
from chatx.gateway.entry.handshake import Authenticate, Handshake, Identity, identity_of
from chatx.runtime.engine import Engine

logger: logging.Logger = logging.getLogger("chatx")


async def identify(engine: Engine, authenticate: Authenticate, handshake: Handshake) -> Identity | None:
    """Return who it is, or None to refuse: it said no, failed, hung, answered wrongly, or what it said has expired.

    Raises:
        Closed: The chat is not running any more.
    """
    boundary = engine.boundary
    since = engine.revocations
    try:
        if is_async(authenticate):
            answer = await boundary.awaiting("authenticate", authenticate, handshake)  # type: ignore[arg-type]
        else:
            answer = boundary.plain("authenticate", authenticate, handshake)
        engine.check_open()
        if inspect.iscoroutine(answer):
            answer.close()
        identity = identity_of(answer)
        if identity is not None:
            # What was answered may be older than the revocation.
            engine.check_not_revoked(identity.user_id, since)
        # It would be closed as soon as it is open, and phoenix.js comes back at once from where it has been open.
        if identity is not None and identity.expires_at is not None and identity.expires_at <= time.time():
            logger.info("A handshake was refused: the identity of %r has expired.", identity.user_id)
            return None
        return identity
    except Closed:
        raise
    except (ChatError, AdapterFailure) as error:
        logger.warning("A handshake was refused: %s", error)
        return None
