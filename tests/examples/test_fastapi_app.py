"""The FastAPI example chats: over its real routes, in the wire protocol, as the demo's page does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from examples import fastapi_app

SOURCE = Path(fastapi_app.__file__)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(fastapi_app.app) as client:
        yield client


def _address(user_id: str) -> str:
    return f"/socket/websocket?vsn=2.0.0&user_id={user_id}"


def _join(socket: WebSocketTestSession) -> None:
    socket.send_text(json.dumps(["1", "1", "room:general", "phx_join", {}]))
    assert _next(socket, "phx_reply")["status"] == "ok"


def _next(socket: WebSocketTestSession, event: str) -> Any:
    while True:
        _, _, topic, name, payload = json.loads(socket.receive_text())
        assert topic == "room:general"
        if name == event:
            return payload


def test_two_people_read_each_other_in_the_same_order(client: TestClient) -> None:
    with client.websocket_connect(_address("alice")) as alice, client.websocket_connect(_address("bob")) as bob:
        _join(alice)
        _join(bob)
        for sender, content in ((alice, "Hello"), (bob, "Hi <b>you</b>")):
            sender.send_text(json.dumps(["1", "2", "room:general", "new_message", {"content": content}]))
            read = [_next(socket, "new_message") for socket in (alice, bob)]
            assert read[0] == read[1]
            assert read[0]["content"] == content


def test_nobody_connects_without_a_name(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket/websocket?vsn=2.0.0"):
        pass


def test_the_page_and_every_file_it_names_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    named = [part.split('"')[0] for part in page.text.split('"/static/')[1:]]
    assert {"chat.css", "main.js"} <= set(named)
    for name in named:
        assert client.get(f"/static/{name}").status_code == 200, name


def test_the_example_is_as_small_as_the_readme_says() -> None:
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 30
