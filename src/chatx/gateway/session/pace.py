"""How much of one socket's input is taken before the others have a turn of the event loop.

A shell that reads from a queue waits for nothing while there is something in it: `await receive()` returns at once, and
one client's flood keeps the loop from everybody else. Nor are many floods together to do that.

Rules:
1. Of one socket, or one post, `MESSAGES_A_TURN` messages and about `SIZE_A_TURN` are taken in one turn of the loop.
2. Of those that have had their turn and have more, `FLOODS_A_TURN` go on in each turn of the loop, in rotation.
3. Whoever sends now and then is no flood, and waits for none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

MESSAGES_A_TURN: Final = 16
"""Messages of one socket, or of one post, that are taken in one turn of the loop."""

SIZE_A_TURN: Final = 8_192
"""Characters or bytes of such messages; one message may be larger."""

FLOODS_A_TURN: Final = 4
"""Sockets and posts that go on in one turn of the loop."""

FLOOD_S: Final = 1.0
"""Seconds; what took longer to come than that is no flood."""


class Rota:
    """Who waits for a turn of the loop to go on with their input; at most one entry for each socket and post.

    Args:
        loop: The loop.
    """

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait for one's turn, behind those who wait already."""
        waits = self._loop.create_future()
        self._waiting.append(waits)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._go_on)
        await waits

    def _go_on(self) -> None:
        for _ in range(min(len(self._waiting), FLOODS_A_TURN)):
            waits = self._waiting.popleft()
            if not waits.done():  # else its client is gone
                waits.set_result(None)
        if self._waiting:
            self._loop.call_soon(self._go_on)


class Pace:
    """How much input of one socket was taken in its present turn.

    Args:
        rota: Who else has more.
    """

    __slots__ = ("_loop", "_messages", "_rota", "_since", "_size")

    def __init__(self, rota: Rota) -> None:
        self._rota = rota
        self._loop = asyncio.get_running_loop()
        self._begin()

    async def taken(self, size: int) -> None:
        """Count a message of this size as taken; where the turn is over, wait for the next one."""
        self._messages += 1
        self._size += size
        if self._messages < MESSAGES_A_TURN and self._size < SIZE_A_TURN:
            return
        if self._loop.time() - self._since < FLOOD_S:
            await self._rota.turn()
        else:
            await asyncio.sleep(0)
        self._begin()

    def _begin(self) -> None:
        self._messages = self._size = 0
        self._since = self._loop.time()
