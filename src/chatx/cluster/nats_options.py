"""How NATS is reached: servers, and who this node is to them. No client is needed to say so."""

from __future__ import annotations

import re
import ssl
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from chatx.errors import ConfigError

CLUSTER_NAME: Final = r"[A-Za-z0-9_-]{1,32}"
"""What the name of a cluster looks like: one word of a subject."""

_SCHEMES: Final = ("nats", "tls")


class NatsOptions(Struct, frozen=True, kw_only=True):
    """Where NATS is, and who this node is to it.

    Its text shows no secret.

    Attributes:
        servers: URLs, `nats://host:4222` or `tls://host:4222`; at least one. They are tried in turn.
        cluster: The name of the cluster, under which all its subjects are: `cx.<cluster>.`
        user: A user's name, with `password`.
        password: Its password.
        token: A token instead.
        credentials: The path of a `.creds` file instead.
        nkey: The path of a file with the seed of an nkey instead.
        tls_ca: The path of the certificates that are trusted; without it, and with `tls://`, the system's.
        tls_certificate: The path of this node's own certificate, with `tls_key`.
        tls_key: The path of its key.
    """

    servers: tuple[str, ...]
    cluster: str = "chatx"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None

    def __repr__(self) -> str:
        return f"NatsOptions(servers={tuple(map(shown, self.servers))}, cluster={self.cluster!r})"

    def check(self) -> None:
        """Check that they make sense.

        Raises:
            ConfigError: They do not; it names what is wrong.
        """
        if not self.servers:
            raise ConfigError("No NATS server is named; give at least one URL, such as nats://127.0.0.1:4222.")
        for url in self.servers:
            parts = urlsplit(url)
            if parts.scheme not in _SCHEMES or not parts.hostname or not _has_port(url):
                raise ConfigError(f"{shown(url)} is no NATS server; expected nats://host:port or tls://host:port.")
        if not re.fullmatch(CLUSTER_NAME, self.cluster):
            raise ConfigError(f"{self.cluster!r} is no cluster's name; give 1 to 32 letters, digits, '-' or '_'.")
        ways = [self.user is not None, self.token is not None, self.credentials is not None, self.nkey is not None]
        if sum(ways) > 1:
            raise ConfigError("user, token, credentials and nkey are given together; give one of them.")
        if (self.user is None) != (self.password is None):
            raise ConfigError("user and password belong together; give both or neither.")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key belong together; give both or neither.")

    def tls(self) -> ssl.SSLContext | None:
        """Return the context for TLS, or None where nothing asks for it.

        Raises:
            ConfigError: A file cannot be read, or is none.
        """
        if not (self.tls_ca or self.tls_certificate or any(url.startswith("tls:") for url in self.servers)):
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_certificate:
                context.load_cert_chain(self.tls_certificate, self.tls_key)
        except OSError as error:
            raise ConfigError(
                f"The TLS files for NATS cannot be used: {error}; expected PEM files in tls_ca ({self.tls_ca}), "
                f"tls_certificate ({self.tls_certificate}) and tls_key ({self.tls_key})."
            ) from error
        return context


def shown(url: str) -> str:
    """Return a server's URL without who logs in there."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False
