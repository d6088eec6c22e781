"""`SQLitePersistence` as a log: the contract, what survives which end, and what surely was not written."""

import contextlib
import itertools
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatx.adapters import sqlite_file
from chatx.adapters.room_log import FENCED, KEYS_KEPT_MS, Append, LogUnavailable, Record
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Entry, Message, Position, UnknownEntry
from chatx.testing import check_room_log
from tests.adapters.opening import Open, in_threads


def message(offset: int, epoch: str = "e", room_id: str = "room", content: str = "hello", at: int = 1000) -> Message:
    return Message(f"{room_id}-{epoch}-{offset}", room_id, "alice", content, at, epoch, offset)


def append(term: int, *entries: Entry, key: str | None = None, durable: bool = True, proven: bool = True) -> Append:
    first = entries[0]
    records = tuple(Record(each, key) for each in entries)
    return Append(first.room_id, term, Position(first.epoch, first.offset - 1), records, durable, proven)


async def test_it_keeps_the_contract_in_a_file_and_in_memory(opened: Open) -> None:
    await check_room_log(opened)
    memory = opened(":memory:")
    await check_room_log(lambda: memory)


async def test_two_openings_of_one_file_are_one_log(opened: Open) -> None:
    both = itertools.cycle([opened(), opened()])

    class ByTurns:
        def look(self, *given: Any) -> Any:
            return next(both).look(*given)

        def take_over(self, *given: Any) -> Any:
            return next(both).take_over(*given)

        def unproven(self, *given: Any) -> Any:
            return next(both).unproven(*given)

        def append(self, *given: Any) -> Any:
            return next(both).append(*given)

        def read(self, room_id: str, **place: Any) -> Any:
            return next(both).read(room_id, **place)

        def close_rooms(self, *given: Any) -> Any:
            return next(both).close_rooms(*given)

        def find(self, *given: Any) -> Any:
            return next(both).find(*given)

    await check_room_log(ByTurns)


def test_a_log_that_is_closed_or_locked_or_cannot_be_written_says_that_surely_nothing_was_written(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.01)
    log = opened()
    log.take_over("room")
    calls: list[Callable[[], object]] = [
        lambda: log.take_over("room"),
        lambda: log.unproven("room", 1, Position("e", 0)),
        lambda: log.append([append(1, message(1))]),
        lambda: log.close_rooms({"room": (1, Position("e", 1))}),
    ]
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in calls:
            with pytest.raises(LogUnavailable, match="cannot be used now: database is locked"):
                call()
        # Readers do not wait for the writer.
        assert log.read("room", limit=9).entries == ()
        assert log.find("room", "alice", "key") is None
        other.execute("ROLLBACK")
    log._opened().execute("PRAGMA query_only = 1")
    for call in calls:
        with pytest.raises(LogUnavailable, match="readonly"):
            call()
    log._opened().execute("PRAGMA query_only = 0")
    assert log.append([append(1, message(1))]) == [None]
    log.close()
    for call in (*calls, lambda: log.read("room", limit=1), lambda: log.find("room", "alice", "key")):
        with pytest.raises(LogUnavailable, match="is closed; close it after the chat has stopped"):
            call()


def test_a_full_disk_writes_nothing_and_says_so(opened: Open) -> None:
    log = opened()
    log.take_over("room")
    log._opened().execute("PRAGMA max_page_count = 40")
    big = append(1, *(message(offset, content="x" * 4096) for offset in range(1, 60)))
    with pytest.raises(LogUnavailable, match="full"):
        log.append([big])
    assert log.read("room", limit=100).entries == ()
    assert log.take_over("room").head is None
    log._opened().execute("PRAGMA max_page_count = 4000")
    assert log.append([append(2, *(each.entry for each in big.records))]) == [None]
    assert len(log.read("room", limit=100).entries) == 59


class FailsAtCommit:
    """A connection whose COMMIT fails, with or without having been done."""

    def __init__(self, db: sqlite3.Connection, code: int, *, done: bool) -> None:
        self._db = db
        self._code = code
        self._done = done

    def execute(self, statement: str, *values: Any) -> Any:
        if statement != "COMMIT":
            return self._db.execute(statement, *values)
        if self._done:
            self._db.execute(statement)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = self._code
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


@pytest.mark.parametrize("done", [True, False])
def test_what_fails_once_it_is_being_committed_may_have_been_written(opened: Open, done: bool) -> None:
    log = opened()
    log.take_over("room")
    db = log._opened()
    log._db = FailsAtCommit(db, sqlite3.SQLITE_IOERR_FSYNC, done=done)  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        log.append([append(1, message(1))])
    log._db = db
    # And it is settled under a new term.
    assert log.take_over("room").head == (("e", 1) if done else None)
    assert log.append([append(2, message(1))]) == [None]
    assert log.read("room", limit=9).entries == (message(1),)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL])
def test_what_is_locked_or_full_when_it_is_committed_was_not_written(opened: Open, code: int) -> None:
    log = opened()
    log.take_over("room")
    db = log._opened()
    log._db = FailsAtCommit(db, code, done=False)  # type: ignore[assignment]
    with pytest.raises(LogUnavailable):
        log.append([append(1, message(1))])
    log._db = db
    assert not db.in_transaction
    assert log.read("room", limit=9).entries == ()


def traced(log: SQLitePersistence) -> list[str]:
    statements: list[str] = []
    log._opened().set_trace_callback(statements.append)
    return statements


def level(log: SQLitePersistence) -> int:
    (found,) = log._opened().execute("PRAGMA synchronous").fetchone()
    return int(found)


def test_what_must_survive_a_power_cut_is_written_with_synchronous_full_and_nothing_else_is(opened: Open) -> None:
    log = opened()
    normal, full = 1, 2
    log.take_over("room")
    assert level(log) == normal
    log.append([append(1, message(1))])
    assert level(log) == full
    log.append([append(1, message(2), durable=False)])
    assert level(log) == normal
    log.take_over("other")
    log.append([append(1, message(1, room_id="other"), durable=False), append(1, message(3))])
    assert level(log) == full
    log.close_rooms({"room": (1, Position("e", 3))})
    assert level(log) == normal
    # What was seen behind a proof that a power cut brings back would be given out again.
    log.unproven("room", 1, Position("e", 3))
    assert level(log) == full
    log.save_messages([message(1, room_id="third")])
    assert level(log) == normal


def test_many_rooms_are_few_statements_also_where_some_of_them_are_refused(opened: Open) -> None:
    log = opened()
    terms = {f"room-{number}": log.take_over(f"room-{number}").term for number in range(100)}

    def of_all(offset: int, **contents: str) -> list[Append]:
        entries = [message(offset, room_id=room_id, content=contents.get(room_id, "hello")) for room_id in terms]
        return [append(terms[each.room_id], each, key=f"key-{offset}") for each in entries]

    assert log.append(of_all(1)) == [None] * 100
    seen = traced(log)
    assert log.append(of_all(2)) == [None] * 100
    assert len(seen) < 30
    seen.clear()

    terms["room-7"] = 0
    answers = log.append(of_all(3, **{"room-50": "\ud800"}))
    assert answers[7] == FENCED
    assert "cannot be stored" in str(answers[50])
    assert [each for each in answers if each is not None] == [answers[7], answers[50]]
    for number, room_id in enumerate(terms):
        last = 2 if number in (7, 50) else 3
        assert [each.offset for each in log.read(room_id, limit=9).entries] == list(range(1, last + 1))
        assert log.find(room_id, "alice", "key-2") == log.read(room_id, limit=9).entries[1]


def test_many_rooms_are_one_transaction(opened: Open) -> None:
    log = opened()
    rooms = [f"room {number}" for number in range(64)]
    terms = [log.take_over(room_id).term for room_id in rooms]
    statements = traced(log)
    wanted = [append(term, message(1, room_id=room_id)) for term, room_id in zip(terms, rooms, strict=True)]
    assert log.append(wanted) == [None] * 64
    assert [statements.count(each) for each in ("BEGIN IMMEDIATE", "COMMIT")] == [1, 1]


@pytest.mark.parametrize("appended", [True, False])
def test_what_is_there_already_is_waited_for_on_the_disk_too(opened: Open, tmp_path: Path, appended: bool) -> None:
    # It may have been written without having to survive a power cut. Only a transaction that changes something waits.
    log = opened()
    log.take_over("room")
    log.append([append(1, message(1), durable=False)])
    log.unproven("room", 1, Position("e", 1))
    log._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ahead = tmp_path / "chat.db-wal"
    assert ahead.stat().st_size == 0
    if appended:
        assert log.append([append(1, message(1))]) == [None]
    else:
        assert log.unproven("room", 1, Position("e", 1))
    assert ahead.stat().st_size > 0


def test_an_entry_that_the_file_cannot_hold_is_refused_with_the_reason_and_harms_nobody_else(opened: Open) -> None:
    log = opened()
    terms = {room_id: log.take_over(room_id).term for room_id in ("one", "two", "three", "four")}
    answers = log.append(
        [
            append(terms["one"], message(1, room_id="one")),
            append(terms["two"], message(1, room_id="two"), message(2, room_id="two", content="\ud800"), key="key"),
            append(terms["three"], message(1, room_id="three", at=2**64)),
            append(terms["four"], message(1, room_id="four")),
        ]
    )
    assert (answers[0], answers[3]) == (None, None)
    assert answers[1] is not None
    assert "cannot be stored: 'utf-8' codec can't encode" in answers[1]
    assert answers[2] is not None
    assert "cannot be stored: Python int too large" in answers[2]
    assert [len(log.read(each, limit=9).entries) for each in ("one", "two", "three", "four")] == [1, 0, 0, 1]
    assert log.find("two", "alice", "key") is None
    # An epoch does not begin with what was refused.
    assert log.take_over("two").head is None
    assert log.append([append(1, message(1, room_id="room \ud800"))])[0] not in {None, FENCED}


def test_keys_are_let_go_of_a_day_after_their_entries_and_not_before(opened: Open) -> None:
    log = opened()
    log.take_over("room")
    for offset in range(1, 11):
        log.append([append(1, message(offset, at=1000 + offset), key=f"key {offset}")])
    log.append([append(1, message(11, at=1005 + KEYS_KEPT_MS), key="key 11")])
    log.append([append(1, message(12, at=1005 + KEYS_KEPT_MS), key="key 12")])
    found = [log.find("room", "alice", f"key {offset}") for offset in range(1, 13)]
    assert [each.offset for each in found if each is not None] == list(range(5, 13))
    # The clock was ahead by a year for a moment: the other keys grow old nevertheless.
    log.append([append(1, message(13, at=366 * KEYS_KEPT_MS), key="ahead")])
    for offset in range(14, 24):
        log.append([append(1, message(offset, at=2000 + KEYS_KEPT_MS), key=f"key {offset}")])
    assert log.find("room", "alice", "ahead") == message(13, at=366 * KEYS_KEPT_MS)
    with log._snapshot() as db:
        assert db.execute("SELECT count(*) FROM chatx_keys WHERE inserted_at < 2000").fetchone() == (0,)


def test_places_that_are_no_longer_kept_are_not_given_out_again(opened: Open) -> None:
    log = opened()
    log.take_over("room")
    log.append([append(1, message(1), message(2))])
    log.append([append(1, message(1, "e2"), message(2, "e2"))])
    with log._transaction() as db:
        db.execute('DELETE FROM chatx_entries WHERE rank = 1 OR "offset" = 1')
    opening = log.take_over("room")
    assert (opening.head, opening.oldest) == (("e2", 2), 2)
    assert log.read("room", after=Position("e2", 0), limit=9).oldest == ("e2", 2)
    with log._transaction() as db:
        db.execute("DELETE FROM chatx_entries")
    opening = log.take_over("room")
    assert (opening.head, opening.oldest) == (("e2", 2), 3)
    assert log.read("room", after=Position("e2", 0), limit=9).oldest == ("e2", 3)
    assert log.read("room", limit=9).oldest == ("e2", 3)
    assert log.read("room", after=Position("epoch", 0), limit=9).oldest is None
    # Neither in the epoch that is over, nor in this one, where nothing is left to compare with.
    assert log.append([append(3, message(1))]) == [FENCED]
    assert log.append([append(3, message(1, "e2"), message(2, "e2"))]) == [FENCED]
    assert log.append([append(3, message(3, "e2"))]) == [None]


def test_a_call_that_fails_midway_leaves_no_transaction_behind(opened: Open) -> None:
    log = opened()
    with pytest.raises(UnicodeEncodeError):
        log.take_over("room \ud800")
    assert log.take_over("room").term == 1
    assert log.append([append(1, message(1))]) == [None]


LIMITED = """
import resource, signal, sqlite3, sys
from pathlib import Path
from chatx.adapters.room_log import Append, LogUnavailable, Record
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Message, Position

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = SQLitePersistence(sys.argv[1])

def append(term, first, last):
    entries = [Message(f"id {n}", "room", "alice", "x" * 4000, n, "e", n) for n in range(first, last + 1)]
    return log.append([Append("room", term, Position("e", first - 1), tuple(map(Record, entries)), True)])

assert append(log.take_over("room").term, 1, 1) == [None]
none, all_ = resource.getrlimit(resource.RLIMIT_FSIZE)
room = Path(sys.argv[1] + "-wal").stat().st_size + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, all_))
try:
    print(append(1, 2, 40))
except (LogUnavailable, sqlite3.Error) as error:
    print("failed")
resource.setrlimit(resource.RLIMIT_FSIZE, (none, all_))
opened = log.take_over("room")
print(opened.head.offset, len(log.read("room", limit=100).entries))
print(append(opened.term, 2, 40))
"""


@pytest.mark.process
@pytest.mark.parametrize("room", [0, 5000, 50_000])
def test_a_write_that_the_system_refuses_midway_leaves_nothing_and_the_log_goes_on(
    opened: Open, tmp_path: Path, room: int
) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "chat.db"), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["failed", "1 1", "[None]"], "")
    log = opened()
    assert [each.offset for each in log.read("room", limit=100).entries] == list(range(1, 41))
    assert log.take_over("room").head == ("e", 40)


def test_what_was_saved_and_marked_is_where_the_log_goes_on(opened: Open) -> None:
    store = opened()
    store.mark_open("room", "e")
    store.save_messages([message(1), message(2)])
    opening = store.take_over("room")
    assert (opening.head, opening.oldest, opening.proven) == (("e", 2), 1, False)
    store.mark_closed("room", "e", 3)  # 3 is a dead letter
    opening = store.take_over("room")
    assert (opening.head, opening.proven) == (("e", 3), True)
    assert store.append([append(2, message(4))]) == [None]
    assert store.last_position("room") == ("e", 4)
    assert [each.offset for each in store.load_messages("room", limit=9)] == [1, 2, 4]
    # A place that has a message is not given out again, whatever the mark says.
    store.mark_closed("room", "e", 2)
    assert store.last_position("room") == ("e", 4)
    store.save_messages([message(5)])
    assert store.append([append(2, message(5))]) == [None]
    assert store.append([append(2, Message("other", "room", "alice", "", 1, "e", 5))]) == [FENCED]


def test_a_room_that_was_opened_and_said_nothing_has_no_last_position(opened: Open) -> None:
    log = opened()
    log.take_over("room")
    assert log.last_position("room") is None
    assert log.load_messages("room", limit=9) == []


def test_rooms_in_which_nothing_was_said_do_not_add_up_and_their_terms_are_not_given_again(opened: Open) -> None:
    log = opened()
    for number in range(50):
        log.take_over(f"joined {number}")
    log.take_over("said")
    log.append([append(51, message(1, room_id="said"))])
    # Whoever only opens the file takes nothing from its writer.
    assert log.append([append(1, message(1, room_id="joined 0"))]) == [None]
    writer = opened()
    assert writer.hold(0)
    with log._snapshot() as db:
        assert db.execute("SELECT room_id FROM chatx_rooms ORDER BY term DESC").fetchall() == [("said",), ("joined 0",)]
    assert log.append([append(2, message(1, room_id="joined 1"))]) == [FENCED]
    assert log.take_over("joined 1").term == 52
    assert log.append([append(2, message(1, room_id="joined 1"))]) == [FENCED]
    # To hold the lock already lets go of nothing.
    assert writer.hold(0)
    assert log.append([append(52, message(1, room_id="joined 1"))]) == [None]


def test_a_writer_that_cannot_let_go_of_silent_rooms_just_now_is_one_nevertheless(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.01)
    log = opened()
    log.take_over("joined")
    with contextlib.closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert log.hold(0)
    assert log.append([append(1, message(1, room_id="joined"))]) == [None]


def test_an_unknown_kind_is_an_entry_and_no_message(opened: Open) -> None:
    log = opened()
    log.take_over("room")
    fields = ("id 2", "room", "alice", "new text", 1000, "e", 2)
    edit = UnknownEntry(*fields, "edit", "room-e-1", None)
    log.append([append(1, message(1), edit, message(3))])
    assert log.read("room", limit=9).entries == (message(1), edit, message(3))
    assert log.load_messages("room", limit=2) == [message(1), message(3)]


def test_threads_that_append_to_rooms_of_their_own_lose_nothing_while_others_are_fenced(opened: Open) -> None:
    logs = [opened(), opened()]

    def write(log: SQLitePersistence, room_id: str) -> None:
        term = log.take_over(room_id).term
        for offset in range(1, 26):
            assert log.append([append(term, message(offset, room_id=room_id)), append(9, message(1))]) == [None, FENCED]

    rooms = in_threads(write, logs)
    for log in logs:
        for room_id in rooms:
            assert [each.offset for each in log.read(room_id, limit=100).entries] == list(range(1, 26))


WRITER = """
import itertools, sys
from chatx.adapters.room_log import Append, Record
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Message, Position

log = SQLitePersistence(sys.argv[1])
durable = sys.argv[2] == "durable"
term = log.take_over("room").term
if not durable:
    log.unproven("room", term, Position("e", 0))
for first in itertools.count(1, 10):
    entries = [Message(f"id {n}", "room", "alice", "x" * 500, n, "e", n) for n in range(first, first + 10)]
    records = tuple(Record(each, f"key {each.offset}") for each in entries)
    assert log.append([Append("room", term, Position("e", first - 1), records, durable, durable)]) == [None]
    print(first + 9, flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("durable", [True, False])
def test_what_was_appended_survives_a_process_that_is_killed_with_its_keys_and_its_proof(
    opened: Open, tmp_path: Path, durable: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "chat.db"), "durable" if durable else "seen"],
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.kill()
        acknowledged = [200, *map(int, writer.stdout.read().split())][-1]
    log = opened()
    opening = log.take_over("room")
    offsets = [each.offset for each in log.read("room", limit=10**6).entries]
    assert offsets == list(range(1, len(offsets) + 1))
    assert len(offsets) % 10 == 0
    assert len(offsets) >= acknowledged
    assert (opening.head, opening.proven) == (("e", offsets[-1]), durable)
    assert {each.key for each in opening.keyed} >= {f"key {offset}" for offset in offsets[-1000:]}


def test_a_page_of_a_long_room_is_read_by_its_place_and_not_by_looking_at_the_rest(opened: Open) -> None:
    log = opened()
    log.save_messages([message(offset) for offset in range(1, 5001)])
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    assert log._reader is not None
    log._reader.set_progress_handler(step, 100)
    for place in ({"before": Position("e", 2500)}, {"after": Position("e", 2500)}, {}):
        assert len(log.read("room", limit=10, **place).entries) == 10
    assert steps < 100
    log._reader.set_progress_handler(None, 1)
