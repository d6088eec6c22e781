"""Peers of the native server that do whatever comes to mind, while a room talks and users are revoked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket

import pytest
from websockets.frames import Opcode

from chatx.chat import Chat
from chatx.gateway.native import writing
from tests.gateway import hostile
from tests.gateway.loops import on_each_loop
from tests.gateway.raw_peer import CLOSE, Peer, masked, opened, pushed, server_tls
from tests.gateway.real_client import until
from tests.gateway.servers import native
from tests.limits import UNLIMITED

pytestmark = pytest.mark.slow

PEERS = 2_000 if os.environ.get("TEST_LONG") else 200
AT_ONCE = 20
USERS = 30


class Dawdles:
    """A moderation that takes some time, so that sockets are busy."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    async def check(self, content: str) -> bool:
        await asyncio.sleep(self._draw.random() / 100)
        return True


async def whatever(peer: Peer, chat: Chat, draw: random.Random) -> bool:
    """Do one thing; return whether the connection is still of use."""
    reader, writer = peer
    match draw.randrange(13):
        case 0 | 1 | 2:
            for number in range(draw.randrange(1, 120)):
                content = "x" * draw.randrange(1, 3000)
                writer.write(pushed("room:a", "new_message", {"content": content}, ref=str(number + 2)))
        case 3:
            writer.write(CLOSE)
        case 4:
            writer.write(masked(Opcode.PING, b"x" * draw.randrange(125)) * draw.randrange(1, 40))
        case 5:
            writer.write(hostile.frame(draw))
        case 6:
            reader._transport.pause_reading()  # type: ignore[attr-defined]
        case 7:
            reader._transport.resume_reading()  # type: ignore[attr-defined]
        case 8:
            writer.transport.abort()
            return False
        case 9 if (ours := writer.transport.get_extra_info("socket")) is not None:
            with socket.socket(fileno=os.dup(ours.fileno())) as same:
                same.shutdown(socket.SHUT_WR)
        case 10:
            await chat.revoke(f"user{draw.randrange(USERS)}")
        case 11:
            await asyncio.sleep(draw.random() / 20)
        case _:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await reader.read(100_000)
    await asyncio.sleep(0)
    return True


async def talk(chat: Chat) -> None:
    while True:
        for _ in range(20):
            await chat.send_message("a", "somebody", "y" * 3000)
        await asyncio.sleep(0.005)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@on_each_loop
async def test_peers_that_do_whatever_comes_to_mind_leave_nothing_behind(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WRITE_STALL_S", 0.2)
    monkeypatch.setattr(writing, "CLOSE_S", 0.2)
    draw = random.Random(3)
    left = PEERS
    chat = Chat(rate_limit=UNLIMITED, moderation=Dawdles(draw), max_connections_per_user=0, mailbox_bytes=300_000)
    async with chat, native(chat, ssl=server_tls() if tls else None) as (server, port):

        async def peers() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                # Whatever the peers' side makes of a connection that has gone is its own affair.
                with contextlib.suppress(OSError, EOFError, RuntimeError):
                    async with opened(port, b"user%d" % draw.randrange(USERS), tls=tls) as peer:
                        peer[1].write(pushed("room:a", "phx_join", {}))
                        for _ in range(draw.randrange(1, 12)):
                            if not await whatever(peer, chat, draw):
                                break

        talking = asyncio.create_task(talk(chat))
        await asyncio.gather(*(peers() for _ in range(AT_ONCE)))
        talking.cancel()
        await until(lambda: not server.connections and not server.greetings)
        statistics = chat.statistics()
        assert (statistics.members, statistics.subscriptions, statistics.connections) == (0, 0, 0)
        gateway, place = server.entrance.begin(None)
        place.end()
        assert (len(gateway.admission), len(gateway.wheel)) == (0, 0)
