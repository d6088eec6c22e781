"""Where messages are kept, as a URL.

| URL | store |
|---|---|
| `sqlite:///chat.db` | a file of SQLite, from the current folder |
| `sqlite:////var/lib/chat.db` | a file of SQLite, anywhere |
| `chat.db` | the same without a scheme |
| `sqlite://`, `:memory:` | SQLite in memory: all is gone when the chat stops |
| `postgresql://user@host/database`, `postgres://...` | a database of PostgreSQL, as libpq has it |
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

from chatx.errors import ConfigError
from chatx.extras import needs

if TYPE_CHECKING:
    from chatx.adapters.postgres_log import PostgresLog
    from chatx.adapters.sqlite import SQLitePersistence

    Store: TypeAlias = SQLitePersistence | PostgresLog

FORMS = "sqlite:///chat.db, sqlite:////var/lib/chat.db, sqlite:// (in memory), postgresql://user@host/database"
"""What a store's URL can be, for errors."""

IN_MEMORY = ":memory:"
"""The path of a database in memory, as SQLite has it."""

# One letter before the colon is a drive of Windows.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)

POSTGRES_MS = 3000
"""How long a call to PostgreSQL waits for a connection, and may take then, at most, in ms."""


def kind_of(url: object) -> Literal["sqlite", "postgres"]:
    """Return which kind of store a URL names.

    Raises:
        ConfigError: It names none.
    """
    if not isinstance(url, str):
        raise ConfigError(f"The store is a {type(url).__name__}; give a URL as text: {FORMS}.")
    scheme = _SCHEME.match(url)
    if scheme is None or scheme[1].lower() == "sqlite":
        path_of(url)
        return "sqlite"
    if scheme[1].lower() in ("postgresql", "postgres") and url[scheme.end() :].startswith("//"):
        check_ports(url)
        return "postgres"
    driver = "name no driver, and " if "+" in scheme[1] else ""
    raise ConfigError(f"There is no store {shown(url)}; {driver}give one of {FORMS}.")


def check_ports(url: str) -> None:
    """Check the ports in the URL of a database's server, of which there may be several.

    Raises:
        ConfigError: One of them is none.
    """
    try:
        hosts = urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        hosts = ":["  # it has one that is no address
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
            # Not the port itself: it may be a part of the password.
            raise ConfigError(
                "The URL of the store has a host or a port that is none; a port is from 1 to 65535. Write "
                "postgresql://user:password@host:port/database, and quote each part: a / in a password is %2F."
            )


def shown(url: str) -> str:
    """Return a URL as it may be shown: that of a database's server without a user, a password and options."""
    scheme = _SCHEME.match(url)
    if scheme is None:
        return url
    rest = url[scheme.end() :]
    if scheme[1].lower() == "sqlite" and (rest.startswith("///") or not rest.startswith("//")):
        return url
    hidden = f"{scheme[1]}:..."
    try:
        parts = urlsplit(url)
        _ = parts.port  # what is no number is a password without a host
    except ValueError:
        return hidden
    # One that was not quoted may have anything in it, and so end up behind the host.
    if not rest.startswith("//") or "@" in parts.path + parts.query + parts.fragment:
        return hidden
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def path_of(url: str) -> str:
    """Return the file of SQLite that a URL or a path names, `:memory:` for none.

    Raises:
        ConfigError: It names a host or options, or nothing.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        path = url
    else:
        rest = url[scheme.end() :]
        if rest == "//":
            return IN_MEMORY
        if rest.startswith("//") and not rest.startswith("///"):
            raise ConfigError(
                f"The store {shown(url)} names a host, and a file of SQLite is on this machine; "
                "write sqlite:///chat.db."
            )
        path = rest.removeprefix("///")
        if "?" in path:
            raise ConfigError(
                f"The store {shown(url)} has options, and SQLite takes none here; write sqlite:///chat.db, or the path "
                "alone where the name has a question mark."
            )
    if not path:
        raise ConfigError("The store names no file; write sqlite:///chat.db, or sqlite:// for one in memory.")
    if "\0" in path:
        raise ConfigError("The store names a file with a NUL in it; write sqlite:///chat.db.")
    return path


def check_store(url: object) -> None:
    """Check that a URL names a store, and that what it needs is installed; nothing is opened.

    Raises:
        ConfigError: It names none, or an extra is missing.
    """
    if kind_of(url) == "postgres":
        with needs("postgres", "A store in PostgreSQL"):
            import chatx.adapters.postgres_log  # noqa: F401  # whether it can be


def open_store(url: str, *, adapter_timeout_ms: int = 2 * POSTGRES_MS + 1) -> Store:
    """Return the store that a URL names; whoever called this closes it.

    A file of SQLite is opened, and made with its tables where it is not there, which may block for seconds. PostgreSQL
    is connected to when it is first used, and its tables are made then.

    Args:
        url: One of the forms above.
        adapter_timeout_ms: The bound of a call of the engine: a call to PostgreSQL gives up before that, since it then
            knows whether something was written.

    Raises:
        ConfigError: As `check_store`; or the file cannot be used.
        StoreInUse: A chat of an earlier version writes to the file.
        LogUnavailable: The file's disk is full, or fails.
    """
    if kind_of(url) == "sqlite":
        from chatx.adapters.sqlite import SQLitePersistence

        try:
            return SQLitePersistence(path_of(url))
        except ConfigError as error:
            raise ConfigError(f"The store {shown(url)}: {error.reason}") from error
    with needs("postgres", "A store in PostgreSQL"):
        from chatx.adapters.postgres_log import PostgresLog
    return PostgresLog(url, timeout_ms=max(1, min(POSTGRES_MS, (adapter_timeout_ms - 1) // 2)))
