"""The ASGI shell in each framework and under each server that people run, over real sockets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatx import Chat
from chatx.gateway.asgi.app import ChatApp
from tests.docs.markdown import ROOT, blocks
from tests.gateway.fakes import chatx_tasks
from tests.gateway.real_client import real_client
from tests.gateway.servers import named
from tests.process import ENVIRONMENT, free_port

PAGE = ROOT / "docs" / "frameworks.md"

APPLICATIONS = ("fastapi_app", "starlette_app", "litestar_app", "django_app", "without_lifespan")
"""What the page shows, in its order; each block is a module of this name."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("uvicorn", "{app}:application", "--port", "{port}", "--ws", "websockets-sansio"),
    "uvicorn wsproto": ("uvicorn", "{app}:application", "--port", "{port}", "--ws", "wsproto"),
    "hypercorn": ("hypercorn", "{app}:application", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "--interface", "asgi", "--port", "{port}", "{app}:application"),
    "daphne": ("daphne", "--port", "{port}", "{app}:application"),
}

PAIRS = [
    *(("uvicorn", app) for app in APPLICATIONS),
    *((server, "starlette_app") for server in ("uvicorn wsproto", "hypercorn", "granian")),
    ("daphne", "without_lifespan"),
]

SETTINGS = """
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
SECRET_KEY = "of no use"
"""
URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("page", lambda request: HttpResponse("a page of Django's"))]
"""


@contextmanager
def running(server: str, app: str, folder: Path) -> Iterator[int]:
    """Serve one of the page's applications; the value is the port."""
    for name, block in zip(APPLICATIONS, blocks(PAGE, "py"), strict=True):
        (folder / f"{name}.py").write_text(block.code, encoding="utf-8")
    (folder / "mysite").mkdir()
    (folder / "mysite" / "settings.py").write_text(SETTINGS, encoding="utf-8")
    (folder / "mysite" / "urls.py").write_text(URLS, encoding="utf-8")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *(each.format(app=app, port=port) for each in COMMANDS[server])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "src")))},
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail(f"{server} does not serve {app}: {process.communicate()[0]}")
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.mark.process
@pytest.mark.parametrize("server, app", PAIRS)
async def test_a_chat_works_in_every_framework_and_under_every_server(server: str, app: str, tmp_path: Path) -> None:
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


@pytest.mark.process
def test_beside_a_chat_django_serves_its_pages(tmp_path: Path) -> None:
    with (
        running("uvicorn", "django_app", tmp_path) as port,
        urllib.request.urlopen(f"http://localhost:{port}/page") as response,
    ):
        assert response.read() == b"a page of Django's"


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
    assert await handshake(app) == ["websocket.accept", "websocket.close"]
    assert chat.statistics().running is False
    assert chatx_tasks() == []


async def test_a_chat_that_runs_already_is_not_started_again() -> None:
    async with Chat() as chat:
        engine = chat.engine
        assert (await handshake(chat.asgi(authenticate=named, autostart=True)))[0] == "websocket.accept"
        assert chat.engine is engine
