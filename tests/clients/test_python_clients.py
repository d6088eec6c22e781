"""Clients of Phoenix Channels that others wrote in Python, as they come from PyPI, against both shells."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import phxsocket
import pytest
from phoenix_channels_python_client import PhoenixChannelsProtocolVersion, PHXChannelsClient
from phoenix_channels_python_client.client_types import ReconnectPolicy
from phoenix_channels_python_client.exceptions import PHXConnectionError, PHXTopicError
from phoenix_channels_python_client.phx_messages import ChannelMessage
from phxsocket.channel import ChannelConnectError

from chatx.chat import Chat
from chatx.gateway.entry.handshake import Handshake
from tests.gateway.real_client import until
from tests.gateway.servers import SHELLS, served

pytestmark = [pytest.mark.process, pytest.mark.parametrize("shell", SHELLS)]

VERSIONS = list(PhoenixChannelsProtocolVersion)
WITHOUT_DELAY = ReconnectPolicy(base_delay_s=0.01, rapid_first_min_delay_s=0.01)


class Doorkeeper:
    """Lets nobody into the cellar."""

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        return room_id != "cellar"


def keyed(handshake: Handshake) -> str | None:
    """Let in whoever brings the client's `api_key` parameter, by whose name it goes."""
    return handshake.params.get("api_key") or None


def socket_url(port: int) -> str:
    return f"ws://localhost:{port}/socket/websocket"


# phoenix-channels-python-client: joins, listens and leaves; it sends no events of its own.


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_listening_client_joins_beats_and_leaves(shell: str, version: PhoenixChannelsProtocolVersion) -> None:
    chat = Chat(auth=Doorkeeper())
    beats = asyncio.Event()
    async with (
        served(shell, chat, keyed) as port,
        PHXChannelsClient(
            socket_url(port),
            "ada",
            protocol_version=version,
            heartbeat_interval_s=0.1,
            on_heartbeat_ack=beats.set,
        ) as client,
    ):
        await client.subscribe_to_topic("room:a")
        await client.subscribe_to_topic("room:b")
        assert client.is_topic_joined("room:a")
        assert [set(await chat.presence(room)) for room in "ab"] == [{"ada"}, {"ada"}]
        with pytest.raises(PHXTopicError, match="may not"):
            await client.subscribe_to_topic("room:cellar")
        if version is PhoenixChannelsProtocolVersion.V1:
            # In version 2 it waits for a reply with its join_ref, which Phoenix leaves out of this one.
            with pytest.raises(PHXTopicError, match="unmatched topic"):
                await client.subscribe_to_topic("lobby")
        await client.unsubscribe_from_topic("room:a")
        assert await chat.presence("a") == {}
        await client.subscribe_to_topic("room:a")
        await asyncio.wait_for(beats.wait(), 20)


async def test_a_listening_client_gets_everything_and_comes_back(shell: str) -> None:
    # In version 2 it drops what carries no join_ref, and no broadcast of a Phoenix server carries one.
    chat = Chat()
    heard: asyncio.Queue[ChannelMessage] = asyncio.Queue()
    back = asyncio.Event()

    async def reconnected() -> None:
        await asyncio.sleep(0)
        back.set()

    async with (
        served(shell, chat, keyed) as port,
        PHXChannelsClient(
            socket_url(port),
            "ada",
            protocol_version=PhoenixChannelsProtocolVersion.V1,
            reconnect_policy=WITHOUT_DELAY,
            on_reconnect=reconnected,
        ) as client,
    ):
        await client.subscribe_to_topic("room:a", heard.put)
        state = await asyncio.wait_for(heard.get(), 20)
        assert (state.event, set(state.payload)) == ("presence_state", {"ada"})
        for content in ("one", "two"):
            sent = await chat.send_message("a", "bob", content)
            message = await asyncio.wait_for(heard.get(), 20)
            assert (message.event, message.payload["id"], message.payload["content"]) == (
                "new_message",
                sent.id,
                content,
            )

        await chat.revoke("ada")
        await asyncio.wait_for(back.wait(), 20)
        await chat.send_message("a", "bob", "three")
        while (message := await asyncio.wait_for(heard.get(), 20)).event != "new_message":
            pass
        assert message.payload["content"] == "three"


async def test_a_listening_client_that_is_refused_is_told_at_once(shell: str) -> None:
    async with served(shell, Chat(), keyed) as port:
        with pytest.raises(PHXConnectionError, match="403"):
            async with PHXChannelsClient(socket_url(port), ""):
                pass


# phxsocket: version 1 from threads, with numbers for refs, the first of which is 0.


@asynccontextmanager
async def threaded(port: int, user: str) -> AsyncIterator[Any]:
    client = phxsocket.Client(socket_url(port), {"user_id": user})
    await asyncio.to_thread(client.connect)
    try:
        yield client
    finally:
        await asyncio.to_thread(client.close)


async def test_a_threaded_client_joins_says_hears_and_leaves(shell: str) -> None:
    chat = Chat(auth=Doorkeeper())
    heard: dict[str, queue.Queue[Any]] = {"ada": queue.Queue(), "bob": queue.Queue()}

    def talk(ada: Any, bob: Any) -> None:
        for user, client in (("ada", ada), ("bob", bob)):
            channel = client.channel("room:a")
            channel.on("new_message", heard[user].put)
            assert channel.join()["recovered"] is False
        with pytest.raises(ChannelConnectError):
            ada.channel("room:cellar").join()
        for number in range(3):
            sent = ada.channel("room:a").push("new_message", {"content": f"m{number}"}, reply=True).wait_for_response()
            assert (sent["status"], sent["response"]["offset"]) == ("ok", number + 1)
        refused = ada.channel("room:a").push("new_message", {"content": ""}, reply=True).wait_for_response()
        assert (refused["status"], refused["response"]["code"]) == ("error", "invalid_message")
        for user in ("ada", "bob"):
            messages = [heard[user].get(timeout=20) for _ in range(3)]
            assert [(each["user_id"], each["content"]) for each in messages] == [("ada", f"m{n}") for n in range(3)]
        ada.channel("room:a").leave()

    async with served(shell, chat) as port, threaded(port, "ada") as ada, threaded(port, "bob") as bob:
        await asyncio.to_thread(talk, ada, bob)
        async with asyncio.timeout(20):
            while set(await chat.presence("a")) != {"bob"}:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.01)
    await until(lambda: not chat.statistics().connections)
