"""The measurement of many nodes: a figure counts only where it would notice what was lost."""

from __future__ import annotations

from benchmarks.cluster.goals import GOALS, formula, others
from benchmarks.cluster.nodes import room_of
from benchmarks.cluster.readers import Reader
from benchmarks.cluster.stall import stall
from benchmarks.goals import table
from chatx import Chat, RateLimit
from tests.gateway.servers import named, native


async def test_one_who_talks_while_the_owner_goes_sees_what_was_acknowledged() -> None:
    struck = []
    async with Chat(rate_limit=RateLimit(1e6, 10**6)) as chat, native(chat, named) as (_, port):
        seen = await stall(port, "general", lambda: struck.append(chat.statistics().subscriptions), 1.2)
    assert len(struck) == 1
    assert (seen["lost"], seen["doubled"]) == (0, 0)
    assert seen["acknowledged"] > 10


async def test_a_reader_counts_a_message_wherever_it_is_cut() -> None:
    frame = b'[null,null,"room:a","new_message",{"content":"x"}]'
    for cut in range(len(frame)):
        reader = Reader(b"", b"")
        for part in (frame[:cut], frame[cut:] + frame):
            reader.data_received(part)
        assert reader.received == 2
        reader.joined.cancel()


def test_a_room_is_found_for_each_node() -> None:
    names = ["a", "b", "c"]
    assert len({room_of(name, names) for name in names}) == 3


def test_the_page_has_what_was_measured_and_no_more() -> None:
    assert (others({}), formula({})) == ("", "")
    figures = {"pg kill stall_s": 2.0, "together cpu_us": 5.0, "spread cpu_us": 6.0, "spread readers": 3000.0}
    figures |= {"spread broker_us": 400.0, "together hurried message_us": 100.0}
    figures |= {"spread hurried message_us": 220.0, "spread hurried broker_us": 10.0, "spread hurried per_second": 2e4}
    assert len(table(GOALS, figures).splitlines()) == 3
    assert "5.00 µs of CPU on one node, and 6.00 µs where they are spread over three" in others(figures)
    said = formula(figures)
    assert "`f` = 60 µs and `b` = 5 µs a message where 20,000 a second are said" in said
    assert "`b` is 200 µs" in said
    assert "a room of 10,000 readers costs 50 ms of CPU a message in deliveries, and 0.5 ms for being followed" in said
    assert "A broker on one core copies 22,222 messages" in said
