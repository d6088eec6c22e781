"""Ids in order: the same as those of a sorted set, whatever comes and goes, for a bounded number of looks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.core.sorted_ids import SortedIds

IDS = st.text("ab\U0001f600", min_size=1, max_size=4)


@given(
    steps=st.lists(st.tuples(IDS, st.booleans()), max_size=80),
    place=st.text("ab\U0001f600", max_size=4),
    most=st.integers(1, 9),
)
def test_they_are_those_of_a_sorted_set(steps: list[tuple[str, bool]], place: str, most: int) -> None:
    ids, expected = SortedIds(block=4), set[str]()
    for each, comes in steps:
        if comes and each not in expected:
            ids.add(each)
            expected.add(each)
        elif not comes and each in expected:
            ids.remove(each)
            expected.remove(each)
        assert ids.after(place, most) == sorted(other for other in expected if other > place)[:most]
    assert ids.after("", len(expected) + 1) == sorted(expected)


class Compared(str):
    """An id that counts how often it is compared."""

    times = 0

    def __lt__(self, other: str) -> bool:
        Compared.times += 1
        return super().__lt__(other)

    def __gt__(self, other: str) -> bool:
        Compared.times += 1
        return super().__gt__(other)


@pytest.mark.parametrize("left", [200_000, 300], ids=["many", "those that are left"])
def test_whoever_comes_goes_or_asks_looks_at_few_of_many(left: int) -> None:
    ids, rng = SortedIds(), random.Random(1)
    names = [f"room {number:06}" for number in range(200_000)]
    for each in names:
        ids.add(each)
    rng.shuffle(names)
    while len(names) > left:
        ids.remove(names.pop())
    Compared.times = 0
    ids.add(Compared("room 05x"))
    ids.remove(Compared("room 05x"))
    assert len(ids.after(Compared("room 05x"), 10)) == 10
    assert 0 < Compared.times < 150
