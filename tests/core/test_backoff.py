"""Exponential backoff with full jitter."""

from hypothesis import example, given
from hypothesis import strategies as st

from chatx.core.backoff import CEILING_MS, backoff_ms

jitters = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), st.integers(1, 2**53 - 1), jitters)
@example(10_000, 2**53 - 1, 0.0)
def test_a_wait_is_within_its_ceiling_and_never_negative(attempt: int, base_ms: int, jitter: float) -> None:
    wait = backoff_ms(attempt, base_ms, jitter)
    assert 0 <= wait <= CEILING_MS
    assert wait <= base_ms * 2 ** (attempt - 1)


@given(st.integers(1, 12))
def test_the_ceiling_doubles_with_each_retry(attempt: int) -> None:
    first, second = backoff_ms(attempt, 1, 0.5), backoff_ms(attempt + 1, 1, 0.5)
    assert second == 2 * first


def test_the_jitter_is_full() -> None:
    assert backoff_ms(3, 100, 0.0) == 0
    assert backoff_ms(1, 100, 0.25) == 25
    assert backoff_ms(3, 100, 0.5) == 200
