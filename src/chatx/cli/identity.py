"""Who a client of `chatx serve` is: what its signed token says, or, to develop, what it says itself."""

from __future__ import annotations

import logging
import time
import warnings
from ipaddress import ip_address

from jwt import InsecureKeyLengthWarning

from chatx.core.log_limit import LogLimit
from chatx.errors import ConfigError
from chatx.gateway.entry.handshake import Authenticate, Handshake
from chatx.gateway.entry.tokens import SECRET_BYTES, SignedTokens

logger: logging.Logger = logging.getLogger("chatx")

USER_PARAM = "user_id"

ADMIN_TOKEN_BYTES = 16
"""Bytes that the admin token should have: with fewer it can be guessed by trying."""

_PROXIED = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"})


# One line a minute for each reason: whoever is refused may try again at once.
_LOGGED = {"proxy": LogLimit(1), "host": LogLimit(1)}


def identity_source(secret: str, *, insecure: bool) -> Authenticate:
    """Return the server's `authenticate`.

    Args:
        secret: What tokens are signed with; empty where there is none.
        insecure: Whether clients name themselves; then the secret is not used.

    Raises:
        ConfigError: There is no secret, and clients do not name themselves.
    """
    if insecure:
        logger.warning(
            "INSECURE: clients name themselves with the parameter %s, so anybody can be anybody.%s",
            USER_PARAM,
            " CHATX_SECRET is not used." if secret else "",
            extra={"code": "insecure_user_param"},
        )
        return named_by_itself
    if not secret:
        raise ConfigError(
            "CHATX_SECRET is not set, so no token can be trusted; set it to the secret that tokens are signed with "
            "(`openssl rand -hex 32` makes one), or give --insecure-user-param to develop."
        )
    try:
        tokens = SignedTokens(secret)
    except ConfigError as error:
        raise ConfigError(f"CHATX_SECRET: {error.reason}") from error
    if len(secret.encode()) < SECRET_BYTES:
        logger.warning(
            "CHATX_SECRET has fewer than %d bytes: it can be guessed by whoever has one token.",
            SECRET_BYTES,
            extra={"code": "short_secret"},
        )
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # it was said, once
    return tokens


def admin_token(text: str) -> str:
    """Return the token of operators; empty where there is none.

    Args:
        text: As the environment has it. White space around it is no part of it: a file that it was read from ends with
            a newline, and no header can bring one.

    Raises:
        ConfigError: It is not UTF-8.
    """
    token = text.strip()
    try:
        size = len(token.encode())
    except UnicodeEncodeError:
        raise ConfigError("CHATX_ADMIN_TOKEN is no UTF-8; give a text, as `openssl rand -hex 32` makes one.") from None
    if token and size < ADMIN_TOKEN_BYTES:
        logger.warning(
            "CHATX_ADMIN_TOKEN has fewer than %d bytes: it can be guessed.",
            ADMIN_TOKEN_BYTES,
            extra={"code": "short_admin_token"},
        )
    return token


def named_by_itself(handshake: Handshake) -> str | None:
    """Return the user that a client says it is, where it came to this machine by a name of its own.

    A page of another site can have its own name resolve to this machine, and would then be of the same origin. A proxy
    on this machine would bring in everybody, so what says that it came through one is refused.
    """
    proxied = sorted(_PROXIED & handshake.headers.keys())
    host = handshake.headers.get("host", "")
    if proxied:
        _refused("proxy", handshake, f"it came through a proxy ({', '.join(proxied)}); connect to the server itself")
        return None
    if not _loopback(host):
        _refused("host", handshake, f"it asked for {host!r}, not for localhost; connect to localhost")
        return None
    return handshake.params.get(USER_PARAM) or None


def _refused(reason: str, handshake: Handshake, why: str) -> None:
    left_out = _LOGGED[reason].due(time.monotonic())
    if left_out is not None:
        logger.warning(
            "A handshake was refused: %s, or set CHATX_SECRET and leave --insecure-user-param out.%s",
            why,
            f" (Since the last line of this kind: {left_out} more.)" if left_out else "",
            extra={"code": reason, "address": (handshake.scope.get("client") or ("",))[0]},
        )


def _loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
