"""A node that does not hear some of what is said to it finds out, though nothing tells of it, and hears it again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatx import Chat, Message
from chatx.cluster.hearing import SILENT_TURNS
from chatx.cluster.memory_backplane import MemoryHub
from chatx.cluster.tokens import room_token
from chatx.runtime.nodes import probe
from tests.runtime.nodes.test_nodes import boot_of, hub, owner_of, three
from tests.virtual import virtual

__all__ = ["hub"]

FOUND_WITHIN_S = (SILENT_TURNS + 2) * probe.PROBE_S

WAYS: dict[str, dict[str, Any]] = {
    "all topics of rooms": {"topics": "live."},
    "its heartbeats": {"topics": "hb"},
    "questions": {"questions": True},
    "answers": {"answers": True},
    "all but heartbeats": {"topics": "live.", "questions": True, "answers": True},
}


def readiness(chat: Chat) -> str:
    assert chat.engine.overview is not None
    return chat.engine.overview.readiness


def room_of_another(chats: list[Chat], chat: Chat) -> str:
    return next(room for number in range(99) if owner_of(chats, room := f"room-{number}") is not chat)


@virtual
@pytest.mark.parametrize("way", WAYS)
async def test_what_is_lost_on_one_way_is_noticed_and_told_and_all_is_heard_again(hub: MemoryHub, way: str) -> None:
    async with three() as chats:
        one = chats[0]
        room_id = room_of_another(chats, one)
        owner = owner_of(chats, room_id)
        async with one.subscribe(room_id) as reader:
            sent = [await owner.send_message(room_id, "ann", "before")]
            hub._nodes[boot_of(one)].deafen(**WAYS[way])
            states = {readiness(one)}
            for number in range(int(FOUND_WITHIN_S * 10)):
                await asyncio.sleep(0.1)
                states.add(readiness(one))
                if number % 10 == 0:
                    sent.append(await owner.send_message(room_id, "ann", f"{number}"))
            assert states & {"deaf", "away"}
            await asyncio.sleep(3 * probe.PROBE_S)
            assert readiness(one) == "ok"
            assert one.statistics().links_lost == 1
            # It hears at once, and not once a second, when it asks whether it has everything.
            sent.append(await owner.send_message(room_id, "ann", "after"))
            await asyncio.sleep(0.01)
            assert one.engine.rooms.find(room_id).head.offset == len(sent)  # type: ignore[union-attr]
            async with asyncio.timeout(1):
                seen = [await anext(reader) for _ in sent]
            assert seen == sent


@virtual
async def test_without_words_to_itself_a_node_stays_deaf_and_nothing_tells(
    hub: MemoryHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: what it finds is found by the probe."""
    monkeypatch.setattr(probe.Probe, "_turn", lambda self: None)
    async with three() as chats:
        one = chats[0]
        hub._nodes[boot_of(one)].deafen("live.")
        await asyncio.sleep(10 * FOUND_WITHIN_S)
        assert (readiness(one), one.statistics().links_lost) == ("ok", 0)


@virtual
async def test_a_node_that_hears_all_is_left_alone(hub: MemoryHub) -> None:
    async with three() as chats:
        await asyncio.sleep(60)
        for chat in chats:
            statistics = chat.statistics()
            assert (statistics.deafnesses, statistics.links_lost, readiness(chat)) == (0, 0, "ok")


@virtual
async def test_a_link_that_stays_deaf_is_made_anew_less_and_less_often(hub: MemoryHub) -> None:
    async with three() as chats:
        one = chats[0]
        link = hub._nodes[boot_of(one)]
        link.watch(on_state=lambda state: link.deafen("live.") if state == "connected" else None)
        link.deafen("live.")
        await asyncio.sleep(200)
        statistics = one.statistics()
        assert (readiness(one), statistics.deafnesses) == ("deaf", 1)
        assert 4 <= statistics.links_lost <= 8


@virtual
async def test_one_room_of_which_nothing_is_heard_is_subscribed_to_anew(hub: MemoryHub) -> None:
    async with three() as chats:
        one = chats[0]
        room_id = room_of_another(chats, one)
        owner = owner_of(chats, room_id)
        async with one.subscribe(room_id) as reader:
            sent: list[Message] = []
            hub._nodes[boot_of(one)].deafen(f"live.{room_token(room_id)}")
            for number in range(5):
                sent.append(await owner.send_message(room_id, "ann", f"{number}"))
                await asyncio.sleep(1.5)
            sent.append(await owner.send_message(room_id, "ann", "after"))
            await asyncio.sleep(0.01)
            async with asyncio.timeout(0.1):
                assert [await anext(reader) for _ in sent] == sent
        assert one.statistics().links_lost == 0
