"""The API of any node is that of all of them."""

from __future__ import annotations

import asyncio

import pytest

from chatx import Revoked
from chatx.cluster.memory_backplane import MemoryHub
from tests.gateway.test_api import SAID, opened, problem
from tests.runtime.nodes.test_nodes import boot_of, hub, owner_of, three
from tests.virtual import virtual

__all__ = ["hub"]


@virtual
async def test_a_backend_says_and_reads_the_same_at_whichever_node_it_asks(hub: MemoryHub) -> None:
    async with three() as chats, chats[0].connect("ann") as ann:
        await ann.join("general")
        said = []
        for number, chat in enumerate(chats):
            async with opened(chat) as client:
                sent = {"user_id": "shop", "content": f"from {number}"}
                for duplicate in (None, True):
                    answer = await client.post(SAID, json=sent, headers={"idempotency-key": f"key-{number}"})
                    assert (answer.status_code, answer.json().get("duplicate")) == (201, duplicate)
                    said.append(answer.json()["offset"])
        assert said == [1, 1, 2, 2, 3, 3]
        for chat in chats:
            async with opened(chat) as client:
                messages = (await client.get(SAID)).json()["messages"]
                assert [each["content"] for each in messages] == ["from 0", "from 1", "from 2"]
                place = f"{messages[0]['epoch']}:1"
                behind = (await client.get(SAID, params={"after": place, "limit": 1})).json()
                assert ([each["offset"] for each in behind["messages"]], behind["more"]) == ([2], True)
                assert list((await client.get("/api/rooms/general/presence")).json()["presence"]) == ["ann"]
                page = (await client.get("/api/rooms")).json()
                owner = owner_of(chats, "general").config.node_name
                assert [(each["id"], each["node"]) for each in page["rooms"]] == [("general", owner)]
                assert page["missing"] == []


@virtual
async def test_a_user_is_cut_off_at_every_node(hub: MemoryHub) -> None:
    async with three() as chats, chats[0].connect("mal") as here, chats[2].connect("mal") as there:
        async with opened(chats[0]) as client:
            assert (await client.delete("/api/users/mal/sessions")).status_code == 204
        await asyncio.sleep(1)
        for connection in (here, there):
            with pytest.raises(Revoked):
                await anext(connection)


@virtual
async def test_an_owner_that_is_not_reached_is_a_503_that_says_when_to_come_back(hub: MemoryHub) -> None:
    async with three() as chats:
        await chats[0].join("general", "ann")
        owner = owner_of(chats, "general")
        other = next(chat for chat in chats if chat is not owner)
        hub.cut(boot_of(other), boot_of(owner))
        async with opened(other) as client:
            refused = await client.post(SAID, json={"user_id": "shop", "content": "x"})
            assert problem(refused) == (503, "room_unavailable")
            assert (refused.json()["retryable"], int(refused.headers["retry-after"]) >= 1) == (True, True)
        hub.heal()
