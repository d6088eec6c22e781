"""How many sockets there may be: every bound, and that what was counted is given back."""

from __future__ import annotations

import random

import pytest

from chatx.gateway.entry.admission import Admission, Full, Place


def admission(*, per_user: int = 0, per_address: int = 0, pending: int = 1024) -> Admission:
    return Admission(per_user=per_user, per_address=per_address, pending=pending)


def opened(counts: Admission, user_id: str = "ada", address: str | None = "192.0.2.1") -> Place:
    place = counts.begin(address)
    try:
        place.admit(user_id)
    except Full:
        place.end()
        raise
    return place


def test_a_user_has_no_more_sockets_than_the_bound_and_one_more_when_one_ends() -> None:
    counts = admission(per_user=2)
    first, _ = opened(counts), opened(counts)
    with pytest.raises(Full, match="max_connections_per_user") as refused:
        opened(counts)
    assert refused.value.status == 429
    opened(counts, "bob")
    first.end()
    opened(counts)
    with pytest.raises(Full):
        opened(counts)


def test_an_address_has_no_more_sockets_than_the_bound_and_those_that_are_opening_count() -> None:
    counts = admission(per_address=2)
    opening, _ = counts.begin("192.0.2.1"), opened(counts, "ada")
    with pytest.raises(Full, match="max_connections_per_address") as refused:
        counts.begin("192.0.2.1")
    assert refused.value.status == 429
    opened(counts, "bob", "192.0.2.2")
    opening.end()
    opened(counts, "carol")


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:DB8:0:0:1::", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("testclient", "testclient", True),
        ("testclient", "another", False),
    ],
)
def test_an_address_is_a_host_or_an_ipv6_network(one: str, other: str, same: bool) -> None:
    counts = admission(per_address=1)
    counts.begin(one)
    if same:
        with pytest.raises(Full):
            counts.begin(other)
    else:
        counts.begin(other)


def test_without_an_address_there_is_no_bound_on_it() -> None:
    counts = admission(per_address=1)
    for _ in range(3):
        opened(counts, address=None)


def test_handshakes_under_way_are_bounded_and_admitting_or_ending_one_makes_room() -> None:
    counts = admission(pending=2)
    first, second = counts.begin("a"), counts.begin("b")
    with pytest.raises(Full, match="under way") as refused:
        counts.begin("c")
    assert refused.value.status == 503
    first.admit("ada")
    third = counts.begin("c")
    with pytest.raises(Full):
        counts.begin("d")
    second.end()
    third.end()
    assert [counts.begin("e"), counts.begin("f")]


class Waiting:
    """Who waits to be let in, from an address."""

    def __init__(self, counts: Admission, address: str) -> None:
        self.place = counts.begin(address)
        self.place.occupy(self)
        self.asked_to_go = 0

    last_seen = 0.0

    def ask(self) -> None:
        raise AssertionError("nobody is asked who is not in")

    def give_way(self) -> None:
        self.asked_to_go += 1


def test_handshakes_of_one_address_that_hang_give_way_to_one_of_an_address_that_has_fewer() -> None:
    counts = admission(pending=4)
    flood = [Waiting(counts, "a") for _ in range(4)]
    with pytest.raises(Full):
        counts.begin("a")  # its own do not
    first = Waiting(counts, "b")
    assert [each.asked_to_go for each in flood] == [1, 0, 0, 0]
    counts.begin("b")
    assert [each.asked_to_go for each in flood] == [1, 1, 0, 0]
    with pytest.raises(Full):
        counts.begin("b")  # which has as many as the other now
    counts.begin("c")
    assert [each.asked_to_go for each in flood] == [1, 1, 1, 0]
    assert first.asked_to_go == 0
    flood[3].place.admit("ada")
    assert not first.place.ended


def test_who_is_refused_for_their_address_pushes_out_nobody() -> None:
    counts = admission(per_address=2, pending=2)
    opened(counts, "ada", "b")
    opened(counts, "eve", "b")
    flood = [Waiting(counts, "a") for _ in range(2)]
    with pytest.raises(Full, match="max_connections_per_address"):
        counts.begin("b")
    assert [each.asked_to_go for each in flood] == [0, 0]


def test_zero_is_no_bound() -> None:
    counts = admission()
    for _ in range(500):
        opened(counts)


def test_a_place_is_admitted_once_and_ends_once() -> None:
    counts = admission(per_user=1, per_address=1)
    place = opened(counts)
    with pytest.raises(RuntimeError):
        place.admit("bob")
    place.end()
    place.end()
    with pytest.raises(RuntimeError):
        place.admit("ada")
    again = opened(counts)
    with pytest.raises(Full):
        counts.begin("192.0.2.1")
    again.end()
    assert len(counts) == 0


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_a_plain_list_and_nothing_is_left_at_the_end(seed: int) -> None:
    draw = random.Random(seed)
    counts = admission(per_user=3, per_address=5, pending=4)
    pending: list[tuple[Place, str]] = []
    held: list[tuple[Place, str, str]] = []
    for _ in range(500):
        match draw.randrange(4):
            case 0 | 1:
                address = draw.choice("xyz")
                waiting = [each[1] for each in pending]
                most = max((waiting.count(each) for each in waiting), default=0)
                full = [*waiting, *(each[1] for each in held)].count(address) >= 5
                full = full or (len(pending) >= 4 and waiting.count(address) + 1 >= most)
                try:
                    place = counts.begin(address)
                    kept = [each for each in pending if not each[0].ended]
                    gone = [each for each in pending if each[0].ended]
                    assert len(gone) == (len(pending) >= 4)
                    assert all(waiting.count(each[1]) == most for each in gone)
                    pending = [*kept, (place, address)]
                    assert not full
                except Full:
                    assert full
            case 2 if pending:
                place, address = pending.pop(draw.randrange(len(pending)))
                user = draw.choice("ab")
                full = [each[2] for each in held].count(user) >= 3
                try:
                    place.admit(user)
                    held.append((place, address, user))
                    assert not full
                except Full:
                    assert full
                    place.end()
            case _ if held:
                held.pop(draw.randrange(len(held)))[0].end()
            case _:
                pass
    for left in [each[0] for each in pending] + [each[0] for each in held]:
        left.end()
    assert len(counts) == 0
