"""A Phoenix client on a real WebSocket, for tests against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.gateway.phoenix_peer import Received, raw_frame, read


class RealClient:
    """One connection; frames are read as they are waited for."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.received: list[Received] = []
        self._refs = 0
        self._join_refs: dict[str, str] = {}

    async def push(self, topic: str, event: str, payload: Any = None) -> str:
        self._refs += 1
        ref = str(self._refs)
        if event == "phx_join":
            self._join_refs[topic] = ref
        await self.connection.send(raw_frame(2, self._join_refs.get(topic), ref, topic, event, payload))
        return ref

    async def ask(self, topic: str, event: str, payload: Any = None) -> dict[str, Any]:
        """Push, and return the response of the ok reply."""
        ref = await self.push(topic, event, payload)
        reply = await self.wait_for(lambda each: each.event == "phx_reply" and each.ref == ref)
        assert reply.payload["status"] == "ok", reply.payload
        response: dict[str, Any] = reply.payload["response"]
        return response

    async def wait_for(self, wanted: Any) -> Received:
        """Return the first frame, received already or to come, that is `wanted`."""
        seen = 0
        async with asyncio.timeout(45):
            while True:
                for each in self.received[seen:]:
                    if wanted(each):
                        return each
                seen = len(self.received)
                text = await self.connection.recv()
                assert isinstance(text, str)
                self.received.append(read(2, text))

    async def wait_for_messages(self, count: int) -> list[dict[str, Any]]:
        """Return the first `count` messages."""
        await self.wait_for(lambda _: len(self.messages) >= count)
        return self.messages[:count]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [each.payload for each in self.received if each.event == "new_message"]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nothing tells of."""
    async with asyncio.timeout(45):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.01)


@asynccontextmanager
async def real_client(port: int, user: str, **options: Any) -> AsyncIterator[RealClient]:
    """Connect to `/socket/websocket` on this machine."""
    secure = "s" if options.get("ssl") is not None else ""
    url = f"ws{secure}://localhost:{port}/socket/websocket?vsn=2.0.0&user_id={user}"
    # Without a bound on what is unread: a client that has stopped reading would not see its own close answered.
    defaults = {"origin": f"http{secure}://localhost:{port}", "max_queue": None}
    async with connect(url, **{**defaults, **options}) as connection:
        yield RealClient(connection)
