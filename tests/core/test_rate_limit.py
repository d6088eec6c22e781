"""Token buckets: exact waits, never more than the rate allows, nothing kept for the idle."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatx.core.rate_limit import RateLimit, TokenBuckets, wait_in_words

rates = st.one_of(
    st.floats(5e-324, 1.7e308),
    st.floats(-9, 7).map(lambda exponent: 10**exponent),
    st.sampled_from([1, 3, 7, 10, 0.1, 1 / 3]),
)
bursts = st.one_of(st.integers(1, 30), st.sampled_from([2**53, 10**400]))
clocks = st.one_of(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.just(0.0))
steps = st.lists(st.one_of(st.just(0.0), st.floats(0, 1e4)), max_size=40)


@given(rates, bursts, clocks, steps)
@example(5e-324, 1, 0.0, [0.0, 1.0])
@example(1e-300, 10, 0.0, [0.0] * 12)
@example(0.1, 1, -1e9, [0.0, 0.0])
@example(1e308, 30, 1e9, [0.0] * 40)
def test_a_lone_sender_that_waits_exactly_as_told_succeeds(
    rate: float, burst: int, start: float, waits: list[float]
) -> None:
    buckets = TokenBuckets(RateLimit(rate, burst))
    now = start
    for wait in [*waits, 0.0, 0.0]:
        now += wait
        retry_after = buckets.acquire("r", "u", now)
        if retry_after:
            assert 0 < retry_after < math.inf
            now += retry_after
            assert buckets.acquire("r", "u", now) == 0


@given(rates, st.integers(1, 30), clocks)
@example(17.0, 7, 0.0)
@example(5e-324, 1, 0.0)
@example(1.7e308, 30, 1e9)
def test_a_burst_is_taken_at_once_and_then_no_more(rate: float, burst: int, start: float) -> None:
    buckets = TokenBuckets(RateLimit(rate, burst))
    assert [buckets.acquire("r", "u", start) for _ in range(burst)] == [0.0] * burst
    assert buckets.acquire("r", "u", start) > 0


@given(
    st.floats(-6, 6).map(lambda exponent: 10**exponent),
    st.integers(1, 20),
    st.floats(0, 1e9),
    st.lists(st.one_of(st.just(0.0), st.floats(0, 2)), min_size=1, max_size=150),
)
def test_never_more_than_burst_and_rate_times_the_time(
    rate: float, burst: int, start: float, waits: list[float]
) -> None:
    """In any span that begins with a message."""
    buckets = TokenBuckets(RateLimit(rate, burst))
    now = start
    taken: list[float] = []
    for wait in waits:
        now += wait / rate
        if buckets.acquire("r", "u", now) == 0:
            taken.append(now)
    for first, since in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - since) + 1e-9


def test_a_refusal_takes_nothing() -> None:
    buckets = TokenBuckets(RateLimit(1.0, 1))
    assert buckets.acquire("r", "u", 0.0) == 0
    assert [buckets.acquire("r", "u", 0.25) for _ in range(5)] == [0.75] * 5
    assert buckets.acquire("r", "u", 1.0) == 0


def test_rooms_and_users_have_buckets_of_their_own() -> None:
    buckets = TokenBuckets(RateLimit(1.0, 1))
    assert [buckets.acquire(room, user, 0.0) for room in "ab" for user in "xy"] == [0.0] * 4
    assert all(buckets.acquire(room, user, 0.0) == 1 for room in "ab" for user in "xy")


def test_a_million_idle_pairs_do_not_stay_in_memory() -> None:
    buckets = TokenBuckets(RateLimit(10.0, 20))
    for number in range(1_000_000):
        buckets.acquire("r", str(number), 0.0)
    assert len(buckets) == 1_000_000
    assert buckets.expire(0.05, 10_000_000) == 0
    swept = 0
    while gone := buckets.expire(0.1, 20_000):
        assert gone <= 20_000
        swept += gone
    assert swept == 1_000_000
    assert len(buckets) == 0


def test_sending_lets_go_of_the_idle_without_a_sweep() -> None:
    buckets = TokenBuckets(RateLimit(10.0, 20))
    for number in range(1000):
        buckets.acquire("r", str(number), 0.0)
    for number in range(1000):
        buckets.acquire("r", f"other {number}", 10.0 + 10 * number)
    assert len(buckets) == 1


def test_a_bucket_that_was_long_idle_holds_a_burst_and_no_more() -> None:
    buckets = TokenBuckets(RateLimit(1.0, 3))
    assert buckets.acquire("r", "u", 0.0) == 0
    assert [buckets.acquire("r", "u", 1000.0) for _ in range(4)] == [0, 0, 0, 1.0]


@pytest.mark.parametrize("burst", [1, 5])
def test_a_bucket_is_forgotten_only_when_it_is_full(burst: int) -> None:
    buckets = TokenBuckets(RateLimit(1.0, burst))
    for _ in range(burst):
        buckets.acquire("r", "u", 0.0)
    assert buckets.expire(burst - 0.001, 10) == 0
    assert buckets.expire(float(burst), 10) == 1


def test_a_bucket_is_forgotten_full_or_not_and_twice_is_harmless() -> None:
    buckets = TokenBuckets(RateLimit(1, 1))
    assert buckets.acquire("r", "u", 0.0) == 0
    buckets.forget("r", "u")
    buckets.forget("r", "u")
    assert len(buckets) == 0
    assert buckets.acquire("r", "u", 0.0) == 0


@pytest.mark.parametrize(
    "seconds,said",
    [
        (0.000158, "1 ms"),
        (0.0101, "11 ms"),
        (0.5, "500 ms"),
        (0.9999, "1000 ms"),
        (1, "1.0 s"),
        (1.01, "1.1 s"),
        (59.2, "60 s"),
    ],
)
def test_a_time_to_wait_is_said_in_words_that_are_not_too_short(seconds: float, said: str) -> None:
    assert wait_in_words(seconds) == said


def test_several_tokens_are_taken_at_once_as_far_as_they_are_there_and_none_where_none_is() -> None:
    buckets = TokenBuckets(RateLimit(messages_per_sec=2, burst=5))
    assert [buckets.take("room", "ada", 1.0, 3) for _ in range(4)] == [3, 2, 0, 0]
    assert buckets.wait("room", "ada", 1.0) == 0.5
    assert buckets.take("room", "ada", 1.5, 3) == 1
    assert buckets.wait("room", "ada", 2.0) == 0.0
    assert [buckets.acquire("room", "ada", 2.0), buckets.take("room", "ada", 2.0, 3)] == [0.0, 0]
    assert buckets.take("room", "ada", 100.0, 9) == 5
    assert (buckets.wait("room", "bob", 100.0), len(buckets)) == (0.0, 1)
