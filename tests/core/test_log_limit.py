"""So many lines a minute, and none forgotten."""

from chatx.core.log_limit import LogLimit


def test_so_many_lines_a_minute_and_the_next_says_how_many_were_left_out() -> None:
    limit = LogLimit(2)
    assert [limit.due(100.0) for _ in range(5)] == [0, 0, None, None, None]
    assert limit.due(159.9) is None
    assert limit.due(160.0) == 4
    assert limit.due(160.1) == 0
    assert limit.due(160.2) is None
