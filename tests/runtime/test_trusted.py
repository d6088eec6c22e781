"""What the application itself says: past the middlewares, and past nothing else."""

import asyncio
from typing import Any

import pytest

from chatx import (
    Chat,
    ChatError,
    Draft,
    InvalidMessage,
    MessageTooLarge,
    RateLimit,
    RoomOverloaded,
)
from tests.faults import Batches, FaultyAuth, FaultyModeration, Gate, Stored, raises
from tests.virtual import virtual

NOBODY = RateLimit(messages_per_sec=0.001, burst=1)


class Refuses:
    """Auth, moderation and a middleware that refuse everything, and count that they were asked."""

    def __init__(self) -> None:
        self.asked = 0

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        self.asked += 1
        return action != "send"

    async def check(self, content: str) -> bool:
        self.asked += 1
        return False

    async def __call__(self, draft: Draft) -> Draft:
        self.asked += 1
        raise ChatError("no")


async def codes_of(*sends: Any) -> list[str]:
    """Return the codes with which sends are refused, "" where one is not."""
    outcomes = await asyncio.gather(*sends, return_exceptions=True)
    return [each.code if isinstance(each, ChatError) else "" for each in outcomes]


@pytest.mark.parametrize("persistence", [None, Stored, Batches], ids=["none", "history", "saves only"])
@virtual
async def test_no_middleware_is_asked_and_no_token_taken(persistence: Any) -> None:
    refuses = Refuses()
    async with Chat(
        auth=refuses,
        moderation=refuses,
        middlewares=("auth", "rate_limit", "moderation", refuses),
        rate_limit=NOBODY,
        persistence=persistence and persistence(),
    ) as chat:
        async with chat.connect("bot") as connection, chat.subscribe("room") as subscription:
            sent = [await chat.send_message("room", "bot", f"{number}", trusted=True) for number in range(5)]
            sent += [await connection.send_message("room", "from a connection", trusted=True)]
            assert [await anext(subscription) for _ in sent] == sent
        assert [each.offset for each in sent] == [1, 2, 3, 4, 5, 6]
        assert await chat.history("room") == sent
        assert (refuses.asked, chat.statistics().token_buckets, chat.statistics().refused) == (0, 0, {})
        # And whoever does not say so is asked as ever.
        assert await codes_of(chat.send_message("room", "bot", "x", trusted=False)) == ["unauthorized"]
        assert refuses.asked == 1


@virtual
async def test_adapters_that_fail_or_hang_are_not_in_its_way() -> None:
    gate = Gate()
    chat = Chat(auth=FaultyAuth(raises), moderation=FaultyModeration(raises), middlewares=("auth", "moderation", gate))
    async with chat:
        assert (await chat.send_message("room", "bot", "hello", trusted=True)).offset == 1
        assert gate.waiting == 0


@pytest.mark.parametrize("trusted", ["true", "false", "", 1, 0, None, [True]], ids=repr)
@pytest.mark.parametrize("middlewares", [(), (Refuses(),)], ids=["plain", "awaits"])
@virtual
async def test_trusted_is_exactly_a_bool(trusted: Any, middlewares: Any) -> None:
    async with Chat(middlewares=middlewares) as chat, chat.connect("bot") as connection:
        for sending in (
            chat.send_message("room", "bot", "hello", trusted=trusted),
            connection.send_message("room", "hello", trusted=trusted),
        ):
            with pytest.raises(InvalidMessage, match=r"trusted is .*; give True or False\."):
                await sending
        assert await chat.history("room") == []
        assert chat.statistics().refused == {"invalid_message": 2}


@virtual
async def test_it_is_validated_like_any_other() -> None:
    async with Chat(message_size_limit=10) as chat:
        for room, user, content, key, error in (
            ("", "bot", "hello", None, InvalidMessage),
            ("room", "", "hello", None, InvalidMessage),
            ("room", "bot", "", None, InvalidMessage),
            ("room", "bot", "x" * 11, None, MessageTooLarge),
            ("room", "bot", "hello", "", InvalidMessage),
        ):
            with pytest.raises(error):
                await chat.send_message(room, user, content, idempotency_key=key, trusted=True)


@virtual
async def test_the_bounds_of_admission_and_delivery_hold() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,), room_queue_limit=2) as chat:
        waiting = [asyncio.create_task(chat.send_message("room", user, "hello")) for user in ("alice", "carol")]
        await asyncio.sleep(0.01)
        with pytest.raises(RoomOverloaded):
            await chat.send_message("room", "bot", "hello", trusted=True)
        gate.open()
        await asyncio.gather(*waiting)
    store = Batches()
    store.down = True
    async with Chat(persistence=store, delivery_queue_limit=2, drain_timeout_ms=1) as chat:
        for _ in range(2):
            await chat.send_message("room", "bot", "hello", trusted=True)
        with pytest.raises(RoomOverloaded):
            await chat.send_message("room", "bot", "hello", trusted=True)


@virtual
async def test_it_waits_for_the_same_users_sends_in_their_middlewares_and_for_nobody_elses() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        asked = [asyncio.create_task(chat.send_message("room", "alice", each)) for each in ("first", "second")]
        await asyncio.sleep(0.01)
        own = asyncio.create_task(chat.send_message("room", "alice", "third", trusted=True))
        last = asyncio.create_task(chat.send_message("room", "alice", "fourth"))
        await asyncio.sleep(0.01)
        assert (await chat.send_message("room", "bot", "at once", trusted=True)).offset == 1
        assert (await chat.send_message("other", "alice", "at once", trusted=True)).offset == 1
        assert not own.done()
        gate.open()
        await asyncio.gather(*asked, own, last)
        assert [each.content for each in await chat.history("room")] == [
            "at once",
            "first",
            "second",
            "third",
            "fourth",
        ]


@virtual
async def test_one_that_is_sent_out_of_a_middleware_goes_ahead_of_the_send_that_waits_for_it() -> None:
    chat: Chat

    async def announces(draft: Draft) -> Draft:
        await chat.send_message(draft.room_id, draft.user_id, f"about to say {draft.content}", trusted=True)
        return draft

    async with (chat := Chat(middlewares=(announces,))):
        await asyncio.wait_for(chat.send_message("room", "alice", "hello"), 1)
        assert [each.content for each in await chat.history("room")] == ["about to say hello", "hello"]


@virtual
async def test_a_key_is_answered_with_the_first_message_whoever_is_trusted() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        first = await chat.send_message("room", "bot", "hello", idempotency_key="k", trusted=True)
        gate.open()
        for trusted in (True, False):
            again = await chat.send_message("room", "bot", "hello", idempotency_key="k", trusted=trusted)
            assert (again.id, again.duplicate) == (first.id, True)


@virtual
async def test_a_repeat_waits_for_the_outcome_of_the_first_that_is_in_its_middlewares() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate,)) as chat:
        first = asyncio.create_task(chat.send_message("room", "bot", "hello", idempotency_key="k"))
        await asyncio.sleep(0.01)
        again = asyncio.create_task(chat.send_message("room", "bot", "hello", idempotency_key="k", trusted=True))
        await asyncio.sleep(0.01)
        gate.open()
        sent = await asyncio.gather(first, again)
        assert [each.duplicate for each in sent] == [False, True]
        assert len(await chat.history("room")) == 1
