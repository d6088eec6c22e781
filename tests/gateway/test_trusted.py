"""Nobody is trusted over the wire: a field of that name changes nothing, wherever it stands, on either shell."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect

from chatx.chat import Chat
from tests.gateway.phoenix_peer import raw_frame, read
from tests.gateway.real_client import real_client
from tests.gateway.servers import SHELLS, served
from tests.longpoll.polling import PollingClient, over

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]

CLAIM: dict[str, Any] = {"trusted": True, "middlewares": [], "identity": {"trusted": True}}


class RefusesAll:
    """A moderation that refuses everything."""

    def check(self, content: str) -> bool:
        return False


async def test_a_socket_cannot_claim_to_be_trusted(shell: str) -> None:
    async with (
        served(shell, Chat(moderation=RefusesAll())) as port,
        real_client(port, "ada&trusted=true", additional_headers={"trusted": "true"}) as client,
    ):
        await client.ask("room:a", "phx_join", CLAIM)
        for claim in (True, "true", 1):
            ref = await client.push("room:a", "new_message", {"content": "hello", **CLAIM, "trusted": claim})
            reply = await client.wait_for(lambda each, ref=ref: each.event == "phx_reply" and each.ref == ref)
            assert (reply.payload["status"], reply.payload["response"]["code"]) == ("error", "blocked")
        assert client.messages == []


async def test_a_socket_of_the_first_version_cannot_either(shell: str) -> None:
    async with served(shell, Chat(moderation=RefusesAll())) as port:
        url = f"ws://localhost:{port}/socket/websocket?vsn=1.0.0&user_id=ada&trusted=true"
        async with connect(url, origin=f"http://localhost:{port}") as socket:  # type: ignore[arg-type]  # a new type of text
            await socket.send(raw_frame(1, None, "1", "room:a", "phx_join", CLAIM))
            await socket.send(raw_frame(1, None, "2", "room:a", "new_message", {"content": "hello", **CLAIM}))
            while (frame := read(1, str(await socket.recv()))).ref != "2":
                assert frame.event != "new_message"
            assert frame.payload["response"]["code"] == "blocked"


async def test_who_polls_cannot_either(shell: str) -> None:
    async with served(shell, Chat(moderation=RefusesAll())) as port, httpx2.AsyncClient(timeout=20) as http:
        client = PollingClient(over(http, port), trusted="true")
        await client.open()
        await client.join("room:a", **CLAIM)
        ref = await client.push("room:a", "new_message", {"content": "hello", **CLAIM})
        status, response = await client.answer(ref)
        assert (status, response["code"]) == ("error", "blocked")
