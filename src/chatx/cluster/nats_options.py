"""How NATS is reached: servers, and who this node is to them. No client is needed to say so."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from chatx.errors import ConfigError

CLUSTER_NAME: Final = r"[A-Za-z0-9_-]{1,32}"
"""What the name of a cluster looks like: one word of a subject."""

_SCHEMES: Final = ("nats", "tls")

_CREDENTIALS_BYTES: Final = 65_536
"""The largest file of credentials, in bytes; those that there are have about a thousand."""

_SEED: Final = r"SU[A-Z2-7]{56}"
_JWT: Final = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w.-]+?)\s+-+END NATS USER JWT-")
_JWT_SEED: Final = re.compile(rf"-BEGIN USER NKEY SEED-+\s+({_SEED})\s+-+END USER NKEY SEED-")


class NatsOptions(Struct, frozen=True, kw_only=True):
    """Where NATS is, and who this node is to it.

    Its text shows no secret.

    Attributes:
        servers: URLs, `nats://host:4222` or `tls://host:4222`; at least one. They are tried in turn.
        cluster: The name of the cluster, under which all its subjects are: `cx.<cluster>.`
        user: A user's name, with `password`.
        password: Its password.
        token: A token instead.
        credentials: The path of a file with credentials instead: a `.creds` file, or the seed of an nkey.
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
        if sum(each is not None for each in (self.user, self.token, self.credentials)) > 1:
            raise ConfigError("user, token and credentials are given together; give one of them.")
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
                f"The TLS files for NATS cannot be used: {error}; expected PEM files in cluster_ca ({self.tls_ca}), "
                f"cluster_cert ({self.tls_certificate}) and cluster_key ({self.tls_key})."
            ) from error
        return context

    def signs_with(self) -> tuple[Literal["creds", "nkey"], str] | None:
        """Return what the file of credentials holds, in the form that clients read, or None where there is none.

        It is read for each connection, so one that was changed meanwhile counts from the next one on.

        Raises:
            ConfigError: It cannot be read, or holds something else.
        """
        if self.credentials is None:
            return None
        try:
            with Path(self.credentials).open("rb") as file:
                text = file.read(_CREDENTIALS_BYTES).decode(errors="replace")
        except OSError as error:
            raise ConfigError(f"cluster_credentials cannot be read: {error}.") from error
        if re.fullmatch(_SEED, text.strip()):
            return "nkey", text.strip()
        jwt, seed = _JWT.search(text), _JWT_SEED.search(text)
        if jwt is None or seed is None:
            raise ConfigError(
                f"cluster_credentials names {self.credentials}, which holds no NATS credentials; expected a .creds "
                "file, with a user's JWT and seed, or the seed of a user's nkey alone, SU..."
            )
        # The client looks for these lines, for ever where they are not there, and takes what is between as it is.
        return "creds", (
            f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n------END NATS USER JWT------\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed[1]}\n------END USER NKEY SEED------\n"
        )


def shown(url: str) -> str:
    """Return a server's URL without who logs in there."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False
