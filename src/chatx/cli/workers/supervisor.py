"""The supervisor: it holds the port, begins workers that serve it together, and keeps them until all drain as one.

Rules:
1. A worker that ends is begun again, at once where it was drained, else after a pause that doubles up to `PAUSE_MOST_S`
   and begins anew once one has served for `STEADY_S`.
2. Where one ends before it has ever served, so does all the rest: what keeps it from serving will keep it again.
3. The first signal drains all workers, the second cuts them short. The private broker ends behind the last of them.
4. Nothing of it outlives it: its workers and its broker end when it does, however that happens.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final

from chatx.cli.command import fail
from chatx.cli.ending import Ending
from chatx.cli.listening import CannotListen, listening
from chatx.cli.logs import style_of
from chatx.cli.settings import Served, served
from chatx.cli.workers.broker import NAME, Broker, syncs_always
from chatx.cli.workers.channel import (
    LINE_BYTES,
    Ask,
    Assignment,
    Figures,
    NotUnderstood,
    Ready,
    hears,
    line_of,
    read_line,
)
from chatx.cli.workers.child import Child
from chatx.cli.workers.data_folder import CannotUse, DataFolder
from chatx.cli.workers.gathering import Gathering
from chatx.cli.workers.loads import Loads, memory_for
from chatx.cli.workers.plan import Plan, plan_of
from chatx.errors import ChatError

logger: logging.Logger = logging.getLogger("chatx")

PAUSE_S: Final = 0.5
"""Seconds from the end of a worker to its next begin; they double with each that does not last."""

PAUSE_MOST_S: Final = 30.0
"""Seconds between two begins of a worker, at most."""

STEADY_S: Final = 60.0
"""Seconds of service after which the end of a worker is the first again."""

BEYOND_DRAIN_S: Final = 3.0
"""Seconds beyond the drain timeout after which workers that have not ended are killed."""

BROKER_ENDS_S: Final = 5.0
"""Seconds for the broker to end by itself."""

_DRAINING = (signal.SIGINT, signal.SIGTERM)


def run(options: argparse.Namespace) -> int:
    """Run workers until a signal, and return the exit status."""
    with ExitStack() as stack:
        try:
            plan = plan_of(options)
            what = served(options, plan.variables)
            sockets = stack.enter_context(listening(options.host, options.port))
            if options.insecure_user_param:
                from chatx.cli.serve import check_loopback

                check_loopback(sockets)
            broker = None
            if plan.server is not None:
                folder = DataFolder(plan.data)
                stack.callback(folder.close)
                config = what.chat.config
                always = syncs_always(plan.server)
                folder.write(config.cluster_name, config.cluster_strategy, syncs_always=always)
                if config.cluster_strategy == "horde" and not always:
                    logger.warning(
                        "%s is older than 2.10, so what was acknowledged is on the disk within two minutes only: it "
                        "outlives every process, and not the machine.",
                        plan.server,
                        extra={"code": "old_broker"},
                    )
                plan.variables["CHATX_CLUSTER_URL"] = folder.url
                broker = Broker(plan.server, folder)
                stack.callback(broker.close)
        except (CannotListen, CannotUse) as error:
            return fail(str(error), 1)
        except ChatError as error:
            return fail(error)
        memory = stack.enter_context(memory_for(options.workers))
        return asyncio.run(Supervisor(options, plan, what, sockets, broker, memory).run())


class Worker:
    """One of the workers, as its supervisor sees it, over all its lives.

    Attributes:
        node: What it is called.
        child: Its process; None where there is none.
        served_at: When this life began to serve, in seconds of a monotonic clock; None before that.
        has_served: Whether any of its lives has.
        attempts: How often in a row it did not last.
        hangup: Whether it is to have its certificate read anew when it serves.
        channel: Where it hears its supervisor; None where nobody does.
    """

    def __init__(self, node: str) -> None:
        self.node: str = node
        self.child: Child | None = None
        self.served_at: float | None = None
        self.has_served: bool = False
        self.attempts: int = 0
        self.hangup: bool = False
        self.channel: asyncio.StreamWriter | None = None

    def say(self, said: Assignment | Ask | Figures) -> bool:
        """Say something to it, and return whether it hears: not where it leaves unread what it is told."""
        if self.channel is None or not hears(self.channel):
            return False
        self.channel.write(line_of(said))
        return True


class Supervisor:
    """Keeps workers, and a broker where there is one.

    Args:
        options: Those of the command.
        plan: What is to be run.
        what: What the workers serve.
        sockets: What they serve it on.
        broker: The broker to keep, or None.
        memory: The workers' own, as `memory_for` returns it.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        plan: Plan,
        what: Served,
        sockets: Sequence[socket.socket],
        broker: Broker | None,
        memory: IO[bytes],
    ) -> None:
        self._options = {name: value for name, value in vars(options).items() if name != "run"}
        self._plan = plan
        self._tls = what.tls is not None
        self._drain_s = max(1.0, what.chat.config.drain_timeout_ms / 1000)
        self._style = style_of(sys.stderr, options.log_format)
        self._sockets = sockets
        self._broker = broker
        self._broker_child: Child | None = None
        self._workers = [Worker(node) for node in plan.nodes]
        by_node = {each.node: each for each in self._workers}
        self._memory = memory.fileno()
        self._loads = Loads(self._memory, len(self._workers))
        self._figures = Gathering(
            plan.nodes, lambda node, said: by_node[node].served_at is not None and by_node[node].say(said)
        )
        self._ending = Ending()
        self._stopping = asyncio.Event()
        self._status = 0
        self._ready = False

    async def run(self) -> int:
        """Keep them until a signal, and return the exit status."""
        from chatx.cli.serve import say_where

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._look)
        heeded = [each for each in (*_DRAINING, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
        for each in heeded:
            loop.add_signal_handler(each, self._told, each)
        say_where(list(self._sockets), tls=self._tls)
        keeping: list[asyncio.Task[None]] = []
        try:
            if self._broker is not None and not await self._begin_broker(self._broker):
                if not self._stopping.is_set():
                    self._give_up(1)
            else:
                if self._broker is not None:
                    keeping.append(loop.create_task(self._keep_broker(self._broker), name="chatx broker"))
                workers = [loop.create_task(self._keep(each), name=f"chatx {each.node}") for each in self._workers]
                await asyncio.wait(workers)
                for task in workers:
                    task.result()
        finally:
            # Whoever comes now is refused at once, and goes to whatever serves next.
            for listens in self._sockets:
                listens.close()
            await self._end_broker(keeping)
            self._ending.cancel()
            for each in (*heeded, signal.SIGCHLD):
                loop.remove_signal_handler(each)
        logger.log(logging.ERROR if self._status else logging.INFO, "Stopped.")
        return self._status

    # What it is told

    def _told(self, given: signal.Signals) -> None:
        if given is signal.SIGHUP and (self._tls or self._stopping.is_set()):
            for each in self._workers:
                # One that loads may have read the certificate already, and would not heed the signal yet.
                each.hangup = each.served_at is None
                if not each.hangup and not self._stopping.is_set():
                    self._send(each, given)
            return
        if self._stopping.is_set():
            logger.error("Ended by a second signal: what was not drained is lost.")
        else:
            logger.info("Draining %d workers after %s.", len(self._workers), given.name, extra={"signal": given.name})
        self._stop()

    def _give_up(self, status: int) -> None:
        self._status = self._status or status
        if not self._stopping.is_set():
            self._stop()

    def _stop(self) -> None:
        """Have all workers drain; a second time, have them end."""
        if not self._stopping.is_set():
            self._stopping.set()
            asyncio.get_running_loop().call_later(self._drain_s + BEYOND_DRAIN_S, self._kill)
            self._ending.within(self._drain_s + BEYOND_DRAIN_S + BROKER_ENDS_S + 2.0)
        for each in self._workers:
            self._send(each, signal.SIGTERM)

    def _kill(self) -> None:
        for each in self._workers:
            if each.child is not None:
                logger.error("Worker %s did not end in time, and is killed.", each.node, extra={"worker": each.node})
                self._status = 1
                each.child.send(signal.SIGKILL)

    def _send(self, worker: Worker, sent: signal.Signals) -> None:
        if worker.child is not None:
            worker.child.send(sent)

    def _look(self) -> None:
        for child in (self._broker_child, *(each.child for each in self._workers)):
            if child is not None:
                child.look()

    # The workers

    async def _keep(self, worker: Worker) -> None:
        while not self._stopping.is_set():
            status = await self._live(worker)
            if self._stopping.is_set():
                # Before it serves it drains nothing, and ends by the signal itself.
                if status != 0 and not (status == -signal.SIGTERM and worker.served_at is None):
                    self._status = self._status or 1
                return
            lasted = 0.0 if worker.served_at is None else time.monotonic() - worker.served_at
            fields = {"worker": worker.node, "status": status}
            if not worker.has_served:
                logger.error("Worker %s %s before it served, so all end.", worker.node, _shown(status), extra=fields)
                self._give_up(status if status > 0 else 1)
                return
            if status == 0 and worker.served_at is not None:
                logger.info("Worker %s was drained, and begins again.", worker.node, extra=fields)
                continue
            worker.attempts = 1 if lasted >= STEADY_S else worker.attempts + 1
            pause = min(PAUSE_MOST_S, PAUSE_S * 2 ** min(worker.attempts - 1, 10))
            logger.error(
                "Worker %s %s, and begins again in %g s.",
                worker.node,
                _shown(status),
                pause,
                extra=fields | {"pause_s": pause},
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _live(self, worker: Worker) -> int:
        """Begin a worker, and return its exit status when it has ended."""
        worker.served_at = None
        self._loads.absent(self._workers.index(worker))
        ours, its = socket.socketpair()
        listens = [each.fileno() for each in self._sockets]
        given = [*listens, its.fileno(), self._memory]
        # A module of the current folder takes the place of none that is installed, unless it did so here.
        safe = [] if sys.path[:1] in ([""], [str(Path.cwd())]) else ["-P"]
        command = [sys.executable, *safe, "-m", "chatx.cli.workers.worker", str(its.fileno()), worker.node]
        variables = {**self._plan.variables, "CHATX_NODE_NAME": worker.node}
        with its:
            try:
                child = worker.child = Child(command, _print, pass_fds=given, variables=variables)
            except OSError as error:
                logger.error("Worker %s cannot be begun: %s", worker.node, error, extra={"worker": worker.node})
                ours.close()
                return 1
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        try:
            assignment = Assignment(
                self._options,
                worker.node,
                listens,
                self._memory,
                self._workers.index(worker),
                len(self._workers),
                self._style,
                sys.stderr.isatty(),
                self._drain_s + BEYOND_DRAIN_S,
            )
            worker.channel = writer
            worker.say(assignment)
            self._look()  # the signal that it has ended may have come before it was known
            listening = asyncio.create_task(self._listen(worker, reader))
            status = await child.ended
            listening.cancel()
            await asyncio.wait((listening,))
            return status
        finally:
            worker.child = worker.channel = None
            self._loads.absent(self._workers.index(worker))
            self._figures.gone(worker.node)
            writer.close()

    async def _listen(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        """Take what a worker says, until it is gone."""
        try:
            while line := await reader.readline():
                match read_line(line):
                    case Ready():
                        self._serves(worker)
                    case Ask() as ask:
                        self._figures.wanted(worker.node, ask.number)
                    case Figures() as figures:
                        self._figures.came(worker.node, figures)
        except (NotUnderstood, OSError, ValueError) as error:
            logger.error("What worker %s says is not understood: %s", worker.node, error, extra={"worker": worker.node})

    def _serves(self, worker: Worker) -> None:
        worker.served_at = time.monotonic()
        worker.has_served = True
        if worker.hangup:
            worker.hangup = False
            self._send(worker, signal.SIGHUP)
        if not self._ready and all(each.served_at is not None for each in self._workers):
            self._ready = True
            logger.info("All %d workers serve.", len(self._workers), extra={"workers": len(self._workers)})

    # The broker

    async def _begin_broker(self, broker: Broker) -> bool:
        """Begin it, and return whether it answers."""
        try:
            child = self._broker_child = broker.begin()
        except OSError as error:
            logger.error("The broker cannot be begun: %s", error, extra={"worker": NAME})
            return False
        self._look()
        if await broker.answers(child):
            return True
        if child.ended.done():
            logger.error("The broker %s before it answered.", _shown(child.ended.result()), extra={"worker": NAME})
        else:
            logger.error("The broker does not answer.", extra={"worker": NAME})
            await child.end(BROKER_ENDS_S)
        return False

    async def _keep_broker(self, broker: Broker) -> None:
        attempts = 0
        begun_at = time.monotonic()
        while self._broker_child is not None:
            status = await asyncio.shield(self._broker_child.ended)
            attempts = 1 if time.monotonic() - begun_at >= STEADY_S else attempts + 1
            # Workers serve nothing without it, so the first time it is begun at once.
            pause = 0.0 if attempts == 1 else min(PAUSE_MOST_S, PAUSE_S * 2 ** min(attempts - 2, 10))
            logger.error(
                "The broker %s, and begins again in %g s.",
                _shown(status),
                pause,
                extra={"worker": NAME, "status": status, "pause_s": pause},
            )
            await asyncio.sleep(pause)
            begun_at = time.monotonic()
            await self._begin_broker(broker)

    async def _end_broker(self, keeping: list[asyncio.Task[None]]) -> None:
        for task in keeping:
            task.cancel()
        if keeping:
            await asyncio.wait(keeping)
        if self._broker_child is not None:
            await self._broker_child.end(BROKER_ENDS_S)


def _print(lines: bytes) -> None:
    """Write what a worker printed: in one piece, or lines of another would come between."""
    with suppress(OSError):  # there is nobody left to tell
        sys.stderr.write(lines.decode(errors="replace"))
        sys.stderr.flush()


def _shown(status: int) -> str:
    """Return how a process has ended, as the end of a sentence."""
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"
