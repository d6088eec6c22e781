"""Byte streams that no honest client writes, at the native server, beside somebody who only wants to chat."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter

import pytest

from chatx.chat import Chat
from tests.gateway import hostile
from tests.gateway.loops import on_each_loop
from tests.gateway.phoenix_peer import read
from tests.gateway.raw_peer import raw
from tests.gateway.real_client import RealClient, real_client, until
from tests.gateway.servers import native
from tests.limits import UNLIMITED

STREAMS = 5_000 if os.environ.get("TEST_LONG") else 500
AT_ONCE = 8
"""Attackers at a time."""

PATH = "/socket/websocket?vsn=2.0.0&user_id=evil"


class Attackers:
    """Write one stream after the other, each on a connection of its own, and end it in one of three ways.

    Attributes:
        heard: How often each first line of an answer came.
    """

    def __init__(self, port: int, draw: random.Random, streams: int) -> None:
        self._port = port
        self._draw = draw
        self._left = streams
        self.heard: Counter[bytes] = Counter()

    async def run(self) -> None:
        while self._left:
            self._left -= 1
            with contextlib.suppress(ConnectionError):  # it may be cut off at any time
                await self._attack(hostile.stream(self._draw, PATH), self._draw.choice(("eof", "abort", "read")))

    async def _attack(self, pieces: list[bytes], end: str) -> None:
        async with raw(self._port) as (reader, writer), asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if end != "abort":
                if end == "eof":
                    writer.write_eof()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if end == "eof" else 0.05):
                        self.heard[(await reader.readline())[:12]] += 1
                        await reader.read()


async def chat_on(client: RealClient, done: asyncio.Event) -> int:
    """Say one thing after the other, each when the one before has come back; return how many."""
    said = 0
    while not done.is_set():
        said += 1
        await client.push("room:a", "new_message", {"content": f"honest {said}"})
        wanted = f"honest {said}"
        async with asyncio.timeout(20):
            while not (client.received and client.received[-1].payload.get("content") == wanted):
                text = await client.connection.recv()
                assert isinstance(text, str)
                client.received.append(read(2, text))
    return said


@pytest.mark.timeout(600)
@on_each_loop
async def test_hostile_byte_streams_harm_nobody_else() -> None:
    draw = random.Random(7)
    async with (
        Chat(rate_limit=UNLIMITED, max_connections_per_user=100, max_connections_per_address=1000) as chat,
        native(chat) as (server, port),
        real_client(port, "bystander") as bystander,
    ):
        await bystander.ask("room:a", "phx_join")
        done = asyncio.Event()
        chatting = asyncio.create_task(chat_on(bystander, done))
        attackers = Attackers(port, draw, STREAMS)
        await asyncio.gather(*(attackers.run() for _ in range(AT_ONCE)))
        done.set()
        said = await chatting
        await until(lambda: server.connections == 1 and not server.greetings and not server.exchanges)
        assert served_tasks() == []
        gateway, place = server.entrance.begin(None)
        assert len(gateway.admission) == 3  # the bystander, the bystander's address, and the one that was begun here
        place.end()
        assert set(await chat.presence("a")) == {"bystander"}
        honest = [each["content"] for each in bystander.messages if each["content"].startswith("honest")]
        assert honest == [f"honest {number}" for number in range(1, said + 1)]
        offsets = [each["offset"] for each in bystander.messages]
        assert offsets == list(range(1, len(offsets) + 1))
        # What was done reached the server, the room, and every kind of refusal.
        assert len(offsets) > said + 5
        assert said > 20
        assert set(attackers.heard) >= {b"HTTP/1.1 101", b"HTTP/1.1 400", b"HTTP/1.1 431", b""}
        assert attackers.heard[b"HTTP/1.1 101"] > STREAMS // 20


def served_tasks() -> list[asyncio.Task[object]]:
    """Return the tasks that serve a connection."""
    names = ("chatx session", "chatx socket", "chatx handshake", "chatx http")
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(names)]
