"""The chain of steps a draft goes through."""

from itertools import permutations
from typing import Any

import pytest

from chatx import Blocked, Draft
from chatx.core.middleware import AwaitingStep, Chain, PlainStep, Step

DRAFT = Draft("general", "alice", "hi")


def adds(letter: str) -> PlainStep:
    return PlainStep(lambda draft: Draft(draft.room_id, draft.user_id, draft.content + letter))


def adds_later(letter: str) -> AwaitingStep:
    async def run(draft: Draft) -> Draft:
        return Draft(draft.room_id, draft.user_id, draft.content + letter)

    return AwaitingStep(run)


def unchecked(_: Draft, after: Any) -> Draft:
    assert isinstance(after, Draft)
    return after


def finished(coroutine: Any) -> Draft:
    """Return the result of a coroutine that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result = stop.value
        assert isinstance(result, Draft)
        return result
    raise AssertionError("it waited")


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_steps_run_in_the_configured_order(order: tuple[str, ...]) -> None:
    chain = Chain([adds(letter) for letter in order], unchecked)
    assert not chain.awaits
    assert chain.run(DRAFT).content == "hi" + "".join(order)


@pytest.mark.parametrize("awaiting", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_plain_and_awaiting_steps_keep_their_order_together(awaiting: tuple[int, ...]) -> None:
    steps: list[Step] = [adds_later(each) if place in awaiting else adds(each) for place, each in enumerate("abc")]
    chain = Chain(steps, unchecked)
    assert chain.awaits
    assert finished(chain.run_awaiting(DRAFT)).content == "hiabc"


def test_an_empty_chain_passes_the_draft_itself() -> None:
    assert Chain([], unchecked).run(DRAFT) is DRAFT
    assert finished(Chain([], unchecked).run_awaiting(DRAFT)) is DRAFT


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_first_refusal_ends_the_chain(place: int) -> None:
    ran: list[int] = []

    def step(number: int) -> PlainStep:
        def run(draft: Draft) -> Draft:
            ran.append(number)
            if number == place:
                raise Blocked(f"by {number}")
            return draft

        return PlainStep(run)

    chain = Chain([step(0), step(1), step(2)], unchecked)
    with pytest.raises(Blocked, match=f"by {place}"):
        chain.run(DRAFT)
    assert ran == list(range(place + 1))


def test_only_a_changed_draft_is_checked_again_and_the_check_has_the_last_word() -> None:
    checked: list[tuple[str, str]] = []

    def check(before: Draft, after: Draft) -> Draft:
        checked.append((before.content, after.content))
        return Draft("general", "alice", after.content + "!")

    chain = Chain([PlainStep(lambda draft: draft), adds("a"), adds("b")], check)
    assert chain.run(DRAFT).content == "hia!b!"
    assert checked == [("hi", "hia"), ("hia!", "hia!b")]
    assert finished(chain.run_awaiting(DRAFT)).content == "hia!b!"
