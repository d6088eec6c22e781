"""The ASGI shell in each framework and under each server that people run, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatx import Chat
from chatx.gateway.asgi.app import ChatApp
from tests.gateway.fakes import chatx_tasks
from tests.gateway.frameworks import APPLICATIONS, running, write
from tests.gateway.real_client import real_client
from tests.gateway.servers import named

PAIRS = [
    *(("uvicorn", app) for app in APPLICATIONS),
    *((server, "starlette_app") for server in ("uvicorn wsproto", "hypercorn", "granian")),
    ("daphne", "without_lifespan"),
]


@pytest.mark.process
@pytest.mark.parametrize("server, app", PAIRS)
async def test_a_chat_works_in_every_framework_and_under_every_server(server: str, app: str, tmp_path: Path) -> None:
    write(tmp_path)
    with running(server, app, tmp_path) as port:
        async with real_client(port, "ada") as ada, real_client(port, "bob") as bob:
            await ada.ask("room:a", "phx_join")
            head = await bob.ask("room:a", "phx_join")
            sent = [await ada.ask("room:a", "new_message", {"content": f"{number}"}) for number in range(3)]
            assert [each["offset"] for each in sent] == [1, 2, 3]
            assert [each["content"] for each in await bob.wait_for_messages(3)] == ["0", "1", "2"]
            for options in (
                {"origin": "http://evil.example"},
                {"origin": None, "additional_headers": {"Cookie": "a=1"}},
            ):
                with pytest.raises(InvalidStatus) as refused:
                    async with real_client(port, "eve", **options):
                        pass
                assert refused.value.response.status_code == 403
            await ada.push("room:a", "new_message", {"content": "x" * 65_536})
            if server == "granian":  # it writes a close with the client's next frame only, as a heartbeat is
                await ada.push("phoenix", "heartbeat")
            with pytest.raises(ConnectionClosed):
                await ada.wait_for(lambda _: False)
            # daphne takes no code below 3000 but 1000.
            assert ada.connection.close_code == (4109 if server == "daphne" else 1009)
        async with real_client(port, "bob") as back:
            assert (await back.ask("room:a", "phx_join", {"epoch": head["epoch"], "offset": 1}))["recovered"] is True
            assert [each["offset"] for each in await back.wait_for_messages(2)] == [2, 3]


FORGOTTEN = """
from chatx import Chat
from starlette.applications import Starlette
from starlette.routing import Mount

socket = Chat().asgi(authenticate=lambda handshake: "ada")
application = Starlette(routes=[Mount("/socket", socket)])
"""


@pytest.mark.process
@pytest.mark.parametrize(
    "server, status",
    [("uvicorn", 503), ("uvicorn wsproto", 403), ("hypercorn", 503), ("granian", 503), ("daphne", 403)],
)
async def test_a_chat_that_nobody_started_refuses_each_client_and_says_so_once(
    server: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "forgotten.py").write_text(FORGOTTEN, encoding="utf-8")
    log = tmp_path / "log"
    with running(server, "forgotten", tmp_path, log=log) as port:
        for _ in range(5):
            with pytest.raises(InvalidStatus) as refused:
                async with real_client(port, "ada"):
                    pass
            assert refused.value.response.status_code == status
    written = log.read_text(encoding="utf-8")
    assert written.count("lifespan=chat.lifespan") == 1, written
    assert "Traceback" not in written
    assert "without completing" not in written


async def handshake(app: ChatApp) -> list[str]:
    """Open a socket and go away; return what the application sent."""
    sent: list[str] = []
    waiting: list[dict[str, Any]] = [{"type": "websocket.disconnect"}, {"type": "websocket.connect"}]

    async def receive() -> dict[str, Any]:
        return waiting.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/websocket", "query_string": b"vsn=2.0.0&user_id=ada", "headers": []}
    await app(scope, receive, send)
    return sent


async def test_a_chat_that_starts_with_its_first_socket_does_so_once() -> None:
    chat = Chat()
    app = chat.asgi(authenticate=named, autostart=True)
    assert chat.statistics().running is False
    assert (await handshake(app))[0] == "websocket.accept"
    assert chat.statistics().running is True
    assert (await handshake(app))[0] == "websocket.accept"
    await chat.stop()
    assert await handshake(app) == ["websocket.close"]
    assert chat.statistics().running is False
    assert chatx_tasks() == []


async def test_a_chat_that_cannot_start_refuses_and_is_tried_again_with_the_next_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = str(tmp_path / "chat.db")
    chat = Chat(store=store, drain_timeout_ms=1)
    app = chat.asgi(authenticate=named, autostart=True)
    async with Chat(store=store):
        assert await handshake(app) == ["websocket.close"]
        assert "The chat is not started, and is tried with the next client: Another chat writes" in caplog.text
    assert (await handshake(app))[0] == "websocket.accept"
    await chat.stop()
    assert chatx_tasks() == []


async def test_a_first_socket_that_goes_away_does_not_end_the_start_that_others_wait_for(tmp_path: Path) -> None:
    store = str(tmp_path / "chat.db")
    chat = Chat(store=store)
    app = chat.asgi(authenticate=named, autostart=True)
    async with Chat(store=store):
        sockets = [asyncio.create_task(handshake(app)) for _ in range(3)]
        await asyncio.sleep(0)
        sockets.pop(0).cancel()
        await asyncio.sleep(0)
    assert [(await each)[0] for each in sockets] == ["websocket.accept"] * 2
    await chat.stop()
    assert chatx_tasks() == []


async def test_a_chat_that_runs_already_is_not_started_again() -> None:
    async with Chat() as chat:
        engine = chat.engine
        assert (await handshake(chat.asgi(authenticate=named, autostart=True)))[0] == "websocket.accept"
        assert chat.engine is engine
