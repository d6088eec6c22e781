"""A server that runs already: at which of its addresses it answers, and whether it lets clients in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from msgspec import structs

from chatx.cli.load.server import Measured, NotServed
from chatx.cli.load.target import Target

ASKED_S: Final = 10.0
"""Seconds for an address to answer a handshake."""

_FOR_NOW: Final = ("429", "503")
"""What a server answers that has no place for a moment; clients come again."""


@asynccontextmanager
async def reached(target: Target) -> AsyncIterator[Measured]:
    """Take a server that runs, at the first address of its name that answers; each client would look for that again.

    Raises:
        NotServed: It has none, or lets nobody in.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotServed(f"There is no {target.host}: {error}") from error
    reason: OSError | None = None
    for address in dict.fromkeys(each[4][0] for each in found):
        at = structs.replace(target, address=address)
        try:
            status = await _asked(at)
        except OSError as error:
            reason = reason or error
            continue
        if status != "101" and status not in _FOR_NOW:
            raise NotServed(_refusal(at, status))
        yield Measured(at, loop.create_future())
        return
    raise NotServed(_silence(target, reason))


async def _asked(target: Target) -> str:
    """Return the status with which a server answers a handshake; empty where that is no HTTP."""
    try:
        async with asyncio.timeout(ASKED_S):
            reader, writer = await asyncio.open_connection(**target.options())
            try:
                writer.write(target.hello("bench", 60.0))
                line = await reader.readuntil(b"\r\n")
            finally:
                writer.transport.abort()
    except (EOFError, asyncio.LimitOverrunError):
        return ""
    return line[9:12].decode("latin-1") if line.startswith(b"HTTP/1.") else ""


def _silence(target: Target, error: OSError | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"The certificate of {target.origin} is not trusted: {error.verify_message}. SSL_CERT_FILE names the file "
            "of an authority that is."
        )
    if isinstance(error, ssl.SSLError):
        return f"{target.origin} speaks no TLS: {error.reason}. Without TLS it is an http:// address."
    why = f"no answer within {ASKED_S:.0f} s" if isinstance(error, TimeoutError) else error
    return f"Nothing answers at {target.origin}: {why}. Begin the server first; without --url one is begun for this."


def _refusal(target: Target, status: str) -> str:
    if not status:
        return f"What answers at {target.origin} speaks no HTTP; where it speaks TLS, it is an https:// address."
    if status in ("401", "403"):
        done = (
            "it takes no token that is signed with this CHATX_SECRET"
            if target.secret
            else "set CHATX_SECRET to what its tokens are signed with, or begin it with --insecure-user-param"
        )
        return (
            f"{target.origin} lets no client in (HTTP {status}): {done}. Some answer "
            f"so too where no socket is mounted, and none may be at {target.path}."
        )
    return (
        f"There is no socket at {target.origin}{target.path}/websocket (HTTP {status}); name where it is mounted "
        f"behind the address, as {target.origin}/socket."
    )
