"""A client that polls, over an application in this loop or over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlencode

import httpx2

from chatx.gateway.wire.frames import Version
from tests.gateway.phoenix_peer import Received, raw_frame, read

NDJSON = "application/x-ndjson"


class Reply(NamedTuple):
    """A response.

    Attributes:
        http: The status of HTTP.
        headers: By lower-case name.
        body: What the JSON says; None where there is none.
    """

    http: int
    headers: dict[str, str]
    body: Any

    @property
    def status(self) -> int:
        """The protocol's status."""
        status: int = self.body["status"]
        return status


Ask: TypeAlias = Callable[[str, str, dict[str, str], bytes], Awaitable[Reply]]
"""Sends a request: its method, query, headers and body."""


class Call:
    """One request to an application in this loop, whose client may go away, or take nothing."""

    def __init__(
        self, app: Any, method: str, query: str = "vsn=2.0.0&user_id=ada", *, body: bytes = b"", **scope: Any
    ) -> None:
        headers = scope.pop("headers", {})
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": "/socket/longpoll",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("192.0.2.1", 50_000),
            **scope,
        }
        self.sent: list[MutableMapping[str, Any]] = []
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.task = asyncio.get_running_loop().create_task(app(self.scope, self.inbox.get, self._send))

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        await self.flowing.wait()
        self.sent.append(message)

    def disconnect(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def reply(self) -> Reply:
        """Return the response, when the application has returned."""
        await self.task
        start, end = self.sent
        headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        assert int(headers["content-length"]) == len(end["body"])
        return Reply(start["status"], headers, json.loads(end["body"]) if end["body"] else None)


def inside(app: Any) -> Ask:
    """Ask an application in this loop."""

    async def ask(method: str, query: str, headers: dict[str, str], body: bytes) -> Reply:
        return await Call(app, method, query, headers=headers, body=body).reply()

    return ask


def over(http: httpx2.AsyncClient, port: int) -> Ask:
    """Ask a server on this machine."""

    async def ask(method: str, query: str, headers: dict[str, str], body: bytes) -> Reply:
        url = f"http://localhost:{port}/socket/longpoll?{query}"
        response = await http.request(method, url, headers=headers, content=body)
        said = json.loads(response.content) if response.content else None
        return Reply(response.status_code, {name.lower(): text for name, text in response.headers.items()}, said)

    return ask


class Poll(NamedTuple):
    """What a poll brought: the protocol's status, and the frames."""

    status: int
    frames: list[Received]

    @property
    def events(self) -> list[str]:
        return [frame.event for frame in self.frames]

    @property
    def contents(self) -> list[str]:
        return [frame.payload["content"] for frame in self.frames if frame.event == "new_message"]


class PollingClient:
    """One client, which does as phoenix.js does: each request carries the token of the last poll's response."""

    def __init__(self, ask: Ask, user: str = "ada", version: Version = 2, **params: str) -> None:
        self.ask = ask
        self.version: Version = version
        self.params = {"vsn": f"{version}.0.0", "user_id": user, **params}
        self.token: str | None = None
        self.frames: list[Received] = []
        self._refs = 0
        self._join_refs: dict[str, str] = {}

    async def request(self, method: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
        params = self.params if self.token is None else {**self.params, "token": self.token}
        return await self.ask(method, urlencode(params), headers or {}, body)

    async def open(self) -> None:
        """Begin a session."""
        self.token = None
        reply = await self.request("GET")
        assert (reply.http, reply.status, reply.body["messages"]) == (200, 410, [])
        self.token = reply.body["token"]

    async def poll(self) -> Poll:
        """Ask once; the frames are kept in `frames` too."""
        reply = await self.request("GET")
        assert reply.http == 200
        frames = [read(self.version, text) for text in reply.body["messages"]]
        self.frames += frames
        if reply.body["token"] is not None:
            self.token = reply.body["token"]
        return Poll(reply.status, frames)

    async def poll_for(self, wanted: Callable[[Received], bool]) -> Received:
        """Ask until there is, or was, a frame that is `wanted`."""
        seen = 0
        async with asyncio.timeout(20):
            while True:
                for frame in self.frames[seen:]:
                    if wanted(frame):
                        return frame
                seen = len(self.frames)
                assert (await self.poll()).status in (200, 204)

    def frame(self, topic: str, event: str, payload: Any = None) -> tuple[str, str]:
        """Return a new ref and the text of its push."""
        self._refs += 1
        ref = str(self._refs)
        if event == "phx_join":
            self._join_refs[topic] = ref
        return ref, raw_frame(self.version, self._join_refs.get(topic), ref, topic, event, payload)

    async def post(self, *frames: str | bytes) -> Reply:
        """Post messages as phoenix.js does."""
        lines = [frame if isinstance(frame, str) else base64.b64encode(frame).decode() for frame in frames]
        return await self.request("POST", {"content-type": NDJSON}, "\n".join(lines).encode())

    async def push(self, topic: str, event: str, payload: Any = None) -> str:
        """Push an event, and return its ref."""
        ref, frame = self.frame(topic, event, payload)
        reply = await self.post(frame)
        assert (reply.http, reply.body) == (200, {"status": 200})
        return ref

    async def answer(self, ref: str) -> tuple[str, dict[str, Any]]:
        """Poll until the push is answered; return the reply's status and response."""
        reply = await self.poll_for(lambda frame: frame.event == "phx_reply" and frame.ref == ref)
        return reply.payload["status"], reply.payload["response"]

    async def join(self, topic: str, **params: Any) -> dict[str, Any]:
        """Join, and return the response of the ok reply."""
        status, response = await self.answer(await self.push(topic, "phx_join", params))
        assert status == "ok", response
        return response
