"""Files of earlier versions are taken up to this one's tables, in place, all or not at all."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatx import ConfigError, Message
from chatx.adapters import sqlite_schema
from chatx.adapters.room_log import Append, Record
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Position
from chatx.testing import check_persistence, check_room_log
from chatx.testing.contracts import CONTENTS, USER_IDS
from chatx.testing.contracts.texts import LINE_BREAKS

SCHEMA_1 = Path(__file__).parent / "files" / "schema-1.db"
"""Made by the code of that version: rooms of several epochs, closed and open, with holes and with odd texts."""

ROOMS = ("general", "open ü", "dead letter at the end", "silent", "silent after", "unmarked")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copy(SCHEMA_1, tmp_path / "chat.db"))


@pytest.fixture
def store(file: Path) -> Iterator[SQLitePersistence]:
    with contextlib.closing(SQLitePersistence(file)) as opened:
        yield opened


def rows(file: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return db.execute(statement).fetchall()


def test_the_file_of_these_tests_is_one_of_version_1() -> None:
    # Its copy: to open it would write beside it.
    assert "chatx_messages" in SCHEMA_1.read_bytes().decode("latin-1")
    assert "chatx_entries" not in SCHEMA_1.read_bytes().decode("latin-1")


def test_all_that_was_saved_is_there_in_its_order(store: SQLitePersistence) -> None:
    general = store.load_messages("general", limit=100)
    texts = [each for each in CONTENTS if len(each) < 1000]
    assert [each.content for each in general] == [*texts, *(f"one{each}two" for each in LINE_BREAKS)]
    assert [each.epoch for each in general] == ["z first"] * len(texts) + ["a second"] * len(LINE_BREAKS)
    assert [each.user_id for each in store.load_messages("open ü", limit=100)] == [
        each for number, each in enumerate(USER_IDS, 1) if number != 2
    ]
    first = general[0]
    assert first == Message(
        "0192f0c1-2a3b-7000-8000-000000000001", "general", "alice", "hello", 1760000000001, "z first", 1
    )


def test_each_room_stands_where_it_stood_and_what_was_proven_is(store: SQLitePersistence) -> None:
    heads = {room_id: (found.head, found.proven) for room_id in ROOMS if (found := store.take_over(room_id))}
    assert heads == {
        "general": (("a second", len(LINE_BREAKS)), True),
        "open ü": (("e", len(USER_IDS)), False),
        "dead letter at the end": (("e", 2), True),
        "silent": (("e", 0), False),
        "silent after": (("silent", 0), False),
        "unmarked": (("e", 2), False),
    }
    assert store.last_position("general") == ("a second", len(LINE_BREAKS))
    assert store.last_position("unmarked") is None


def test_a_room_goes_on_behind_what_was_saved(store: SQLitePersistence) -> None:
    term = store.take_over("dead letter at the end").term
    entry = Message("new", "dead letter at the end", "alice", "goes on", 1, "e", 3, stored=True)
    appended = Append(entry.room_id, term, Position("e", 2), (Record(entry, "key"),), True)
    assert store.append([appended]) == [None]
    assert store.load_messages(entry.room_id, limit=1) == [entry]
    assert store.find(entry.room_id, "alice", "key") == entry


async def test_a_file_that_was_taken_up_keeps_the_contracts(store: SQLitePersistence) -> None:
    await check_persistence(lambda: store)
    await check_room_log(lambda: store)


def test_a_new_file_has_the_tables_of_one_that_was_taken_up(
    file: Path, store: SQLitePersistence, tmp_path: Path
) -> None:
    SQLitePersistence(tmp_path / "new.db").close()
    tables = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    assert rows(file, tables) == rows(tmp_path / "new.db", tables)
    assert rows(file, "SELECT version FROM chatx_schema") == [(sqlite_schema.SCHEMA_VERSION,)]
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(
    "step,number", [(step, number) for step in (1, 2) for number in range(len(sqlite_schema.STEPS[step]))]
)
def test_a_step_that_fails_midway_leaves_the_file_as_it_was(
    file: Path, step: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    before = rows(file, everything)
    steps = sqlite_schema.STEPS
    broken = (*steps[step][:number], "SELECT * FROM not_there")
    monkeypatch.setattr(sqlite_schema, "STEPS", (*steps[:step], broken, *steps[step + 1 :]))
    with pytest.raises(ConfigError, match=r"cannot use .*: no such table: not_there; give a SQLite database"):
        SQLitePersistence(file)
    assert rows(file, everything) == before
    monkeypatch.undo()
    with contextlib.closing(SQLitePersistence(file)) as store:
        assert len(store.load_messages("general", limit=100)) > 10


def test_a_file_of_version_2_gives_no_term_twice(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "2.db", isolation_level=None)) as db:
        for step in sqlite_schema.STEPS[:2]:
            for statement in step:
                db.execute(statement)
        db.execute("INSERT INTO chatx_rooms (room_id, term, head, proven) VALUES ('one', 7, 0, 1), ('two', 3, 0, 1)")
    with contextlib.closing(SQLitePersistence(tmp_path / "2.db")) as store:
        assert [store.take_over(room_id).term for room_id in ("two", "one", "three")] == [8, 9, 10]


OPENER = """
import sys
from chatx.adapters.sqlite import SQLitePersistence

for line in sys.stdin:
    path, room_id = line.rstrip().split("|")
    try:
        store = SQLitePersistence(path)
        term = store.take_over(room_id).term
        print("opened", len(store.load_messages("general", limit=100)), store.take_over(room_id).head, flush=True)
        store.close()
    except Exception as error:
        print(repr(error), flush=True)
"""


@pytest.mark.process
def test_processes_that_open_one_old_file_in_the_same_moment_all_work(tmp_path: Path) -> None:
    said = []
    with contextlib.ExitStack() as stack:
        openers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
            for _ in range(4)
        ]
        for opener in openers:
            assert opener.stdin is not None
            stack.callback(opener.stdin.close)
        for number in range(15):
            path = shutil.copy(SCHEMA_1, tmp_path / f"{number}.db")
            for opener in openers:
                print(f"{path}|unmarked", file=opener.stdin)
            for opener in openers:
                assert opener.stdout is not None
                said.append(opener.stdout.readline().strip())
    entries = len([each for each in CONTENTS if len(each) < 1000]) + len(LINE_BREAKS)
    assert said == [f"opened {entries} Position(epoch='e', offset=2)"] * 60


def test_taking_a_file_up_costs_as_much_for_many_messages_as_for_few(tmp_path: Path) -> None:
    steps: list[int] = []
    for count in (10, 10_000):
        with contextlib.closing(sqlite3.connect(tmp_path / f"{count}.db", isolation_level=None)) as db:
            db.execute("BEGIN")
            for statement in sqlite_schema.STEPS[0]:
                db.execute(statement)
            db.execute("INSERT INTO chatx_streams VALUES ('room', 1, 'e', NULL)")
            db.executemany(
                "INSERT INTO chatx_messages VALUES ('room', 1, ?, ?, 'alice', 'hello', 1)",
                [(offset, f"id {offset}") for offset in range(1, count + 1)],
            )
            db.execute("COMMIT")
            steps.append(0)

            def step() -> int:
                steps[-1] += 1
                return 0

            db.set_progress_handler(step, 10)
            sqlite_schema.take_up(db)
            assert db.execute("SELECT head FROM chatx_rooms").fetchall() == [(count,)]
    assert steps[1] < steps[0] * 2 + 100
