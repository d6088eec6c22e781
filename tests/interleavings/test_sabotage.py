"""Whether the suite finds what it is for: rooms that break one promise each, and the seeds until it shows."""

from typing import Any, Literal

import pytest

from chatx.core.fanout import Fanout, Subscriber
from chatx.core.history import History
from chatx.core.idempotency import IdempotencyWindow
from chatx.core.mailbox import Mailbox
from chatx.core.message import Entry, Message, Position
from chatx.core.presence import Presence
from chatx.core.room import Effects
from chatx.runtime.lanes import Lanes
from chatx.runtime.saving import Saving
from tests.interleavings.play import play
from tests.interleavings.test_interleavings import SUITE
from tests.interleavings.world import WorldRoom, run
from tests.seeds import assert_found

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("schedules")]


class ReorderingFanout(Fanout):
    """Swaps the last two messages of a turn that published three or more."""

    __slots__ = ()

    def flush(self, turn: int) -> list[Subscriber]:
        if len(self._pending) > 2:
            self._pending[-2:] = self._pending[:-3:-1]
        return super().flush(turn)


class ReorderingRoom(WorldRoom):
    __slots__ = ()

    def __init__(self, room_id: str, position: Position, history_size: int) -> None:
        super().__init__(room_id, position, history_size)
        self.fanout = ReorderingFanout()


class SkippingHistory(History):
    """Leaves out the oldest of a page of what a reader missed, where that is more than two messages."""

    __slots__ = ()

    def page(self, position: Position, most: int) -> list[Entry] | Literal["epoch_changed", "too_old"]:
        found = super().page(position, most)
        return found[1:] if isinstance(found, list) and len(found) > 2 else found


class SkippingRoom(WorldRoom):
    __slots__ = ()

    def __init__(self, room_id: str, position: Position, history_size: int) -> None:
        super().__init__(room_id, position, history_size)
        self.history = SkippingHistory(history_size, position)


class ForgetfulPresence(Presence):
    """Tells nobody of a user's leaving while another change is untold."""

    __slots__ = ()

    def remove(self, user_id: str, ref: str) -> bool:
        told = not self.changed
        gone = super().remove(user_id, ref)
        if gone and not told:
            self._changes._left.pop(ref, None)
        return gone


class ForgetfulRoom(WorldRoom):
    __slots__ = ()

    def __init__(self, room_id: str, position: Position, history_size: int) -> None:
        super().__init__(room_id, position, history_size)
        self.presence = ForgetfulPresence()


class GhostPresence(Presence):
    """Keeps a membership that ends while its user has another."""

    __slots__ = ()

    def remove(self, user_id: str, ref: str) -> bool:
        if len(self._users.get(user_id, ())) > 1:
            return True
        return super().remove(user_id, ref)


class GhostRoom(WorldRoom):
    __slots__ = ()

    def __init__(self, room_id: str, position: Position, history_size: int) -> None:
        super().__init__(room_id, position, history_size)
        self.presence = GhostPresence()


class UncountedRoom(WorldRoom):
    """Admits without counting."""

    __slots__ = ()

    @property
    def admitted(self) -> int:
        return 0

    @admitted.setter
    def admitted(self, value: int) -> None:
        pass


class LeakingRoom(WorldRoom):
    """Never gives a place back."""

    __slots__ = ("_admitted",)

    @property
    def admitted(self) -> int:
        return self._admitted

    @admitted.setter
    def admitted(self, value: int) -> None:
        self._admitted = max(value, getattr(self, "_admitted", 0))


class DoublingRoom(WorldRoom):
    """Publishes its newest message once more when it is rebuilt."""

    __slots__ = ()

    def rebuilt(self) -> tuple[WorldRoom, Effects]:  # type: ignore[override]
        fresh, effects = super().rebuilt()
        for newest in fresh.history.newest(1):
            fresh.fanout.publish(newest)
        return fresh, effects  # type: ignore[return-value]


class LosingRoom(WorldRoom):
    """Loses what was pending when it is rebuilt."""

    __slots__ = ()

    def rebuilt(self) -> tuple[WorldRoom, Effects]:  # type: ignore[override]
        self.fanout._pending = []
        return super().rebuilt()  # type: ignore[return-value]


class SilentMailbox(Mailbox):
    """Drops without a gap."""

    __slots__ = ()

    def _drop_oldest(self, at_most: int) -> None:
        super()._drop_oldest(at_most)
        self.first.clear()


class ForgetfulWindow(IdempotencyWindow):
    """Forgets every third key."""

    def record(self, scope: bytes, message: Message, now: float) -> None:
        if message.offset % 3:
            super().record(scope, message, now)


class HurryingLanes(Lanes):
    """Let a sender's messages through their middlewares side by side."""

    async def enter(self, user_id: str) -> None:
        pass

    def leave(self, user_id: str) -> None:
        pass


class HeedlessSaving(Saving):
    """Takes a failed attempt for a success."""

    def _failed(self, parcel: Any, reason: str, *, away: bool, called: bool = True) -> None:
        self._done(parcel)


@pytest.mark.parametrize(
    "room_class",
    [
        ReorderingRoom,
        SkippingRoom,
        ForgetfulRoom,
        GhostRoom,
        UncountedRoom,
        LeakingRoom,
        DoublingRoom,
        LosingRoom,
    ],
)
def test_a_broken_room_is_found(room_class: type[WorldRoom]) -> None:
    assert_found(lambda seed: run(seed, play, room_class), SUITE)


def test_a_room_that_publishes_in_another_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatx.runtime.room_state.RoomState.check_epoch", lambda process, draft: None)
    assert_found(lambda seed: run(seed, play), SUITE)


@pytest.mark.parametrize(
    "place, fault",
    [
        ("consumer.Mailbox", SilentMailbox),
        ("sending.IdempotencyWindow", ForgetfulWindow),
        ("process.Lanes", HurryingLanes),
        ("delivery.Saving", HeedlessSaving),
    ],
)
def test_a_broken_part_of_the_engine_is_found(monkeypatch: pytest.MonkeyPatch, place: str, fault: type) -> None:
    monkeypatch.setattr(f"chatx.runtime.{place}", fault)
    assert_found(lambda seed: run(seed, play), SUITE)
