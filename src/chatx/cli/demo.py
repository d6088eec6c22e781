"""`chatx demo`: a chat page to try in two browser tabs."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from types import ModuleType
from typing import TYPE_CHECKING

from chatx.cli.command import add_store_to, command, fail, port
from chatx.cli.listening import CannotListen, listening
from chatx.errors import ChatError, ConfigError
from chatx.extras import needs

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from chatx.cli.command import Commands

HELP = """
examples:
  chatx demo                      http://localhost:4000, messages kept in ./chatx-demo.db
  chatx demo --port 4001
  chatx demo --store sqlite:///mychat.db
  chatx demo --host 0.0.0.0       for the phones in your network; anybody there can name themselves as they like

exit status: 0 stopped by Ctrl+C, SIGTERM or a hangup, 1 could not run, 2 wrong options, 130 stopped before it served
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "demo",
        summary="run a chat page to try in two browser tabs",
        description="Run a chat page on this machine; stop it with Ctrl+C. It needs no other service.",
        epilog=HELP,
        run=run,
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=4000, help="port to listen on (default: %(default)s)")
    add_store_to(parser, default="chatx-demo.db")


def run(options: argparse.Namespace) -> int:
    """Serve the demo's pages until a signal, and return the exit status."""
    try:
        with needs("fastapi", "chatx demo"):
            import uvicorn

            from chatx.demo.app import demo_app
    except ConfigError as error:
        return fail(error, 1)
    try:
        with listening(options.host, options.port) as sockets:
            return _serve(uvicorn, demo_app(options.store), sockets, options)
    except CannotListen as error:
        return fail(str(error), 1)
    except ConfigError as error:
        return fail(error)
    except ChatError as error:
        return fail(error, 1)


def _serve(uvicorn: ModuleType, app: Starlette, sockets: list[socket.socket], options: argparse.Namespace) -> int:
    config = uvicorn.Config(
        app,
        lifespan="off",  # a chat that does not start would be a traceback
        log_level="warning",
        # The protocol's own bound, with room for the frame around it.
        ws_max_size=65_536 + 1,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    start_up, shut_down, chat = server.startup, server.shutdown, app.state.chat

    async def start_first(sockets: list[socket.socket] | None = None) -> None:
        starting = asyncio.ensure_future(chat.start())
        while not starting.done():
            await asyncio.wait((starting,), timeout=0.1)
            if server.should_exit:  # by a signal: the chat may wait for its store
                await chat.stop()
                await asyncio.gather(starting, return_exceptions=True)
                return
        starting.result()
        shown = "localhost" if options.host in ("0.0.0.0", "127.0.0.1", "::", "::1") else options.host
        print(f"chatx demo: open http://{shown}:{options.port} in two tabs; stop it with Ctrl+C", flush=True)
        await start_up(sockets)

    async def stop_first(sockets: list[socket.socket] | None = None) -> None:
        # uvicorn waits for every response to end, and a live page's does when the chat stops.
        await chat.stop()
        await shut_down(sockets)

    server.startup, server.shutdown = start_first, stop_first
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell begins what it runs in the background; uvicorn would heed Ctrl+C all the same.
        heed = server.handle_exit
        server.handle_exit = lambda given, frame: None if given == signal.SIGINT else heed(given, frame)
    # uvicorn raises each signal again once it has stopped; the default of this one would be a death by signal.
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler)}
    hangup = getattr(signal, "SIGHUP", None)  # there is none on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        # There is nothing to read anew. As the others do, it waits until what was sent is saved.
        before[hangup] = signal.signal(hangup, lambda _, frame: server.handle_exit(signal.SIGTERM, frame))
    try:
        server.run(sockets)
    except KeyboardInterrupt:
        return 0
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return 0 if server.started else 1
