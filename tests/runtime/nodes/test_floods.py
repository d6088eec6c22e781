"""Nodes that send more to a room than its owner takes: that is bounded, and each send is acknowledged or refused."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from chatx import Chat, ChatError, Draft, Message
from chatx.cluster.memory_backplane import MemoryHub
from chatx.runtime.nodes.at_once import AT_ONCE
from tests.runtime.nodes.test_nodes import hub, owner_of, three
from tests.virtual import virtual

__all__ = ["hub"]

LIMIT = 200
SENDERS = 200
SECONDS = 1.0


async def slowly(draft: Draft) -> Draft:
    await asyncio.sleep(0.05)
    return draft


class Flood:
    """Senders on all nodes, who send again and again for some time, and a reader on one."""

    def __init__(self, chats: list[Chat], room_id: str) -> None:
        self.chats = chats
        self.room_id = room_id
        self.acknowledged: list[Message] = []
        self.refused: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def run(self) -> None:
        watching = asyncio.ensure_future(self._watch())
        until = asyncio.get_running_loop().time() + SECONDS
        await asyncio.gather(
            *(
                self._send(chat, f"{number}-{user}", until)
                for number, chat in enumerate(self.chats)
                for user in range(SENDERS)
            )
        )
        watching.cancel()

    async def _send(self, chat: Chat, user_id: str, until: float) -> None:
        loop, number = asyncio.get_running_loop(), 0
        while loop.time() < until:
            try:
                message = await chat.send_message(self.room_id, user_id, f"{number}")
            except ChatError as error:
                self.refused[error.code] += 1
                await asyncio.sleep(error.retry_after or 0.1)
            else:
                self.acknowledged.append(message)
                number += 1

    async def _watch(self) -> None:
        owner = owner_of(self.chats, self.room_id)
        while True:
            await asyncio.sleep(0.02)
            for chat in self.chats:
                told = chat.statistics()
                role = "owner" if chat is owner else "edge"
                for name in ("admitted", "requests_asking", "requests_answering", "sends_waiting"):
                    self.most[f"{role} {name}"] = max(self.most[f"{role} {name}"], getattr(told, name))


@virtual
@pytest.mark.timeout(120)
async def test_a_room_that_is_flooded_from_all_nodes_is_bounded_and_loses_nothing(hub: MemoryHub) -> None:
    options = {"middlewares": (slowly,), "room_queue_limit": LIMIT, "mailbox_size": 100_000, "mailbox_bytes": 10**9}
    async with three(**options) as chats:
        room_id = "general"
        owner = owner_of(chats, room_id)
        reader = next(chat for chat in chats if chat is not owner)
        flood = Flood(chats, room_id)
        async with reader.subscribe(room_id) as subscription:
            await flood.run()
            seen = [await anext(subscription) for _ in flood.acknowledged]
        assert sorted(flood.acknowledged, key=lambda each: each.offset) == seen
        assert [each.offset for each in flood.acknowledged] != []
        assert flood.refused.keys() == {"room_overloaded"}
        assert flood.most["owner admitted"] <= LIMIT
        assert flood.most["owner requests_answering"] <= AT_ONCE + 50
        assert flood.most["edge requests_asking"] <= AT_ONCE // 2 + 10  # two other nodes; beside sends there is little
        assert 0 < flood.most["edge sends_waiting"] <= LIMIT


@virtual
async def test_the_messages_of_one_who_does_not_wait_keep_their_order_also_where_the_room_moves(hub: MemoryHub) -> None:
    async with three(middlewares=(slowly,)) as chats:
        room_id = "general"
        owner = owner_of(chats, room_id)
        edge = next(chat for chat in chats if chat is not owner)
        sends = [asyncio.ensure_future(edge.send_message(room_id, "ann", f"{number}")) for number in range(60)]
        await asyncio.sleep(0.3)
        await owner.stop()
        sent = [each for each in await asyncio.gather(*sends, return_exceptions=True) if isinstance(each, Message)]
        assert len(sent) >= 58  # one is in the middlewares as the room moves, and is told to be sent again
        assert [(each.epoch, each.offset) for each in sent] == [
            (sent[0].epoch, number + 1) for number in range(len(sent))
        ]
        numbers = [int(each.content) for each in sent]
        assert numbers == sorted(numbers)
