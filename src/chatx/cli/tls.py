"""The certificate that `chatx serve` shows, which can be read anew while it serves."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from chatx.errors import ConfigError


class Certificate:
    """A certificate and its key, in two files.

    Args:
        cert: The chain, as PEM.
        key: Its private key, as PEM without a passphrase.

    Attributes:
        context: The TLS context to give a server. Each client that connects is shown what was read last.

    Raises:
        ConfigError: A file cannot be read, or they are no certificate with its key.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert = cert
        self._key = key
        self.context: ssl.SSLContext = self._read()
        self._newest = self.context
        # Called in each handshake, also where the client names no server.
        self.context.sni_callback = self._show

    def read_anew(self) -> None:
        """Read the files again, for clients that connect from now on; if they cannot be read the certificate stays.

        Raises:
            ConfigError: As when they were read first.
        """
        # A context of its own, as a half of a pair that does not fit must not get into the one in use.
        self._newest = self._read()

    def _show(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        unread = [
            f"{option} {path} cannot be read: {reason}"
            for option, path in (("--tls-cert", self._cert), ("--tls-key", self._key))
            if (reason := _unread(path))
        ]
        if unread:
            raise ConfigError(f"{'; '.join(unread)}; give a PEM certificate and its key.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, self._passphrase)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"--tls-cert {self._cert} --tls-key {self._key}: {error}; give a PEM certificate and its key."
            ) from error
        return context

    def _passphrase(self) -> str:
        # Without this the library would ask for it, on the terminal that a service does not have.
        raise ConfigError(f"--tls-key {self._key} has a passphrase, which nobody is there to give; give a key without.")


def _unread(path: str) -> str:
    """Return why a file cannot be read, or nothing where it can: the library does not say which of two it is."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def certificate(cert: str | None, key: str | None) -> Certificate | None:
    """Return the certificate of a server, or None where it speaks no TLS; errors as `Certificate`."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "--tls-cert" if cert is None else "--tls-key"
        raise ConfigError(f"TLS needs both files, and {missing} is missing; give --tls-cert and --tls-key.")
    return Certificate(cert, key)
