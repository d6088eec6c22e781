"""A peer that writes bytes of its own to the native server, in the plain or by TLS."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import trustme
from websockets.frames import Frame, Opcode

from tests.gateway.phoenix_peer import raw_frame

HANDSHAKE = (
    b"GET /socket/websocket?vsn=2.0.0&user_id=%b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

Peer: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@functools.cache
def authority() -> trustme.CA:
    """Return who signs the certificate of the tests' servers."""
    return trustme.CA()


@functools.cache
def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@functools.cache
def client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@asynccontextmanager
async def raw(
    port: int, *, tls: bool = False, receive_buffer: int = 65_536, source: str = "127.0.0.1"
) -> AsyncIterator[Peer]:
    """Connect from this address; whatever becomes of the connection, it is closed at the end."""
    ours = socket.socket()
    ours.setblocking(False)
    # What the kernel takes for a peer that does not read is not to grow.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    ours.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(ours, ("127.0.0.1", port))
    context, name = (client_tls(), "localhost") if tls else (None, None)
    reader, writer = await asyncio.open_connection(sock=ours, ssl=context, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def opened(
    port: int, user: bytes = b"ada", *, tls: bool = False, receive_buffer: int = 65_536
) -> AsyncIterator[Peer]:
    """Connect and open a WebSocket."""
    async with raw(port, tls=tls, receive_buffer=receive_buffer) as (reader, writer):
        writer.write(HANDSHAKE % user)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer


async def answer(port: int, data: bytes, *, tls: bool = False) -> bytes:
    """Return all that the server says to these bytes."""
    async with raw(port, tls=tls) as (reader, writer), asyncio.timeout(10):
        writer.write(data)
        return await reader.read()


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def pushed(topic: str, event: str, payload: object = None, *, ref: str = "1") -> bytes:
    """Return a push as it goes over the wire."""
    text = raw_frame(2, "1", ref, topic, event, payload)
    return masked(Opcode.TEXT, text.encode() if isinstance(text, str) else text)


CLOSE = masked(Opcode.CLOSE, (1000).to_bytes(2))


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the first byte and the payload of a frame."""
    async with asyncio.timeout(10):
        first, length = await reader.readexactly(2)
        size = int.from_bytes(await reader.readexactly({126: 2, 127: 8}[length])) if length >= 126 else length
        return first, await reader.readexactly(size)


async def close_code(reader: asyncio.StreamReader) -> int:
    """Return the code of the close frame that ends what the server writes."""
    while True:
        first, data = await next_frame(reader)
        if first == 0x88:
            return int.from_bytes(data[:2])
