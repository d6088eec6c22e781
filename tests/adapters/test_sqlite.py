"""`SQLitePersistence`: the contract, and what it does with files, faults and other processes."""

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chatx
from chatx import ChatConfig, ConfigError, Message
from chatx.adapters import sqlite_file
from chatx.adapters.sqlite import SQLitePersistence
from chatx.testing import check_persistence
from tests.adapters.opening import Open, in_threads


def message(
    offset: int, epoch: str = "e1", room_id: str = "general", content: str = "hello", message_id: str = ""
) -> Message:
    return Message(message_id or f"{room_id}-{epoch}-{offset}", room_id, "alice", content, 1000 + offset, epoch, offset)


async def test_it_keeps_the_contract(opened: Open) -> None:
    await check_persistence(opened)


def test_it_is_exported_from_its_module_only() -> None:
    assert not hasattr(chatx, "SQLitePersistence")


def test_a_configuration_names_it_by_its_import_string() -> None:
    config = ChatConfig.load(env={"CHATX_PERSISTENCE": "chatx.adapters.sqlite:SQLitePersistence"})
    assert isinstance(config.persistence, SQLitePersistence)
    config.persistence.close()


def test_what_was_saved_is_there_when_the_file_is_opened_again(opened: Open) -> None:
    first = opened()
    saved = [message(offset) for offset in (1, 2, 3)]
    first.save_messages(saved)
    first.mark_closed("general", "e1", 3)
    first.close()
    second = opened()
    assert second.load_messages("general", limit=10) == saved
    assert second.last_position("general") == ("e1", 3)


def test_memory_is_not_shared(opened: Open) -> None:
    one, other = opened(":memory:"), opened(":memory:")
    one.save_messages([message(1)])
    assert other.load_messages("general", limit=10) == []


def test_a_path_object_and_text_name_the_same_file(opened: Open, tmp_path: Path) -> None:
    opened(tmp_path / "one.db").save_messages([message(1)])
    assert opened(str(tmp_path / "one.db")).load_messages("general", limit=10) == [message(1)]


@st.composite
def batches(draw: st.DrawFn) -> list[list[Message]]:
    """Whatever order a room's messages are saved in, with repeats, over several epochs and rooms."""
    # Texts that sort against the order in which they are first seen.
    everything = [
        message(offset, epoch, room_id)
        for room_id in ("general", "other")
        for epoch in ("z", "m", "a")
        for offset in range(1, draw(st.integers(1, 6)))
    ]
    if not everything:
        return []
    return draw(st.lists(st.lists(st.sampled_from(everything), max_size=8), max_size=8))


@given(batches(), st.sampled_from(["z", "m", "a", "?"]), st.integers(0, 8), st.integers(1, 20))
def test_reading_equals_a_model_whatever_was_saved_in_whatever_order(
    saved: list[list[Message]], epoch: str, offset: int, limit: int
) -> None:
    ranks: dict[tuple[str, str], int] = {}
    model: dict[tuple[str, str, int], Message] = {}
    with contextlib.closing(SQLitePersistence()) as persistence:
        for batch in saved:
            persistence.save_messages(batch)
            for each in batch:
                ranks.setdefault((each.room_id, each.epoch), len(ranks))
                model[each.room_id, each.epoch, each.offset] = each
        for room_id in ("general", "other"):
            room = sorted(
                (each for each in model.values() if each.room_id == room_id),
                key=lambda each: (ranks[each.room_id, each.epoch], each.offset),
            )
            after = [each for each in room if each.epoch == epoch and each.offset > offset]
            assert persistence.load_messages(room_id, after=(epoch, offset), limit=limit) == after[:limit]
            place = (ranks.get((room_id, epoch), 10**6), offset)
            before = [each for each in room if (ranks[room_id, each.epoch], each.offset) < place]
            assert persistence.load_messages(room_id, before=(epoch, offset), limit=limit) == before[-limit:]
            assert persistence.load_messages(room_id, limit=limit) == room[-limit:]


def test_both_bounds_together_give_what_is_between(opened: Open) -> None:
    persistence = opened()
    persistence.save_messages([message(offset) for offset in range(1, 10)])
    between = persistence.load_messages("general", after=("e1", 2), before=("e1", 6), limit=2)
    assert [each.offset for each in between] == [3, 4]


def test_an_epoch_of_which_nothing_is_saved_is_newer_than_all_that_is(opened: Open) -> None:
    persistence = opened()
    persistence.save_messages([message(1), message(2)])
    assert persistence.load_messages("general", before=("unheard of", 1), limit=10) == [message(1), message(2)]
    assert persistence.load_messages("general", after=("unheard of", 0), limit=10) == []


def test_another_message_in_the_same_place_is_an_error_and_saves_nothing(opened: Open) -> None:
    persistence = opened()
    persistence.save_messages([message(1)])
    fork = message(1, message_id="another")
    with pytest.raises(ValueError, match="has another message at offset 1 of epoch 'e1': general-e1-1, not another"):
        persistence.save_messages([message(2), fork, message(3)])
    assert persistence.load_messages("general", limit=10) == [message(1)]


def test_a_message_twice_in_one_batch_is_there_once(opened: Open) -> None:
    persistence = opened()
    persistence.save_messages([message(1), message(1)])
    assert persistence.load_messages("general", limit=10) == [message(1)]
    persistence.save_messages([])


def test_lives_in_which_nothing_was_said_do_not_add_up(opened: Open, tmp_path: Path) -> None:
    persistence = opened()
    for life in range(50):
        persistence.mark_open("general", f"silent {life}")
    persistence.save_messages([message(1, "spoken")])
    for life in range(50):
        persistence.mark_open("general", f"silent again {life}")
    persistence.mark_open("other", "untouched")
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db:
        kept = db.execute("SELECT room_id, epoch FROM chatx_streams ORDER BY room_id, rank").fetchall()
    assert kept == [("general", "spoken"), ("general", "silent again 49"), ("other", "untouched")]
    assert persistence.load_messages("general", limit=10) == [message(1, "spoken")]


def test_a_proof_is_not_taken_back_by_another_room_or_by_saving(opened: Open) -> None:
    persistence = opened()
    persistence.save_messages([message(1), message(1, "e1", "other")])
    persistence.mark_closed("general", "e1", 1)
    persistence.mark_open("other", "e1")
    persistence.save_messages([message(1)])
    assert persistence.last_position("general") == ("e1", 1)
    assert persistence.last_position("other") is None


def test_a_stream_that_was_never_marked_is_ranked_by_its_first_message(opened: Open) -> None:
    # As when `mark_open` failed and the engine took an epoch of its own.
    persistence = opened()
    persistence.save_messages([message(1, "old")])
    persistence.mark_closed("general", "old", 1)
    persistence.save_messages([message(1, "new")])
    assert persistence.last_position("general") is None
    assert [each.epoch for each in persistence.load_messages("general", limit=10)] == ["old", "new"]


@pytest.mark.parametrize("path", ["", None, 7, b"", b"bytes.db", True])
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"path of SQLitePersistence is .*; give the name of a file, or ':memory:'"):
        SQLitePersistence(path)


def test_a_path_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("dear diary, " * 1000)
    for path, todo in (
        (tmp_path / "missing" / "chat.db", "the folder '.*missing' is not there"),
        (tmp_path, "it is a folder, so name a file in it"),
        (text / "chat.db", "the folder '.*notes.txt' is not there"),
        (text, "give a SQLite database, or a new file"),
    ):
        with pytest.raises(ConfigError, match=f"cannot use '.*': .*; {todo}") as refused:
            SQLitePersistence(path)
        assert str(path) in str(refused.value)
    assert text.read_text().startswith("dear diary")


def test_tables_of_another_version_are_refused_and_left_alone(opened: Open, tmp_path: Path) -> None:
    opened().save_messages([message(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db, db:
        db.execute("UPDATE chatx_schema SET version = 5")
    with pytest.raises(
        ConfigError, match=r"have version 5, and this version of chatx reads up to 4; use the chatx that"
    ):
        opened()
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db:
        assert db.execute("SELECT count(*) FROM chatx_entries").fetchone() == (1,)


def test_the_file_may_be_the_applications_own(opened: Open, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db, db:
        db.execute("PRAGMA user_version = 41")
        db.execute("CREATE TABLE messages (mine TEXT)")
    opened().save_messages([message(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (41,)
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (0,)


def test_it_writes_ahead(opened: Open, tmp_path: Path) -> None:
    opened()
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_closing_twice_is_harmless_and_using_it_then_says_so(opened: Open) -> None:
    persistence = opened()
    persistence.close()
    persistence.close()
    calls: list[Callable[[], object]] = [
        lambda: persistence.save_messages([message(1)]),
        lambda: persistence.load_messages("general", limit=1),
        lambda: persistence.last_position("general"),
        lambda: persistence.mark_open("general", "e1"),
        lambda: persistence.mark_closed("general", "e1", 1),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"is closed; close it after the chat has stopped"):
            call()


def test_a_locked_file_is_a_failure_that_leaves_nothing_behind(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.01)
    persistence = opened()
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            persistence.save_messages([message(1)])
        # Readers do not wait for the writer.
        assert persistence.load_messages("general", limit=10) == []
        other.execute("ROLLBACK")
    persistence.save_messages([message(1)])
    assert persistence.load_messages("general", limit=10) == [message(1)]


def test_closing_waits_for_the_one_call_that_has_begun_and_not_for_those_behind_it(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.3)
    store = opened()
    failed: list[BaseException] = []

    def save() -> None:
        try:
            store.save_messages([message(1)])
        except (sqlite3.Error, RuntimeError) as error:
            failed.append(error)

    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with store._lock:  # held by a call that has begun
            threads = [threading.Thread(target=save) for _ in range(8)]
            closing = threading.Thread(target=store.close)
            for each in (*threads, closing):
                each.start()
            while not store._closing:
                pass
        for each in (*threads, closing):
            each.join()
    assert [str(error) for error in failed if "is closed" not in str(error)] == []
    assert len(failed) == 8


def test_a_full_disk_saves_all_or_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def limited(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made.append(connect(*args, **kwargs))
        made[-1].execute("PRAGMA max_page_count = 20")
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", limited)
    persistence = opened()
    persistence.save_messages([message(1)])
    big = [message(offset, content="x" * 4096) for offset in range(2, 60)]
    with pytest.raises(sqlite3.OperationalError, match="full"):
        persistence.save_messages(big)
    assert persistence.load_messages("general", limit=100) == [message(1)]
    made[0].execute("PRAGMA max_page_count = 1000")
    persistence.save_messages(big)
    assert persistence.load_messages("general", limit=100) == [message(1), *big]


def test_a_save_does_not_wait_for_who_reads(opened: Open) -> None:
    store = opened()
    store.save_messages([message(1)])
    reading, go_on = threading.Event(), threading.Event()

    def slow_disk() -> int:
        reading.set()
        go_on.wait(30)
        return 0

    assert store._reader is not None
    store._reader.set_progress_handler(slow_disk, 1)
    found: list[list[Message]] = []
    threads = [threading.Thread(target=lambda: found.append(store.load_messages("general", limit=10)))]
    threads += [threading.Thread(target=store.last_position, args=("general",)) for _ in range(7)]
    for each in threads:
        each.start()
    assert reading.wait(30)
    saving = threading.Thread(target=store.save_messages, args=([message(2)],))
    saving.start()
    saving.join(30)
    waited = saving.is_alive()
    go_on.set()
    for each in (*threads, saving):
        each.join()
    assert not waited
    # What was read is of the moment at which the reading began, or of a later one; nothing is half there.
    assert found[0] in ([message(1)], [message(1), message(2)])
    store._reader.set_progress_handler(None, 1)
    assert store.load_messages("general", limit=10) == [message(1), message(2)]


def test_a_place_that_becomes_known_while_it_is_looked_up_is_read_as_one_moment_has_it(opened: Open) -> None:
    store = opened()
    store.save_messages([message(1)])
    done: list[bool] = []

    def save_between(statement: str) -> None:
        if "SELECT rank" in statement and not done:
            done.append(True)
            store.save_messages([message(offset, "e2") for offset in range(1, 9)])

    assert store._reader is not None
    store._reader.set_trace_callback(save_between)
    found = store.load_messages("general", before=("e2", 5), limit=3)
    assert done
    assert found in ([message(1)], [message(offset, "e2") for offset in (2, 3, 4)])


def test_threads_and_two_openings_of_one_file_lose_nothing(opened: Open) -> None:
    persistences = [opened(), opened()]

    def save(persistence: SQLitePersistence, room_id: str) -> None:
        for offset in range(1, 26):
            persistence.save_messages([message(offset, room_id=room_id)])
            assert len(persistence.load_messages(room_id, limit=100)) == offset

    rooms = in_threads(save, persistences)
    for persistence in persistences:
        for room_id in rooms:
            assert [each.offset for each in persistence.load_messages(room_id, limit=100)] == list(range(1, 26))


WRITER = """
import itertools, sys
from chatx import Message
from chatx.adapters.sqlite import SQLitePersistence

persistence = SQLitePersistence(sys.argv[1])
persistence.mark_open("general", "e1")
for first in itertools.count(1, 10):
    offsets = range(first, first + 10)
    persistence.save_messages([Message(f"id {n}", "general", "alice", "x" * 500, n, "e1", n) for n in offsets])
    print(offsets[-1], flush=True)
"""


@pytest.mark.process
def test_what_was_saved_survives_a_process_that_is_killed(opened: Open, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "chat.db")], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
        acknowledged = [200, *map(int, writer.stdout.read().split())][-1]
    persistence = opened()
    offsets = [each.offset for each in persistence.load_messages("general", limit=10**6)]
    assert offsets == list(range(1, len(offsets) + 1))
    assert len(offsets) % 10 == 0
    assert len(offsets) >= acknowledged
    assert persistence.last_position("general") is None
    # And it goes on.
    persistence.save_messages([message(1, "e2")])
    assert persistence.load_messages("general", limit=1) == [message(1, "e2")]


OPENER = """
import sys
from chatx.adapters.sqlite import SQLitePersistence

for line in sys.stdin:
    path = line.rstrip()
    try:
        SQLitePersistence(path).close()
        print("opened", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


@pytest.mark.process
def test_processes_that_open_a_new_file_in_the_same_moment_all_open_it(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        openers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
            for _ in range(6)
        ]
        for opener in openers:
            assert opener.stdin is not None
            stack.callback(opener.stdin.close)
        for number in range(60):
            said = []
            for opener in openers:
                print(tmp_path / f"{number}.db", file=opener.stdin)
            for opener in openers:
                assert opener.stdout is not None
                said.append(opener.stdout.readline().strip())
            assert said == ["opened"] * len(openers)


def test_opening_waits_for_whoever_has_the_file_and_says_so_where_that_takes_too_long(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.01)
    with contextlib.closing(
        sqlite3.connect(tmp_path / "chat.db", isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite_file, "OPENING_S", 0.1)
        with pytest.raises(ConfigError, match=r"another process has had it locked for 0\.1 s; end that process"):
            opened()
        monkeypatch.setattr(sqlite_file, "OPENING_S", 60.0)
        waiting = threading.Timer(0.2, lambda: other.execute("COMMIT"))
        waiting.start()
        opened().save_messages([message(1)])
        waiting.join()
