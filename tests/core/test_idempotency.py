"""The window of idempotency keys."""

import gc
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatx.core.idempotency import BYTES, SHARES, WINDOW_S, IdempotencyWindow, Place, key_of, scope_of
from chatx.core.message import Message


def message(number: int, room_id: str = "general", user_id: str = "alice") -> Message:
    return Message(f"id-{number}", room_id, user_id, "hi", 7, "e", number)


def place(number: int) -> Place:
    return Place(f"id-{number}", 7, "e", number, hash("hi"))


def record(window: IdempotencyWindow, key: str, made: Message, now: float) -> None:
    """Record that this message was sent with this key."""
    window.record(scope_of(made.room_id, made.user_id, key), made, now)


def find(window: IdempotencyWindow, room_id: str, user_id: str, key: str, now: float) -> Place | None:
    """Return what the window knows of a user's key in a room."""
    return window.find(scope_of(room_id, user_id, key), now)


def remembered(window: IdempotencyWindow, keys: int, user_id: str = "alice", now: float = 0.0) -> list[int]:
    """Return which of a user's keys named by number are remembered."""
    return [number for number in range(keys) if find(window, "general", user_id, str(number), now) is not None]


def test_the_window_is_five_minutes_by_default() -> None:
    window = IdempotencyWindow()
    record(window, "k", message(1), 100.0)
    assert WINDOW_S == 300
    assert find(window, "general", "alice", "k", 399.9) == place(1)
    assert find(window, "general", "alice", "k", 400.0) is None


def test_a_key_is_scoped_by_room_and_user() -> None:
    window = IdempotencyWindow()
    record(window, "k", message(1), 0.0)
    assert find(window, "other", "alice", "k", 1.0) is None
    assert find(window, "general", "bob", "k", 1.0) is None
    assert find(window, "general", "alice", "k2", 1.0) is None


def test_a_place_comes_back_whole_whatever_is_in_it() -> None:
    window = IdempotencyWindow()
    whole = Message("ïd" * 40, "räum", "ⓤ", "content", 2**52, "époche" * 9, 2**52)
    record(window, "ключ", whole, 0.0)
    found = find(window, "räum", "ⓤ", "ключ", 0.0)
    assert found == Place(whole.id, whole.inserted_at, whole.epoch, whole.offset, hash("content"))


def test_the_first_message_of_a_key_stands_until_its_window_is_over() -> None:
    window = IdempotencyWindow()
    record(window, "k", message(1), 0.0)
    record(window, "k", message(2), 299.0)
    assert find(window, "general", "alice", "k", 299.0) == place(1)
    record(window, "k", message(3), 300.0)
    assert find(window, "general", "alice", "k", 599.0) == place(3)
    assert len(window) == 1


def test_a_key_costs_the_same_however_much_was_said() -> None:
    costs = set()
    for content in ("hi", "x" * 4096):
        window = IdempotencyWindow()
        record(window, "k", Message("id", "general", "alice", content, 0, "e", 1), 0.0)
        costs.add(window.held)
    assert len(costs) == 1


def test_beyond_their_share_a_user_loses_their_own_oldest_key_in_whatever_room() -> None:
    window = IdempotencyWindow(most_bytes=100_000)
    record(window, "k", message(0, user_id="bob"), 0.0)
    for number in range(1000):
        record(window, f"{number:04}", message(number, f"room {number:04}"), 0.0)
    assert window.held <= 100_000 / SHARES + 1000
    kept = [number for number in range(1000) if find(window, f"room {number:04}", "alice", f"{number:04}", 0.0)]
    assert kept == list(range(1000 - len(kept), 1000))
    assert len(kept) > 30
    assert find(window, "general", "bob", "k", 0.0) is not None


def test_at_the_bound_of_all_who_holds_most_loses_their_oldest_and_who_holds_few_loses_none() -> None:
    window = IdempotencyWindow(most_bytes=300_000)
    for number in range(3):
        record(window, str(number), message(number), 0.0)
    for number in range(1000):
        for user in range(20):
            record(window, str(number), message(number, user_id=f"user {user}"), 1.0)
            assert window.held <= 300_000
    assert remembered(window, 3) == [0, 1, 2]


def test_one_key_is_remembered_however_small_the_bound() -> None:
    window = IdempotencyWindow(most_bytes=1)
    for number in range(5):
        record(window, str(number), message(number), 0.0)
        assert remembered(window, 5) == [number]


def test_all_windows_end_by_sweeps_of_a_bounded_length() -> None:
    window = IdempotencyWindow()
    for number in range(10_500):
        record(window, str(number), message(number, user_id=f"user {number % 7}"), 0.0)
    gone = 0
    while (step := window.expire(WINDOW_S, 1000)) > 0:
        assert step <= 1000
        gone += step
    assert gone == 10_500
    assert (len(window), window.held) == (0, 0)


def test_what_is_over_goes_without_a_sweep_too() -> None:
    window = IdempotencyWindow()
    for number in range(1000):
        record(window, f"old {number}", message(number), 0.0)
    for number in range(1000):
        record(window, f"new {number}", message(number, user_id="bob"), WINDOW_S + number / 1000)
        assert len(window) == max(1000 - (number + 1), number + 1)


def test_many_rooms_are_let_go_of_too() -> None:
    window = IdempotencyWindow()
    for number in range(5000):
        record(window, "k", message(number, f"room {number}"), number / 100)
    assert window.expire(300 + 24.995, 100_000) == 2500
    assert len(window) == 2500
    window.expire(1000.0, 100_000)
    assert len(window) == 0


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("users", [1, 100, 10**9])
@pytest.mark.parametrize("long", [False, True])
def test_what_is_held_is_what_python_allocates(users: int, long: bool) -> None:
    window = IdempotencyWindow(most_bytes=2**22)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(15_000):
        name = f"{number:0128}" if long else f"{number:036}"
        user = f"user {number % users:010}"
        record(window, name, Message(f"{number:036}", "general", user, "x" * 4096, 2**40, "e" * 22, number), 0.0)
    allocated = tracemalloc.get_traced_memory()[0] - before
    assert window.held <= 2**22
    # Tables grow in leaps, so it is never exact.
    assert 0.4 * window.held < allocated < 1.1 * window.held


def test_the_default_holds_the_keys_of_hundreds_of_messages_a_second_for_the_whole_window() -> None:
    window = IdempotencyWindow()
    for number in range(1000):
        record(window, f"{number:036}", message(number, user_id=f"user {number}"), 0.0)
    assert BYTES / (window.held / 1000) / WINDOW_S > 100


def test_the_keys_of_many_rooms_are_not_looked_at_for_each_of_them() -> None:
    window = IdempotencyWindow()
    for number in range(5_000):
        record(window, "k", message(number, f"room {number}"), 0.0)
    called = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal called
        called += 1

    assert window.keys_of("room 0") == {0: "k"}
    record(window, "k2", message(5_001, "room 7"), 0.0)
    gc.disable()
    sys.setprofile(count)
    try:
        found = window.keys_of("room 7")
    finally:
        sys.setprofile(None)
        gc.enable()
    assert found == {7: "k", 5_001: "k2"}
    assert called < 50


class Window(RuleBasedStateMachine):
    """Against a plain dict of everything recorded that nothing has pushed out."""

    def __init__(self) -> None:
        super().__init__()
        # About twenty keys in all, five of a user.
        self.window = IdempotencyWindow(window_s=10.0, most_bytes=8000)
        self.recorded: dict[tuple[str, str, str], tuple[int, float]] = {}
        self.now = 0.0
        self.number = 0

    def live(self, user: str) -> list[tuple[str, str, str]]:
        return [scope for scope, (_, until) in self.recorded.items() if scope[1] == user and until > self.now]

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(room=st.sampled_from("ab"), user=st.sampled_from("uvwxyz"), keys=st.lists(st.sampled_from("12345")))
    def record(self, room: str, user: str, keys: list[str]) -> None:
        for key in keys:
            self.number += 1
            known = self.recorded.get((room, user, key), (0, 0.0))[1] > self.now
            before = {each: len(self.live(each)) for each in "uvwxyz"}
            record(self.window, key, message(self.number, room, user), self.now)
            if known:
                continue
            self.recorded.pop((room, user, key), None)
            self.recorded[room, user, key] = (self.number, self.now + 10.0)
            lost = [
                scope for each in "uvwxyz" for scope in self.live(each) if find(self.window, *scope, self.now) is None
            ]
            for scope in lost:
                assert scope == self.live(scope[1])[0], "a user's oldest key goes first"
                if scope[1] != user:
                    assert before[scope[1]] >= max(before.values()) - 1, "who holds most loses"
                del self.recorded[scope]

    @rule(rooms=st.lists(st.sampled_from("abc"), max_size=3), forgets=st.booleans())
    def move(self, rooms: list[str], forgets: bool) -> None:
        for room in rooms:
            of_room = [scope for scope in self.window._kept if scope.startswith(f"{room}\0".encode())]
            by_offset = {each.offset: scope for scope in of_room if (each := self.window.find(scope, -1.0)) is not None}
            assert len(by_offset) == len(of_room)
            assert self.window.keys_of(room) == {offset: key_of(scope) for offset, scope in by_offset.items()}
        if forgets:
            self.window.forget_rooms()

    @rule(at_most=st.integers(1, 5))
    def expire(self, at_most: int) -> None:
        self.window.expire(self.now, at_most)

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        for room in "ab":
            for user in "uvwxyz":
                for key in "12345":
                    number, until = self.recorded.get((room, user, key), (0, 0.0))
                    assert find(self.window, room, user, key, self.now) == (place(number) if until > self.now else None)

    @invariant()
    def bounds_hold(self) -> None:
        assert self.window.held <= 8000
        assert (self.window.held == 0) == (len(self.window) == 0)

    def teardown(self) -> None:
        while self.window.expire(self.now + 10.0, 3):
            pass
        assert (len(self.window), self.window.held) == (0, 0)


TestWindow = Window.TestCase
TestWindow.settings = settings(max_examples=60, stateful_step_count=30)
