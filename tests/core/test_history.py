"""The ring of a room's newest messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx.core.history import History
from chatx.core.message import Message, Position


def message(offset: int, epoch: str = "e") -> Message:
    return Message(f"id-{offset}", "general", "alice", f"text {offset}", 0, epoch, offset)


def filled(size: int, begins: int, count: int) -> History:
    history = History(size, Position("e", begins))
    for offset in range(begins + 1, begins + count + 1):
        history.append(message(offset))
    return history


sizes = st.integers(1, 8)
begins = st.integers(0, 5)
counts = st.integers(0, 20)


@given(sizes, begins, counts)
def test_it_keeps_the_newest_and_ends_at_the_head(size: int, begin: int, count: int) -> None:
    history = filled(size, begin, count)
    kept = history.newest(100)
    assert history.position == Position("e", begin + count)
    assert [each.offset for each in kept] == list(range(history.start, begin + count + 1))
    assert len(kept) == min(size, count)


@given(sizes, begins, counts, st.integers(0, 30), st.integers(0, 30))
def test_a_read_after_a_place_is_whole_or_refused(size: int, begin: int, count: int, after: int, limit: int) -> None:
    history = filled(size, begin, count)
    head = begin + count
    found = history.after(Position("e", after), limit)
    if isinstance(found, list):
        assert [each.offset for each in found] == list(range(after + 1, head + 1))
        assert len(found) <= limit
    elif found == "epoch_changed":
        assert after > head
    elif found == "too_many":
        assert head - after > limit
    else:
        assert found == "too_old"
        assert after + 1 < history.start


def test_another_stream_is_refused() -> None:
    assert filled(4, 0, 2).after(Position("other", 1), 10) == "epoch_changed"


@given(sizes, begins, counts, st.integers(0, 30), st.integers(1, 30))
def test_reading_back_gives_the_newest_below_a_place(
    size: int, begin: int, count: int, before: int, limit: int
) -> None:
    history = filled(size, begin, count)
    below = [each for each in history.newest(100) if each.offset < before]
    assert history.before(before, limit) == below[-limit:]
    assert history.newest(limit) == history.newest(100)[-limit:]


@given(sizes, begins, counts)
def test_a_rebuilt_one_is_equal(size: int, begin: int, count: int) -> None:
    history = filled(size, begin, count)
    fresh = history.rebuilt()
    assert (fresh.position, fresh.size, fresh.start) == (history.position, history.size, history.start)
    assert fresh.newest(100) == history.newest(100)


def test_a_rebuilt_one_keeps_only_the_unbroken_run_that_ends_at_the_head() -> None:
    history = filled(8, 0, 2)
    history._ring.extend((message(4), message(5)))
    history.offset = 5
    fresh = history.rebuilt()
    assert [each.offset for each in fresh.newest(100)] == [4, 5]
    assert fresh.start == 4
    history._ring.append(message(6, "other"))
    assert history.rebuilt().newest(100) == []


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_only_what_follows_the_head_is_kept(offset: int) -> None:
    history = filled(8, 0, 2)
    with pytest.raises(ValueError, match="does not follow 2"):
        history.append(message(offset))
    with pytest.raises(ValueError, match="does not follow 2"):
        history.append(message(3, "other"))
    assert [each.offset for each in history.newest(9)] == [1, 2]
