"""The server that is measured, and how its clients say who they are."""

from __future__ import annotations

import base64
import ipaddress
import os
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from msgspec import Struct

from chatx.errors import ConfigError

PARAMETER = "user_id"
"""By which clients name themselves where no secret is there to sign tokens with."""


class Target(Struct, frozen=True):
    """A server.

    Attributes:
        host: Where it is.
        port: On which port.
        path: Where its socket is mounted.
        tls: How it is spoken to in secret, or None.
        secret: What tokens are signed with; without one clients name themselves.
        address: The host's, once it is known.
    """

    host: str
    port: int
    path: str = "/socket"
    tls: ssl.SSLContext | None = None
    secret: str | None = None
    address: str | None = None

    @classmethod
    def of(cls, url: str, *, elsewhere: bool) -> Target:
        """Read a URL.

        Args:
            url: As `http://localhost:4000`, or with the mount of its socket behind that.
            elsewhere: Whether the server may be on another machine.

        Raises:
            ConfigError: It is none, or one that is not to be loaded.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--url {url!r} is no URL: {error}.") from error
        tls = parts.scheme in ("https", "wss")
        if not parts.hostname or not (tls or parts.scheme in ("http", "ws")):
            raise ConfigError(f"--url {url!r} is no address of a server; give one as http://localhost:4000.")
        if parts.query or parts.fragment or parts.username is not None:
            raise ConfigError(
                f"--url {url!r} is more than an address and a path; clients are named, or show tokens, by themselves."
            )
        if not elsewhere and not _is_here(parts.hostname):
            raise ConfigError(
                f"--url {url!r} is not on this machine. Load is for servers of your own: --elsewhere says that it is."
            )
        return cls(
            parts.hostname,
            port or (443 if tls else 80),
            parts.path.rstrip("/").removesuffix("/websocket") or "/socket",
            ssl.create_default_context() if tls else None,
            os.environ.get("CHATX_SECRET") or None,
        )

    @property
    def origin(self) -> str:
        """Its address, as it is written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def figures_url(self) -> str:
        """Where `chatx serve` tells its figures."""
        return f"{self.origin}/metrics"

    def hello(self, user: str, lasts_s: float) -> bytes:
        """Return the handshake of a user, whose token lasts for so long."""
        query, protocol = "", ""
        if self.secret is None:
            query = f"&{PARAMETER}={quote(user, safe='')}"
        else:
            token = base64.urlsafe_b64encode(_signed(self.secret, user, lasts_s).encode()).decode().rstrip("=")
            protocol = f"Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.{token}\r\n"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"GET {self.path}/websocket?vsn=2.0.0{query} HTTP/1.1\r\nHost: {host}:{self.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"{protocol}\r\n"
        ).encode()

    def options(self) -> dict[str, Any]:
        """Return what a connection to it is made with."""
        options = {"host": self.address or self.host, "port": self.port}
        return options if self.tls is None else options | {"ssl": self.tls, "server_hostname": self.host}


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _signed(secret: str, user: str, lasts_s: float) -> str:
    import time
    import warnings

    from chatx.gateway.entry.handshake import Identity
    from chatx.gateway.entry.tokens import sign

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the secret: `chatx token` says it
        return sign(secret, Identity(user, int(time.time() + lasts_s)))
