"""The API where frameworks mount it and servers serve it: an id in a path comes through whole, or the path is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.gateway.api.problems import Refusal
from chatx.gateway.api.request import target_of
from tests.gateway.frameworks import running

APPLICATION = """
from chatx import Chat
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

chat = Chat()
api = chat.api(authenticate=lambda headers: headers.get("x-who") == "shop")
fast = FastAPI()
fast.mount("/v1/api", api)
application = Starlette(routes=[Mount("/api", api), Mount("/fast", fast)], lifespan=chat.lifespan)
"""

LITESTAR = """
from chatx import Chat
from litestar import Litestar, asgi

chat = Chat()
mounted = asgi("/api", is_mount=True, copy_scope=True)(
    chat.api(authenticate=lambda headers: headers.get("x-who") == "shop")
)
application = Litestar(route_handlers=[mounted], lifespan=[chat.lifespan])
"""

ROOMS = ("general", "a/b", "a b+c&d?e#f", "%2F", "ä/日本", "rooms/x/messages", "..", "a;b=c", "api")


@pytest.mark.process
@pytest.mark.parametrize(
    "server, application, mounts",
    [
        ("uvicorn", APPLICATION, ("/api", "/fast/v1/api")),
        ("hypercorn", APPLICATION, ("/api", "/fast/v1/api")),
        ("granian", APPLICATION, ("/api", "/fast/v1/api")),
        ("uvicorn", LITESTAR, ("/api",)),
    ],
)
def test_a_backend_reaches_each_room_under_every_server_and_in_every_framework(
    server: str, application: str, mounts: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(application, encoding="utf-8")
    log = tmp_path / "log"
    with (
        running(server, "app", tmp_path, log=log) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"x-who": "shop"}) as client,
    ):
        for mount in mounts:
            for room in ROOMS:
                path = f"{mount}/rooms/{quote(room, safe='') if room != '..' else '%2E%2E'}/messages"
                sent = client.post(path, json={"user_id": "shop", "content": mount})
                assert (sent.status_code, sent.json().get("room_id")) == (201, room), sent.text
                read = client.get(path, params={"limit": 1})
                assert [each["id"] for each in read.json()["messages"]] == [sent.json()["id"]]
            for path in ("/rooms/a/b/messages", "/rooms//messages", "/rooms/%FF/messages", "/rooms/a%2/messages"):
                assert client.get(mount + path).status_code in (400, 404), path
            assert client.get(f"{mount}/openapi.json").json()["servers"] == [{"url": mount}]
            assert client.get(f"{mount}/rooms", headers={"x-who": ""}).status_code == 401
            assert client.head(f"{mount}/rooms").status_code == 200
            assert client.put(f"{mount}/rooms").status_code == 405
            # What is refused unread ends its connection, and the client is told.
            unread = client.post(f"{mount}/rooms/a/messages", content=b"x")
            assert (unread.status_code, unread.headers["connection"]) == (415, "close")
        rooms = client.get(f"{mounts[0]}/rooms").json()["rooms"]
        assert [each["id"] for each in rooms] == sorted(ROOMS)
    assert "Traceback" not in log.read_text(encoding="utf-8")


def scopes(mounted: str, behind: str) -> list[dict[str, Any]]:
    """Return what servers and frameworks make of one path behind a mount: what each of these is was seen."""
    sent = (quote(mounted) + behind).encode()
    path = unquote(sent.decode())
    return [
        {"path": path, "raw_path": sent, "root_path": mounted},  # Starlette's Mount
        {"path": path[len(mounted) :] + "/", "raw_path": sent, "root_path": ""},  # Litestar
        {"path": path, "raw_path": sent, "root_path": "/proxy" + mounted},  # hypercorn's own root
        {"path": "/proxy" + path, "raw_path": b"/proxy" + sent, "root_path": "/proxy" + mounted},  # uvicorn's own root
        {"path": path, "raw_path": sent + b"?a=/rooms", "root_path": mounted},
    ]


@given(
    mounted=st.sampled_from(["", "/api", "/a b/ä", "/rooms", "/rooms/x"]),
    room=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    all_quoted=st.booleans(),
)
def test_what_is_behind_a_mount_is_told_from_it_whoever_tells_the_path(
    mounted: str, room: str, all_quoted: bool
) -> None:
    named = "".join(f"%{byte:02X}" for byte in room.encode()) if all_quoted else quote(room, safe="")
    for scope in scopes(mounted, f"/rooms/{named}/messages"):
        assert target_of(scope).parts == ("rooms", room, "messages"), scope
    # One that tells the decoded path only leaves open what is a slash in an id.
    scope = {"path": f"{mounted}/rooms/{room}/messages", "root_path": mounted}
    if "\ufffd" not in room:
        assert target_of(scope).parts == ("rooms", room, "messages")


@given(st.binary(max_size=60), st.sampled_from(["", "/api"]))
def test_whatever_a_path_is_it_is_parts_or_a_refusal(sent: bytes, root: str) -> None:
    raw = root.encode() + b"/" + sent.partition(b"?")[0]
    scope = {"path": unquote(raw.decode("latin-1")), "raw_path": raw, "root_path": root}
    decoded = ""
    try:
        decoded = unquote_to_bytes(raw[len(root) + 1 :]).decode()
        well = not re.search(rb"%(?![0-9A-Fa-f]{2})", raw)
    except UnicodeDecodeError:
        well = False
    if well:
        assert "/".join(target_of(scope).parts) == decoded
    else:
        with pytest.raises(Refusal) as refused:
            target_of(scope)
        assert refused.value.status == 400
