"""What clients may have read for them: page by page, within a budget, one user beside another."""

import asyncio
import tracemalloc
from typing import Any

import pytest

from chatx import Chat, Message
from chatx.gateway.session import reading
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.reading import PAGE_BYTES, PAGE_MESSAGES, Reading
from tests.gateway.fakes import Client, DirectSocket, FakeSocket, settle
from tests.limits import UNLIMITED
from tests.virtual import virtual


class Counting:
    """Keeps messages in memory, and counts the reads that are under way, and of how many messages they were."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.under_way = self.most = 0
        self.wait_s = 0.01
        self.sizes: list[int] = []

    async def save_messages(self, messages: list[Message]) -> None:
        self.messages += messages

    async def load_messages(self, room_id: str, *, after: Any = None, before: Any = None, limit: int) -> list[Message]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.wait_s)
        self.under_way -= 1
        here = [each for each in self.messages if each.room_id == room_id]
        found = (
            [each for each in here if each.offset > after.offset][:limit]
            if after is not None
            else [each for each in here if before is None or each.offset < before.offset][-limit:]
        )
        self.sizes.append(len(found))
        return found

    async def last_position(self, room_id: str) -> None:
        return None


async def stored(chat: Chat, count: int, content: str = "x", room_id: str = "a") -> str:
    """Send so many messages, and return the room's epoch when they are saved."""
    for _ in range(count):
        await chat.send_message(room_id, "bob", content)
    await asyncio.sleep(1)
    return chat.engine.rooms.find(room_id).head.epoch  # type: ignore[union-attr]  # it is there


@virtual
async def test_a_page_of_history_is_cut_by_bytes_and_says_that_there_is_more() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=300) as chat:
        await stored(chat, 200, "é" * 2000)
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        seen: list[int] = []
        before: dict[str, Any] | None = None
        while True:
            _, page = await client.call("room:a", "history", {"limit": 200, "before": before})
            assert sum(len(each["content"].encode()) for each in page["messages"]) <= PAGE_BYTES
            seen[:0] = [each["offset"] for each in page["messages"]]
            if not page["more"]:
                break
            before = {"epoch": page["messages"][0]["epoch"], "offset": page["messages"][0]["offset"]}
        assert seen == list(range(1, 201))
        client.session.end()


@virtual
async def test_one_users_sockets_have_no_more_read_than_their_budget_and_another_user_reads_on() -> None:
    async with Chat(
        rate_limit=UNLIMITED, history_size=300, history_bytes_per_sec=PAGE_BYTES, max_connections_per_user=100
    ) as chat:
        await stored(chat, 200, "x" * 4000)
        gateway = Gateway(chat.engine)
        greedy = [Client(gateway, "eve") for _ in range(5)]
        innocent = Client(gateway, "ada")
        for client in (*greedy, innocent):
            await client.join("room:a")
        answers = []
        for _ in range(10):
            for client in greedy:
                _, answer = await client.call("room:a", "history", {"limit": 200})
                answers.append(answer)
        refused = [each for each in answers if each.get("code") == "rate_limited"]
        served = [each for each in answers if "messages" in each]
        assert len(served) <= reading.BURST_S + 1
        assert refused
        assert all(each["retryable"] and each["retry_after_ms"] > 0 for each in refused)
        assert (await innocent.call("room:a", "history", {"limit": 200}))[0] == "ok"
        await asyncio.sleep(refused[-1]["retry_after_ms"] / 1000)
        assert (await greedy[0].call("room:a", "history", {"limit": 1}))[0] == "ok"
        for client in (*greedy, innocent):
            client.session.end()


@virtual
async def test_a_user_has_one_page_read_at_a_time_and_all_users_a_few() -> None:
    store = Counting()
    async with Chat(rate_limit=UNLIMITED, history_size=1, persistence=store) as chat:
        await stored(chat, 100)
        gateway = Gateway(chat.engine)
        mine = [Client(gateway, "ada") for _ in range(5)]
        for client in mine:
            await client.join("room:a")
            for _ in range(5):
                client.push("room:a", "history", {"limit": 10})
        await asyncio.sleep(5)
        assert store.most == 1
        others = [Client(gateway, f"user{number}") for number in range(20)]
        for client in others:
            await client.join("room:a")
            client.push("room:a", "history", {"limit": 10})
        await asyncio.sleep(5)
        assert store.most == reading.PAGES_AT_ONCE
        for client in (*mine, *others):
            client.session.end()
        assert len(gateway.reading) <= 20


@virtual
async def test_a_socket_has_its_next_page_read_when_it_has_taken_the_one_before_it() -> None:
    store = Counting()
    async with Chat(rate_limit=UNLIMITED, history_size=1, persistence=store) as chat:
        await stored(chat, 100)
        client = Client(Gateway(chat.engine), "ada")
        await client.join("room:a")
        client.socket.stall_at_write()
        refs = [client.push("room:a", "history", {"limit": 10}) for _ in range(5)]
        await asyncio.sleep(5)
        assert [len(client.replies(ref)) for ref in refs] == [1, 0, 0, 0, 0]
        client.socket.flow()
        await asyncio.sleep(5)
        assert [len(client.replies(ref)) for ref in refs] == [1, 1, 1, 1, 1]
        client.session.end()


@virtual
async def test_a_replay_is_read_page_by_page_behind_what_the_client_takes() -> None:
    store = Counting()
    async with Chat(rate_limit=UNLIMITED, history_size=1, persistence=store) as chat:
        epoch = await stored(chat, 1000)
        client = Client(Gateway(chat.engine), "ada")
        client.socket.stall_at_write()
        client.ask("room:a", epoch=epoch, offset=0)
        await asyncio.sleep(5)
        assert store.sizes == [PAGE_MESSAGES]
        client.socket.flow()
        await asyncio.sleep(30)
        assert client.offsets() == list(range(1, 1001))
        assert max(store.sizes) == PAGE_MESSAGES
        client.session.end()


@virtual
async def test_a_store_that_hangs_holds_up_no_replay_from_memory() -> None:
    store = Counting()
    async with Chat(rate_limit=UNLIMITED, history_size=10, persistence=store) as chat:
        epoch = await stored(chat, 100)
        gateway = Gateway(chat.engine)
        hanging = [Client(gateway, f"user{number}") for number in range(2 * reading.PAGES_AT_ONCE)]
        for client in hanging:
            await client.join("room:a")
        store.wait_s = 4
        for client in hanging:
            client.push("room:a", "history", {"limit": 50})
        await settle()
        reader = Client(gateway, "reader")
        assert (await reader.join("room:a", epoch=epoch, offset=95))["recovered"] is True
        assert reader.offsets() == [96, 97, 98, 99, 100]
        for client in (*hanging, reader):
            client.session.end()


@virtual
async def test_a_replay_beyond_the_budget_waits_and_is_whole() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=300, history_bytes_per_sec=20_000) as chat:
        epoch = await stored(chat, 300, "x" * 4000)
        client = Client(Gateway(chat.engine), "ada")
        response = await client.join("room:a", epoch=epoch, offset=0)
        assert response["recovered"] is True
        await asyncio.sleep(1)
        assert len(client.offsets()) < 300
        await chat.send_message("a", "bob", "live")
        await asyncio.sleep(120)
        assert client.offsets() == list(range(1, 302))
        client.session.end()


@pytest.mark.parametrize("socket", [FakeSocket, DirectSocket])
@virtual
async def test_replays_on_one_socket_take_turns(socket: type[FakeSocket]) -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=300) as chat:
        epochs = {number: await stored(chat, 100, room_id=f"room{number}") for number in range(30)}
        client = Client(Gateway(chat.engine), "ada", socket=socket())
        client.socket.stall_at_write()
        for number, epoch in epochs.items():
            client.ask(f"room:room{number}", epoch=epoch, offset=0)
        await settle()
        assert len(client.offsets()) == PAGE_MESSAGES  # of the first; the others wait for the client to take them
        client.socket.flow()
        await settle()
        assert len(client.offsets()) == 30 * 100
        client.session.end()


@virtual
async def test_thirty_replays_on_a_socket_that_takes_nothing_hold_a_page_in_memory() -> None:
    async with Chat(rate_limit=UNLIMITED, history_size=100) as chat:
        # 12 MB of frames, were all of it written at once.
        epochs = {number: await stored(chat, 100, "x" * 4000, f"room{number}") for number in range(30)}
        client = Client(Gateway(chat.engine), "ada")
        client.socket.stall_at_write()
        tracemalloc.start()
        try:
            for number, epoch in epochs.items():
                client.ask(f"room:room{number}", epoch=epoch, offset=0)
            await settle()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 8 * PAGE_BYTES
        client.session.end()


@virtual
async def test_a_hole_in_what_is_stored_is_told_where_it_is_reached() -> None:
    store = Counting()
    async with Chat(rate_limit=UNLIMITED, history_size=1, persistence=store) as chat:
        epoch = await stored(chat, 300)
        store.messages = [each for each in store.messages if each.offset != 150]
        client = Client(Gateway(chat.engine), "ada")
        ref = client.ask("room:a", epoch=epoch, offset=0)
        await asyncio.sleep(5)
        assert client.reply(ref)[1]["recovered"] is True
        assert client.offsets() == list(range(1, 150))
        assert client.received[-1].event == "phx_error"
        ref = client.ask("room:a", epoch=epoch, offset=149)
        await asyncio.sleep(5)
        response = client.reply(ref)[1]
        assert (response["recovered"], response["reason"]) == (False, "too_old")
        client.session.end()


@pytest.mark.parametrize(
    "largest,mailbox,at_once",
    [
        (1, 2**20, PAGE_MESSAGES),
        (4096, 2**20, 64),
        (65_536, 2**20, 4),
        (10**9, 2**20, 1),
        (4096, 100_000, 6),
        (4096, 1, 1),
    ],
)
async def test_one_read_brings_no_more_than_a_page_of_bytes(largest: int, mailbox: int, at_once: int) -> None:
    assert Reading(1, largest, mailbox, asyncio.get_running_loop()).at_once == at_once
