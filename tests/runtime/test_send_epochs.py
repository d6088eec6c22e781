"""Sends that are for one epoch only: published there or not at all, but for a key that is known."""

import asyncio
from typing import Any

import pytest

from chatx import Blocked, Chat, EpochChanged, InvalidMessage, Message
from chatx.adapters.memory_log import MemoryLog
from chatx.core.message import Draft, Position
from tests.faults import Gate
from tests.logs import Gated, chat_on
from tests.virtual import turns, virtual


async def _same(draft: Draft) -> Draft:
    await asyncio.sleep(0)
    return draft


def _anew(draft: Draft) -> Draft:
    """Make another draft, as a middleware does that does not know of epochs."""
    return Draft(draft.room_id, draft.user_id, draft.content + "!")


@pytest.mark.parametrize("durability", ["sequenced", "stored"])
@pytest.mark.parametrize("middlewares", [(), (_same,), (_anew,)], ids=["none", "awaiting", "anew"])
@virtual
async def test_a_send_is_published_in_its_epoch_only_and_a_refusal_keeps_nothing(
    middlewares: Any, durability: Any
) -> None:
    async with Chat(persistence=MemoryLog(), middlewares=middlewares) as chat:
        first = await chat.send_message("a", "ann", "first", durability=durability)
        for key in (None, "k"):
            with pytest.raises(EpochChanged, match=rf"'{first.epoch}', and this was to be published in 'other' only"):
                await chat.send_message("a", "ann", "x", idempotency_key=key, durability=durability, epoch="other")
        async with chat.connect("ann") as connection:
            sent = await connection.send_message("a", "x", idempotency_key="k", epoch=first.epoch)
        assert (sent.offset, sent.epoch, sent.duplicate) == (2, first.epoch, False)
        again = await chat.send_message("a", "ann", "x", idempotency_key="k", epoch="other")
        assert (again.id, again.duplicate) == (sent.id, True)
        assert chat.statistics().refused == {"epoch_changed": 2}


@virtual
async def test_a_key_that_the_log_has_answers_in_the_next_epoch_too() -> None:
    log = MemoryLog()
    before = chat_on(log)
    await before.start()
    first = await before.send_message("a", "ann", "hi", idempotency_key="k", durability="stored")
    await before.send_message("a", "ann", "seen, and lost with the process")
    async with chat_on(log) as chat:
        again = await chat.send_message("a", "ann", "hi", idempotency_key="k", epoch=first.epoch)
        assert (again.id, again.epoch, again.duplicate) == (first.id, first.epoch, True)
        with pytest.raises(EpochChanged):
            await chat.send_message("a", "ann", "other", idempotency_key="l", epoch=first.epoch)
        assert (await chat.send_message("a", "ann", "on")).epoch != first.epoch
    await before.stop(drain_timeout_ms=1)


@virtual
async def test_what_waits_behind_a_commit_is_held_against_the_epoch_as_well() -> None:
    log = Gated()
    async with chat_on(log) as chat:
        first = await chat.send_message("a", "ann", "first", durability="stored")
        log.gate.clear()
        ahead = asyncio.ensure_future(chat.send_message("a", "ann", "ahead", durability="stored"))
        await turns()
        behind = [
            asyncio.ensure_future(chat.send_message("a", "bob", "behind", epoch=epoch))
            for epoch in (first.epoch, "other")
        ]
        await turns()
        log.gate.set()
        outcomes = await asyncio.gather(ahead, *behind, return_exceptions=True)
        assert [each.offset if isinstance(each, Message) else type(each) for each in outcomes] == [2, 3, EpochChanged]


@virtual
async def test_a_repeat_that_waited_for_one_of_another_epoch_goes_by_its_own() -> None:
    async with chat_on(MemoryLog()) as chat:  # they meet while the room is opened
        sends = [
            asyncio.ensure_future(chat.send_message("a", "ann", "hi", idempotency_key="k", epoch=epoch))
            for epoch in ("other", None, "another")
        ]
        first, second, third = await asyncio.gather(*sends, return_exceptions=True)
        assert isinstance(first, EpochChanged)
        assert isinstance(second, Message)
        assert isinstance(third, Message)
        assert (second.duplicate, third.id, third.duplicate) == (False, second.id, True)


@virtual
async def test_no_middleware_refuses_what_another_epoch_may_have_and_none_is_asked_about_it() -> None:
    asked = []

    def no(draft: Draft) -> Draft:
        asked.append(draft.epoch)
        raise Blocked

    async with Chat(middlewares=(no,)) as chat:
        head = (await chat.send_message("a", "ann", "hi", trusted=True)).epoch
        with pytest.raises(EpochChanged):
            await chat.send_message("a", "ann", "x", idempotency_key="k", epoch="other")
        with pytest.raises(Blocked):
            await chat.send_message("a", "ann", "x", idempotency_key="k", epoch=head)
        assert asked == [head]


@virtual
async def test_an_epoch_that_changes_while_middlewares_are_asked_is_noticed() -> None:
    gate = Gate()
    async with Chat(middlewares=(gate, _anew)) as chat:
        await chat.send_message("a", "ann", "hi", trusted=True)
        process = chat.engine.rooms.find("a")
        assert process is not None
        sending = asyncio.ensure_future(chat.send_message("a", "ann", "x", epoch=process.head.epoch))
        await turns()
        process.begin_anew(Position("next", 0))
        gate.open()
        with pytest.raises(EpochChanged):
            await sending


@pytest.mark.parametrize("epoch", [5, True, b"e", "", "e" * 129, "\ud800", ["e"]], ids=repr)
@virtual
async def test_what_can_be_no_epoch_is_refused_at_once(epoch: Any) -> None:
    async with Chat() as chat:
        with pytest.raises(InvalidMessage, match=r"^epoch .*; give that of a message or a join"):
            await chat.send_message("a", "ann", "hi", idempotency_key="k", epoch=epoch)
        assert (await chat.send_message("a", "ann", "hi", idempotency_key="k")).offset == 1
