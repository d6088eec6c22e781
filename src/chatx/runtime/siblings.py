"""Whether other processes serve the same clients, each with a chat of its own, and so none of the others' messages.

It is the commonest mistake, and nothing fails: a room works, for those who happen to be on one worker. So it is told
where it can be known, in one line.

Rules:
1. A worker is known by the server's own frames at the foot of the main thread's stack, which say how many there are. A
   server that is not known, or has changed, is not asked.
2. Of the workers of one parent one tells.
3. What a process holds to be found by (`Claim`) goes with the process, however that ends, and leaves nothing behind.
   Only Linux has such a thing; elsewhere each worker tells.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from chatx.config import ChatConfig

logger: logging.Logger = logging.getLogger("chatx")


class Claim:
    """A name that one process of this machine holds at a time, until `release` or its end.

    Attributes:
        held: Whether this one holds it; None where it cannot be known.
    """

    def __init__(self, name: str) -> None:
        self.held: bool | None = None
        self.release: Callable[[], object] = _nothing_held
        if sys.platform != "linux":
            return
        try:
            # Not in the file system: the kernel forgets it when the last process has closed it.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holding:
                holding.bind(f"\0chatx {name}")
                # A chat that nobody stops is no fault of its own making: nothing is said of what it holds.
                self.release = weakref.finalize(self, os.close, holding.detach())
        except OSError as error:  # all else is a system that does not let it be known
            self.held = False if error.errno == errno.EADDRINUSE else None
        else:
            self.held = True


class Siblings:
    """The claim of one running chat, by which other workers find it; it warns when it is one of several."""

    def __init__(self, config: ChatConfig) -> None:
        self._claim: Claim | None = None
        if config.cluster_strategy != "local":
            return
        server = _server_of_several()
        if server is None:
            return
        self._claim = Claim(f"workers of {os.getppid()}")
        if self._claim.held is not False:
            logger.warning(
                "This is one of several workers of %s, and each has a chat of its own: people on two of them do "
                "not see each other, though they are in the same room. Run one worker, or make them nodes of one chat "
                "with cluster_strategy 'horde' or 'pg' and a cluster_url.",
                server,
                extra={"server": server},
            )

    def release(self) -> None:
        """Let go of the claim."""
        if self._claim is not None:
            self._claim.release()


def _nothing_held() -> None:
    """Do nothing."""


def _server_of_several() -> str | None:
    """Return the name of the server of which this process is a worker among several, or None."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        read = _KNOWN.get((module, frame.f_code.co_name))
        if read is not None:
            # A server that has changed is one that is not known.
            with suppress(AttributeError, LookupError, TypeError):
                if read(frame.f_locals):
                    return module.partition(".")[0]
        frame = frame.f_back
    return None


def _uvicorn(local: Mapping[str, Any]) -> bool:
    config = local["config"]
    # With `--reload` it has a process of its own too, and one only, whatever WEB_CONCURRENCY says.
    return config.workers > 1 and not config.should_reload


def _hypercorn(local: Mapping[str, Any]) -> bool:
    return bool(local["config"].workers > 1)


def _granian(local: Mapping[str, Any]) -> bool:
    # How many there are it does not tell its workers, but which one each is.
    return bool(local["worker_id"] > 1)


def _gunicorn(local: Mapping[str, Any]) -> bool:
    return bool(local["self"].num_workers > 1)


_KNOWN: Final[Mapping[tuple[str, str], Callable[[Mapping[str, Any]], bool]]] = {
    ("uvicorn._subprocess", "subprocess_started"): _uvicorn,
    ("hypercorn.asyncio.run", "asyncio_worker"): _hypercorn,
    ("hypercorn.asyncio.run", "uvloop_worker"): _hypercorn,
    ("granian.server.mp", "wrapped"): _granian,
    ("gunicorn.arbiter", "spawn_worker"): _gunicorn,
}
"""The function at the foot of a worker's stack, and whether its names say that there are several."""
