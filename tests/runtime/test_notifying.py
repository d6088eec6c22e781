"""A notifier's fault stays its own: no send is refused for it, nothing that is saved waits for it, nothing is lost."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat, DeadLetter, Message
from chatx.adapters.sqlite import SQLitePersistence
from chatx.runtime import notifying
from chatx.runtime.notifying import NOTIFYING, RECIPIENTS
from tests.faults import AsyncFaultyNotifier, Batches, Block, FaultyNotifier, Hang, HangDeaf, raises
from tests.virtual import virtual


class Deaf:
    """Hangs, does not heed its cancellation, and counts how many of its calls there are."""

    def __init__(self) -> None:
        self.deaf = HangDeaf()
        self.under_way = 0

    async def notify(self, user_id: str, message: Message) -> None:
        self.under_way += 1
        await self.deaf()
        self.under_way -= 1


async def test_a_plain_notifier_that_hangs_leaves_a_plain_store_its_threads(tmp_path: Path) -> None:
    block = Block()
    store = SQLitePersistence(tmp_path / "rooms.db")
    chat = Chat(
        persistence=store,
        notifier=FaultyNotifier(block, victim="bob"),
        adapter_timeout_ms=2000,
        drain_timeout_ms=100,
        middlewares=(),
    )
    async with chat:
        await chat.join("room", "bob")
        for number in range(60):
            await chat.send_message("room", "alice", str(number))
        async with asyncio.timeout(30):
            while chat.statistics().delivery_waiting:  # noqa: ASYNC110  # threads save, which know no asyncio.Event
                await asyncio.sleep(0.01)
        assert block.begun == NOTIFYING
        assert [each.content for each in await chat.history("room", limit=100)] == [str(each) for each in range(60)]
        assert "SQLitePersistence" not in chat.statistics().adapter_failures
    block.release()
    assert {each.adapter for each in chat.dead_letters} == {"notifier"}
    assert len(chat.dead_letters) == 60
    store.close()
    for thread in threading.enumerate():
        if thread.name == "chatx-adapter":
            thread.join(5)


@pytest.mark.parametrize("form", ["cancelled", "deaf"])
@virtual
async def test_an_async_notifier_that_hangs_refuses_no_send_and_what_it_has_no_room_for_is_a_dead_letter(
    form: str,
) -> None:
    deaf = Deaf()
    notifier = deaf if form == "deaf" else AsyncFaultyNotifier(Hang(), victim="bob")
    persistence = Batches()
    told: list[DeadLetter] = []

    async def tell(letter: DeadLetter) -> None:
        told.append(letter)

    chat = Chat(
        persistence=persistence,
        notifier=notifier,
        middlewares=(),
        delivery_queue_limit=50,
        delivery_max_retries=1,
        drain_timeout_ms=1000,
        on_dead_letter=tell,
    )
    async with chat:
        await chat.join("room", "bob")
        for number in range(500):
            await chat.send_message("room", "alice", str(number))
            await asyncio.sleep(0.05)
            statistics = chat.statistics()
            assert statistics.notifications_waiting <= 50
            assert statistics.delivery_waiting < 50
        assert chat.statistics().refused == {}
        assert "queue_full" in {each.reason for each in chat.dead_letters}
        assert deaf.under_way <= NOTIFYING
        deaf.deaf.release()
    assert persistence.contents == [str(number) for number in range(500)]
    letters = [each.message.content for each in chat.dead_letters]
    assert len(letters) == len(set(letters))
    if form == "cancelled":
        assert sorted(letters, key=int) == [str(number) for number in range(500)], "nothing is lost silently"
    assert [each.message.content for each in told] == letters
    assert {each.adapter for each in chat.dead_letters} == {"notifier"}


@virtual
async def test_a_message_that_the_queue_has_no_room_for_is_told_of_for_all_its_recipients() -> None:
    deaf = Deaf()
    chat = Chat(notifier=deaf, middlewares=(), delivery_queue_limit=3, drain_timeout_ms=1)
    async with chat:
        for user in ("alice", "bob", "carol"):
            await chat.join("room", user)
        for number in range(5):
            await chat.send_message("room", "alice", str(number))
        assert [(each.message.content, each.user_id, each.attempts, each.reason) for each in chat.dead_letters] == [
            ("3", None, 0, "queue_full"),
            ("4", None, 0, "queue_full"),
        ]
        assert chat.statistics().notifications_waiting == 3
        assert chat.statistics().delivery_waiting == 0
        deaf.deaf.release()


@virtual
async def test_the_notifiers_queue_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "NOTIFYING_BYTES", 100_000)
    deaf = Deaf()
    async with Chat(notifier=deaf, middlewares=(), drain_timeout_ms=1) as chat:
        for number in range(1000):
            await chat.join("room", f"user {number}")
        for _ in range(20):
            await chat.send_message("room", "alice", "hello")
        assert chat.statistics().notifications_waiting == 12, "8 bytes for each of a thousand users"
        assert chat.statistics().dead_letters == 8
        deaf.deaf.release()


@virtual
async def test_a_user_whose_calls_hang_does_not_keep_other_users_waiting_for_long() -> None:
    notifier = AsyncFaultyNotifier(Hang(), victim="bob")
    async with Chat(notifier=notifier, middlewares=(), delivery_max_retries=2, adapter_timeout_ms=100) as chat:
        await chat.join("room", "bob")
        await chat.join("room", "carol")
        for number in range(20):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(5)
        assert sorted(int(content) for _, content in notifier.notified) == list(range(20))
        assert chat.statistics().dead_letters == 20


class Names:
    """Names whom to notify, and notifies them."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.notified: list[str] = []

    async def recipients(self, message: Message) -> Any:
        return self.answer

    async def notify(self, user_id: str, message: Message) -> None:
        self.notified.append(user_id)


def endless() -> Iterator[str]:
    return (f"user {number}" for number in itertools.count())


@pytest.mark.parametrize("answer", [endless(), ["bob"] * (RECIPIENTS + 1)], ids=["endless", "too many"])
@virtual
async def test_recipients_that_names_too_many_is_a_wrong_answer(answer: Any) -> None:
    notifier = Names(answer)
    async with Chat(notifier=notifier, delivery_max_retries=0) as chat:
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(1)
        assert [(each.user_id, each.reason) for each in chat.dead_letters] == [(None, "wrong_answer")]
    assert notifier.notified == []


@virtual
async def test_a_notifier_that_fails_says_nothing_of_the_store() -> None:
    """A notifier's failures are counted for each user, however many fail."""
    chat = Chat(notifier=FaultyNotifierOfAll(), middlewares=(), delivery_max_retries=1)
    async with chat:
        await chat.join("room", "bob")
        for number in range(50):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(10)
        assert chat.statistics().dead_letters == 50
        assert {each.attempts for each in chat.dead_letters} == {2}


class FaultyNotifierOfAll:
    """Raises for everybody."""

    async def notify(self, user_id: str, message: Message) -> None:
        raises()
