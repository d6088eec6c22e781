"""The origins that an application lists, as browsers write them.

What is compared is text, whole. So what is listed is brought into the one form that a browser sends, where its meaning
is plain, and refused when the application starts where no browser sends it: an origin that never matches would only
show as pages that are shut out. Source: the URL standard's serialisation of an origin, and UTS 46 for names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from ipaddress import IPv6Address
from urllib.parse import urlsplit

from chatx.errors import ConfigError, Problems

ALL = "*"
"""Lists every origin."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_SHOWN = "a browser sends a scheme, a host and a port other than the scheme's own, as 'https://example.org' or "
_SHOWN += "'http://localhost:3000'"


def origins_of(listed: Iterable[str]) -> frozenset[str]:
    """Return the origins as browsers send them; one text is one origin.

    Raises:
        ConfigError: Some of them are sent by no browser; it has a problem for each.
    """
    if isinstance(listed, str):
        listed = (listed,)
    try:
        each = list(listed)
    except TypeError:
        raise ConfigError(f"origins is {listed!r}; give a tuple of texts, such as ('https://example.org',).") from None
    problems = Problems()
    found = set()
    for one in each:
        with problems.gathered():
            found.add(_origin(one))
    problems.tell()
    return frozenset(found)


def _origin(listed: object) -> str:
    if not isinstance(listed, str):
        raise ConfigError(f"The origin {listed!r} is no text; write it as 'https://example.org'.")
    text = listed.strip()
    if text == ALL:
        return ALL
    try:
        return _serialised(text)
    except ValueError as error:
        raise ConfigError(f"The origin {listed!r} is never sent: {error}; {_SHOWN}. '*' is for all.") from None


def _serialised(text: str) -> str:
    if text.lower() == "null":
        raise ValueError("'null' is what every page without an origin of its own sends, whoever wrote it")
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError("it has no scheme such as https://")
    if scheme in ("ws", "wss"):
        raise ValueError(f"it is an address of a socket; list its page's, which begins with http{scheme[2:]}://")
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError("it has a user's name in it")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError("it has more than a host, such as a path")
    if "*" in parts.netloc:
        raise ValueError("there are no wildcards; list each origin")
    host = _host(parts.netloc, parts.hostname)
    port = parts.port  # raises ValueError where it is none
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def _host(netloc: str, name: str | None) -> str:
    if netloc.startswith("["):
        return f"[{IPv6Address(name or '')}]"
    # As UTS 46 maps a name, near enough for those that exist: compatibility forms, lower case, one kind of dot.
    mapped = unicodedata.normalize("NFKC", (name or "").replace("\u3002", ".")).lower()
    labels = [label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in mapped.split(".")]
    host = ".".join(labels)
    if not _NAME.fullmatch(host):
        raise ValueError("its host is no name and no address")
    return host
