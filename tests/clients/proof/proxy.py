"""A TCP proxy that does what networks do: it resets, closes, silences and delays connections, and lets none in."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.process import free_port

MOST = 65_536
"""Bytes that are read at once, and that wait for a peer who does not take them."""

TORN_S = 0.05
"""Time for one half to arrive, since a reset takes with it what is not read yet."""


class Way:
    """One direction of a connection.

    Attributes:
        silent: Whether what comes is thrown away. There is no way back: a stream with a hole in it is no stream.
        late_s: Seconds for which what comes next is held back, and all behind it.
        torn: Whether of what comes next one half is passed on, and then it is reset.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.silent = False
        self.late_s = 0.0
        self.torn = False
        self._reader = reader
        self._writer = writer

    async def chunk(self) -> bytes:
        """Return what comes next; nothing at the end."""
        data = await self._reader.read(MOST)
        if data and self.late_s:
            late_s, self.late_s = self.late_s, 0.0
            await asyncio.sleep(late_s)
        return data

    async def pass_on(self, data: bytes) -> None:
        if not self.silent:
            self._writer.write(data)
            await self._writer.drain()


class Passage:
    """One connection through the proxy. `up` is from the client to the server, `down` the other way."""

    def __init__(self, up: Way, down: Way, writers: tuple[asyncio.StreamWriter, ...]) -> None:
        self.up = up
        self.down = down
        self._writers = writers
        self._loses_answer_s: float | None = None
        self._to_come: list[asyncio.TimerHandle] = []
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Pass on what comes, until one side ends; where a direction is silent, no such end is heard."""
        pumps = [asyncio.create_task(self._pump(each)) for each in (self.up, self.down)]
        try:
            await self._over.wait()
        finally:
            for each in pumps:
                each.cancel()
            await asyncio.wait(pumps)
            for handle in self._to_come:
                handle.cancel()
            for writer in self._writers:
                writer.close()

    async def _pump(self, way: Way) -> None:
        with suppress(OSError):
            while data := await way.chunk():
                if way is self.up and self._loses_answer_s is not None:
                    self.down.silent = True
                    self._later(self._loses_answer_s, self.reset)
                    self._loses_answer_s = None
                if way.torn:
                    await way.pass_on(data[: len(data) // 2])
                    await asyncio.sleep(TORN_S)
                    self.reset()
                    return
                await way.pass_on(data)
        if not (self.up.silent or self.down.silent):
            self._over.set()

    def reset(self) -> None:
        """End it on both sides with a reset (RST)."""
        self._over.set()
        for writer in self._writers:
            _reset(writer)

    def close(self) -> None:
        """End it on both sides in good order (FIN), behind what was to be passed on."""
        self._over.set()

    def silence(self, *, up: bool, down: bool, reset_after_s: float) -> None:
        """Leave it half open: nothing passes in these directions any more, until it is reset."""
        self.up.silent |= up
        self.down.silent |= down
        self._later(reset_after_s, self.reset)

    def lose_answer(self, reset_after_s: float) -> None:
        """Let the client's next words through, and nothing back to it from then on; then reset it."""
        self._loses_answer_s = reset_after_s

    def tear(self, *, up: bool) -> None:
        """Pass on one half of what comes next in a direction, and then reset it."""
        (self.up if up else self.down).torn = True

    def delay(self, late_s: float) -> None:
        """Hold back what comes next in both directions."""
        self.up.late_s = self.down.late_s = late_s

    def _later(self, delay_s: float, act: Any) -> None:
        self._to_come.append(asyncio.get_running_loop().call_later(delay_s, act))


class CuttingProxy:
    """The proxy, in front of a server on this machine that may be away.

    Attributes:
        port: Where it listens.
        behind: Where the server listens.
        passages: The connections through it.
        passed: How many there have been.
    """

    def __init__(self, behind: int) -> None:
        self.port = free_port()
        self.passages: set[Passage] = set()
        self.passed = 0
        self.behind = behind
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self) -> None:
        """Let connections in."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    def refuse(self) -> None:
        """Let no connections in: nobody listens. Those that are there stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def end(self) -> None:
        """End everything."""
        self.refuse()
        for passage in self.passages:
            passage.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # what is aborted closes in the next turn

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of its own: one that asyncio makes is told of as failed when it is cancelled.
        task = asyncio.create_task(self._pass(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, onwards = await asyncio.open_connection("127.0.0.1", self.behind)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
            return
        passage = Passage(Way(reader, onwards), Way(back, writer), (writer, onwards))
        self.passages.add(passage)
        self.passed += 1
        try:
            await passage.run()
        finally:
            self.passages.discard(passage)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # it has gone already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def cutting_proxy(behind: int) -> AsyncIterator[CuttingProxy]:
    """Run a proxy in front of a port."""
    proxy = CuttingProxy(behind)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.end()
