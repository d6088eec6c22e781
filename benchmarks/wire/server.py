"""One server under load, in a process of its own, on one core, with uvloop.

python -m benchmarks.wire.server native|asgi|fastapi --cpu CPU [--send-buffer BYTES] [--store STORE [--stored]]

Prints one line of JSON with its port when it serves, and one with what it holds at each SIGUSR1; ends at SIGTERM.
`native` and `asgi` are chatx with everything on that a message goes through; `fastapi` is the loop that one would write
by hand, on the same uvicorn as `asgi`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Literal

import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.applications import Starlette
from starlette.routing import Mount

from benchmarks.log.stores import closed, log_at
from benchmarks.memory import resident
from benchmarks.pipeline import Allow
from chatx import Chat, RateLimit
from chatx.gateway import Handshake, NativeServer

UNLIMITED = RateLimit(messages_per_sec=1e9, burst=10**9)


def chat(log: object | None = None, *, stored: bool = False) -> Chat:
    """Return a chat with auth and moderation, and a rate limit that nobody reaches; on a log where one is given."""
    durability: Literal["sequenced", "stored"] = "stored" if stored else "sequenced"
    return Chat(auth=Allow(), moderation=Allow(), rate_limit=UNLIMITED, persistence=log, durability=durability)


def named(handshake: Handshake) -> str | None:
    """Let in whoever says a name."""
    return handshake.params.get("user_id")


async def native(listening: socket.socket, stop: asyncio.Event, options: argparse.Namespace) -> None:
    """Serve with the native server."""
    log = None if options.store is None else log_at(options.store)
    async with chat(log, stored=options.stored) as running:
        server = NativeServer(running, authenticate=named)
        await server.start([listening])
        _tell_at_signal(lambda: _holds(running))
        _tell({"port": listening.getsockname()[1]})
        await stop.wait()
        await server.close()
    if log is not None:
        await closed(log)


def _holds(running: Chat) -> dict[str, float]:
    statistics = running.statistics()
    used = resident()  # collects garbage first
    return {"members": statistics.members, "objects": len(gc.get_objects()), "resident": used}


async def asgi(listening: socket.socket, stop: asyncio.Event, _: argparse.Namespace) -> None:
    """Serve the ASGI application on uvicorn."""
    running = chat()
    socket_app = Mount("/socket", running.asgi(authenticate=named))
    await _uvicorn(Starlette(routes=[socket_app], lifespan=running.lifespan), listening, stop)


async def fastapi(listening: socket.socket, stop: asyncio.Event, _: argparse.Namespace) -> None:
    """Serve the broadcast loop that FastAPI's own guide teaches, on uvicorn."""
    app = FastAPI()
    sockets: list[WebSocket] = []

    @app.websocket("/{user_id}")
    async def room(websocket: WebSocket, user_id: str) -> None:
        await websocket.accept()
        sockets.append(websocket)
        try:
            while True:
                text = await websocket.receive_text()
                for each in sockets:
                    await each.send_text(text)
        except WebSocketDisconnect:
            pass
        finally:
            sockets.remove(websocket)

    await _uvicorn(app, listening, stop)


async def _uvicorn(app: Starlette, listening: socket.socket, stop: asyncio.Event) -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws_max_size=65_537, backlog=4096))
    serving = asyncio.create_task(server.serve([listening]))
    _tell({"port": listening.getsockname()[1]})  # whoever comes before it serves waits in the backlog
    await stop.wait()
    server.should_exit = True
    await serving


def _tell(what: dict[str, float]) -> None:
    print(json.dumps(what), flush=True)


def _tell_at_signal(what: Callable[[], dict[str, float]]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: _tell(what()))


SERVERS = {"native": native, "asgi": asgi, "fastapi": fastapi}


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire.server", description="One server under load.")
    parser.add_argument("kind", choices=SERVERS)
    parser.add_argument("--cpu", type=int, required=True, help="the core it runs on")
    parser.add_argument("--send-buffer", type=int, default=0, help="bytes the kernel holds for a socket")
    parser.add_argument("--store", help="the log that it writes to: a path of SQLite, a URL of PostgreSQL")
    parser.add_argument("--stored", action="store_true", help="let nobody see what the log has not")
    parser.add_argument("--port", type=int, default=0, help="where it listens (default: any)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.cpu})
    listening = socket.create_server(("127.0.0.1", options.port), backlog=4096)
    if options.send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)

    async def serve() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await SERVERS[options.kind](listening, stop, options)

    uvloop.run(serve())


if __name__ == "__main__":
    main()
