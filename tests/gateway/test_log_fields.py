"""What lines of the log are about: fields of their own, in a log of JSON too."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chatx.chat import Chat
from chatx.cli.logs import Json
from chatx.gateway.longpoll.poller import Poller
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.session import Session
from chatx.gateway.wire.bounds import IDLE_TIMEOUT_S
from chatx.runtime.engine import Engine
from tests.gateway.fakes import Client, FakeServer, settle
from tests.gateway.servers import named
from tests.longpoll.polling import PollingClient, inside
from tests.virtual import virtual


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return what reads the log's lines so far, as a log of JSON has them."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(Json())
    logging.getLogger("chatx").addHandler(handler)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    logging.getLogger("chatx").removeHandler(handler)


Lines = Callable[[], list[dict[str, Any]]]


def has(line: dict[str, Any], **fields: object) -> bool:
    return fields.items() <= line.items()


@virtual
async def test_a_session_that_fails_is_told_with_its_user_and_close_code(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(Engine, "enter", fails)
    async with Chat() as chat:
        client = Client(Gateway(chat.engine), "ada")
        client.ask("room:a")
        await settle()
        (line,) = lines()
        assert has(line, message="A session failed and is closed.", user="ada", code=1011)


@pytest.mark.parametrize("watched", [Session, Poller])
@virtual
async def test_a_deadline_that_fails_is_told_with_its_user(
    watched: type[Any], lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("injected")

    async with Chat() as chat:
        app = chat.asgi(authenticate=named)
        ada = PollingClient(inside(app))
        await ada.open()
        monkeypatch.setattr(watched, "due", fails)
        FakeServer(app, query="vsn=2.0.0&user_id=ada")
        await ada.poll()
        await asyncio.sleep(2 * IDLE_TIMEOUT_S)
        assert lines()
        assert all(has(line, message="A deadline failed.", user="ada") for line in lines())
        await chat.revoke("ada")


@virtual
async def test_a_server_that_fails_to_write_is_told_with_the_user_and_the_address(lines: Lines) -> None:
    class Fails(Exception):
        """A server's own."""

    async with Chat() as chat:
        server = FakeServer(chat.asgi(authenticate=named), query="vsn=2.0.0&user_id=ada", client="192.0.2.7")
        await settle()
        server.send_error = Fails()
        server.text(None, "phoenix", "heartbeat")
        await server.task
        assert any(has(line, level="error", user="ada", address="192.0.2.7") for line in lines())


@virtual
async def test_a_refusal_is_told_with_its_reason_origin_address_and_user(lines: Lines) -> None:
    async with Chat(max_connections_per_user=1) as chat:
        app = chat.asgi(authenticate=named)
        first = FakeServer(app, query="vsn=2.0.0&user_id=ada")
        await settle()
        second = FakeServer(
            app,
            query="vsn=2.0.0&user_id=ada",
            client="192.0.2.7",
            headers={"origin": "http://chat.example", "host": "chat.example"},
        )
        await second.task
        (line,) = lines()
        assert has(line, code="full", origin="http://chat.example", address="192.0.2.7", user="ada")
        first.disconnect()
        await first.task
