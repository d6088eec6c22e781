"""The unread events of one consumer: its bounds, its two policies, and what a loss says."""

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chatx import Closed, Gap, Message, PresenceDiff, PresenceState, SlowConsumer, SubscriptionEnded
from chatx.core.mailbox import Batch, Mailbox
from chatx.core.message import EVENT_BYTES, Event, PresenceMeta, Signal, UnknownEntry, weigh

Policy = Literal["disconnect", "drop_oldest"]
ENDED = SubscriptionEnded("a", "room_unavailable", "It failed.")


def message(offset: int, room_id: str = "a", content: str = "hi", epoch: str = "e") -> Message:
    return Message(f"{room_id}-{offset}", room_id, "alice", content, 0, epoch, offset)


def batch(*offsets: int) -> Batch:
    return Batch.of(message(offset) for offset in offsets)


def drained(mailbox: Mailbox) -> list[Event]:
    return [event for batch in iter(mailbox.take, ()) for event in batch]


def offsets_of(events: list[Event]) -> list[int]:
    return [event.offset for event in events if isinstance(event, Message)]


def test_events_come_out_in_the_order_of_their_batches() -> None:
    mailbox = Mailbox(10, 10**6, "disconnect")
    mailbox.put(batch(1, 2), 0)
    mailbox.put(batch(3), 1)
    assert mailbox.take() == (message(1), message(2))
    mailbox.put(batch(4), 2)
    assert (mailbox.unread, mailbox.size) == (2, batch(3, 4).size)
    assert offsets_of(drained(mailbox)) == [3, 4]
    assert mailbox.take() == ()
    assert (mailbox.unread, mailbox.size) == (0, 0)


def test_an_event_weighs_its_content_in_bytes_and_presence_its_members() -> None:
    meta = PresenceMeta("1", 0)
    assert weigh(message(1, content="hi")) == EVENT_BYTES + 2
    assert weigh(message(1, content="é€")) == EVENT_BYTES + 5
    assert weigh(PresenceState("a", {})) == EVENT_BYTES
    assert weigh(PresenceState("a", {"x": [meta, meta], "y": [meta]})) == 4 * EVENT_BYTES
    assert weigh(PresenceDiff("a", {"x": [meta]}, {"y": [meta]})) == 3 * EVENT_BYTES
    assert weigh(ENDED) == weigh(Gap("a", "too_old", "e", 1)) == EVENT_BYTES


def test_it_wakes_once_and_forgets_to() -> None:
    woken: list[str] = []
    mailbox = Mailbox(10, 10**6, "disconnect")
    mailbox.wake = lambda: woken.append("put")
    mailbox.put(batch(1), 0)
    mailbox.put(batch(2), 0)
    assert woken == ["put"]
    mailbox.wake = lambda: woken.append("close")
    mailbox.close(Closed("x"))
    mailbox.close(Closed("y"))
    assert woken == ["put", "close"]
    assert mailbox.error is not None
    assert mailbox.error.reason == "x"


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
def test_what_one_turn_publishes_is_taken_whole(policy: Policy) -> None:
    mailbox = Mailbox(4, 10**6, policy)
    assert mailbox.put(batch(*range(1, 101)), 7)
    assert mailbox.put(batch(*range(101, 201)), 7)
    assert offsets_of(drained(mailbox)) == list(range(1, 201))
    # All was read: however much the next turn brings, it is not slow.
    assert mailbox.put(batch(*range(201, 301)), 8)
    assert offsets_of(drained(mailbox)) == list(range(201, 301))


def test_at_the_bound_disconnect_gives_what_is_held_and_takes_nothing_more() -> None:
    mailbox = Mailbox(3, 10**6, "disconnect")
    assert mailbox.put(batch(1, 2), 0)
    assert mailbox.put(batch(3), 1)
    woken: list[int] = []
    mailbox.wake = lambda: woken.append(1)
    assert not mailbox.put(batch(4, 5), 2)
    assert woken == [1]
    assert isinstance(mailbox.error, SlowConsumer)
    assert "3 events" in mailbox.error.reason
    assert not mailbox.put(batch(6), 3)
    assert offsets_of(drained(mailbox)) == [1, 2, 3]
    assert not mailbox.put(batch(7), 4)
    assert mailbox.take() == ()


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
def test_the_bound_is_in_bytes_too(policy: Policy) -> None:
    mailbox = Mailbox(1000, 3 * (EVENT_BYTES + 100), policy)
    for offset in (1, 2, 3):
        assert mailbox.put(Batch.of([message(offset, content="x" * 100)]), offset)
    assert mailbox.put(Batch.of([message(4, content="x")]), 4) == (policy == "drop_oldest")
    if policy == "drop_oldest":
        assert mailbox.take() == (Gap("a", "slow_consumer", "e", 1, 1),)
        assert offsets_of(drained(mailbox)) == [2, 3, 4]


def test_dropping_the_oldest_says_so_before_what_is_left() -> None:
    mailbox = Mailbox(3, 10**6, "drop_oldest")
    for offset in range(1, 8):
        assert mailbox.put(batch(offset), offset)
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 4, 4), message(5), message(6), message(7)]
    for offset in range(8, 13):
        mailbox.put(batch(offset), offset)
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 9, 2), message(10), message(11), message(12)]


def test_what_a_turn_brings_is_not_dropped_for_itself() -> None:
    mailbox = Mailbox(2, 10**6, "drop_oldest")
    mailbox.put(batch(1), 0)
    mailbox.put(batch(*range(2, 12)), 1)
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 1, 1), *(message(each) for each in range(2, 12))]


SIGNAL = Signal("a", "alice", "typing")


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
def test_signals_are_let_go_of_first_and_leave_no_trace(policy: Policy) -> None:
    mailbox = Mailbox(3, 10**6, policy)
    mailbox.put(Batch.of([message(1), SIGNAL, message(2)]), 0)
    assert mailbox.put(Batch.of([SIGNAL, message(3)]), 1)
    assert drained(mailbox) == [message(1), message(2), message(3)]
    assert (mailbox.unread, mailbox.size, mailbox.lost_presence) == (0, 0, set())


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
def test_a_signal_makes_nobody_slow(policy: Policy) -> None:
    mailbox = Mailbox(2, 10**6, policy)
    mailbox.put(batch(1, 2, 3), 0)  # what one turn brings is taken whole
    assert mailbox.put(Batch.of([SIGNAL]), 1)
    assert mailbox.error is None
    assert drained(mailbox) == [message(1), message(2), message(3)]


def test_where_signals_were_not_enough_the_policy_applies() -> None:
    mailbox = Mailbox(2, 10**6, "drop_oldest")
    mailbox.put(Batch.of([message(1), SIGNAL, message(2)]), 0)
    mailbox.put(batch(3, 4), 1)
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 2, 2), message(3), message(4)]
    mailbox = Mailbox(2, 10**6, "disconnect")
    mailbox.put(Batch.of([message(1), SIGNAL, message(2)]), 0)
    assert not mailbox.put(Batch.of([SIGNAL, message(3)]), 1)
    assert drained(mailbox) == [message(1), message(2)]


def test_an_entry_of_an_unknown_kind_leaves_a_gap_too() -> None:
    mailbox = Mailbox(1, 10**6, "drop_oldest")
    mailbox.put(Batch.of([UnknownEntry("1", "a", "alice", "", 0, "e", 1, "reaction", "0")]), 0)
    mailbox.put(batch(2), 1)
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 1, 1), message(2)]


def test_each_room_has_a_gap_of_its_own() -> None:
    mailbox = Mailbox(2, 10**6, "drop_oldest")
    for offset in (1, 2, 3):
        mailbox.put(Batch.of([message(offset), message(offset, "b")]), offset)
    assert drained(mailbox) == [
        Gap("a", "slow_consumer", "e", 2, 2),
        Gap("b", "slow_consumer", "e", 2, 2),
        message(3),
        message(3, "b"),
    ]


def test_lost_presence_is_owed_and_not_counted_as_missed() -> None:
    mailbox = Mailbox(1, 10**6, "drop_oldest")
    mailbox.put(Batch.of([message(1), PresenceDiff("a", {}, {})]), 0)
    mailbox.put(batch(2), 1)
    assert mailbox.lost_presence == {"a"}
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 1, 1), message(2)]


def test_presence_is_not_told_while_a_fresh_state_is_owed() -> None:
    mailbox = Mailbox(2, 10**6, "drop_oldest")
    diff, other = PresenceDiff("a", {}, {}), PresenceDiff("b", {}, {})
    mailbox.put(Batch.of([diff, message(1), diff]), 0)
    mailbox.put(Batch.of([diff]), 1)
    mailbox.put(Batch.of([diff, other, ENDED]), 2)
    assert mailbox.lost_presence == {"a"}
    assert drained(mailbox) == [Gap("a", "slow_consumer", "e", 1, 1), other, ENDED]
    mailbox.lost_presence.clear()
    mailbox.put(Batch.of([diff]), 3)
    assert drained(mailbox) == [diff]


def test_the_end_of_a_subscription_is_never_dropped() -> None:
    mailbox = Mailbox(1, 10**6, "drop_oldest")
    mailbox.put(Batch.of([message(1), message(2)]), 0)
    mailbox.put(Batch.of([ENDED]), 1)
    # The room was subscribed again, in its next life.
    for offset in (1, 2, 3):
        mailbox.put(Batch.of([message(offset, epoch="f")]), 1 + offset)
    mailbox.put(Batch.of([message(1, "b")]), 5)
    assert mailbox.lost_presence == set()
    assert drained(mailbox) == [
        Gap("a", "slow_consumer", "e", 2, 2),
        ENDED,
        Gap("a", "slow_consumer", "f", 3, 3),
        message(1, "b"),
    ]


def test_purging_a_room_drops_all_that_is_unread_of_it_and_only_that() -> None:
    mailbox = Mailbox(4, 10**6, "drop_oldest")
    mailbox.put(Batch.of([message(1), message(1, "b"), PresenceDiff("a", {}, {})]), 0)
    mailbox.put(Batch.of([message(2), message(2, "b"), message(3), ENDED]), 1)
    assert mailbox.lost_presence == {"a"}
    mailbox.purge("a")
    assert mailbox.lost_presence == set()
    assert mailbox.unread == 1
    assert mailbox.size == weigh(message(2, "b"))
    assert drained(mailbox) == [Gap("b", "slow_consumer", "e", 1, 1), message(2, "b")]
    mailbox.purge("a")
    assert mailbox.take() == ()


def test_a_batch_that_is_dropped_in_part_is_purged_from_its_place() -> None:
    mailbox = Mailbox(5, 10**6, "drop_oldest")
    mailbox.put(Batch.of([message(1, "b"), message(1), message(2, "b"), message(2)]), 0)
    mailbox.put(Batch.of([message(3), message(3, "b")]), 1)
    mailbox.purge("a")
    assert drained(mailbox) == [Gap("b", "slow_consumer", "e", 1, 1), message(2, "b"), message(3, "b")]
    assert (mailbox.unread, mailbox.size) == (0, 0)


class MailboxModel(RuleBasedStateMachine):
    """Messages of two rooms, read now and then: all of them come out in order, or gaps count them exactly."""

    @initialize(policy=st.sampled_from(["disconnect", "drop_oldest"]), limit=st.integers(1, 6), kilo=st.booleans())
    def begin(self, policy: Policy, limit: int, kilo: bool) -> None:
        self.policy = policy
        self.limit = limit
        self.limit_bytes = 10 * EVENT_BYTES if kilo else 10**6
        self.mailbox = Mailbox(limit, self.limit_bytes, policy)
        self.turn = 0
        self.heads = {"a": 0, "b": 0}  # published to the mailbox
        self.read_up_to = {"a": 0, "b": 0}
        # What was put within the newest turn that brought anything.
        self.put_in = self.turn_events = self.turn_bytes = 0
        self.refused_from: dict[str, int] | None = None

    @rule()
    def next_turn(self) -> None:
        self.turn += 1

    @rule(rooms=st.lists(st.sampled_from("ab"), min_size=1, max_size=5), size=st.sampled_from([0, 1, 400]))
    def publish(self, rooms: list[str], size: int) -> None:
        before = dict(self.heads)
        events = []
        for room in rooms:
            self.heads[room] += 1
            events.append(message(self.heads[room], room, "x" * size))
        put = Batch.of(events)
        open_before = self.mailbox.error is None
        if self.mailbox.put(put, self.turn):
            assert open_before
            if self.put_in != self.turn:
                self.put_in = self.turn
                self.turn_events = self.turn_bytes = 0
            self.turn_events += len(put.events)
            self.turn_bytes += put.size
        else:
            assert self.policy == "disconnect"
            assert isinstance(self.mailbox.error, SlowConsumer)
            if self.refused_from is None:
                self.refused_from = before
            self.heads = self.refused_from.copy()

    @rule(count=st.integers(1, 4))
    def read(self, count: int) -> None:
        for _ in range(count):
            batch = self.mailbox.take()
            self.check(batch)
            if not batch:
                # Nothing was lost without a gap: all that was put has been read or counted.
                assert self.read_up_to == self.heads
                return

    def check(self, batch: tuple[Event, ...]) -> None:
        for event in batch:
            room = event.room_id
            if isinstance(event, Gap):
                assert self.policy == "drop_oldest"
                assert event.missed == event.offset - self.read_up_to[room]
                assert event.missed > 0
                self.read_up_to[room] = event.offset
            else:
                assert isinstance(event, Message)
                assert event.offset == self.read_up_to[room] + 1
                self.read_up_to[room] = event.offset

    @invariant()
    def the_bounds_hold(self) -> None:
        mailbox = self.mailbox
        assert mailbox.unread <= self.limit + self.turn_events
        assert mailbox.size <= self.limit_bytes + self.turn_bytes
        assert (mailbox.unread == 0) == (mailbox.size == 0)


TestMailboxModel = MailboxModel.TestCase
TestMailboxModel.settings = settings(max_examples=100, stateful_step_count=40)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 8)), max_size=40), st.integers(1, 5))
def test_reading_all_each_turn_never_loses_anything(turns: list[tuple[int, int]], limit: int) -> None:
    for policy in ("disconnect", "drop_oldest"):
        mailbox = Mailbox(limit, EVENT_BYTES, policy)
        head = 0
        for turn, (batches, size) in enumerate(turns):
            published = 0
            for _ in range(batches if size else 0):
                assert mailbox.put(batch(*range(head + 1, head + size + 1)), turn)
                head += size
                published += size
            assert offsets_of(drained(mailbox)) == list(range(head - published + 1, head + 1))
