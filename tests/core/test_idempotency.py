"""The window of idempotency keys."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatx.core.idempotency import KEYS_PER_ROOM, WINDOW_S, IdempotencyWindow
from chatx.core.message import Message


def message(number: int, room_id: str = "general", user_id: str = "alice") -> Message:
    return Message(f"id-{number}", room_id, user_id, "hi", 0, "e", number)


def test_the_window_is_five_minutes_by_default() -> None:
    window = IdempotencyWindow()
    window.record("k", message(1), 100.0)
    assert WINDOW_S == 300
    assert window.find("general", "alice", "k", 399.9) == message(1)
    assert window.find("general", "alice", "k", 400.0) is None


def test_a_key_is_scoped_by_room_and_user() -> None:
    window = IdempotencyWindow()
    window.record("k", message(1), 0.0)
    assert window.find("other", "alice", "k", 1.0) is None
    assert window.find("general", "bob", "k", 1.0) is None
    assert window.find("general", "alice", "k2", 1.0) is None


def test_at_the_bound_of_a_room_the_oldest_key_goes_first() -> None:
    window = IdempotencyWindow(keys_per_room=3)
    for number in range(5):
        window.record(f"k{number}", message(number), float(number))
    window.record("k", message(9, "other"), 5.0)
    assert [window.find("general", "alice", f"k{number}", 6.0) is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert len(window) == 4


def test_a_busy_room_stays_within_its_bound_and_a_quiet_one_is_let_go_of() -> None:
    window = IdempotencyWindow()
    for number in range(KEYS_PER_ROOM + 500):
        window.record(f"k{number}", message(number), 0.0)
    assert len(window) == KEYS_PER_ROOM
    gone = 0
    while (step := window.expire(WINDOW_S, 1000)) > 0:
        assert step <= 1000
        gone += step
    assert gone == KEYS_PER_ROOM
    assert len(window) == 0


def test_a_room_that_is_never_quiet_lets_go_of_its_old_keys_without_a_sweep() -> None:
    window = IdempotencyWindow()
    for number in range(1000):
        window.record(f"old {number}", message(number), 0.0)
    for number in range(1000):
        window.record(f"new {number}", message(number), WINDOW_S + number / 1000)
        assert len(window) == max(1000 - (number + 1), number + 1)


def test_many_rooms_are_let_go_of_too() -> None:
    window = IdempotencyWindow()
    for number in range(5000):
        window.record("k", message(number, f"room {number}"), number / 100)
    assert window.expire(300 + 24.995, 100_000) == 2500
    assert len(window) == 2500
    window.expire(1000.0, 100_000)
    assert len(window) == 0


class Window(RuleBasedStateMachine):
    """Against a plain dict of everything ever recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.window = IdempotencyWindow(window_s=10.0, keys_per_room=4)
        self.recorded: dict[tuple[str, str, str], tuple[Message, float]] = {}
        self.order: dict[str, list[tuple[str, str]]] = {}
        self.now = 0.0
        self.number = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(room=st.sampled_from("ab"), user=st.sampled_from("xy"), key=st.sampled_from("123"))
    def record(self, room: str, user: str, key: str) -> None:
        self.number += 1
        made = message(self.number, room, user)
        self.window.record(key, made, self.now)
        self.recorded[room, user, key] = (made, self.now + 10.0)
        order = self.order.setdefault(room, [])
        if (user, key) in order:
            order.remove((user, key))
        order.append((user, key))
        while len(order) > 4:
            gone = order.pop(0)
            del self.recorded[(room, *gone)]

    @rule(at_most=st.integers(1, 5))
    def expire(self, at_most: int) -> None:
        self.window.expire(self.now, at_most)

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        for room in "ab":
            for user in "xy":
                for key in "123":
                    made, until = self.recorded.get((room, user, key), (None, 0.0))
                    assert self.window.find(room, user, key, self.now) == (made if until > self.now else None)
        assert len(self.window) <= 8


TestWindow = Window.TestCase
TestWindow.settings = settings(max_examples=60, stateful_step_count=30)
