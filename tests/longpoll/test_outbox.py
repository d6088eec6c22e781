"""Nothing is lost and nothing comes twice, whichever responses do not arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.gateway.longpoll.outbox import Outbox, OutOfStep


def add(outbox: Outbox, *texts: str, bounded: bool = True) -> bool:
    return outbox.add(list(texts), sum(map(len, texts)), bounded=bounded)


def test_a_batch_stays_until_the_next_poll_names_it() -> None:
    outbox = Outbox(100)
    add(outbox, "a", "b")
    assert outbox.take(0) == ["a", "b"]
    assert (outbox.number, len(outbox), outbox.ready) == (1, 2, False)
    add(outbox, "c")
    assert outbox.take(0) == ["a", "b"]  # it did not arrive; what came since is not in it
    assert (outbox.number, len(outbox), outbox.ready) == (1, 3, True)
    assert outbox.take(1) == ["c"]
    assert outbox.take(2) == []
    assert (outbox.number, len(outbox)) == (2, 0)
    assert outbox.take(2) == []


def test_a_number_that_cannot_be_the_clients_is_out_of_step() -> None:
    outbox = Outbox(100)
    for text in "abc":
        add(outbox, text)
        outbox.take(outbox.number)
    for number in (0, 1, 4, 10**14):
        with pytest.raises(OutOfStep):
            outbox.take(number)
    assert outbox.take(2) == ["c"]
    outbox.take(3)
    # The batch is acknowledged: who asks for it again is an echo.
    with pytest.raises(OutOfStep):
        outbox.take(2)


def test_what_waits_and_what_is_not_acknowledged_are_bounded_together() -> None:
    outbox = Outbox(10)
    assert add(outbox, "x" * 6)
    outbox.take(0)
    assert add(outbox, "y" * 4)
    assert not add(outbox, "z")
    assert add(outbox, "z", bounded=False)
    assert outbox.take(1) == ["y" * 4, "z"]
    assert add(outbox, "a" * 5)
    outbox.clear()
    assert (len(outbox), outbox.take(2)) == (0, [])


@given(st.lists(st.one_of(st.integers(0, 3), st.sampled_from(["arrives", "lost"]))))
def test_the_client_gets_each_message_once_and_in_order(steps: list[int | str]) -> None:
    outbox = Outbox(10**6)
    sent: list[str] = []
    got: list[str] = []
    number = 0
    for step in [*steps, "arrives", "arrives"]:
        if isinstance(step, int):
            texts = [str(len(sent) + index) for index in range(step)]
            sent += texts
            add(outbox, *texts)
            continue
        batch = outbox.take(number)
        if step == "arrives":
            got += batch
            number = outbox.number
    assert got == sent
    assert outbox.take(number) == []
    assert len(outbox) == 0
