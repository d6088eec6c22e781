"""The application on the page about the live page works: its page, its form, and its stream."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.testclient import TestClient

from chatx.integrations.starlette import LiveResponse
from tests.docs.markdown import ROOT, blocks


def _application() -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "snippet"}
    exec(blocks(ROOT / "docs" / "live.md", "python")[0].code, namespace)
    return namespace


def test_the_example_chats() -> None:
    app: Starlette = _application()["app"]
    with TestClient(app) as client:
        empty = client.get("/")
        assert "data-live-messages></div>" in empty.text
        client.cookies.set("name", "ada")
        page = client.post("/", data={"content": "{me} <b>hi</b>", "key": "k1"})

        assert page.history[0].status_code == 303
        assert "{me} &lt;b&gt;hi&lt;/b&gt;</p>" in page.text
        assert "ada" in page.text
        assert client.get("/live.js").headers["content-type"].startswith(("text/javascript", "application/javascript"))


def test_what_the_example_refuses_has_its_status() -> None:
    with TestClient(_application()["app"]) as client:
        assert client.post("/", data={"content": "", "key": "k1"}).status_code == 400
        assert client.post("/", data={"content": "a" * 5_000, "key": "k2"}).status_code == 413


async def test_the_examples_stream_is_a_live_response() -> None:
    example = _application()

    request = Request({"type": "http", "headers": [(b"cookie", b"name=ada")]})

    assert isinstance(await example["events"](request), LiveResponse)


def test_the_example_fits_on_a_screen() -> None:
    (code, *_) = blocks(ROOT / "docs" / "live.md", "python")
    assert len(code.code.splitlines()) <= 65
