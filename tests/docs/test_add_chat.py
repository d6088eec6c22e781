"""The application on the page about adding chat works as it stands there: its endpoints, and its page in Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, WebSocketRoute, expect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.clients.peers import NPM
from tests.docs.markdown import ROOT, blocks
from tests.process import Served, uvicorn

ADD_CHAT = ROOT / "docs" / "add-chat.md"
FILES = {"app.py": ("py", "\n\n"), "page.html": ("html", ""), "chat.js": ("js", "\n")}
SECRET = {"SESSION_SECRET": "of no use"}
PATIENCE_MS = 20_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader's folder has in the end."""
    for name, (language, between) in FILES.items():
        code = between.join(block.code for block in blocks(ADD_CHAT, language))
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(NPM / "node_modules")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SESSION_SECRET", "of no use")
    return tmp_path


@pytest.fixture
def application(folder: Path) -> dict[str, Any]:
    """What the module has."""
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(compile((folder / "app.py").read_text(encoding="utf-8"), "app.py", "exec", dont_inherit=True), namespace)
    return namespace


@pytest.fixture
def client(application: dict[str, Any]) -> Iterator[TestClient]:
    with TestClient(application["app"]) as client:
        yield client


class TimelessLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still: no bucket is filled again, however long the requests take."""

    def time(self) -> float:
        return 0.0


@pytest.fixture
def hurried(application: dict[str, Any]) -> Iterator[TestClient]:
    """Whose requests all come at one time."""
    with TestClient(application["app"], backend_options={"loop_factory": TimelessLoop}) as client:
        yield client


def sign_in(client: TestClient, name: str) -> None:
    assert client.post("/login", data={"name": name}, follow_redirects=False).status_code == 303
    assert client.get("/me").json() == {"user_id": name}


class Room:
    """One person's socket, opened with what the client's cookies are."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.ask("phx_join")

    def ask(self, event: str, **payload: Any) -> Any:
        self._socket.send_text(json.dumps(["1", "1", "room:general", event, payload]))
        return self.next("phx_reply")["response"]

    def next(self, event: str) -> Any:
        while True:
            _, _, _, name, payload = json.loads(self._socket.receive_text())
            if name == event:
                return payload


def opened(client: TestClient, mount: str = "/socket") -> Any:
    return client.websocket_connect(f"{mount}/websocket?vsn=2.0.0", headers={"origin": "http://testserver"})


def test_the_socket_knows_whoever_signed_in_and_nobody_else(client: TestClient) -> None:
    def refuse() -> None:
        with pytest.raises(WebSocketDisconnect), opened(client):
            pass

    refuse()
    sign_in(client, "ada")
    with opened(client) as socket:
        assert Room(socket).ask("new_message", content="hello")["offset"] == 1
    forged = client.cookies["session"][:-1] + "?"
    client.cookies.clear()
    client.cookies.set("session", forged)
    refuse()


@pytest.mark.parametrize("outer", [(), (Middleware(SessionMiddleware, secret_key="of no use"),)])
def test_a_socket_beside_the_application_needs_the_middleware_there(
    application: dict[str, Any], outer: tuple[Middleware, ...], caplog: pytest.LogCaptureFixture
) -> None:
    chat, who, app = (application[name] for name in ("chat", "who", "app"))
    beside = Mount("/beside", chat.asgi(authenticate=who))
    with TestClient(Starlette(routes=[beside, Mount("/", app)], middleware=outer, lifespan=chat.lifespan)) as client:
        sign_in(client, "ada")
        with nullcontext() if outer else pytest.raises(WebSocketDisconnect), opened(client, "/beside"):
            pass
    assert ("KeyError: 'session'" in caplog.text) is (not outer)


def test_each_kind_of_endpoint_sends(client: TestClient) -> None:
    sign_in(client, "ada")
    with opened(client) as socket:
        room = Room(socket)
        said = client.post("/rooms/general/messages", data={"content": "hello"})
        assert room.next("new_message") | {"id": said.json()["id"]} == room.ask("history")["messages"][0]
        for number in range(30):  # more than anybody may send in a burst
            assert client.post(f"/orders/{number}/packed").status_code == 200
        assert client.post("/orders/0/packed").json() == client.post("/orders/0/packed").json()
        assert client.post("/orders/8/paid").status_code == 200
        assert client.post("/orders/9/sent").json() == {"number": 9}
        told = [room.next("new_message") for _ in range(32)]

    assert {each["user_id"] for each in told} == {"shop"}
    assert [each["content"] for each in told[-2:]] == ["Order 8 is paid.", "Order 9 is on its way."]


def test_refusals_have_the_status_and_the_body_that_the_page_says(hurried: TestClient) -> None:
    def say(content: str, room: str = "general") -> Any:
        return hurried.post(f"/rooms/{room}/messages", data={"content": content})

    assert say("hello").status_code == 401
    sign_in(hurried, "ada")
    assert (say("a" * 5_000).status_code, say("\x00").status_code) == (413, 400)
    answers = [say(f"{number}") for number in range(30)]
    refused = next(each for each in answers if each.status_code != 200)
    assert refused.status_code == 429
    assert (refused.json()["code"], refused.json()["retryable"]) == ("rate_limited", True)
    assert refused.headers["retry-after"] == "1"


def test_whoever_signs_out_loses_the_socket(client: TestClient) -> None:
    sign_in(client, "ada")
    with opened(client) as socket:
        room = Room(socket)
        client.post("/logout")
        while (message := socket.receive())["type"] != "websocket.close":
            pass
        assert message["code"] == 4003
        assert room
    assert client.get("/me").status_code == 401


# In Chromium


class Tab:
    """The page in front of a person."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    def sign_in(self, name: str) -> Tab:
        self.page.goto(self.url)
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.locator("#people", has_text=name).wait_for()
        return self

    def say(self, content: str) -> None:
        self.page.get_by_label("Message").fill(content)
        self.page.get_by_role("button", name="Send").click()

    def shows(self, *lines: str) -> None:
        expect(self.page.locator("#log li")).to_have_text(list(lines), timeout=PATIENCE_MS)


@pytest.fixture
def server(folder: Path) -> Iterator[Served]:
    with uvicorn("app:app", folder, **SECRET) as running:
        yield running


@pytest.fixture
def person(browser: Browser, server: Served) -> Iterator[Callable[[], Tab]]:
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def come() -> Tab:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return Tab(page, server.url)

    yield come
    for context in contexts:
        context.close()
    assert errors == []


@pytest.mark.browser
@pytest.mark.process
def test_people_chat_across_a_restart_and_nothing_is_missed_or_doubled(
    person: Callable[[], Tab], server: Served
) -> None:
    httpx.post(f"{server.url}/orders/7/packed").raise_for_status()
    ada = person().sign_in("ada")
    ada.shows("shop: Order 7 is packed.")
    bob = person().sign_in("bob")
    ada.page.locator("#people", has_text="ada, bob").wait_for()
    ada.say("hello")
    lines = ["shop: Order 7 is packed.", "ada: hello"]
    for tab in (ada, bob):
        tab.shows(*lines)

    assert "Traceback" not in server.stop()[1]
    server.restart()
    bob.page.locator("#people", has_text="bob").wait_for()
    bob.say("<b>back</b>")
    for tab in (ada, bob):
        tab.shows(*lines, "bob: <b>back</b>")


@pytest.mark.browser
@pytest.mark.process
def test_a_refused_message_is_told_and_stays(person: Callable[[], Tab]) -> None:
    ada = person().sign_in("ada")
    ada.say("a" * 4_097)
    expect(ada.page.get_by_role("alert")).to_contain_text("limit is 4096", timeout=PATIENCE_MS)
    expect(ada.page.get_by_label("Message")).to_have_value("a" * 4_097, timeout=PATIENCE_MS)
    ada.say("shorter")
    ada.shows("ada: shorter")
    expect(ada.page.get_by_role("alert")).to_have_text("", timeout=PATIENCE_MS)


@pytest.mark.browser
@pytest.mark.process
def test_whoever_signs_out_in_one_tab_is_out_in_the_other(person: Callable[[], Tab]) -> None:
    one = person().sign_in("ada")
    other = Tab(one.page.context.new_page(), one.url)
    other.page.goto(one.url)
    other.page.locator("#people", has_text="ada").wait_for()
    one.page.get_by_role("button", name="Sign out").click()
    for tab in (one, other):
        expect(tab.page.get_by_role("button", name="Sign in")).to_be_visible(timeout=PATIENCE_MS)


Passes: TypeAlias = Callable[[list[Any]], bool]


def _between(page: Page, pushed: Passes, said: Passes) -> list[Callable[[], None]]:
    """Stand between the page and its server: what they write passes where these return True, or else when it is called.

    Returns what was held up, in its order.
    """
    held: list[Callable[[], None]] = []

    def connected(client: WebSocketRoute) -> None:
        server = client.connect_to_server()

        def relay(to: WebSocketRoute, passes: Passes) -> Callable[[str | bytes], None]:
            def heard(text: str | bytes) -> None:
                if passes(json.loads(text)):
                    to.send(text)
                else:
                    held.append(lambda: to.send(text))

            return heard

        client.on_message(relay(server, pushed))
        server.on_message(relay(client, said))

    page.route_web_socket("**/socket/websocket*", connected)
    return held


def _anything(frame: list[Any]) -> bool:
    return True


@pytest.mark.browser
@pytest.mark.process
@pytest.mark.parametrize("late", ["question", "answer"])
def test_between_history_and_live_messages_is_no_seam(person: Callable[[], Tab], server: Served, late: str) -> None:
    httpx.post(f"{server.url}/orders/1/packed").raise_for_status()
    ada = person()
    if late == "question":
        held = _between(ada.page, lambda frame: frame[3] != "history", _anything)
    else:
        held = _between(ada.page, _anything, lambda frame: "messages" not in frame[4].get("response", {}))
    ada.sign_in("ada")
    _until(ada, lambda: held)
    httpx.post(f"{server.url}/orders/2/packed").raise_for_status()
    ada.shows("shop: Order 2 is packed.")
    held.pop()()
    ada.shows("shop: Order 1 is packed.", "shop: Order 2 is packed.")


@pytest.mark.browser
@pytest.mark.process
def test_a_message_whose_reply_is_lost_is_sent_again_and_published_once(person: Callable[[], Tab]) -> None:
    ada = person()
    answered: list[Any] = []

    def said(frame: list[Any]) -> bool:
        response = frame[4].get("response", {})
        if "inserted_at" in response:
            answered.append(response)
            return len(answered) > 1
        return True

    _between(ada.page, _anything, said)
    ada.page.clock.install()
    ada.sign_in("ada")
    ada.say("once")
    _until(ada, lambda: answered)
    ada.page.clock.run_for(5_001)
    _until(ada, lambda: len(answered) > 1)
    assert answered[1] == answered[0] | {"duplicate": True}
    ada.shows("ada: once")


def _until(tab: Tab, condition: Callable[[], object]) -> None:
    """Wait for something that nothing tells of; the events of the browser are told meanwhile."""
    while not condition():
        tab.page.wait_for_timeout(10)


@pytest.mark.process
@pytest.mark.slow
def test_the_application_passes_the_linter_and_the_type_checker(folder: Path) -> None:
    config = ROOT / "pyproject.toml"
    # A reader's file has no docstrings yet.
    lint = ["ruff", "check", "--no-cache", "--config", str(config), "--extend-ignore", "D,INP", "app.py"]
    types = ["mypy", "--config-file", str(config), "--cache-dir", str(ROOT / ".mypy_cache" / "add_chat"), "app.py"]
    for command in (lint, types):
        run = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=os.environ | {"MYPYPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
