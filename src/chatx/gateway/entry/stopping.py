"""The moment at which the server around an application begins to stop, for responses that would not end by themselves.

ASGI has no word for it. `lifespan.shutdown` comes when every response has ended, and a stream ends at
`lifespan.shutdown`: each waits for the other. So the server is looked up and asked. It runs in a coroutine of the same
event loop, and what that coroutine waits amid says whether it is to stop.

Rules:
1. Nothing of the server is changed, neither its handlers of signals nor its methods. One that is not known, or has
   changed, is not asked; then responses end when their clients go or the chat stops, as they would anyway.
2. Known are uvicorn, however it was started and whatever told it to stop, and hypercorn. Two servers in one loop are
   told apart by the ports they listen on.
3. A server is asked every `TICK_S` while there are responses to tell, once for all of them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

TICK_S: Final = 0.1
"""Seconds between two looks; uvicorn looks as often itself."""

SEARCH_S: Final = 1.0
"""Seconds between two searches among the tasks of a loop, whose work grows with their number."""

GRACE_S: Final = 1.0
"""Seconds that a client still has when the server begins to stop: to take what is written, or to send what it began."""

Tell: TypeAlias = Callable[[], object]
"""Called once, when the server begins to stop; it must not raise."""


class _Server(NamedTuple):
    ports: frozenset[int]
    stops: Callable[[], bool]


class _Watch:
    """The servers of one event loop, and whom to tell: one entry for each open response, by its port."""

    def __init__(self) -> None:
        self._servers: list[_Server] = []
        self._searched: float | None = None
        self._waiting: dict[int | None, set[Tell]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, port: int | None, tell: Tell) -> None:
        """Call `tell` when the server at this port stops, until `discard`; never where no server is known."""
        loop = asyncio.get_running_loop()
        known = any(port is None or port in server.ports for server in self._servers)
        if not known and (self._searched is None or loop.time() - self._searched >= SEARCH_S):
            self._searched = loop.time()
            self._servers = _running_servers()
        if not self._servers:
            return
        self._waiting.setdefault(port, set()).add(tell)
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._look)

    def discard(self, port: int | None, tell: Tell) -> None:
        """Call it no more."""
        tells = self._waiting.get(port, set())
        tells.discard(tell)
        if not tells:
            self._waiting.pop(port, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._look)
        for port in list(self._waiting):
            servers = [server for server in self._servers if port in server.ports] or self._servers
            if all(server.stops() for server in servers):
                for tell in list(self._waiting[port]):
                    self.discard(port, tell)
                    tell()


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch] = WeakKeyDictionary()


@contextmanager
def told_when_stopping(scope: Mapping[str, Any], tell: Tell) -> Iterator[None]:
    """Call `tell` when the server that runs this request begins to stop, if that is within the block and can be known.

    Args:
        scope: The ASGI scope of the request.
        tell: Called once, in the event loop.
    """
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = _Watch()
    server = scope.get("server")
    port = server[1] if server else None
    watch.add(port, tell)
    try:
        yield
    finally:
        watch.discard(port, tell)


@asynccontextmanager
async def bounded_when_stopping(scope: Mapping[str, Any], tell: Tell = lambda: None) -> AsyncIterator[None]:
    """Give the block `GRACE_S` from when the server begins to stop.

    Args:
        scope: The ASGI scope of the request.
        tell: Called when the server begins to stop, as in `told_when_stopping`.

    Raises:
        TimeoutError: The block took longer.
    """

    def stop() -> None:
        tell()
        bound.reschedule(asyncio.get_running_loop().time() + GRACE_S)

    async with asyncio.timeout(None) as bound:
        with told_when_stopping(scope, stop):
            yield


def _running_servers() -> list[_Server]:
    """Return the servers that run in this loop and are known."""
    found: list[_Server] = []
    if not any(module in sys.modules for module, _ in _KNOWN):
        return found
    for task in asyncio.all_tasks():
        waits: Any = task.get_coro()
        while waits is not None:
            frame: Any = getattr(waits, "cr_frame", None)
            read = _KNOWN.get((frame.f_globals.get("__name__"), frame.f_code.co_name)) if frame is not None else None
            if read is not None:
                # A server that has changed is one that is not known.
                with suppress(AttributeError, LookupError, TypeError):
                    found.append(read(frame.f_locals))
            waits = getattr(waits, "cr_await", None)
    return found


def _uvicorn(local: Mapping[str, Any]) -> _Server:
    server = local["self"]

    def stops() -> bool:
        # At its maximum of requests it stops listening, and sets nothing.
        return bool(server.should_exit) or not any(each.is_serving() for each in server.servers)

    # Asked once, so that whatever is not there shows here.
    stops()
    return _Server(_ports(each for listener in server.servers for each in listener.sockets), stops)


def _hypercorn(local: Mapping[str, Any]) -> _Server:
    terminated, sockets = local["context"].terminated, local["sockets"]
    terminated.is_set()
    return _Server(_ports((*sockets.secure_sockets, *sockets.insecure_sockets)), terminated.is_set)


def _ports(sockets: Any) -> frozenset[int]:
    names = [each.getsockname() for each in sockets]
    return frozenset(name[1] for name in names if isinstance(name, tuple))


_KNOWN: Final = {("uvicorn.server", "_serve"): _uvicorn, ("hypercorn.asyncio.run", "worker_serve"): _hypercorn}
