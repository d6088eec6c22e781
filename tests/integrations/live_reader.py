"""A reader of `chat.live`: an ASGI server with one request, driven by hand, and the browser's side of the stream."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response


@dataclass(frozen=True)
class Pushed:
    """One event, as a browser makes it of the stream."""

    name: str
    id: str
    data: str


class Reader:
    """One GET of a response.

    Attributes:
        sent: What the response sent.
    """

    def __init__(
        self, response: Response, *, query: str = "", last_event_id: str | None = None, method: str = "GET"
    ) -> None:
        headers = [] if last_event_id is None else [(b"last-event-id", last_event_id.encode("latin-1"))]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": "/live/events",
            "query_string": query.encode(),
            "headers": headers,
        }
        self.sent: list[MutableMapping[str, Any]] = []
        self.send_error: Exception | None = None
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.task = asyncio.get_running_loop().create_task(self._run(response))

    async def _run(self, response: Response) -> None:
        await response(self.scope, self._inbox.get, self._send)

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        await self._flowing.wait()
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)

    def stall(self) -> None:
        """Take nothing, as a browser does that has stopped reading."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def disconnect(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def text(self) -> str:
        return b"".join(each["body"] for each in self.sent[1:]).decode()

    @property
    def complete(self) -> bool:
        """Whether the response was ended as a whole one is."""
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    @property
    def pushed(self) -> list[Pushed]:
        return parsed(self.text)

    def named(self, name: str) -> list[Pushed]:
        return [each for each in self.pushed if each.name == name]

    @property
    def messages(self) -> list[str]:
        return [each.data for each in self.named("message")]

    @property
    def place(self) -> str:
        """What a browser sends as Last-Event-ID when it comes back."""
        return next((each.id for each in reversed(self.pushed) if each.id), "")


def parsed(text: str) -> list[Pushed]:
    """Parse a stream as a browser does.

    Source: HTML Living Standard, 9.2.6, but for comments and `retry`, which make no event.
    """
    found = []
    name, place = "", ""
    data: list[str] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append(Pushed(name, place, "\n".join(data)))
            name, place, data = "", "", []
        elif field == "event":
            name = value
        elif field == "id":
            place = value
        elif field == "data":
            data.append(value)
    return found


async def settle() -> None:
    """Return when nothing is left to do but to wait for the clock; on virtual time only."""
    await asyncio.sleep(0.001)
