"""What each user may have read: charged after the fact, and forgotten when it is whole again."""

from hypothesis import given
from hypothesis import strategies as st

from chatx.core.byte_budget import ByteBudget


def test_a_budget_is_spent_and_comes_back() -> None:
    budget = ByteBudget(rate=10, burst=100)
    assert budget.wait("ada", 0) == 0
    budget.charge("ada", 100, 0)
    assert budget.wait("ada", 0) == 0  # nothing is left, and nothing is owed
    budget.charge("ada", 50, 0)
    assert budget.wait("ada", 0) == 5
    assert budget.wait("ada", 4) == 1
    assert budget.wait("ada", 5) == 0
    assert budget.wait("bob", 0) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 500), st.floats(0, 20, allow_nan=False)), max_size=60)
)
def test_nobody_reads_more_than_burst_and_rate_and_one_read_allow(reads: list[tuple[str, int, float]]) -> None:
    budget = ByteBudget(rate=10, burst=100)
    now = 0.0
    read: dict[str, int] = {}
    for user, size, pause in reads:
        now += pause
        if budget.wait(user, now) == 0:
            budget.charge(user, size, now)
            read[user] = read.get(user, 0) + size
        assert all(total <= 100 + 10 * now + 500 + 1e-6 for total in read.values())


def test_whoever_has_paid_off_is_forgotten_while_others_read() -> None:
    budget = ByteBudget(rate=10, burst=100)
    for number in range(1000):
        budget.charge(f"user{number}", 10, float(number))  # each is whole again a second later
    assert len(budget) <= 20
