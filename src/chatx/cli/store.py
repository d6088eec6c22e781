"""What `--store` names: where messages are kept."""

from __future__ import annotations

import re

from chatx.adapters.sqlite import SQLitePersistence
from chatx.errors import ConfigError

# One letter before the colon is a drive of Windows.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)


def named(url: str) -> str:
    """Return the part of a URL that may be shown: the URL of a database server may hold a password."""
    scheme = _SCHEME.match(url)
    return scheme[1] if scheme is not None else url


def store_of(url: str) -> SQLitePersistence:
    """Return the persistence adapter for a URL; whoever opens it closes it. Errors as `file_of`, of its file too."""
    try:
        return SQLitePersistence(file_of(url))
    except ConfigError as error:
        raise ConfigError(f"--store {named(url)}: {error.reason}") from error


def file_of(url: str) -> str:
    """Return the file of SQLite that a URL names.

    `sqlite:///chat.db` is a file in this folder, `sqlite:////var/lib/chat.db` one anywhere; a path alone is the same.

    Raises:
        ConfigError: There is no store of this kind.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        path = url
    elif scheme[1].lower() == "sqlite":
        rest = url[scheme.end() :]
        path = rest.removeprefix("///") if rest.startswith("//") else rest
        if rest.startswith("//") and not rest.startswith("///"):
            raise ConfigError("A file is on this machine, so a URL of SQLite names no host; write sqlite:///chat.db.")
    else:
        raise ConfigError(f"There is no store {scheme[1]!r}; give a file of SQLite, as sqlite:///chat.db.")
    if not path:
        raise ConfigError("It names no file; write sqlite:///chat.db.")
    return path
