"""The reference of the log's figures: a ratio to it says something only if it does what it says."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.log import beside, by_hand, pages, senders
from benchmarks.log.goals import CELLS, STORES, others, sends
from benchmarks.log.sends import through_the_engine
from benchmarks.wire.servers import ROOT, Bench


@pytest.mark.process
async def test_the_rows_by_hand_are_those_of_the_engine(tmp_path: Path) -> None:
    rows = []
    for measure in (by_hand.measure, through_the_engine):
        path = str(tmp_path / f"{measure.__name__}.db")
        figures = await measure(path, 2, 3, 0.05)
        assert figures["per_second"] > 0
        db = sqlite3.connect(path)
        columns = "room_id, user_id, content, kind, target, data, stored"
        rows.append(set(db.execute(f"SELECT DISTINCT {columns} FROM chatx_entries").fetchall()))
        db.close()
    assert rows[0] == rows[1] != set()


async def test_a_sender_has_one_message_under_way_and_goes_through_all_rooms() -> None:
    under_way: set[str] = set()
    rooms: set[str] = set()

    async def send(room_id: str, user_id: str) -> None:
        assert user_id not in under_way
        under_way.add(user_id)
        rooms.add(room_id)
        await asyncio.sleep(0)
        under_way.remove(user_id)

    await senders.run(send, 3, 4, 0.5)
    assert rooms == {"room-0", "room-1", "room-2", "room-3"}


def test_the_table_has_the_cells_that_were_measured() -> None:
    figures = {
        f"sqlite 64 16 {kind} {name}": 1.0
        for kind in ("chat", "hand")
        for name in ("per_second", "cpu_us", "p50_ms", "p99_ms")
    }
    assert (64, 16) in CELLS
    assert sends(figures).splitlines()[2:] == [
        f"| {STORES['sqlite']} | 64 | 16 | 1 | 1 | 1.0 µs | 1.0 µs | 1.00, 1.00 ms | 1.00, 1.00 ms |"
    ]


@pytest.mark.process
def test_clients_catch_up_from_the_log_of_a_server_that_was_killed(tmp_path: Path) -> None:
    assert shutil.which("cc") is not None, "the load is compiled with cc: install gcc"
    options = ("--clients", "20", "--rooms", "4", "--senders", "4")
    seen = Bench(tmp_path).across_a_restart(70, *options, store=str(tmp_path / "chat.db"))
    assert (seen["resumed"], seen["unrecovered"], seen["incomplete"], seen["disordered"]) == (16, 0, 0, 0)


@pytest.mark.process
def test_rooms_are_opened_where_a_crash_left_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.log.opening", str(tmp_path / "chat.db"), "20"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert json.loads(done.stdout)["seconds"] > 0


@pytest.mark.process
async def test_pages_are_read_in_rooms_of_both_lengths(tmp_path: Path) -> None:
    found = await pages.measure(str(tmp_path / "chat.db"), (60, 300), 3)
    assert sorted(found) == ["long p50_ms", "long p99_ms", "short p50_ms", "short p99_ms"]


@pytest.mark.process
async def test_a_sequenced_send_is_measured_until_the_log_has_it(tmp_path: Path) -> None:
    path = str(tmp_path / "chat.db")
    assert (await beside.measure(path, 0.01))["send_us"] > 0
    db = sqlite3.connect(path)
    (count,) = db.execute("SELECT count(*) FROM chatx_entries").fetchone()
    db.close()
    assert count % beside.AT_ONCE == 1


def test_what_has_no_goal_is_told_where_it_was_measured() -> None:
    assert others({}) == ""
    figures = {"sequenced sqlite send_us": 9.0, "sequenced without send_us": 3.0}
    assert others(figures).endswith("without a store 3.0 µs (3.0×).\n")
