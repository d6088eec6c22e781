"""Many clients of one room who only read, and count what is said.

python -m benchmarks.cluster.readers ROOM COUNT PORT...

COUNT clients connect to each port and join; when all are in, a line says so. When standard input ends, a line of JSON
says how many messages came in all.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import deque
from functools import partial
from typing import cast

import uvloop

AT_ONCE = 100
"""Clients that come in at a time."""

AGAIN_S = 1.0
"""Before one that fell out, or was not let in, joins again, in seconds."""

_MESSAGE = b',"new_message",'


class Reader(asyncio.Protocol):
    """One client, which joins again where it falls out. What a frame is it knows by what is in it.

    Args:
        upgrade: The handshake.
        join: The frame that joins.
    """

    def __init__(self, upgrade: bytes, join: bytes) -> None:
        self._upgrade, self._join = upgrade, join
        self._transport: asyncio.WriteTransport
        self._tail = b""
        self.received = 0
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, and join."""
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._upgrade + self._join)

    def data_received(self, data: bytes) -> None:
        """Count."""
        data = self._tail + data
        self._tail = data[-len(_MESSAGE) + 1 :]
        self.received += data.count(_MESSAGE)
        if b'"status":"ok"' in data and not self.joined.done():
            self.joined.set_result(None)
        if b'"phx_error"' in data or b'"status":"error"' in data:
            asyncio.get_running_loop().call_later(AGAIN_S, self._transport.write, self._join)

    def connection_lost(self, error: Exception | None) -> None:
        """Say so where it was not let in."""
        if not self.joined.done():
            self.joined.set_exception(ConnectionError(f"a reader was not let in: {error}"))


def _hello(room: str, user: int) -> tuple[bytes, bytes]:
    head = (
        f"GET /socket/websocket?vsn=2.0.0&user_id=reader-{user} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    join = json.dumps(["1", "1", f"room:{room}", "phx_join", {}]).encode()
    # Masked, with a mask of zeros: it needs to be there, and not to hide anything.
    return head.encode(), bytes((0x81, 0x80 | len(join), 0, 0, 0, 0)) + join


async def _read(room: str, count: int, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    waiting = deque((port, number) for number in range(count) for port in ports)
    readers: list[Reader] = []
    while waiting:
        some = [waiting.popleft() for _ in range(min(AT_ONCE, len(waiting)))]
        # Each is another user: what is told of presence is bounded by the room, not by one user's devices.
        hellos = [(port, _hello(room, number * len(ports) + ports.index(port))) for port, number in some]
        opened = await asyncio.gather(
            *(loop.create_connection(partial(Reader, *hello), "127.0.0.1", port) for port, hello in hellos)
        )
        readers += [reader for _, reader in opened]
        await asyncio.gather(*(reader.joined for _, reader in opened))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(json.dumps({"received": sum(each.received for each in readers)}), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_read(sys.argv[1], int(sys.argv[2]), [int(each) for each in sys.argv[3:]]))
