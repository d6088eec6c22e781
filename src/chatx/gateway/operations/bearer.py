"""Whether a request shows the token that opens what is for operators and for backends."""

from __future__ import annotations

import hmac

_BEARER = "bearer "


def is_shown(token: str | None, authorization: str) -> bool:
    """Return whether the value of an Authorization header is this bearer token; how much of it is tells no time.

    Args:
        token: What is to be shown; None or empty is shown by nobody.
        authorization: The header's value, empty where there is none.
    """
    if not token:
        return False
    shown = authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else ""
    return hmac.compare_digest(shown.encode("latin-1"), token.encode())
