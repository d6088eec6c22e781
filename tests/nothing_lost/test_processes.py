"""Real processes over a SQLite file: killed at random moments, without a disk, with a slow one, with a wrong clock.

Twenty kills; TEST_KILLS=n for more, TEST_SEED=n for the moments of another seed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Entry
from tests.nothing_lost.watching import Watch
from tests.nothing_lost.world import ROOMS
from tests.seeds import Violation

KILLS = int(os.environ.get("TEST_KILLS") or 20)
SEED = int(os.environ.get("TEST_SEED") or 1)

LULL: dict[str, Any] = {"unbroken": ("vault", "mixed"), "lull": True, "again_s": 0.2}
LULLS = 4
"""Kills in a lull."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(300 + 10 * KILLS)]

Begin = Callable[..., Watch]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.fixture
def begin(file: Path) -> Iterator[Begin]:
    """Begin to watch the processes of one file."""
    watches: list[Watch] = []

    def begun(**orders: Any) -> Watch:
        watches.append(Watch(f"sqlite:///{file}", SEED, **orders))
        return watches[-1]

    yield begun
    for each in watches:
        each.close()


def entries(file: Path) -> dict[str, list[Entry]]:
    """Return what the file has of each room, in order."""
    with closing(SQLitePersistence(file)) as store:
        return {room_id: list(store.read(room_id, limit=1_000_000).entries) for room_id in ROOMS}


def killed(watch: Watch, times: int, behind: str = "ready", **orders: Any) -> None:
    """Start and kill it so many times, at random moments behind a state."""
    for _ in range(times):
        watch.start(**orders)
        watch.wait(behind)
        time.sleep(watch.chance.random() * 0.4)
        watch.kill()


def goes_on_where_it_was_proven_again(watch: Watch, entries: dict[str, list[Entry]]) -> None:
    """Hold what the store has against what was told, and the epochs of both rooms against the kills in a lull."""
    watch.check_store(entries)
    assert len({each.epoch for each in entries["mixed"]}) == 1
    assert len({each.epoch for each in entries["rare"]}) == LULLS + 1


def test_nothing_is_lost_when_it_is_killed_at_any_moment(begin: Begin, file: Path) -> None:
    watch = begin()
    # In half of them a head is proven again and again, between unstored messages.
    killed(watch, KILLS // 2)
    killed(watch, KILLS - KILLS // 2, again_s=0.01)
    watch.start()
    watch.wait_sent(100)
    watch.finish()
    watch.check_store(entries(file))
    assert watch.evidence.promised


def test_a_head_that_was_proven_again_goes_on_after_a_kill_and_one_that_was_not_does_not(
    begin: Begin, file: Path
) -> None:
    watch = begin(**LULL)
    killed(watch, LULLS, "withdrawn")
    watch.start()
    watch.finish()
    goes_on_where_it_was_proven_again(watch, entries(file))


def test_a_lock_that_is_held_for_ten_seconds_refuses_and_loses_nothing(begin: Begin, file: Path) -> None:
    watch = begin()
    watch.start()
    watch.wait_sent(100)
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(10)
        other.execute("ROLLBACK")
    assert watch.refused["room_unavailable"]
    watch.wait_sent(100)
    watch.finish()
    watch.check_store(entries(file))


def test_a_full_disk_refuses_and_loses_nothing(begin: Begin, file: Path) -> None:
    watch = begin(full=True)
    watch.start()
    watch.wait("full")
    watch.wait("free")
    watch.wait_sent(100)
    assert watch.refused["room_unavailable"]
    watch.finish()
    watch.check_store(entries(file))


def test_a_slow_disk_loses_nothing_also_where_nobody_waits_for_it_any_more(begin: Begin, file: Path) -> None:
    watch = begin(slow=True)
    killed(watch, 3)
    watch.start()
    watch.wait_sent(200)
    assert watch.refused["room_unavailable"]
    watch.finish()
    watch.check_store(entries(file))


@pytest.mark.parametrize("wrong_s", [3600, -3600])
def test_a_clock_that_is_set_by_an_hour_loses_nothing(begin: Begin, file: Path, wrong_s: int) -> None:
    watch = begin()
    killed(watch, 2)
    killed(watch, 2, clock_s=wrong_s)
    killed(watch, 1)
    watch.start(clock_s=wrong_s)
    watch.wait_sent(100)
    watch.finish()
    watch.check_store(entries(file))


@pytest.mark.parametrize(
    "fault", ["HastySequencer", "ForgetfulWindow", "RashStorage", "HeedlessStorage", "ShortStorage"]
)
def test_a_broken_promise_is_found(begin: Begin, file: Path, fault: str) -> None:
    # A repeat, and a read that fails, are commoner where the disk is slow than at a kill.
    slow = fault in ("ForgetfulWindow", "ShortStorage")
    watch = begin(sabotage=fault, slow=slow)

    def look() -> None:
        for _ in range(10):  # the first is enough, but on a machine that has little time for it
            killed(watch, 4)
            watch.start()
            watch.finish()
            watch.check_store(entries(file))

    with pytest.raises(Violation):
        look()
