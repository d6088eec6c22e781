"""One room's events to its subscribers: order, failures, reentrancy, interruptions."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Message, PresenceDiff
from chatx.core.fanout import Callback, Fanout, Subscriber
from chatx.core.mailbox import Batch, Mailbox
from chatx.core.message import Event
from tests.faults import VIOLENT, interrupt

DIFF = PresenceDiff("general", {}, {})


def message(offset: int) -> Message:
    return Message(f"id-{offset}", "general", "alice", "hi", 0, "e", offset)


def mailbox_subscriber(*, presence: bool = False, limit: int = 1000) -> Subscriber:
    return Subscriber(presence, mailbox=Mailbox(limit, 2**20, "disconnect"))


def drained(subscriber: Subscriber) -> list[Event]:
    assert subscriber.mailbox is not None
    return [event for batch in iter(subscriber.mailbox.take, ()) for event in batch]


def test_a_callback_is_called_at_once_and_a_mailbox_gets_its_batch_at_the_flush() -> None:
    fanout = Fanout()
    called: list[Event] = []
    fanout.add(Subscriber(False, callback=called.append))
    reader = mailbox_subscriber()
    fanout.add(reader)
    fanout.publish(message(1))
    fanout.publish(message(2))
    assert called == [message(1), message(2)]
    assert drained(reader) == []
    assert fanout.pending
    assert fanout.flush(0) == []
    assert drained(reader) == [message(1), message(2)]
    assert not fanout.pending
    assert fanout.flush(1) == []


@given(st.lists(st.sampled_from(["message", "diff", "flush"]), max_size=30))
def test_everybody_sees_the_same_order_and_presence_only_who_asked(steps: list[str]) -> None:
    fanout = Fanout()
    plain_called: list[Event] = []
    both_called: list[Event] = []
    fanout.add(Subscriber(False, callback=plain_called.append))
    fanout.add(Subscriber(True, callback=both_called.append))
    plain, both = mailbox_subscriber(), mailbox_subscriber(presence=True)
    fanout.add(plain)
    fanout.add(both)
    published: list[Event] = []
    for turn, step in enumerate(steps):
        if step == "flush":
            fanout.flush(turn)
        else:
            published.append(message(len(published) + 1) if step == "message" else DIFF)
            assert fanout.publish(published[-1]) == []
    fanout.flush(len(steps))
    messages = [each for each in published if isinstance(each, Message)]
    assert plain_called == messages
    assert both_called == published
    assert drained(plain) == messages
    assert drained(both) == published


def test_who_is_added_after_a_flush_sees_nothing_published_before() -> None:
    fanout = Fanout()
    early = mailbox_subscriber()
    fanout.add(early)
    fanout.publish(message(1))
    fanout.flush(0)
    late = mailbox_subscriber()
    fanout.add(late)
    fanout.publish(message(2))
    fanout.flush(0)
    assert drained(early) == [message(1), message(2)]
    assert drained(late) == [message(2)]


def test_who_is_removed_gets_nothing_more() -> None:
    fanout = Fanout()
    called: list[Event] = []
    subscriber = Subscriber(False, callback=called.append)
    fanout.add(subscriber)
    assert fanout.remove(subscriber)
    assert not fanout.remove(subscriber)
    fanout.publish(message(1))
    assert called == []


# A cancelled future that a callback asks for its result raises CancelledError, which is no Exception.
@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError(), GeneratorExit()])
def test_a_callback_that_raises_is_out_and_the_others_do_not_notice(error: BaseException) -> None:
    fanout = Fanout()
    called: list[tuple[str, Event]] = []

    def fails(event: Event) -> None:
        called.append(("fails", event))
        raise error

    fanout.add(Subscriber(False, callback=lambda event: called.append(("first", event))))
    failing = Subscriber(False, callback=fails)
    fanout.add(failing)
    fanout.add(Subscriber(False, callback=lambda event: called.append(("last", event))))
    assert fanout.publish(message(1)) == [(failing, error)]
    assert fanout.publish(message(2)) == []
    assert called == [
        ("first", message(1)),
        ("fails", message(1)),
        ("last", message(1)),
        ("first", message(2)),
        ("last", message(2)),
    ]


def test_every_callback_that_raises_is_reported_once() -> None:
    fanout = Fanout()
    failing = []
    for number in range(5):
        error = ValueError(number)

        def fails(_: Event, error: Exception = error) -> None:
            raise error

        failing.append((Subscriber(False, callback=fails), error))
        fanout.add(failing[-1][0])
    assert fanout.publish(message(1)) == failing
    assert not fanout.subscribers


def test_what_a_callback_publishes_goes_out_after_its_event_to_everybody() -> None:
    fanout = Fanout()
    first: list[Event] = []
    last: list[Event] = []
    reader = mailbox_subscriber()

    def answers(event: Event) -> None:
        first.append(event)
        if isinstance(event, Message) and event.offset < 4:
            fanout.publish(message(event.offset + 1))

    fanout.add(Subscriber(False, callback=answers))
    fanout.add(Subscriber(False, callback=last.append))
    fanout.add(reader)
    fanout.publish(message(1))
    fanout.flush(0)
    expected = [message(offset) for offset in range(1, 5)]
    assert first == last == drained(reader) == expected


def test_a_callback_that_publishes_and_raises_is_out_and_its_event_goes_to_the_others() -> None:
    fanout = Fanout()
    called: list[Event] = []
    error = ValueError("x")

    def fails(_: Event) -> None:
        fanout.publish(message(2))
        raise error

    failing = Subscriber(False, callback=fails)
    fanout.add(failing)
    fanout.add(Subscriber(False, callback=called.append))
    assert fanout.publish(message(1)) == [(failing, error)]
    assert called == [message(1), message(2)]


def test_a_callback_may_remove_itself_and_others_while_it_is_called() -> None:
    fanout = Fanout()
    called: list[str] = []
    subscribers: dict[str, Subscriber] = {}

    def removes(name: str, *others: str) -> Callback:
        def callback(_: Event) -> None:
            called.append(name)
            for other in others:
                fanout.remove(subscribers[other])

        return callback

    for name, others in (("a", ("a", "c")), ("b", ()), ("c", ())):
        subscribers[name] = Subscriber(False, callback=removes(name, *others))
        fanout.add(subscribers[name])
    fanout.publish(message(1))
    fanout.publish(message(2))
    assert called == ["a", "b", "b"]


def test_who_is_added_by_a_callback_sees_nothing_published_before() -> None:
    fanout = Fanout()
    late: list[Event] = []
    late_reader = mailbox_subscriber()

    def adds(event: Event) -> None:
        if event == message(1):
            fanout.publish(message(2))
            fanout.flush(0)
            fanout.add(Subscriber(False, callback=late.append))
            fanout.add(late_reader)
            fanout.publish(message(3))

    fanout.add(Subscriber(False, callback=adds))
    fanout.add(mailbox_subscriber())
    fanout.publish(message(1))
    fanout.flush(0)
    assert late == [message(3)]
    assert drained(late_reader) == [message(3)]


def test_mailboxes_that_overflow_are_out_and_are_returned() -> None:
    fanout = Fanout()
    slow, quick = mailbox_subscriber(limit=1), mailbox_subscriber(limit=1)
    fanout.add(slow)
    fanout.add(quick)
    fanout.publish(message(1))
    assert fanout.flush(0) == []
    assert drained(quick) == [message(1)]
    fanout.publish(message(2))
    assert fanout.flush(1) == [slow]
    assert list(fanout.subscribers) == [quick]
    assert drained(quick) == [message(2)]
    assert drained(slow) == [message(1)]


class Fails(Exception):
    """What an interrupted fan-out raises in these tests."""


class BrokenMailbox(Mailbox):
    """A mailbox whose first puts fail, before or after they took the batch."""

    def __init__(self, failures: int, *, took: bool) -> None:
        super().__init__(1000, 2**20, "disconnect")
        self.failures = failures
        self.took = took

    def put(self, batch: Batch, turn: int) -> bool:
        failing = self.failures > 0
        self.failures -= failing
        taken = super().put(batch, turn) if self.took or not failing else True
        if failing:
            raise Fails
        return taken


@given(st.integers(1, 3), st.integers(0, 4))
def test_an_interrupted_flush_is_finished_exactly_once(failures: int, place: int) -> None:
    """The mailbox that broke took its batch; the others must get it once."""
    fanout = Fanout()
    subscribers = [mailbox_subscriber() for _ in range(4)]
    subscribers.insert(place, Subscriber(False, mailbox=BrokenMailbox(failures, took=True)))
    for subscriber in subscribers:
        fanout.add(subscriber)
    sent = 0
    for _ in range(failures):
        sent += 1
        fanout.publish(message(sent))
        with pytest.raises(Fails):
            fanout.flush(sent)
        fanout = fanout.rebuilt()
        assert fanout.finish() == ([], [])
    fanout.publish(message(sent + 1))
    fanout.flush(sent + 1)
    for subscriber in subscribers:
        assert drained(subscriber) == [message(offset) for offset in range(1, sent + 2)]


def test_a_rebuilt_one_still_owes_what_was_pending() -> None:
    fanout = Fanout()
    reader = mailbox_subscriber()
    fanout.add(reader)
    fanout.publish(message(1))
    fanout = fanout.rebuilt()
    assert fanout.finish() == ([], [])
    assert fanout.pending
    fanout.publish(message(2))
    fanout.flush(0)
    assert drained(reader) == [message(1), message(2)]


class BrokenFanout(Fanout):
    """Fails inside a fan-out, between two callbacks, as code of ours with a defect would."""

    __slots__ = ("calls_left",)

    def __init__(self) -> None:
        super().__init__()
        self.calls_left = 10**9

    def rebuilt(self) -> Fanout:
        fresh = super().rebuilt()
        assert isinstance(fresh, BrokenFanout)
        return fresh

    def _call_each(self, event: Event, rest: Any, raised: Any) -> None:
        def counted() -> Any:
            for subscriber in rest:
                if not self.calls_left:
                    yield from ()
                    raise_it.append(subscriber)
                    return
                self.calls_left -= 1
                yield subscriber

        raise_it: list[Subscriber] = []
        super()._call_each(event, counted(), raised)
        if raise_it:
            # The one that was taken and not called is called before the failure, so that each is called once.
            assert raise_it[0].callback is not None
            raise_it[0].callback(event)
            raise Fails


@given(st.integers(0, 11))
def test_interrupted_callbacks_are_finished_exactly_once(calls: int) -> None:
    fanout: Fanout = BrokenFanout()
    logs: list[list[Event]] = [[] for _ in range(4)]
    for log in logs:
        fanout.add(Subscriber(False, callback=log.append))
    assert isinstance(fanout, BrokenFanout)
    fanout.calls_left = calls
    for offset in range(1, 4):
        try:
            fanout.publish(message(offset))
        except Fails:
            fanout = fanout.rebuilt()
            assert fanout.finish() == ([], [])
    assert logs == [[message(1), message(2), message(3)]] * 4


def test_a_callback_that_raises_what_ends_a_program_is_out_like_any_other() -> None:
    for act in VIOLENT:
        fanout = Fanout()
        seen: list[Event] = []
        fanout.add(Subscriber(False, callback=lambda _, act=act: act()))  # type: ignore[misc]
        fanout.add(Subscriber(False, callback=seen.append))
        assert len(fanout.publish(message(1))) == 1
        assert seen == [message(1)]
        assert len(fanout.subscribers) == 1


def test_what_a_signal_raises_within_a_callback_passes_through() -> None:
    fanout = Fanout()
    fanout.add(Subscriber(False, callback=lambda _: interrupt()))
    with pytest.raises(KeyboardInterrupt):
        fanout.publish(message(1))
