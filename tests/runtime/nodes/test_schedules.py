"""Nodes under faults drawn from seeds: words lost, ways cut, nodes gone and come; see `Play`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from chatx.cluster.rpc import Attach, Attached, Differ, HandedOff, HandOff, Told
from chatx.core.idempotency import IdempotencyWindow
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.handing_over import HandingOver
from chatx.runtime.nodes.owned import FollowedRoom, Owned
from chatx.runtime.nodes.replica import Replica
from chatx.runtime.process import RoomProcess
from chatx.runtime.room_state import RoomState
from chatx.testing.seeded import run_seeded
from tests.runtime.nodes.play import Play
from tests.seeds import chunks

SEEDS = 500
LOG_SEEDS = 100

pytestmark = pytest.mark.usefixtures("schedules")


@pytest.mark.parametrize("chunk", chunks(SEEDS, 50), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
@pytest.mark.parametrize("crashes", [False, True])
def test_nothing_is_lost_between_nodes(chunk: range, *, crashes: bool) -> None:
    for seed in chunk:
        run_seeded(seed, Play(seed, crashes=crashes)())


@pytest.mark.parametrize("chunk", chunks(LOG_SEEDS, 50), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
@pytest.mark.parametrize("durability, crashes", [("stored", True), ("stored", False), ("sequenced", False)])
def test_over_a_log_that_the_nodes_share_each_room_goes_on_in_its_stream(
    chunk: range, durability: str, *, crashes: bool
) -> None:
    for seed in chunk:
        run_seeded(seed, Play(seed, crashes=crashes, durability=durability)())


def deaf_to_holes(patch: pytest.MonkeyPatch) -> None:
    """Take each word as the next one, and each entry as the one behind the head."""
    take = Replica._take

    def taken(self: Replica, told: Told) -> None:
        self.number = told.number - 1
        take(self, told)

    patch.setattr(Replica, "_take", taken)


def no_last_word(patch: pytest.MonkeyPatch) -> None:
    """Never ask whether the newest word has come."""
    patch.setattr(Owned, "follow", lambda self, ask, now: Differ(()))


def no_keys(patch: pytest.MonkeyPatch) -> None:
    """Hand a room off without the keys of what was said."""
    patch.setattr(IdempotencyWindow, "keys_of", lambda self, room_id: {})


def nothing_handed_off(patch: pytest.MonkeyPatch) -> None:
    """Begin each room anew that has moved."""

    async def nothing(self: HandingOver, ask: HandOff, process: RoomProcess | None) -> HandedOff:
        return HandedOff(None, ())

    patch.setattr(HandingOver, "hand_off", nothing)


def not_settled(patch: pytest.MonkeyPatch) -> None:
    """Hand a room off before its log has what was said there."""

    async def nothing(self: Engine, process: RoomProcess) -> None:
        pass

    patch.setattr(Engine, "settle", nothing)


def no_members_again(patch: pytest.MonkeyPatch) -> None:
    """Tell the owner of memberships once, and not when a replica attaches."""
    attach = FollowedRoom.attach

    def attached(self: FollowedRoom, ask: Attach, now: float) -> Attached:
        before = {boot: dict(members) for boot, members in self._members.items()}
        return attach(self, replace(ask, members=(), more=bool(before)), now)

    patch.setattr(FollowedRoom, "attach", attached)


def any_epoch(patch: pytest.MonkeyPatch) -> None:
    """Publish again in another epoch what may be there."""
    patch.setattr(RoomState, "check_epoch", lambda self, draft: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sabotage", [deaf_to_holes, no_last_word, no_keys, nothing_handed_off, not_settled, no_members_again, any_epoch]
)
def test_the_checker_finds_each_sabotage(
    sabotage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):  # whichever seed it is that finds it
        for seed in range(2000):
            durability = "sequenced" if sabotage is not_settled else None
            run_seeded(seed, Play(seed, crashes=sabotage is any_epoch, durability=durability)())
