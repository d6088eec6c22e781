"""Shares of what is bounded: who gives way, and that it is found without looking at everybody."""

from __future__ import annotations

import random

import pytest

from chatx.gateway.entry.shares import Shares


def test_the_oldest_of_the_address_that_holds_most_gives_way_first() -> None:
    shares: Shares[str] = Shares()
    shares.add("honest", "192.0.2.1")
    for number in range(3):
        shares.add(f"flood {number}", "203.0.113.9")
    assert shares.largest == 3
    assert shares.share("203.0.113.9") == 3
    gone = []
    while (item := shares.first_to_go()) is not None:
        gone.append(item)
        shares.discard(item)
    assert gone == ["flood 0", "flood 1", "honest", "flood 2"]
    assert len(shares) == shares.largest == 0


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        (None, None, True),
        (None, "192.0.2.1", False),
    ],
)
def test_a_share_is_that_of_a_host_or_an_ipv6_network_or_of_all_without_an_address(
    one: str | None, other: str | None, *, same: bool
) -> None:
    shares: Shares[int] = Shares()
    shares.add(1, one)
    shares.add(2, other)
    assert shares.share(one) == (2 if same else 1)


def test_one_that_is_held_keeps_its_age_and_one_that_is_not_may_be_discarded() -> None:
    shares: Shares[int] = Shares()
    shares.add(1, "192.0.2.1")
    shares.add(2, "192.0.2.1")
    shares.add(1, "192.0.2.9")
    assert shares.first_to_go() == 1
    assert 1 in shares
    shares.discard(3)
    assert list(shares) == [1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_those_of_a_plain_list_and_nothing_is_left_at_the_end(seed: int) -> None:
    rng = random.Random(seed)
    shares: Shares[int] = Shares()
    plain: list[tuple[int, str]] = []
    for number in range(300):
        if plain and rng.random() < 0.45:
            item = plain.pop(rng.randrange(len(plain)))[0]
            shares.discard(item)
        else:
            address = f"192.0.2.{rng.randrange(6)}"
            plain.append((number, address))
            shares.add(number, address)
        counts = {each: sum(address == each for _, address in plain) for _, each in plain}
        assert shares.largest == max(counts.values(), default=0)
        assert list(shares) == [item for item, _ in plain]
        first = shares.first_to_go()
        if not plain:
            assert first is None
            continue
        of = dict(plain)[first]  # type: ignore[index]  # it is held
        assert counts[of] == shares.largest
        assert first == next(item for item, address in plain if address == of)
    for item, _ in plain:
        shares.discard(item)
    assert not shares._keys
    assert not shares._held
    assert not shares._levels
