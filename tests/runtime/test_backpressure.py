"""What happens when messages come faster than they can go: refused at the bound, never lost."""

import asyncio
from typing import Any

import pytest

from chatx import Chat, Message, RoomOverloaded
from chatx.core.message import Draft
from tests.faults import Batches, Gate, Hang
from tests.virtual import virtual

LIMIT = 2048
"""The default `room_queue_limit`."""


@virtual
async def test_with_a_stalled_middleware_message_2049_is_refused_and_none_of_the_2048_is_lost() -> None:
    gate = Gate()
    overflows: list[Any] = []
    sizes: list[float] = []
    chat = Chat(middlewares=(gate,), mailbox_size=2 * LIMIT, adapter_timeout_ms=10_000_000)
    chat.telemetry.attach("queue_overflow", lambda event, measured, about: overflows.append((measured, about)))
    chat.telemetry.attach("queue_size", lambda event, measured, about: sizes.append(measured["size"]))
    async with chat, chat.subscribe("room") as subscription:
        users = [f"user {number}" for number in range(16)]
        sends = [
            asyncio.create_task(chat.send_message("room", users[number % 16], f"{number}")) for number in range(LIMIT)
        ]
        await asyncio.sleep(1)
        assert gate.waiting == 16, "one at a time of each user"
        assert chat.statistics().admitted == LIMIT

        for _ in range(3):
            with pytest.raises(RoomOverloaded) as caught:
                await chat.send_message("room", "late", "one too many")
            assert caught.value.retryable
            assert caught.value.retry_after is not None
            assert caught.value.retry_after > 0
        assert [each[0] for each in overflows] == [{"size": LIMIT, "limit": LIMIT}] * 3
        assert overflows[0][1] == {"queue": "room", "room_id": "room", "user_id": "late"}
        assert sizes == [2**power for power in range(12)]

        # Another room is not this one's business.
        elsewhere = asyncio.create_task(chat.send_message("other", "late", "hello"))
        await asyncio.sleep(1)
        assert not elsewhere.done()
        assert chat.statistics().admitted == LIMIT + 1

        gate.open()
        messages = await asyncio.gather(*sends)
        await elsewhere
        assert sorted(each.offset for each in messages) == list(range(1, LIMIT + 1))
        received: list[Message] = []
        while len(received) < LIMIT:
            event = await anext(subscription)
            assert isinstance(event, Message)
            received.append(event)
        assert [each.offset for each in received] == list(range(1, LIMIT + 1))
        for place, user in enumerate(users):
            own = [int(each.content) for each in received if each.user_id == user]
            assert own == list(range(place, LIMIT, 16))
        assert chat.statistics().admitted == 0
        assert not (await chat.send_message("room", "late", "now there is room")).duplicate


@virtual
async def test_the_bound_counts_cancelled_and_refused_sends_no_longer() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,), room_queue_limit=3) as chat:
        sends = [asyncio.create_task(chat.send_message("room", "alice", str(number))) for number in range(3)]
        await asyncio.sleep(0.01)
        for victim in (sends[2], sends[0]):
            with pytest.raises(RoomOverloaded):
                await chat.send_message("room", "bob", "hello")
            victim.cancel()
            await asyncio.sleep(0.01)
            again = asyncio.create_task(chat.send_message("room", "carol", "hello"))
            await asyncio.sleep(0.01)
            assert not again.done()
            sends.append(again)
        gate.open()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert [each.content for each in results if isinstance(each, Message)] == ["1", "hello", "hello"]


@virtual
async def test_a_stalled_adapter_ends_at_its_timeout_and_the_room_takes_messages_again() -> None:
    async with Chat(middlewares=(stalled,), room_queue_limit=5, adapter_timeout_ms=1000) as chat:
        sends = [asyncio.create_task(chat.send_message("room", f"user {n}", "hello")) for n in range(5)]
        await asyncio.sleep(0.5)
        with pytest.raises(RoomOverloaded):
            await chat.send_message("room", "late", "hello")
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert {getattr(each, "code", None) for each in results} == {"adapter_error"}
        assert chat.statistics().admitted == 0
        assert (await chat.send_message("room", "quick", "hello")).offset == 1


async def stalled(draft: Draft) -> Draft:
    if draft.user_id != "quick":
        await Hang()()
    return draft


@virtual
async def test_while_persistence_stays_down_sends_are_refused_and_when_it_recovers_nothing_is_missing() -> None:
    persistence = Batches()
    persistence.down = True
    overflows: list[Any] = []
    chat = Chat(
        persistence=persistence,
        delivery_queue_limit=50,
        delivery_max_retries=1000,
        delivery_retry_base_ms=1000,
        middlewares=(),
    )
    chat.telemetry.attach("queue_overflow", lambda event, measured, about: overflows.append((measured, about)))
    async with chat, chat.subscribe("room") as subscription:
        accepted: list[str] = []
        waits: list[float] = []
        for number in range(70):
            try:
                accepted.append((await chat.send_message(f"room {number % 3}", "alice", str(number))).content)
            except RoomOverloaded as error:
                waits.append(error.retry_after or 0)
        assert accepted == [str(number) for number in range(50)]
        assert len(overflows) == len(waits) == 20
        assert min(waits) > 0
        assert overflows[0] == (
            {"size": 50, "limit": 50},
            {"queue": "delivery", "room_id": "room 2", "user_id": "alice"},
        )
        assert chat.statistics().delivery_waiting == 50
        await asyncio.sleep(100)
        with pytest.raises(RoomOverloaded):
            await chat.send_message("room", "alice", "still down")
        persistence.down = False
        await asyncio.sleep(60)
        assert chat.statistics().delivery_waiting == 0
        await chat.send_message("room", "alice", "up again")
        assert (await anext(subscription)).content == "up again"  # type: ignore[union-attr]
    assert sorted(persistence.contents) == sorted([*accepted, "up again"])
    assert chat.dead_letters == ()


@virtual
async def test_the_delivery_bound_counts_messages_still_in_their_middlewares() -> None:
    gate = Gate()
    persistence = Batches()
    async with Chat(persistence=persistence, middlewares=(gate,), delivery_queue_limit=4) as chat:
        sends = [asyncio.create_task(chat.send_message(f"room {n}", "alice", str(n))) for n in range(6)]
        await asyncio.sleep(0.01)
        assert [each.done() for each in sends] == [False] * 4 + [True] * 2
        gate.open()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert [isinstance(each, RoomOverloaded) for each in results] == [False] * 4 + [True] * 2
        await asyncio.sleep(1)
        assert sorted(persistence.contents) == ["0", "1", "2", "3"]


@virtual
async def test_without_adapters_to_deliver_to_the_delivery_bound_never_refuses() -> None:
    async with Chat(delivery_queue_limit=1, middlewares=()) as chat:
        for _ in range(100):
            await chat.send_message("room", "alice", "hello")
        assert chat.statistics().delivery_waiting == 0


class OpensWhenTold:
    """Persistence that serves history and takes its time to say where a room stands."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    async def save_message(self, message: Message) -> None:
        pass

    async def load_messages(
        self, room_id: str, *, after: object = None, before: object = None, limit: int
    ) -> list[Message]:
        return []

    async def last_position(self, room_id: str) -> None:
        await self.told.wait()


@virtual
async def test_sends_that_wait_for_a_room_to_be_opened_are_bounded_and_keep_their_order() -> None:
    persistence = OpensWhenTold()
    async with Chat(persistence=persistence, room_queue_limit=8, middlewares=()) as chat:
        sends = [asyncio.create_task(chat.send_message("r", "a", str(number))) for number in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(RoomOverloaded) as refused:
            await chat.send_message("r", "b", "one too many")
        assert refused.value.retry_after
        persistence.told.set()
        assert [message.offset for message in await asyncio.gather(*sends)] == list(range(1, 9))


@virtual
async def test_repeats_that_wait_for_the_first_send_of_their_key_are_bounded() -> None:
    go = asyncio.Event()

    async def stall(draft: Draft) -> Draft:
        await go.wait()
        return draft

    async with Chat(room_queue_limit=4, middlewares=(stall,)) as chat:
        sends = [asyncio.create_task(chat.send_message("r", "a", "once", idempotency_key="k")) for _ in range(5)]
        await asyncio.sleep(0.1)
        with pytest.raises(RoomOverloaded):
            await chat.send_message("r", "a", "once", idempotency_key="k")
        go.set()
        sent = await asyncio.gather(*sends)
        assert [message.duplicate for message in sent] == [False, True, True, True, True]
        assert {message.offset for message in sent} == {1}


@virtual
async def test_readers_who_wait_for_a_room_to_be_opened_leave_its_bound_to_the_sends() -> None:
    persistence = OpensWhenTold()
    async with Chat(persistence=persistence, room_queue_limit=2, middlewares=()) as chat:
        readers = [asyncio.create_task(_read_one(chat)) for _ in range(5)]
        await asyncio.sleep(0.1)
        send = asyncio.create_task(chat.send_message("r", "a", "hello"))
        await asyncio.sleep(0.1)
        persistence.told.set()
        assert (await send).offset == 1
        assert await asyncio.gather(*readers) == ["hello"] * 5


async def _read_one(chat: Chat) -> str:
    async with chat.subscribe("r") as subscription:
        event = await anext(subscription)
        assert isinstance(event, Message)
        return event.content
