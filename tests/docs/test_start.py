"""The application that the start page builds in nine steps works: signing in, sending, refusals, a socket, restarts."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.docs.checkers import assert_both_pass
from tests.docs.markdown import ROOT, blocks, prose

START = ROOT / "docs" / "start.md"
# A blank line or two between the parts, as whoever types them in would leave.
CODE = "\n\n".join(block.code for block in blocks(START, "py"))


def _application() -> Any:
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(compile(CODE, "app.py", "exec", dont_inherit=True), namespace)
    return namespace["app"]


def _key(page: str) -> str:
    (key,) = re.findall(r'name="key" value="(\w+)"', page)
    return str(key)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_are_nine_steps_in_order() -> None:
    steps = re.findall(r"^### (\d)\. ", prose(START), re.MULTILINE)
    assert steps == [str(number) for number in range(1, 10)]


def test_people_sign_in_and_chat() -> None:
    with TestClient(_application()) as client:
        assert "Your name" in client.get("/").text
        page = client.post("/name", data={"name": "ada"}).text
        answer = client.post("/", data={"content": "<b>hi</b>", "key": _key(page)})

        assert answer.history[0].status_code == 303
        assert "&lt;b&gt;hi&lt;/b&gt;" in answer.text
        assert "ada" in answer.text
        assert "javascript" in client.get("/live.js").headers["content-type"]


@pytest.mark.parametrize(
    "content, status, reason",
    [
        ("see https://example.org", 422, "Links are not allowed"),
        ("a" * 1001, 413, "1,?000"),
        ("", 400, "empty"),
    ],
)
def test_a_refused_message_comes_back_with_the_reason_and_a_status(content: str, status: int, reason: str) -> None:
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        answer = client.post("/", data={"content": content, "key": "k1"})

        assert answer.status_code == status
        assert re.search(rf"data-live-notice>[^<]*{reason}", answer.text)
        assert f">{content}</textarea>" in answer.text
        assert "data-live-messages></div>" in answer.text


def test_what_people_write_is_text_whatever_a_template_makes_of_braces() -> None:
    draft = "{{ 7 * 7 }} {room.after} $key </textarea>://"
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        assert f">{escape(draft)}</textarea>" in client.post("/", data={"content": draft, "key": "k1"}).text
        said = client.post("/", data={"content": "{{ 7 * 7 }} {key} $key", "key": "k2"})
        assert (said.status_code, "{{ 7 * 7 }} {key} $key</p>" in said.text) == (200, True)


def test_a_name_that_is_no_id_is_asked_for_again() -> None:
    with TestClient(_application()) as client:
        answer = client.post("/name", data={"name": "a" * 129})

        assert answer.status_code == 400
        assert re.search(r'role="alert">[^<]+128', answer.text)
        assert "Your name" in answer.text


def test_who_has_no_name_sends_nothing() -> None:
    with TestClient(_application()) as client:
        answer = client.post("/", data={"content": "hi", "key": "k1"})
        assert (answer.status_code, "Your name" in answer.text) == (401, True)
        with pytest.raises(WebSocketDisconnect), _socket(client):
            pass


def test_the_page_and_the_socket_are_in_one_room() -> None:
    with TestClient(_application()) as client:
        client.post("/name", data={"name": "ada ✓"})
        with _socket(client) as socket:
            socket.send_text(json.dumps(["1", "1", "room:general", "phx_join", {}]))
            client.post("/", data={"content": "by the form", "key": "k1"})
            while (frame := json.loads(socket.receive_text()))[3] != "new_message":
                pass
            assert (frame[4]["user_id"], frame[4]["content"]) == ("ada ✓", "by the form")
            socket.send_text(json.dumps(["1", "2", "room:general", "new_message", {"content": "by the socket"}]))
            while json.loads(socket.receive_text())[1] != "2":
                pass
        assert "by the socket" in client.get("/").text


def _socket(client: TestClient) -> Any:
    return client.websocket_connect("/socket/websocket?vsn=2.0.0", headers={"origin": "http://testserver"})


def test_messages_outlive_a_restart() -> None:
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        client.post("/", data={"content": "still here", "key": "k1"})
    with TestClient(_application(), cookies={"name": "ada"}) as client:
        assert "still here" in client.get("/").text


@pytest.mark.process
@pytest.mark.slow
def test_the_application_passes_the_linter_and_the_type_checker(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(f'"""A chat."""\n\n{CODE}', encoding="utf-8")
    # A reader's file has no docstrings yet.
    assert_both_pass(tmp_path, "start", "D,INP", "app.py")
