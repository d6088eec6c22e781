"""A Python client whose connections are to a server that only pretends: all of it but the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from chatx.client import Client
from chatx.client.wire import Cut
from tests.clients.pretend import Pretend
from tests.seeds import Chance


class PretendWire:
    """A connection to a server that only pretends.

    Attributes:
        swallows: Whether what is written goes nowhere.
        holds: Whether what the server says stays on its way.
    """

    def __init__(self, server: Pretend, poison: str) -> None:
        self._poison = poison
        self.swallows = False
        self.holds = False
        self.closed = False
        self._server = server
        self._changed = asyncio.Event()
        self._cut: Cut | None = None

    async def read(self) -> str:
        while True:
            if self._cut is not None:
                raise self._cut
            if self._server.to_client and not self.holds:
                return self._server.to_client.popleft()
            self._changed.clear()
            await self._changed.wait()

    async def write(self, frames: Sequence[str]) -> None:
        if self._cut is not None:
            raise self._cut
        if self._poison and any(self._poison in frame for frame in frames):
            self.cut(1009, "too large")
        elif not self.swallows:
            self._server.to_server.extend(frames)
            while self._server.to_server:
                self._server.read(asyncio.get_running_loop().time())
            self.look()

    async def close(self) -> None:
        self.closed = True
        self.cut(1000)

    def abort(self) -> None:
        self.cut(1006)

    def look(self) -> None:
        """Let the client see what the server has said."""
        self._changed.set()

    def cut(self, code: int = 1006, reason: str = "it was cut") -> None:
        self._server.cut()
        self._cut = Cut(code, reason)
        self.look()


class Pretended(Client):
    """A client of a server that only pretends.

    Attributes:
        server: The server.
        wire: The present connection.
        dialled: When it connected.
        refuses: What its next connections fail with.
        poison: At what the server closes the connection.
    """

    def __init__(self, server: Pretend | None = None, **options: Any) -> None:
        super().__init__("ws://pretended/socket", **options)
        self.conversation = self._line.conversation
        self.server = server or Pretend(Chance("server"), ["a", "b"])
        self.dialled: list[float] = []
        self.poison = ""
        self.refuses: list[Exception] = []

    async def _dial(self) -> PretendWire:
        self.dialled.append(asyncio.get_running_loop().time())
        if self.refuses:
            raise self.refuses.pop(0)
        self.wire = PretendWire(self.server, self.poison)
        return self.wire

    def say(self, room: str, content: str) -> None:
        self.server.say(room, "bob", content, None, asyncio.get_running_loop().time())
        self.wire.look()


async def next_of(room: Any, kind: type[Any]) -> Any:
    async for event in room:
        if isinstance(event, kind):
            return event
    raise AssertionError("it ended")
