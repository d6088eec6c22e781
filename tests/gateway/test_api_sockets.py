"""The API over real connections, on both shells: clients that go, are slow, or take nothing."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from chatx import Chat
from chatx.gateway.api import incoming
from chatx.gateway.api.access import token_shown
from chatx.gateway.api.app import ApiApp
from tests.gateway.raw_peer import answer, raw
from tests.gateway.real_client import until
from tests.gateway.servers import SHELLS, native, under_uvicorn
from tests.gateway.test_api import TOKEN, Held

HEAD = f"Host: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
BODY = b'{"user_id":"ada","content":"x","trusted":false}'


def post(*headers: str, body: bytes = BODY, length: int | None = None) -> bytes:
    lines = "".join(f"{each}\r\n" for each in (f"Content-Length: {len(body) if length is None else length}", *headers))
    return f"POST /api/rooms/a%2Fb/messages HTTP/1.1\r\n{HEAD}{lines}\r\n".encode() + body


@asynccontextmanager
async def door(shell: str, chat: Chat) -> AsyncIterator[tuple[ApiApp, int]]:
    api = chat.api(authenticate=token_shown(TOKEN))
    app = Starlette(routes=[Mount("/api", api)])
    if shell == "native":
        async with chat, native(chat, http=app) as (_, port):
            yield api, port
    else:
        async with chat, under_uvicorn(app, lifespan="off") as port:
            yield api, port


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_client_that_resets_its_connection_has_said_what_was_read_once(
    shell: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    async with door(shell, Chat(middlewares=(held,))) as (api, port):
        async with raw(port) as (_, writer):
            writer.write(post("Idempotency-Key: k"))
            await held.begun.wait()
            ours: socket.socket = writer.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if shell == "native":  # which ends the task of a request whose client has gone
            await until(lambda: bool(api._left))
        held.let_go.set()
        await until(lambda: not api.under_way)
        again = await answer(port, post("Idempotency-Key: k", "Connection: close"))
        assert again.startswith(b"HTTP/1.1 201 ")
        assert b'"offset":1,"duplicate":true' in again
    assert [each.getMessage() for each in caplog.records if each.levelname in ("ERROR", "WARNING")] == []


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_client_that_goes_amid_its_body_has_said_nothing(shell: str, caplog: pytest.LogCaptureFixture) -> None:
    chat = Chat()
    async with door(shell, chat) as (api, port):
        async with raw(port) as (_, writer):
            writer.write(post(length=len(BODY) + 1))
            if shell == "asgi":
                await until(lambda: api.under_way == 1)
        await until(lambda: not api.under_way)
        assert (await answer(port, post("Connection: close"))).startswith(b"HTTP/1.1 201 ")
        assert [each.offset for each in await chat.history("a/b")] == [1]
    assert [each.getMessage() for each in caplog.records if each.levelname in ("ERROR", "WARNING")] == []


async def test_a_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "BODY_S", 0.05)
    async with door("asgi", Chat()) as (_, port), raw(port) as (reader, writer):
        writer.write(post(length=len(BODY) + 1))
        said = await reader.readuntil(b"}")
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"retry-after: 1" in said
        assert b"connection: close" in said


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "request_, status",
    [
        (b"GET /api/rooms HTTP/1.1\r\nHost: a\r\n\r\n", 401),
        (f"GET /api/rooms/%ff/presence HTTP/1.1\r\n{HEAD}\r\n".encode(), 400),
        (f"GET /api/rooms/a%2fb/presence?limit=%ff HTTP/1.1\r\n{HEAD}\r\n".encode(), 400),
        (f"HEAD /api/rooms HTTP/1.1\r\n{HEAD}\r\n".encode(), 200),
        (f"HEAD /api/nothing HTTP/1.1\r\n{HEAD}\r\n".encode(), 404),
        (f"OPTIONS /api/rooms HTTP/1.1\r\n{HEAD}\r\n".encode(), 204),
        (f"DELETE /api/users/ada/sessions HTTP/1.1\r\n{HEAD}\r\n".encode(), 204),
        (f"BREW /api/rooms HTTP/1.1\r\n{HEAD}\r\n".encode(), 405),
        (post(body=b"{" * 200_000), 400),
        (
            b"POST /api/rooms/a/messages HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
            + HEAD.encode()
            + b"\r\n%x\r\n" % len(BODY)
            + BODY
            + b"\r\n0\r\n\r\n",
            201,
        ),
    ],
)
async def test_a_request_is_answered_alike_by_both_shells(
    shell: str, request_: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with door(shell, Chat()) as (_, port):
        said = await answer(port, request_.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        assert said.startswith(b"HTTP/1.1 %d " % status)
        head, _, body = said.partition(b"\r\n\r\n")
        if request_.startswith(b"HEAD") or status == 204:
            assert body == b""
        elif status >= 400:
            assert b"application/problem+json" in head
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
