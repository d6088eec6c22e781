"""The demo's live page over HTTP, as a browser without scripts uses it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from chatx import RateLimit
from chatx.demo.app import COOKIE, FORM_BYTES, demo_app
from chatx.integrations.starlette import SCRIPT
from tests.process import demo


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(demo_app(str(tmp_path / "demo.db")), follow_redirects=True) as client:
        yield client


@pytest.fixture
def ada(client: TestClient) -> TestClient:
    assert client.post("/live/name", data={"name": "Ada", "room": "general"}).status_code == 200
    return client


def texts(page: str) -> list[str]:
    """The texts of the messages on a page."""
    return [unescape(each) for each in re.findall(r'<p class="message-text" dir="auto">(.*?)</p>', page, re.DOTALL)]


def field(page: str, name: str) -> str:
    found = re.search(rf'name="{name}"[^>]*?value="([^"]*)"', page, re.DOTALL)
    assert found is not None
    return unescape(found[1])


def draft(page: str) -> str:
    found = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)
    assert found is not None
    return unescape(found[1])


def notice(page: str) -> str:
    found = re.search(r"data-live-notice>(.*?)</div>", page, re.DOTALL)
    assert found is not None
    return unescape(re.sub("<[^>]+>", " ", found[1])).strip()


def test_who_has_no_name_is_asked_for_one_and_then_is_in_the_room_asked_for(client: TestClient) -> None:
    asked = client.get("/live?room=tea %26 cake")
    assert field(asked.text, "room") == "tea & cake"
    page = client.post("/live/name", data={"name": " Ada ", "room": field(asked.text, "room")})

    assert page.url.params["room"] == "tea & cake"
    assert "<bdi>tea &amp; cake</bdi>" in page.text
    assert "You are <bdi>Ada</bdi>" in page.text


def test_the_name_is_kept_from_scripts_and_from_forms_of_other_sites(client: TestClient) -> None:
    cookie = client.post("/live/name", data={"name": "Ada", "room": "a"}, follow_redirects=False).headers["set-cookie"]

    assert cookie.startswith(f"{COOKIE}=Ada;")
    assert {"HttpOnly", "Path=/live", "SameSite=lax"} <= set(cookie.split("; "))


@pytest.mark.parametrize("name", ["Zoë; x=1", "日本語", '"quoted"', "a=b&c%20d", "<b>"])
def test_any_name_comes_back_from_the_cookie_whole(client: TestClient, name: str) -> None:
    page = client.post("/live/name", data={"name": name, "room": "general"})

    assert page.status_code == 200
    assert unescape(re.findall("You are <bdi>(.*?)</bdi>", page.text)[0]) == name


@pytest.mark.parametrize("name, room", [("", "general"), ("x" * 129, "general"), ("a\u202eb", "general"), ("Ada", " ")])
def test_a_name_or_a_room_that_is_none_is_asked_for_again_with_the_reason(
    client: TestClient, name: str, room: str
) -> None:
    page = client.post("/live/name", data={"name": name, "room": room})

    assert (page.status_code, page.history) == (200, [])
    assert re.search(r'role="alert">[^<]+</p>', page.text)
    assert field(page.text, "name") == name.strip()


def test_a_message_is_on_the_page_that_follows_and_loading_it_anew_sends_nothing(ada: TestClient) -> None:
    page = ada.post("/live?room=general", data={"content": "Hello <b>you</b>\r\nand you", "key": "k1"})

    assert page.history[0].status_code == 303
    assert page.request.method == "GET"
    assert texts(page.text) == ["Hello <b>you</b>\nand you"]
    assert texts(ada.get("/live").text) == ["Hello <b>you</b>\nand you"]


def test_a_form_that_is_sent_twice_is_one_message(ada: TestClient) -> None:
    form = {"content": "once", "key": field(ada.get("/live").text, "key")}
    ada.post("/live?room=general", data=form)
    page = ada.post("/live?room=general", data=form)

    assert texts(page.text) == ["once"]
    assert field(page.text, "key") != form["key"]


def test_a_blocked_message_is_still_in_the_field_with_the_reason_above_it(ada: TestClient) -> None:
    page = ada.post("/live?room=general", data={"content": "STOP THAT </TEXTAREA> NOW", "key": "k"})

    assert (page.status_code, page.history) == (200, [])
    assert notice(page.text).startswith("This message was not let through by the room's moderation. No shouting")
    assert "Your text is still here." in notice(page.text)
    assert draft(page.text) == "STOP THAT </TEXTAREA> NOW"
    assert texts(page.text) == []


def test_a_message_that_is_too_long_says_how_long_it_is(ada: TestClient) -> None:
    page = ada.post("/live?room=general", data={"content": "é" * 2500, "key": "k"})

    assert "too long (5,000 bytes)" in notice(page.text)
    assert draft(page.text) == "é" * 2500


def test_who_sends_too_fast_is_asked_to_wait(tmp_path: Path) -> None:
    app = demo_app(str(tmp_path / "demo.db"), rate_limit=RateLimit(messages_per_sec=0.001, burst=2))
    with TestClient(app) as ada:
        ada.post("/live/name", data={"name": "Ada", "room": "general"})
        pages = [ada.post("/live?room=general", data={"content": "again", "key": f"k{each}"}) for each in range(3)]

    assert [len(each.history) for each in pages] == [1, 1, 0]
    assert "faster than this room allows" in notice(pages[-1].text)
    assert "Your text is still here; try again in a moment." in notice(pages[-1].text)


@pytest.mark.parametrize("draft_before", ["", "a draft"])
def test_without_scripts_the_buttons_to_try_meet_the_moderation_and_the_rate_limit(
    tmp_path: Path, draft_before: str
) -> None:
    app = demo_app(str(tmp_path / "demo.db"), rate_limit=RateLimit(messages_per_sec=0.001, burst=20))
    with TestClient(app) as ada:
        ada.post("/live/name", data={"name": "Ada", "room": "general"})
        form = {"content": draft_before, "key": "k"}
        shouting = ada.post("/live?room=general", data=form | {"try": "shouting"}).text
        flooding = ada.post("/live?room=general", data=form | {"try": "flooding"}).text

    assert "No shouting" in notice(shouting)
    assert "faster than this room allows" in notice(flooding)
    # What is refused for its content has counted against the rate limit.
    for page, count in ((shouting, 0), (flooding, 19)):
        assert len(texts(page)) == count
        assert draft(page) == draft_before
        assert ("still here" in notice(page)) == bool(draft_before)


def test_what_office_programs_paste_is_sent_with_newlines(ada: TestClient) -> None:
    page = ada.post("/live?room=general", data={"content": "a\vb\u2028c\u2029d\fe\x85f\r\ng\rh", "key": "k"})

    assert texts(page.text) == ["a\nb\nc\nd\ne\nf\ng\nh"]


def test_an_empty_message_is_refused_with_words(ada: TestClient) -> None:
    page = ada.post("/live?room=general", data={"content": "", "key": "k"})

    assert notice(page.text)
    assert texts(page.text) == []


def test_who_has_left_is_asked_for_a_name_and_sends_nothing(ada: TestClient) -> None:
    ada.post("/live/leave")
    page = ada.post("/live?room=general", data={"content": "hi", "key": "k"})

    assert page.status_code == 403
    assert "Pick a name to write again" in page.text
    assert ada.get("/live/events?room=general").status_code == 403
    back = ada.post("/live/name", data={"name": "Ada", "room": "general"})
    assert texts(back.text) == []


def test_a_room_that_is_none_asks_for_another(ada: TestClient) -> None:
    page = ada.get("/live", params={"room": "x" * 200})

    assert page.status_code == 400
    assert re.search(r'role="alert">[^<]+</p>', page.text)


@pytest.mark.parametrize(
    "body, status", [(b"content=" + b"x" * FORM_BYTES, 413), (b"content=%FF", 400), (b"\xff", 400), (b"a&" * 20, 400)]
)
def test_what_is_no_form_is_refused(ada: TestClient, body: bytes, status: int) -> None:
    assert ada.post("/live?room=general", content=body).status_code == status


def test_every_page_forbids_scripts_of_others_and_is_not_kept(ada: TestClient) -> None:
    for path, kept in (("/", "no-cache"), ("/live", "no-store"), ("/live.js", "no-cache")):
        headers = ada.get(path).headers
        assert "script-src 'self';" in headers["content-security-policy"]
        assert headers["cache-control"] == kept
    page = ada.get("/live").text
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="/live.js">']
    assert not re.search(r'\son\w+="', page)


def test_every_file_that_the_pages_name_is_served(ada: TestClient) -> None:
    ada_page, name_page = ada.get("/live").text, ada.post("/live/leave").text
    named = set(re.findall(r'(?:src|href)="(/[\w./]+)', ada_page + name_page))

    assert named >= {"/live.js", "/static/chat.css", "/static/live.css", "/static/mark.svg"}
    for path in named:
        assert ada.get(path).status_code == 200, path
    assert ada.get("/live.js").text == SCRIPT.read_text(encoding="utf-8")


def test_the_pages_of_the_demo_lead_to_each_other(ada: TestClient) -> None:
    assert 'href="/live"' in ada.get("/").text
    assert 'href="/?room=tea"' in ada.get("/live?room=tea").text


@pytest.mark.process
def test_a_demo_that_is_stopped_ends_its_streams_and_does_not_wait_for_readers(tmp_path: Path) -> None:
    with demo(tmp_path / "demo.db") as served, socket.create_connection(("localhost", served.port), 10) as reader:
        reader.sendall(f"GET /live/events HTTP/1.1\r\nHost: localhost\r\nCookie: {COOKIE}=Ada\r\n\r\n".encode())
        stream = b""
        while b"event: people" not in stream:
            stream += reader.recv(4096)
        # uvicorn would give its readers 5 s and then cut them off, and say so.
        status, output = served.stop()
        while part := reader.recv(4096):
            stream += part

    assert (status, "ERROR" in output) == (0, False)
    assert stream.startswith(b"HTTP/1.1 200 OK")
    assert stream.endswith(b"\r\n0\r\n\r\n")
