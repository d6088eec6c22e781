"""Both shells on a port of their own, for tests that hold for either."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from chatx.chat import Chat
from chatx.gateway.entry.handshake import Authenticate, Handshake
from chatx.gateway.native.server import NativeServer
from tests.gateway.real_client import until

SHELLS = ("asgi", "native")


def named(handshake: Handshake) -> str | None:
    """Let in whoever says a name."""
    return handshake.params.get("user_id")


@asynccontextmanager
async def served(
    shell: str,
    chat: Chat,
    authenticate: Authenticate = named,
    *,
    port: int = 0,
    uvicorn_options: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[int]:
    """Run the chat and serve its socket at `/socket`; the value is the port, a free one by default."""
    if shell == "native":
        async with chat, native(chat, authenticate, port=port, **options) as (_, bound):
            yield bound
        return
    app = Starlette(routes=[Mount("/socket", chat.asgi(authenticate=authenticate, **options))], lifespan=chat.lifespan)
    async with under_uvicorn(app, port, **(uvicorn_options or {})) as bound:
        yield bound


@asynccontextmanager
async def under_uvicorn(app: Any, port: int = 0, **options: Any) -> AsyncIterator[int]:
    """Serve an application under uvicorn; the value is the port, a free one by default."""
    listening = socket.create_server(("127.0.0.1", port))
    # Connections inherit it: for a peer that does not read, the kernel soon takes no more.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws_max_size=65_537, **options))
    task = asyncio.create_task(server.serve([listening]))
    try:
        await until(lambda: server.started)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listening.close()


@asynccontextmanager
async def native(
    chat: Chat, authenticate: Authenticate = named, *, port: int = 0, **options: Any
) -> AsyncIterator[tuple[NativeServer, int]]:
    """Serve a chat with the native server; the value is the server and its port."""
    listening = socket.create_server(("127.0.0.1", port))
    # Connections inherit it: for a peer that does not read, the kernel soon takes no more.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    server = NativeServer(chat, authenticate=authenticate, **options)
    await server.start([listening])
    try:
        yield server, listening.getsockname()[1]
    finally:
        await server.close()
        assert (server.connections, len(server.greetings)) == (0, 0)
        listening.close()
