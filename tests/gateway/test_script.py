"""The client for browsers, as both shells serve it."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx2
import pytest

from chatx.chat import Chat
from tests.gateway.servers import SHELLS, served

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]

FILE = Path(__file__).parents[2] / "clients" / "js" / "chatx.js"
MOST_BYTES = 16_000
"""Of the file compressed, comments and all."""


async def test_the_client_is_served_as_it_is_in_the_repository(shell: str) -> None:
    async with served(shell, Chat()) as port, httpx2.AsyncClient(base_url=f"http://localhost:{port}") as http:
        answer = await http.get("/socket/chatx.js")

        assert (answer.status_code, answer.content) == (200, FILE.read_bytes())
        assert len(gzip.compress(answer.content)) <= MOST_BYTES
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "public, max-age=300"
        assert answer.headers["access-control-allow-origin"] == "*"

        head = await http.head("/socket/chatx.js")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))

        tag = answer.headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            unchanged = await http.get("/socket/chatx.js", headers={"if-none-match": known})
            assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
        assert (await http.get("/socket/chatx.js", headers={"if-none-match": '"other"'})).status_code == 200


async def test_the_client_can_only_be_read(shell: str) -> None:
    async with served(shell, Chat()) as port, httpx2.AsyncClient(base_url=f"http://localhost:{port}") as http:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            answer = await http.request(method, "/socket/chatx.js")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (await http.get("/socket/chatx.jsx")).status_code in (404, 426)
