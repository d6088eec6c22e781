"""Hostile messages by the thousand through sessions, beside somebody who only wants to chat."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from chatx import Chat
from chatx.gateway.session.gateway import Gateway
from tests.gateway import hostile
from tests.gateway.fakes import Client, chatx_tasks, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual

MESSAGES = 50_000 if os.environ.get("TEST_LONG") else 5_000
SEEDS = 5
AT_ONCE = 6
"""Attackers at a time."""


class Waits:
    """An auth adapter that takes its time, so that things overlap."""

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(0)
        return user_id != "evil3"


@pytest.mark.parametrize("seed", range(SEEDS))
@virtual
async def test_hostile_messages_harm_nobody_else(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(seed)
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    said = 0
    attackers = joins = 0
    async with Chat(rate_limit=UNLIMITED, auth=Waits() if seed % 2 else None) as chat:
        gateway = Gateway(chat.engine)
        bystander = Client(gateway, "bystander")
        await bystander.join("room:a")
        evil: list[Client] = []
        for _ in range(MESSAGES // SEEDS):
            while len(evil) < AT_ONCE:
                attackers += 1
                evil.append(Client(gateway, f"evil{attackers % 4}", draw.choice((1, 2, 2))))
                if draw.random() < 0.7:
                    evil[-1].ask("room:a")
            client = draw.choice(evil)
            client.session.receive(hostile.message(draw))
            if draw.random() < 0.1:
                said += 1
                bystander.say("room:a", f"honest {said}")
            if draw.random() < 0.5:
                await asyncio.sleep(0)
            if draw.random() < 0.02:
                client.session.end()
                client.socket.close(1001, "gone")
            for each in [each for each in evil if each.socket.closed is not None]:
                joins += len([reply for reply in each.events("phx_reply") if reply.payload["status"] == "ok"])
                evil.remove(each)
        await settle()
        for client in [*evil, bystander]:
            client.session.end()
        await settle()
        statistics = chat.statistics()
        assert (statistics.members, statistics.subscriptions, len(gateway.wheel)) == (0, 0, 0)
        assert statistics.room_crashes == 0
    assert chatx_tasks() == []
    assert unhandled == []
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
    # What was done reached the room, and the bystander saw all of it in order.
    assert attackers > 20
    assert joins > 20
    assert [content for content in bystander.contents("room:a") if content.startswith("honest")] == [
        f"honest {number}" for number in range(1, said + 1)
    ]
    assert bystander.offsets("room:a") == list(range(1, len(bystander.offsets("room:a")) + 1))
    assert said > 50
    assert len(bystander.offsets("room:a")) > said + 20
    assert bystander.socket.closed is None


def test_the_byte_streams_are_of_every_kind_and_the_same_for_the_same_seed() -> None:
    streams = [hostile.stream(random.Random(seed)) for seed in range(300)]
    assert streams == [hostile.stream(random.Random(seed)) for seed in range(300)]
    whole = [b"".join(pieces) for pieces in streams]
    upgrades = [data for data in whole if data.startswith(b"GET /socket/websocket") and b"\r\n\r\n" in data]
    assert 100 < len(upgrades) < 290
    assert sum(len(pieces) > 10 for pieces in streams) > 20
    assert {data.split(b"\r\n\r\n", 1)[1][0] & 0x8F for data in upgrades if data.split(b"\r\n\r\n", 1)[1]} >= {
        0x81,
        0x01,
    }
