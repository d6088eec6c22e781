"""Who owns a room: alike on every node, and moved by nothing but its owner's going or a better one's coming."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.cluster.placement import Placement, Seat, View

NAMES = st.text("abcdef-0123.", min_size=1, max_size=8)
SEATS = st.lists(
    st.builds(Seat, NAMES, st.sampled_from(["boot1", "boot2"]), st.integers(1, 3)),
    min_size=1,
    max_size=8,
    unique_by=lambda seat: seat.node,
)
ROOMS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=30)


def seats(*names: str) -> list[Seat]:
    return [Seat(name, f"boot-of-{name}") for name in names]


@given(SEATS, ROOMS, st.randoms(use_true_random=False))
def test_order_of_nodes_does_not_matter(nodes: list[Seat], rooms: list[str], random: Random) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)
    one, other = View.of(nodes), View.of(shuffled)
    assert one == other
    assert [Placement(one).ranked(room, 8) for room in rooms] == [Placement(other).ranked(room, 8) for room in rooms]


@given(SEATS, ROOMS, st.data())
def test_leave_moves_only_the_rooms_of_the_leaver_to_the_next_in_rank(
    nodes: list[Seat], rooms: list[str], data: st.DataObject
) -> None:
    leaver = data.draw(st.sampled_from(nodes))
    before = Placement(View.of(nodes))
    after = Placement(View.of(seat for seat in nodes if seat != leaver))
    for room in rooms:
        ranked = before.ranked(room, len(nodes))
        assert after.ranked(room, len(nodes)) == tuple(seat for seat in ranked if seat != leaver)
        if before.owner(room) != leaver:
            assert after.owner(room) == before.owner(room)


@given(SEATS, ROOMS, st.integers(1, 3))
def test_join_takes_only_what_becomes_its_own(nodes: list[Seat], rooms: list[str], weight: int) -> None:
    joiner = Seat("joiner", "boot", weight)
    before, after = Placement(View.of(nodes)), Placement(View.of([*nodes, joiner]))
    for room in rooms:
        assert after.owner(room) in {before.owner(room), joiner}


@given(SEATS, ROOMS, st.integers(0, 10))
def test_ranked_are_different_nodes_with_the_owner_first(nodes: list[Seat], rooms: list[str], count: int) -> None:
    placement = Placement(View.of(nodes))
    for room in rooms:
        ranked = placement.ranked(room, count)
        assert len(ranked) == len(set(ranked)) == min(count, len(nodes))
        assert ranked[:1] == (placement.owner(room),)[:count]


@given(SEATS, ROOMS)
def test_restart_of_a_node_moves_nothing(nodes: list[Seat], rooms: list[str]) -> None:
    reborn = [Seat(seat.node, "another", seat.weight) for seat in nodes]
    one, other = Placement(View.of(nodes)), Placement(View.of(reborn))
    assert one.view.hash != other.view.hash
    for room in rooms:
        assert [each.node for each in one.ranked(room, 9)] == [each.node for each in other.ranked(room, 9)]


def test_rooms_are_spread_within_a_few_percent() -> None:
    placement = Placement(View.of(seats(*"abcde")))
    owned = Counter(placement.owner(f"room-{number}") for number in range(20_000))
    assert all(abs(count - 4_000) < 200 for count in owned.values()), owned


def test_weight_is_a_share() -> None:
    placement = Placement(View.of([Seat("small", "1"), Seat("large", "2", 3)]))
    owned = Counter(placement.owner(f"room-{number}") for number in range(20_000))
    assert abs(owned[Seat("large", "2", 3)] - 15_000) < 400, owned


def test_owners_never_change_with_a_version() -> None:
    # Nodes of two versions in one cluster must agree, so these are for ever.
    placement = Placement(View.of([*seats("a", "b"), Seat("c", "boot-of-c", 2)]))
    rooms = ["general", "café", "room 1", "x" * 128, "🙂"]
    assert "".join(seat.node for room in rooms for seat in placement.ranked(room, 3)) == "cbabcaacbcabbca"
    assert placement.view.hash == "284caaaf447d80d0"


def test_nobody_owns_a_room_of_an_empty_view() -> None:
    placement = Placement(View.of([]))
    assert placement.owner("general") is None
    assert placement.ranked("general", 3) == ()


def test_owners_are_remembered_up_to_a_bound() -> None:
    placement = Placement(View.of(seats("a", "b", "c")), cached=10)
    fresh = Placement(View.of(seats("a", "b", "c")))
    for number in range(100):
        assert placement.owner(f"room-{number % 37}") == fresh.owner(f"room-{number % 37}")
        assert len(placement._owners) <= 10


@pytest.mark.parametrize("weight", [0, -1, 17])
def test_bad_weight_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match=rf"'a' has the weight {weight}; it must be 1 to 16"):
        View.of([Seat("a", "boot", weight)])


def test_two_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="Two nodes are called 'a'"):
        View.of([Seat("a", "boot1"), Seat("b", "boot2"), Seat("a", "boot3")])
