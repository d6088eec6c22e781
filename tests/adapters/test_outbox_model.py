"""The outbox in SQLite against the one in memory, whatever claimers do, die of and come back to."""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatx import Message, Position
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import FARTHEST_MS, Claimed, Outcome
from chatx.adapters.room_log import Append, Recipients, Record
from chatx.adapters.sqlite import SQLitePersistence

T = TypeVar("T")

USERS = st.none() | st.lists(st.sampled_from(["bob", "carol", "ü\U0001f600 \"'\\"]), unique=True).map(tuple)
STATES = st.sampled_from(["done", "waiting", "claimed", "dead"])
CLAIMERS = st.sampled_from(["one", "two", "three"])


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the answer of a coroutine that awaits nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        answer: T = stopped.value
        return answer
    raise AssertionError("It awaits something.")


class Outboxes(RuleBasedStateMachine):
    """Both are asked the same, and answer the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "chat.db"
        self.store = SQLitePersistence(self.path)
        self.model = MemoryLog()
        self.term = self.store.take_over("room").term
        assert now(self.model.take_over("room")).term == self.term
        self.offset = 0
        self.now_ms = 1_000_000
        self.claimed: dict[str, dict[str, Claimed]] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(users=USERS, due=st.integers(-2, 2), told=st.booleans())
    def append(self, users: tuple[str, ...] | None, due: int, told: bool) -> None:
        self.offset += 1
        message = Message(
            f"id {self.offset % 7} {self.offset}", "room", "alice", "hi", self.now_ms, "e", self.offset, stored=True
        )
        notify = Recipients(users, self.now_ms + due * FARTHEST_MS) if told else None
        append = Append("room", self.term, Position("e", self.offset - 1), (Record(message, None, notify),), True)
        assert self.store.append([append]) == now(self.model.append([append])) == [None]

    @rule(claimer=CLAIMERS, limit=st.integers(1, 3), lease=st.integers(1, FARTHEST_MS))
    def claim(self, claimer: str, limit: int, lease: int) -> None:
        asked = claimer, limit, self.now_ms, self.now_ms + lease
        claimed = self.store.claim_notifications(*asked)
        assert claimed == now(self.model.claim_notifications(*asked))
        # One whose lease was over may be claimed anew by the same; it is settled once all the same.
        self.claimed.setdefault(claimer, {}).update((each.notification.id, each) for each in claimed)

    @rule(
        claimer=CLAIMERS,
        became=st.lists(st.tuples(STATES, USERS, st.integers(0, 3), st.integers(0, 1000)), max_size=3),
    )
    def settle(self, claimer: str, became: list[tuple[Any, tuple[str, ...] | None, int, int]]) -> None:
        mine = self.claimed.get(claimer, {})
        outcomes = [
            Outcome(
                mine.pop(next(iter(mine))).notification.id,
                state,
                users,
                attempts,
                self.now_ms + wait,
                "raised" * (state == "dead") or None,
            )
            for state, users, attempts, wait in became
            if mine
        ]
        self.store.settle_notifications(claimer, outcomes)
        now(self.model.settle_notifications(claimer, outcomes))

    @rule(claimer=CLAIMERS)
    def die(self, claimer: str) -> None:
        """What it had claimed is nobody's business until the leases are over; the file is what it was."""
        self.claimed.pop(claimer, None)
        self.store.close()
        self.store = SQLitePersistence(self.path)

    @rule(step=st.integers(-2 * FARTHEST_MS, FARTHEST_MS))
    def step_the_clock(self, step: int) -> None:
        self.now_ms += step

    @rule(which=st.sets(st.integers(0, 20), max_size=3), what=st.sampled_from(["retry", "drop"]))
    def change(self, which: set[int], what: str) -> None:
        ids = [f"id {each % 7} {each}" for each in sorted(which)]
        name = f"{what}_notifications"
        assert getattr(self.store, name)(ids) == now(getattr(self.model, name)(ids))

    @invariant()
    def the_same_is_there(self) -> None:
        for state in (None, "waiting", "claimed", "dead"):
            rows = self.store.list_notifications(state, None, 100)
            assert rows == now(self.model.list_notifications(state, None, 100))


TestOutboxes = Outboxes.TestCase
