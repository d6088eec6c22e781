"""Processes that listen on one socket: who has more leaves a newcomer to the others for a moment, not for longer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat
from chatx.cli.workers.loads import LEAD, Loads, memory_for
from chatx.gateway import NativeServer


def test_who_is_ahead_of_the_one_that_has_fewest_gives_way_and_nobody_waits_for_who_is_absent() -> None:
    with memory_for(3) as memory:
        first, second = Loads(memory.fileno(), 3), Loads(memory.fileno(), 3)
        first.absent(2)
        assert not first.leads(0, LEAD)
        assert not second.leads(1, 0)
        assert not first.leads(0, LEAD)
        assert first.leads(0, LEAD + 1)
        assert second.leads(1, 160)
        assert not first.leads(0, 160 + LEAD + 10)
        assert first.leads(0, 160 + LEAD + 11)
        second.absent(1)
        assert not first.leads(0, 1_000_000)  # it is alone


@pytest.fixture(params=["plain", "tls"])
def contexts(request: pytest.FixtureRequest) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """What a server speaks, and a client."""
    if request.param == "plain":
        return None, None
    chain, key = map(Path, request.getfixturevalue("certificate"))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(chain, key)
    return serving, ssl.create_default_context(cafile=str(chain))


async def asked(port: int, context: ssl.SSLContext | None) -> str:
    """Return who answers a request."""
    name = None if context is None else "localhost"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return "full" if b"full" in answer else "empty" if b"empty" in answer else repr(answer)


async def test_newcomers_go_to_who_does_not_give_way_and_to_who_does_where_nobody_else_is_there(
    contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None],
) -> None:
    speaks, trusts = contexts

    def named(name: str) -> Callable[..., Any]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": name.encode()})

        return app

    def is_full(name: str, count: int) -> bool:
        return name == "full"

    async with Chat() as chat:
        # Whichever is woken first, one that is full is so.
        servers = {
            NativeServer(chat, authenticate=lambda _: "ada", http=named(name), ssl=speaks): name
            for name in ("full", "empty", "full")
        }
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            for each, name in servers.items():
                await each.start([listening.dup()], gives_way=partial(is_full, name))
            _, empty, _ = servers
            answered = [await asked(port, trusts) for _ in range(20)]
            # Who comes at the very end of a moment may be taken: nobody was busy, but that is not known.
            assert answered.count("empty") > 10
            await empty.close()
            assert {await asked(port, trusts) for _ in range(3)} == {"full"}
            for each in servers:
                await each.close()
