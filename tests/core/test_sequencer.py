"""A room's sequencer, as a state machine beside a log that commits, fails and does not say."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatx.core.message import Draft, Entry, Message, Position
from chatx.core.sequencer import Sequencer, Waiting


def place(draft: Draft, epoch: str, offset: int, stored: bool) -> Message:
    return Message(
        f"id-{draft.content}",
        draft.room_id,
        draft.user_id,
        draft.content,
        0,
        epoch,
        offset,
        False,
        stored,
    )


class Sequencing(RuleBasedStateMachine):
    """What senders, the committer and the log do to one room, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Position("e", 0)
        self.sequencer = Sequencer(self.head)
        self.log: list[Entry] = []
        self.seen: list[Entry] = []
        self.refused: list[str] = []
        self.came: list[str] = []
        self.number = 0

    def draft(self) -> Draft:
        self.number += 1
        content = str(self.number)
        self.came.append(content)
        return Draft("general", "alice", content)

    def apply(self, entry: Entry) -> None:
        assert entry.offset == self.head.offset + 1, "contiguous"
        self.head = Position(entry.epoch, entry.offset)
        self.seen.append(entry)

    def go_on(self) -> None:
        while (waiting := self.sequencer.next_free()) is not None:
            message = place(waiting.draft, self.head.epoch, self.head.offset + 1, False)
            self.apply(message)
            self.sequencer.owe(message, waiting.scope)

    @rule(stored=st.booleans())
    def send(self, stored: bool) -> None:
        draft = self.draft()
        if not stored and not self.sequencer.blocked:
            message = place(draft, self.head.epoch, self.head.offset + 1, False)
            self.apply(message)
            self.sequencer.owe(message, None)
        else:
            self.sequencer.submit(Waiting(draft, None, stored, None, 10))

    @precondition(lambda self: self.sequencer.ready)
    @rule(most=st.integers(1, 5), size=st.integers(1, 400))
    def form(self, most: int, size: int) -> None:
        flight = self.sequencer.form(most, size, place)
        assert 1 <= len(flight.entries) <= most
        assert [entry.offset for entry, _ in flight.entries] == list(
            range(flight.after.offset + 1, flight.after.offset + 1 + len(flight.entries))
        )

    @precondition(lambda self: self.sequencer.flight is not None)
    @rule()
    def commit(self) -> None:
        flight = self.sequencer.committed()
        self.log += [entry for entry, _ in flight.entries]
        for waiting in flight.drafts:
            assert waiting.message is not None
            self.apply(waiting.message)
        self.go_on()

    @precondition(lambda self: self.sequencer.flight is not None)
    @rule()
    def fail(self) -> None:
        flight = self.sequencer.failed()
        self.refused += [each.draft.content for each in flight.drafts if each.stored]
        self.go_on()

    @precondition(lambda self: self.sequencer.flight is not None)
    @rule()
    def leave_open(self) -> None:
        self.sequencer.unsettled = True

    @invariant()
    def the_log_is_a_prefix_of_what_was_seen(self) -> None:
        assert self.seen[: len(self.log)] == self.log or self.log[: len(self.seen)] == self.seen

    @invariant()
    def what_was_seen_came_in_order_and_nothing_is_seen_that_can_fail(self) -> None:
        contents = [each.content for each in self.seen]
        assert contents == sorted(contents, key=int)
        stored = [each for each in self.seen if isinstance(each, Message) and each.stored]
        assert all(each in self.log for each in stored)

    @invariant()
    def nothing_is_lost(self) -> None:
        flight = self.sequencer.flight
        under_way = [] if flight is None else [each.draft.content for each in flight.drafts]
        waiting = [each.draft.content for each in self.sequencer._waiting]
        seen = [each.content for each in self.seen]
        assert sorted([*seen, *self.refused, *under_way, *waiting], key=int) == self.came
        assert len(self.seen) - len(self.log) == self.sequencer.behind


TestSequencing = Sequencing.TestCase
TestSequencing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
