"""What a request asks for: the forms of a target, and the path and the query in it.

Source: RFC 9112, section 3.2.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


def origin_form(target: str, hosts: list[str]) -> str | None:
    """Return a target as a path with a query, or None where the request is not one to answer.

    Args:
        target: The target as the request has it: `/path?query`, `http://host/path?query` or `*`.
        hosts: The values of its Host headers. There must be one, and a target that names a host must name the same:
            what origins are compared with is not to be open to choice.
    """
    if len(hosts) != 1 or not target.isascii():
        return None
    if target.startswith("/") or target == "*":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or absolute[1].lower() != hosts[0].strip().lower():
        return None
    return absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]


def path_of(target: str) -> tuple[str, str]:
    """Return the path and the query of a target in origin form, the path unquoted."""
    path, _, query = target.partition("?")
    return unquote(path), query
