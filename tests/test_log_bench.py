"""The reference of the log's figures: a ratio to it says something only if it does what it says."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from benchmarks.log import by_hand, senders
from benchmarks.log.goals import CELLS, STORES, sends
from benchmarks.log.sends import through_the_engine


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

    await senders.run(send, 3, 4, 0.02)
    assert rooms == {"room-0", "room-1", "room-2", "room-3"}


def test_the_table_has_the_cells_that_were_measured() -> None:
    figures = {
        f"sqlite 64 16 {kind} {name}": 1.0 for kind in ("chat", "hand") for name in ("per_second", "p50_ms", "p99_ms")
    }
    assert (64, 16) in CELLS
    assert sends(figures).splitlines()[2:] == [
        f"| {STORES['sqlite']} | 64 | 16 | 1 | 1 | 1.00, 1.00 ms | 1.00, 1.00 ms |"
    ]
