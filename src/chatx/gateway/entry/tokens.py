"""Signed tokens: who a client is, until when, and for which rooms, said by whoever has the secret.

    chat.asgi(authenticate=SignedTokens(secret))

A token is a JWT with HS256, whose claims are `sub` (the user id), `exp` and `nbf` (Unix time in seconds) and `rooms`
(ids, or `prefix*`). It comes as the subprotocol of phoenix.js (`authToken`), as `Authorization: Bearer`, or as the
parameter `token`, in this order; the last one reaches logs. Source: RFC 7519.

Rules:
1. What cannot be understood is refused: a claim of the wrong type lets nobody in, and into nothing.
2. A token without `exp` does not expire, one without `rooms` is for all rooms, as in RFC 7519 a claim may be left out.
"""

from __future__ import annotations

import time
from typing import Any

import jwt

from chatx.core.validation import valid_id
from chatx.errors import ChatError, ConfigError
from chatx.gateway.entry.handshake import Handshake, Identity, finite
from chatx.gateway.entry.refusal import RefusalLog, Refused

ALGORITHM = "HS256"

SECRET_BYTES = 32
"""Bytes that a secret should have: with fewer, whoever has one token can guess it. Source: RFC 7518, section 3.2."""

LEEWAY_S = 10.0
"""Seconds that the clock of whoever signs may be ahead, where a token says from when it is valid."""

PARAM = "token"
_BEARER = "bearer "


def sign(secret: str, identity: Identity) -> str:
    """Return a token that says an identity.

    Args:
        secret: As given to `SignedTokens`.
        identity: Who, until when, and for which rooms.

    Raises:
        ConfigError: The secret is empty, no UTF-8, or looks like a key of another kind.
        InvalidMessage: A room is neither an id nor a `prefix*`.
    """
    _check(secret)
    claims: dict[str, Any] = {"sub": identity.user_id, "iat": int(time.time())}
    if identity.expires_at is not None:
        claims["exp"] = identity.expires_at
    if identity.rooms is not None:
        claims["rooms"] = [valid_id(room, "a room") for room in identity.rooms]
    return jwt.encode(claims, secret, ALGORITHM)


class SignedTokens:
    """An `authenticate` that takes tokens signed with a secret.

    Args:
        secret: Known to whoever signs; `SECRET_BYTES` bytes or more.

    Raises:
        ConfigError: The secret is empty, no UTF-8, or looks like a key of another kind.
    """

    def __init__(self, secret: str) -> None:
        _check(secret)
        self._secret = secret
        self._refusals = RefusalLog()

    def __call__(self, handshake: Handshake) -> Identity | None:
        """Return the identity that a handshake's token says, or None where there is no token, or none that is valid."""
        token = _token(handshake)
        if token is None:
            code = "token_missing"
            why = "it came without a token: authToken of phoenix.js, Authorization: Bearer, or the parameter token."
        else:
            try:
                # `nbf` is looked at below, with a leeway that `exp` is not given; when it was made says nothing.
                claims = jwt.decode(
                    token, self._secret, [ALGORITHM], {"require": ["sub"], "verify_iat": False, "verify_nbf": False}
                )
                return _identity(claims)
            except jwt.ExpiredSignatureError:
                code, why = "token_expired", "its token has expired by this clock (exp); it has to fetch a new one."
            except jwt.InvalidSignatureError:
                code, why = "token_signature", "its token is signed with another secret than this one."
            except _TooEarly as error:
                code, why = "token_early", str(error)
            # Besides its own errors it lets through what decoding a hostile JSON raises.
            except (jwt.PyJWTError, ChatError, ValueError, RecursionError) as error:
                code = "token_invalid"
                what = str(error) if isinstance(error, ChatError) else type(error).__name__
                why = f"its token is none that is understood here: {what}"
        self._refusals.tell(Refused(403, code, why), handshake.scope, time.monotonic())
        return None


class _TooEarly(Exception):
    """A token is not valid yet."""


def _check(secret: str) -> None:
    wanted = f"give text of {SECRET_BYTES} bytes or more, known to nobody else"
    if not isinstance(secret, str) or not secret:
        raise ConfigError(f"The secret is empty; {wanted}.")
    try:
        jwt.get_algorithm_by_name(ALGORITHM).prepare_key(secret)
    except UnicodeEncodeError:
        raise ConfigError(f"The secret is no UTF-8; {wanted}.") from None
    except jwt.InvalidKeyError:
        # Whoever verifies by a public key may be shown one signed with its text, which everybody knows.
        raise ConfigError(f"The secret is a key or a certificate of another kind; {wanted}.") from None


def _token(handshake: Handshake) -> str | None:
    if handshake.token is not None:
        return handshake.token
    header = handshake.headers.get("authorization", "")
    if header[: len(_BEARER)].lower() == _BEARER:
        return header[len(_BEARER) :].strip()
    return handshake.params.get(PARAM)


def _identity(claims: dict[str, Any]) -> Identity:
    since = claims.get("nbf", 0)
    # Not a number is at no time: nothing is before it or behind it.
    if isinstance(since, bool) or not isinstance(since, (int, float)) or not finite(since):
        raise ConfigError("The claim `nbf` is no time.")
    ahead = since - time.time()
    if ahead > LEEWAY_S:
        raise _TooEarly(
            f"its token is too early: nbf is {ahead:.0f} s ahead of this clock, and {LEEWAY_S:.0f} s are allowed. Set "
            "the clocks of whoever signs and of this machine."
        )
    rooms = claims.get("rooms")
    if rooms is not None and not isinstance(rooms, list):
        raise ConfigError("The claim `rooms` is no list of texts.")
    return Identity(claims["sub"], claims.get("exp"), None if rooms is None else tuple(rooms))
