"""The phoenix client as it is published, polling, in Chromium: cookies, origins, and WebSockets that do not connect."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from playwright.sync_api import Browser, Page
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route

from chatx.chat import Chat
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.native.server import NativeServer
from tests.gateway.real_client import real_client, until
from tests.longpoll.node import PHOENIX

pytestmark = pytest.mark.browser

T = TypeVar("T")

FALLBACK = {"longPollFallbackMs": 5000}
POLLING = {"transport": "LongPoll"}
ELSEWHERE = "([address, authToken]) => enter(address, { transport: 'LongPoll', authToken })"


def who(handshake: Handshake) -> str | None:
    """Let in whoever the cookie names, and a page elsewhere by its token."""
    return handshake.cookies.get("user") or handshake.token


async def page(request: Any) -> Response:
    response = FileResponse(Path(__file__).with_name("page.html"))
    response.set_cookie("user", request.query_params.get("user", ""), httponly=True, samesite="lax")
    return response


async def phoenix(request: Any) -> Response:
    return FileResponse(PHOENIX / "priv" / "static" / "phoenix.mjs", media_type="text/javascript")


PAGES = [Route("/", page), Route("/phoenix.mjs", phoenix)]


class Server:
    """A chat and its server, in a thread of their own, since Playwright's loop has this one."""

    def __init__(self) -> None:
        self.chat = Chat()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def close(self) -> None:
        # A browser opens connections in advance; one may have come in just now, and is turned away.
        for _ in range(10):
            self.run(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@asynccontextmanager
async def asgi_without_websockets(server: Server, port: int) -> Any:
    """Serve as a network does that lets no WebSocket through: the server answers it with a status of HTTP."""
    app = Starlette(
        routes=[Mount("/socket", server.chat.asgi(authenticate=who)), *PAGES], lifespan=server.chat.lifespan
    )
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(app, port=port, ws="none", log_level="error", timeout_graceful_shutdown=0)
    )
    task = asyncio.create_task(uvicorn_server.serve())
    await until(lambda: uvicorn_server.started)
    yield uvicorn_server.servers[0].sockets[0].getsockname()[1]
    uvicorn_server.should_exit = True
    await task


@asynccontextmanager
async def native(server: Server, port: int, *origins: str) -> Any:
    listening = socket.create_server(("127.0.0.1", port))
    async with server.chat:
        native_server = NativeServer(server.chat, authenticate=who, origins=origins, http=Starlette(routes=PAGES))
        await native_server.start([listening])
        yield listening.getsockname()[1]
        await native_server.close()
    listening.close()


@contextmanager
def serving(shell: Callable[..., Any], *arguments: Any) -> Iterator[Server]:
    server = Server()
    running = shell(server, 0, *arguments)
    server.port = server.run(running.__aenter__())
    try:
        yield server
    finally:
        server.run(running.__aexit__(None, None, None))
        server.close()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.goto(url)
    page.wait_for_function("!!window.enter")
    yield page
    context.close()


def told(page: Page, condition: str) -> None:
    page.wait_for_function(f"(() => {{ const t = window.told; return {condition}; }})()")


@pytest.mark.parametrize("shell, options", [(asgi_without_websockets, FALLBACK), (native, POLLING)])
def test_a_page_whose_websocket_does_not_get_through_chats_all_the_same(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, shell: Any, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("chatx.gateway.longpoll.poller.CUT_OFF_S", 0.2)
    with serving(shell) as server, opened(browser, f"http://localhost:{server.port}/?user=ada") as ada:
        ada.evaluate("options => enter('/socket', options)", options)
        told(ada, "t.opened[0] === 'LongPoll' && t.joined.length")
        with opened(browser, f"http://localhost:{server.port}/?user=bob") as bob:
            bob.evaluate("options => enter('/socket', options)", POLLING)
            told(ada, "t.users.join() === 'ada,bob'")
            bob.evaluate("say('hello, ada')")
            told(ada, "t.messages.join() === 'hello, ada'")
            ada.evaluate("say('hello, bob')")
            told(bob, "t.messages.join() === 'hello, ada,hello, bob'")
        # The page that is gone breaks its poll off, so its user leaves soon.
        told(ada, "t.users.join() === 'ada'")


def test_a_page_of_another_origin_chats_where_it_may_and_nowhere_else(browser: Browser) -> None:
    async def hears(server: Server) -> str:
        async with real_client(server.port, "bob", subprotocols=["base64url.bearer.phx.Ym9i", "phoenix"]) as bob:
            await bob.ask("room:a", "phx_join")
            content: str = (await bob.wait_for_messages(1))[0]["content"]
            return content

    with serving(native) as home:
        address = f"http://localhost:{home.port}"
        with serving(native, address) as server, opened(browser, address) as ada:
            heard = asyncio.run_coroutine_threadsafe(hears(server), server._loop)
            ada.evaluate(ELSEWHERE, [f"http://127.0.0.1:{server.port}/socket", "ada"])
            told(ada, "t.users.join() === 'ada,bob'")
            ada.evaluate("say('from elsewhere')")
            assert heard.result(20) == "from elsewhere"
        with serving(native) as server, opened(browser, address) as foreign:
            with foreign.expect_event("requestfailed", lambda request: "/socket/longpoll" in request.url):
                foreign.evaluate(ELSEWHERE, [f"http://127.0.0.1:{server.port}/socket", "eve"])
            assert server.chat.statistics().connections == 0


def test_a_page_comes_back_from_a_session_that_was_ended(browser: Browser) -> None:
    with serving(native) as home, opened(browser, f"http://localhost:{home.port}/?user=ada") as ada:
        ada.evaluate("options => enter('/socket', options)", POLLING)
        told(ada, "t.joined.length")
        home.run(home.chat.send_message("a", "bob", "before"))
        told(ada, "t.messages.length === 1")
        home.run(home.chat.revoke("ada"))
        home.run(home.chat.send_message("a", "bob", "meanwhile"))
        told(ada, "t.messages.join() === 'before,meanwhile' && t.joined.join() === 'false,true'")
