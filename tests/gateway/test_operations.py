"""What operators ask a server beside its socket."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from prometheus_client.parser import text_string_to_metric_families

from chatx import Chat, Statistics
from chatx.adapters.memory_log import MemoryLog
from chatx.core.message import PresenceMeta
from chatx.gateway.operations.app import MEMBERS_AT_ONCE, operations_app
from chatx.gateway.operations.metrics import CONTENT_TYPE, NODE_COUNTERS, NODE_GAUGES, Metrics
from chatx.gateway.operations.rooms import ROOMS_AT_ONCE
from chatx.runtime.process import RoomProcess
from chatx.runtime.rooms import Rooms

ADMIN = "admin-token"


class Server:
    """Stands for a server: its figures, and whether it is ready."""

    def __init__(self) -> None:
        self.ready = True
        self.connections = 3
        self.polling = 2
        self.refused = Counter({403: 2, 429: 1})
        self.sockets_closed = Counter({1013: 5})


def client(chat: Chat, server: Server | None = None, admin_token: str | None = ADMIN) -> AsyncClient:
    server = server or Server()
    app = operations_app(chat, Metrics(chat, server), ready=lambda: server.ready, admin_token=admin_token)
    return AsyncClient(transport=ASGITransport(app), base_url="http://here")


async def rooms(asking: AsyncClient, path: str, token: str | None = ADMIN) -> Response:
    return await asking.get(path, headers={} if token is None else {"Authorization": f"Bearer {token}"})


async def test_ready_follows_the_server_and_alive_does_not() -> None:
    server = Server()
    async with Chat() as chat, client(chat, server) as asking:
        assert ((await asking.get("/healthz")).status_code, (await asking.get("/readyz")).status_code) == (200, 200)
        server.ready = False
        answer = await asking.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})
        assert (await asking.get("/healthz")).status_code == 200
        assert (await asking.head("/healthz")).status_code == 200
        assert (await asking.post("/healthz")).status_code == 405
        assert answer.headers["cache-control"] == "no-store"
        server.ready = True
        await chat.stop()
        assert (await asking.get("/readyz")).status_code == 503


async def test_a_log_says_beside_that_whether_it_can_be_used() -> None:
    async with Chat(persistence=MemoryLog()) as chat, client(chat) as asking:
        assert (await asking.get("/readyz")).json() == {"status": "ready", "store": "ok"}
        committing = chat.engine.delivery.committing
        assert committing is not None
        committing.went_wrong("raised")
        answer = await asking.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "store": "away"})


async def test_rooms_come_a_page_at_a_time_each_once_in_order() -> None:
    async with Chat() as chat, client(chat) as asking:
        ids = sorted([f"room {number:03}" for number in range(250)] + ["ä", "\U0001f600", "z/y"])
        for room_id in reversed(ids):
            await chat.join(room_id, "ada")
        seen: list[str] = []
        after: str | None = ""
        pages = 0
        while after is not None:
            page = (
                await asking.get("/rooms", params={"after": after}, headers={"Authorization": f"Bearer {ADMIN}"})
            ).json()
            assert page["total"] == 253
            seen += [each["id"] for each in page["rooms"]]
            after = page["after"]
            pages += 1
        assert (seen, pages) == (ids, 3)
        assert [each["id"] for each in (await rooms(asking, "/rooms?limit=1")).json()["rooms"]] == ids[:1]


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "x", "", "1001", "99999999", "%D9%A1"])
async def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    async with Chat() as chat, client(chat) as asking:
        answer = await rooms(asking, f"/rooms?limit={limit}")
        assert (answer.status_code, str(ROOMS_AT_ONCE) in answer.json()["error"]) == (400, True)


async def test_a_room_is_shown_with_its_place_and_its_members() -> None:
    async with Chat() as chat, client(chat) as asking:
        await chat.join("a/b", "ada")
        await chat.join("a/b", "bob")
        message = await chat.send_message("a/b", "ada", "hi")
        shown = (await rooms(asking, "/rooms/a%2Fb")).json()
        assert (shown["id"], shown["epoch"], shown["offset"]) == ("a/b", message.epoch, 1)
        assert (shown["members"], sorted(shown["presence"])) == (2, ["ada", "bob"])
        assert [set(meta) for meta in shown["presence"]["ada"]] == [{"ref", "online_at"}]
        assert (await rooms(asking, "/rooms/a")).status_code == 404


async def test_a_crowd_is_counted_and_not_named_beyond_the_bound() -> None:
    async with Chat() as chat, client(chat) as asking:
        for number in range(MEMBERS_AT_ONCE + 5):
            await chat.join("a", f"user {number:05}")
        shown = (await rooms(asking, "/rooms/a")).json()
        assert (shown["members"], len(shown["presence"])) == (MEMBERS_AT_ONCE + 5, MEMBERS_AT_ONCE)


async def test_memberships_of_one_user_are_counted_and_not_named_beyond_the_bound() -> None:
    async with Chat() as chat, client(chat) as asking:
        for user in ("ada", "bob"):
            process = await chat.engine.enter("a", user, "join")
            for _ in range(MEMBERS_AT_ONCE - 10):
                process.join(user, 0)
        shown = (await rooms(asking, "/rooms/a")).json()
        assert shown["members"] == 2
        assert {user: len(metas) for user, metas in shown["presence"].items()} == {
            "ada": MEMBERS_AT_ONCE - 10,
            "bob": 10,
        }


class Unwalkable(Rooms):
    """Rooms that nobody may look through."""

    def __iter__(self) -> Iterator[RoomProcess]:
        raise AssertionError("all rooms are looked at")


class Counted(dict[str, dict[str, PresenceMeta]]):
    """Members that are counted when they are looked at."""

    looks = 0

    def items(self) -> Any:
        for each in super().items():
            self.looks += 1
            yield each

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all members are looked at")


def calls(of: Callable[[], object]) -> int:
    """Return how many functions were called and generators gone on with."""
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += 1

    gc.disable()  # what others have called at each collection is not its doing
    sys.setprofile(count)
    try:
        of()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


async def test_a_page_of_rooms_costs_the_same_of_few_and_of_many() -> None:
    async with Chat() as chat, client(chat) as asking:
        chat.engine.rooms.__class__ = Unwalkable
        wanted, costs = {"after": "room 10", "limit": "10"}, []
        for many in (range(100), range(100, 5000)):
            for number in many:
                await chat.join(f"room {number:04}", "ada")
            costs.append(calls(lambda: chat.engine.rooms.after("room 0010", 10)))
            shown = (await asking.get("/rooms", params=wanted, headers={"Authorization": f"Bearer {ADMIN}"})).json()
            assert (shown["total"], len(shown["rooms"])) == (many.stop, 10 if many.stop > 100 else 0)
        assert costs[1] <= costs[0] + 2
        chat.engine.rooms.__class__ = Rooms


async def test_a_room_and_a_page_look_only_at_the_members_they_show() -> None:
    async with Chat() as chat, client(chat) as asking:
        for number in range(MEMBERS_AT_ONCE * 3):
            await chat.join("a", f"user {number:05}")
        presence = chat.engine.rooms.after("", 1)[0].room.presence
        presence._users = members = Counted(presence._users)
        shown = (await rooms(asking, "/rooms/a")).json()
        (listed,) = (await rooms(asking, "/rooms")).json()["rooms"]
        presence._users = dict(members.items())
        assert (len(shown["presence"]), shown["members"], listed["members"]) == (1000, 3000, 3000)
        assert members.looks <= MEMBERS_AT_ONCE + 1 + 3000  # the last are this test's own


async def test_rooms_that_were_forgotten_are_listed_no_more_and_those_that_come_back_are() -> None:
    async with Chat(room_idle_ms=1) as chat, client(chat) as asking:
        for _ in range(2):
            for room_id in ("c", "a", "b"):
                await chat.join(room_id, "ada")
            assert [each["id"] for each in (await rooms(asking, "/rooms")).json()["rooms"]] == ["a", "b", "c"]
            for room_id in ("c", "b"):
                await chat.leave(room_id, "ada")
            await asyncio.sleep(0.01)
            chat.engine.rooms.sweep()
            assert [each["id"] for each in (await rooms(asking, "/rooms")).json()["rooms"]] == ["a"]
        await chat.stop()
        await chat.start()
        assert (await rooms(asking, "/rooms")).json() == {"total": 0, "rooms": [], "after": None}


async def test_a_server_on_another_loop_than_the_chats_says_so_and_is_not_ready() -> None:
    async def elsewhere() -> list[tuple[int, str]]:
        async with client(chat) as asking:
            return [
                (answer.status_code, answer.text)
                for answer in [await asking.get("/readyz"), *[await rooms(asking, f"/rooms{of}") for of in ("", "/a")]]
            ]

    async with Chat() as chat:
        answers = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert [status for status, _ in answers] == [503, 503, 503]
    assert all("another thread or event loop" in text for _, text in answers[1:])


async def test_whoever_may_not_see_rooms_is_answered_alike_for_all() -> None:
    async with Chat() as chat, client(chat) as asking, client(chat, admin_token=None) as shut:
        await chat.join("there", "ada")
        for token in (None, "", "wrong", ADMIN + "x", "ü", ADMIN.upper()):
            header = {} if token is None else {b"Authorization": f"Bearer {token}".encode()}
            answers = [await asking.get(path, headers=header) for path in ("/rooms", "/rooms/there", "/rooms/none")]
            assert {(each.status_code, each.content) for each in answers} == {(401, answers[0].content)}
            assert answers[0].headers["www-authenticate"] == "Bearer"
            answers = [await shut.get(path, headers=header) for path in ("/rooms", "/rooms/there", "/rooms/none")]
            assert {(each.status_code, each.content) for each in answers} == {(403, answers[0].content)}
        assert (await asking.get("/rooms", headers={"Authorization": f"Basic {ADMIN}"})).status_code == 401
        # An empty token in the environment is none, not one that everybody knows.
        async with client(chat, admin_token="") as empty:
            assert (await rooms(empty, "/rooms", "")).status_code == 403


async def test_where_the_chat_does_not_run_there_is_an_answer_all_the_same() -> None:
    async with client(Chat()) as asking:
        assert (await rooms(asking, "/rooms")).status_code == 503
        assert (await rooms(asking, "/rooms/a")).status_code == 503
        assert "\nchatx_up 0.0\n" in (await asking.get("/metrics")).text


async def test_the_figures_are_those_of_the_statistics_and_prometheus_reads_them() -> None:
    server = Server()
    async with Chat(message_size_limit=10) as chat, client(chat, server) as asking:
        await chat.join("a", "zaphod")
        await chat.send_message("a", "zaphod", "hi")
        for _ in range(2):
            with pytest.raises(Exception, match="bytes"):
                await chat.send_message("a", "zaphod", "x" * 11)
        answer = await asking.get("/metrics")
        figures = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert answer.headers["content-type"] == CONTENT_TYPE
        wanted: dict[tuple[str, ...], Any] = {
            ("chatx_up",): 1,
            ("chatx_rooms",): 1,
            ("chatx_members",): 1,
            ("chatx_messages_sent_total",): 1,
            ("chatx_messages_refused_total", "message_too_large"): 2,
            ("chatx_sockets",): 3,
            ("chatx_polling_sessions",): 2,
            ("chatx_connections_refused_total", "403"): 2,
            ("chatx_connections_refused_total", "429"): 1,
            ("chatx_sockets_closed_total", "1013"): 5,
        }
        assert {name: figures.get(name) for name in wanted} == wanted
        assert "zaphod" not in answer.text
        # Every gauge and counter of the statistics is told.
        told = {name[0].removeprefix("chatx_").removesuffix("_total") for name in figures}
        renamed = {"running": "up", "sent": "messages_sent", "refused": "messages_refused", "delivered": "deliveries"}
        untold = {renamed.get(field, field) for field in Statistics.__struct_fields__} - told
        # There was no failure, and there is one node.
        assert untold == {"cluster_strategy", "adapter_failures", "nodes", *NODE_GAUGES, *NODE_COUNTERS}
