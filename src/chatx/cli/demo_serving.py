"""The demo's application on uvicorn: from the start of its chat to an exit status."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from starlette.applications import Starlette


def serve(
    app: Starlette,
    sockets: list[socket.socket],
    ready: Callable[[], object],
    beside: AbstractAsyncContextManager[object] | None = None,
) -> int:
    """Serve until a signal, and return the exit status.

    Args:
        app: The demo; its chat is `app.state.chat`.
        sockets: Where it listens.
        ready: Called when the chat has started and what is beside it was entered.
        beside: What is entered when the chat has started, and left before it stops.

    Raises:
        ChatError: The chat does not start.
    """
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
    around = AsyncExitStack()

    async def start_first(sockets: list[socket.socket] | None = None) -> None:
        starting = asyncio.ensure_future(chat.start())
        while not starting.done():
            await asyncio.wait((starting,), timeout=0.1)
            if server.should_exit:  # by a signal: the chat may wait for its store
                await chat.stop()
                await asyncio.gather(starting, return_exceptions=True)
                return
        starting.result()
        await around.enter_async_context(nullcontext() if beside is None else beside)
        ready()
        await start_up(sockets)

    async def stop_first(sockets: list[socket.socket] | None = None) -> None:
        await around.aclose()
        # uvicorn waits for every response to end, and a live page's does when the chat stops.
        await chat.stop()
        await shut_down(sockets)

    server.startup, server.shutdown = start_first, stop_first  # type: ignore[method-assign]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell begins what it runs in the background; uvicorn would heed Ctrl+C all the same.
        heed = server.handle_exit
        server.handle_exit = (  # type: ignore[method-assign]
            lambda sig, frame: None if sig == signal.SIGINT else heed(sig, frame)
        )
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
