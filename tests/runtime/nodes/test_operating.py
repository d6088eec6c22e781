"""What whoever operates the nodes sees of all of them from one, and what a node does that is to drain."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient

from chatx import Chat, Closed, SubscriptionEnded
from chatx.cluster.membership import SUSPECT_S
from chatx.cluster.memory_backplane import MemoryHub
from chatx.cluster.operating import Drain, List, Listed, Look, Looked, RoomSummary
from chatx.cluster.rpc import Ask, Done
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.operations.app import operations_app
from chatx.gateway.operations.metrics import Metrics
from chatx.gateway.session.entrance import Entrance
from chatx.runtime.nodes import operating
from chatx.runtime.nodes.rooms_page import RoomsPage
from chatx.runtime.sending_away import BATCH, STEP_S
from tests.runtime.nodes.test_nodes import boot_of, hub, owner_of, three
from tests.virtual import virtual

__all__ = ["hub"]

ADMIN = "admin-token"


@asynccontextmanager
async def asking(chat: Chat) -> AsyncIterator[AsyncClient]:
    app = operations_app(chat, Metrics(chat), ready=lambda: True, admin_token=ADMIN)
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with AsyncClient(transport=ASGITransport(app), base_url="http://here", headers=headers) as client:
        yield client


async def asked(asker: Chat, of: Chat, ask: Ask) -> Any:
    assert asker._node is not None
    return await asker._node.ask(boot_of(of), ask)


async def pages(client: AsyncClient, limit: int) -> list[dict[str, Any]]:
    found, after = [], ""
    while after is not None:
        found.append((await client.get("/rooms", params={"limit": limit, "after": after})).json())
        after = found[-1]["after"]
    return found


@virtual
async def test_any_node_lists_the_rooms_of_all_each_once_with_its_owner(hub: MemoryHub) -> None:
    async with three() as chats:
        room_ids = sorted(f"room-{number:02}" for number in range(40))
        for number, room_id in enumerate(room_ids):
            await chats[number % 3].join(room_id, "ann")
            await chats[0].send_message(room_id, "ann", "hi")
        # Replicas are not listed, wherever they are.
        async with chats[1].subscribe(room_ids[0]), chats[2].subscribe(room_ids[0]):
            for chat in chats:
                async with asking(chat) as client:
                    (page,) = await pages(client, 100)
                    assert [each["id"] for each in page["rooms"]] == room_ids
                    owners = [owner_of(chats, room_id).config.node_name for room_id in room_ids]
                    assert [each["node"] for each in page["rooms"]] == owners
                    assert (page["total"], page["missing"]) == (40, [])
                    assert {(each["members"], each["offset"]) for each in page["rooms"]} == {(1, 1)}
                    page = (await client.get("/rooms", params={"after": "room-38" + "x" * 5000})).json()
                    assert ([each["id"] for each in page["rooms"]], page["missing"]) == (["room-39"], [])
                    several = await pages(client, 7)
                    assert [each["id"] for page in several for each in page["rooms"]] == room_ids
                    assert len(several) == 6


@virtual
async def test_a_node_that_does_not_answer_is_named_and_the_rooms_of_the_others_are_there(hub: MemoryHub) -> None:
    async with three() as chats:
        for number in range(30):
            await chats[0].join(f"room-{number}", "ann")
        silent = chats[2]
        room_id = next(f"room-{number}" for number in range(30) if owner_of(chats, f"room-{number}") is silent)
        hub.cut(boot_of(chats[0]), boot_of(silent))
        async with asking(chats[0]) as client:
            (page,) = await pages(client, 100)
            assert page["missing"] == ["c"]
            assert {each["node"] for each in page["rooms"]} == {"a", "b"}
            assert page["total"] == len(page["rooms"]) < 30
            answer = await client.get(f"/rooms/{room_id}")
            assert (answer.status_code, "Node c has the room" in answer.json()["error"]) == (503, True)
        hub.heal()


@virtual
async def test_a_room_is_shown_by_any_node_as_its_owner_has_it(hub: MemoryHub) -> None:
    async with three() as chats:
        await chats[0].join("a/b", "ann")
        async with chats[1].connect("bob") as bob, chats[2].connect("cid") as cid:
            await bob.join("a/b")
            await cid.join("a/b")
            await asyncio.sleep(1)
            shown = []
            for chat in chats:
                async with asking(chat) as client:
                    shown.append((await client.get("/rooms/a%2Fb")).json())
                    assert (await client.get("/rooms/nowhere")).status_code == 404
                    assert (await client.get("/rooms/%00")).status_code == 404
            assert shown[0] == shown[1] == shown[2]
            assert shown[0]["node"] == owner_of(chats, "a/b").config.node_name
            assert sorted(shown[0]["presence"]) == ["ann", "bob", "cid"]


@virtual
async def test_a_page_ends_where_a_node_has_looked_at_enough_rooms_of_others(
    hub: MemoryHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating, "LOOKED_AT", 5)
    async with three() as chats:
        one, other = chats[:2]
        of_other = [room for number in range(60) if owner_of(chats, room := f"room-{number:02}") is other]
        of_one = [room for number in range(60) if owner_of(chats, room := f"room-{number:02}") is one]
        for room_id in (*of_other, *of_one):
            await one.join(room_id, "ann")
        async with AsyncExitStack() as readers:
            for room_id in of_other:
                _ = await readers.enter_async_context(one.subscribe(room_id))
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                listed = await asked(other, one, List(after, 2))
                assert isinstance(listed, Listed)
                assert len(listed.rooms) <= 2
                found += [each.room_id for each in listed.rooms]
                after = listed.upto
            assert found == of_one
            async with asking(other) as client:
                seen = [each["id"] for page in await pages(client, 2) for each in page["rooms"]]
                assert seen == sorted([*of_one, *of_other])


def listed(*room_ids: str, upto: str | None = None, members: int = 1) -> Listed:
    return Listed(len(room_ids), tuple(RoomSummary(each, members, 0, "e", 0, 0, 0) for each in room_ids), upto)


def owned_by_b(room_id: str) -> str:
    return "b"


@pytest.mark.parametrize("boots", ["ab", "ba"])
def test_a_page_ends_where_the_first_node_does_not_know_on(boots: str) -> None:
    answers = {"a": listed("1", "4", upto="4"), "b": listed("2", "3", "9", upto="9")}
    page = RoomsPage(10)
    for boot in boots:
        page.add(boot, answers[boot], owned_by_b)
    shown, after = page.cut()
    assert ([room.room_id for _, room in shown], after, page.total) == (["1", "2", "3", "4"], "4", 5)


@pytest.mark.parametrize("boots", ["ab", "ba"])
def test_a_room_that_two_nodes_have_is_its_owners(boots: str) -> None:
    page = RoomsPage(10)
    for boot in boots:
        page.add(boot, listed("1", members=2 if boot == "b" else 1), owned_by_b)
    ((boot, room),), after = page.cut()
    assert (boot, room.members, after) == ("b", 2, None)


@virtual
async def test_a_node_says_how_it_is(hub: MemoryHub) -> None:
    async with three() as chats:
        one, other = chats[:2]
        room_id = next(room for number in range(60) if owner_of(chats, room := f"room-{number:02}") is other)
        async with one.subscribe(room_id), one.connect("ann"):
            look = await asked(other, one, Look())
            assert look == Looked("a", "up", 0, 1, 0, 0, 0, 2, 0)
            assert (await asked(one, other, Look())).rooms == 1
            # What its replica misses shows as lag, and a node that it does not hear as a suspect.
            hub.cut(boot_of(other), boot_of(one))
            await other.send_message(room_id, "bob", "unheard")
            await asyncio.sleep(SUSPECT_S + 0.2)
            look = await asked(one, one, Look())
            assert look.suspects == ("b",)
            hub.heal()


@virtual
async def test_the_figures_of_a_node_tell_of_the_others_of_its_rooms_and_of_the_link(hub: MemoryHub) -> None:
    async with three() as chats, AsyncExitStack() as stack:
        one = chats[0]
        room_ids = [f"room-{number}" for number in range(20)]
        for room_id in room_ids:
            _ = await stack.enter_async_context(one.subscribe(room_id))
        own = [room_id for room_id in room_ids if owner_of(chats, room_id) is one]
        assert figures(one) == {
            "chatx_nodes up": 3,
            **{f"chatx_nodes {state}": 0 for state in ("joining", "draining", "suspect", "ignored")},
            "chatx_rooms_owned": len(own),
            "chatx_rooms_followed": 20 - len(own),
            "chatx_rooms_left": 0,
            "chatx_replicas_behind": 0,
            "chatx_replica_lag_ms": 0,
            "chatx_node_link_connected": 1,
            "chatx_node_link_pending_bytes": 0,
            "chatx_node_sends_waiting": 0,
            "chatx_node_requests_asking": 0,
            "chatx_node_requests_answering": 0,
            "chatx_node_records_refused_total": 0,
            "chatx_node_isolations_total": 0,
            "chatx_node_deafnesses_total": 0,
            "chatx_node_links_lost_total": 0,
        }
        hub._nodes[boot_of(chats[1])].publish("hb", b"nothing that is a record")
        silent = chats[2]
        followed = [room_id for room_id in room_ids if owner_of(chats, room_id) is silent]
        with hub.partition(boot_of(silent)):
            await silent.send_message(followed[0], "ann", "unheard")
            assert one._node is not None
            one._node.abroad.missed()
            await asyncio.sleep(SUSPECT_S + 0.2)
            told = figures(one)
            assert (told["chatx_nodes up"], told["chatx_nodes suspect"]) == (2, 1)
            assert told["chatx_node_records_refused_total"] == 1
            assert told["chatx_replicas_behind"] == len(followed)
            assert told["chatx_node_requests_asking"] > 0
        link = hub._nodes[boot_of(one)]
        link.cut_off()
        assert figures(one)["chatx_node_link_connected"] == 0
        await asyncio.sleep(2)
        link.come_back()
        await asyncio.sleep(5)
        told = figures(one)
        assert (told["chatx_node_links_lost_total"], told["chatx_node_isolations_total"]) == (1, 1)
        assert told["chatx_replicas_behind"] == 0


def figures(chat: Chat) -> dict[str, float]:
    """Return what is told of nodes."""
    rooms = tuple(f"chatx_rooms_{each}" for each in ("owned", "followed", "left"))
    names = ("chatx_nodes", *rooms, "chatx_replica", "chatx_node_")
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in Metrics(chat).collect()
        for sample in family.samples
        if sample.name.startswith(names) and not sample.name.endswith("_created")
    }


@virtual
async def test_a_node_that_is_to_drain_sends_its_clients_away_hands_its_rooms_over_and_is_no_node_any_more(
    hub: MemoryHub,
) -> None:
    async with three() as chats:
        room_id = "general"
        owner = owner_of(chats, room_id)
        other = next(each for each in chats if each is not owner)
        before = await owner.send_message(room_id, "ann", "before")
        async with asking(owner) as client, owner.connect("ann") as ann, AsyncExitStack() as stack:
            await ann.join(room_id)
            for _ in range(10 * BATCH):
                _ = await stack.enter_async_context(owner.subscribe(room_id))
            assert isinstance(await asked(other, owner, Drain()), Done)
            assert isinstance(await asked(other, owner, Drain()), Done)
            answer = await client.get("/readyz")
            told = {"status": "not ready", "nodes": "draining", "strategy": "pg"}
            assert (answer.status_code, answer.json()) == (503, told)
            assert (await asked(other, owner, Look())).state == "draining"
            entrance = Entrance(owner, lambda handshake: "bob", (), 60)
            with pytest.raises(Refused, match="being stopped"):
                entrance.begin(None)
            left = [len(owner.engine.consumers)]
            while left[-1]:
                await asyncio.sleep(STEP_S / 10)
                left.append(len(owner.engine.consumers))
            gone = [before - after for before, after in itertools.pairwise(left)]
            assert max(gone) <= BATCH + 1  # not all at once
            with pytest.raises(Closed):
                async for event in ann:
                    assert isinstance(event, SubscriptionEnded)
            await asyncio.sleep(5)
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()) == (503, {"status": "not ready", "nodes": "drained"})
            assert (await client.get("/healthz")).status_code == 200
            with pytest.raises(Refused, match="had this node drained"):
                entrance.begin(None)
        with pytest.raises(Closed):
            await owner.send_message(room_id, "ann", "refused")
        after = await other.send_message(room_id, "ann", "after")
        assert (after.epoch, after.offset) == (before.epoch, before.offset + 1)
        assert owner.drained
        await owner.start()
        assert not owner.drained


@virtual
async def test_an_application_that_ends_when_it_is_drained_does_so_once_and_by_itself(hub: MemoryHub) -> None:
    async with three() as chats:
        told: list[bool] = []
        chats[0].on_drain = lambda: told.append(chats[0].drained)
        for _ in range(2):
            assert isinstance(await asked(chats[1], chats[0], Drain()), Done)
        await asyncio.sleep(5)
        assert told == [True]
        assert chats[0].statistics().running
