"""A worker among the others on its port, as the supervisor between them tells it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from contextlib import suppress
from typing import Final

from chatx.cli.workers.channel import LINE_BYTES, Ask, Figures, NotUnderstood, Ready, hears, line_of, read_line
from chatx.cli.workers.figures import merged
from chatx.cli.workers.loads import Loads
from chatx.gateway.operations.metrics import Metrics

logger: logging.Logger = logging.getLogger("chatx")

ALL_WITHIN_S: Final = 3.0
"""Seconds within which the supervisor has the figures of all workers; it gives each of them less."""


class AmongWorkers:
    """The company of a worker.

    Args:
        node: What it is called.
        channel: A socket whose other end is the supervisor's.
        loads: What each worker has.
        number: Which of them this one is, from 0.
    """

    def __init__(self, node: str, channel: socket.socket, loads: Loads, number: int) -> None:
        self._node = node
        self._loads = loads
        self._number = number
        self._channel = channel
        self._metrics: Metrics | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Figures]] = {}  # one for each request that the server has at a time

    def gives_way(self, count: int) -> bool:
        """Return whether another worker has so much less that a newcomer is left to it."""
        return self._loads.leads(self._number, count)

    def leaves(self) -> None:
        """Have the others take who comes."""
        self._loads.absent(self._number)

    async def heeds(self, metrics: Metrics) -> None:
        """Begin to hear the supervisor."""
        self._metrics = metrics
        reader, self._writer = await asyncio.open_unix_connection(sock=self._channel, limit=LINE_BYTES)
        self._listening = asyncio.create_task(self._listen(reader), name="chatx supervisor")

    def serves(self) -> None:
        """Tell the supervisor."""
        self._say(Ready())

    async def figures(self) -> bytes:
        """Return the figures of all workers; only this one's where the supervisor does not answer."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._say(Ask(number))
        try:
            async with asyncio.timeout(ALL_WITHIN_S):
                return merged((await answer).texts)
        except TimeoutError:
            return merged({self._node: self._own()})
        finally:
            del self._asked[number]

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        # The end of it is seen by a thread, since a loop may hang.
        with suppress(OSError):
            while line := await reader.readline():
                try:
                    said = read_line(line)
                except NotUnderstood as error:
                    logger.error("What the supervisor says is not understood: %s", error)
                    return
                match said:
                    case Ask():
                        self._say(Figures(said.number, {self._node: self._own()}))
                    case Figures() if (answer := self._asked.get(said.number)) is not None and not answer.done():
                        answer.set_result(said)

    def _own(self) -> str | None:
        return None if self._metrics is None else self._metrics.text().decode()

    def _say(self, said: Ready | Ask | Figures) -> None:
        if self._writer is not None and hears(self._writer):
            self._writer.write(line_of(said))
