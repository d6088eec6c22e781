"""When a node takes itself for deaf, and what it does then."""

from __future__ import annotations

from itertools import pairwise

from chatx.cluster.hearing import PATIENCE, SILENT_TURNS, Hearing

WAYS = ("topics", "questions")


def turns(hearing: Hearing, count: int, *heard: str) -> list[bool]:
    """Let turns pass in which these ways bring a word back; return which of them asked for another link."""
    asked = []
    for _ in range(count):
        asked.append(hearing.turn())
        for way in heard:
            hearing.heard(way)
    return asked


def test_who_hears_all_is_never_deaf() -> None:
    hearing = Hearing(WAYS)
    assert not any(turns(hearing, 100, *WAYS))
    assert not hearing.deaf


def test_who_misses_a_word_now_and_then_is_not_deaf() -> None:
    hearing = Hearing(WAYS)
    for _ in range(20):
        assert not any(turns(hearing, SILENT_TURNS - 1, "topics"))
        assert not any(turns(hearing, 1, *WAYS))
    assert not hearing.deaf


def test_one_way_that_is_silent_is_enough_until_all_are_heard_again() -> None:
    hearing = Hearing(WAYS)
    assert turns(hearing, SILENT_TURNS + 1, "topics") == [False] * SILENT_TURNS + [True]
    assert hearing.deaf == ("questions",)
    turns(hearing, 1, *WAYS)
    assert not hearing.deaf
    assert turns(hearing, SILENT_TURNS + 1, "questions")[-1]  # as patient as at first


def test_a_link_that_is_made_anew_in_vain_is_tried_less_and_less_often_and_not_given_up() -> None:
    hearing = Hearing(WAYS)
    asked = [number for number, again in enumerate(turns(hearing, 400, "topics")) if again]
    between = [later - earlier for earlier, later in pairwise(asked)]
    assert between[:4] == [SILENT_TURNS + 1, 2 * SILENT_TURNS + 1, 4 * SILENT_TURNS + 1, 8 * SILENT_TURNS + 1]
    assert {*between[5:]} == {PATIENCE + 1}


def test_what_cannot_be_said_is_not_missed() -> None:
    hearing = Hearing(WAYS)
    for _ in range(10):
        assert not any(turns(hearing, SILENT_TURNS - 1))
        turns(hearing, 1, *WAYS)
        hearing.pause()
        assert not hearing.turn()
        for way in WAYS:
            hearing.heard(way)
    assert not hearing.deaf
