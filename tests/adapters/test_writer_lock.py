"""One process writes in a SQLite file: the lock waits, ends with its holder, and keeps nobody from reading."""

import asyncio
import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatx import ConfigError, Message
from chatx.adapters import writer_lock
from chatx.adapters.sqlite import SQLitePersistence
from tests.adapters.opening import Open

LONG_MS = 50_000
"""Longer than any of these tests may take: whoever waits so long fails by its time limit."""


HOLDER = """
import subprocess, sys
from chatx.adapters.sqlite import SQLitePersistence
from chatx.core.message import Message

store = SQLitePersistence(sys.argv[1])
print(store.hold(int(sys.argv[2])), flush=True)
store.save_messages([Message("id", "room", "alice", "from the holder", 1, "e", 1)])
# What the holder starts holds nothing.
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=sys.stdin)
print(child.pid, flush=True)
child.wait()
"""


@contextlib.contextmanager
def holder(path: Path, wait_ms: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process that asks for the lock, says whether it has it, and stays, with a child, until it is ended."""
    command = [sys.executable, "-c", HOLDER, str(path), str(wait_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
            assert process.stdin is not None
            process.stdin.close()  # which ends the child too


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.process
def test_a_lock_dies_with_a_holder_that_is_killed_though_its_child_lives_and_whoever_waits_gets_it(
    opened: Open, tmp_path: Path
) -> None:
    with holder(tmp_path / "chat.db") as process:
        assert said(process) == "True"
        child = int(said(process))
        store = opened()
        assert not store.hold(0)
        assert not store.hold(100)
        # Reading beside the holder is allowed, and so is opening the file.
        assert [each.content for each in store.load_messages("room", limit=9)] == ["from the holder"]
        got: list[bool] = []
        waiting = threading.Thread(target=lambda: got.append(store.hold(LONG_MS)))
        waiting.start()
        process.kill()
        waiting.join()
        assert got == [True]
        os.kill(child, 0)  # it lives


@pytest.mark.process
def test_a_second_process_waits_for_the_first_to_let_go(opened: Open, tmp_path: Path) -> None:
    store = opened()
    assert store.hold(0)
    with holder(tmp_path / "chat.db") as hasty:
        assert said(hasty) == "False"
    with holder(tmp_path / "chat.db", LONG_MS) as patient:
        store.let_go()
        assert said(patient) == "True"
        assert not store.hold(0)


def test_two_openings_in_one_process_are_two(opened: Open) -> None:
    one, other = opened(), opened()
    assert one.hold(0)
    assert one.hold(0)
    assert not other.hold(0)
    one.let_go()
    one.let_go()
    assert other.hold(0)
    assert not one.hold(0)
    # Whoever is closed holds nothing.
    other.close()
    assert one.hold(0)


def test_one_file_has_one_lock_by_whatever_path_it_is_named(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened().hold(0)
    (tmp_path / "link.db").symlink_to(tmp_path / "chat.db")
    assert not opened(tmp_path / "link.db").hold(0)
    monkeypatch.chdir(tmp_path)
    assert not opened("chat.db").hold(0)
    assert opened("another.db").hold(0)


def test_the_file_of_the_lock_stays_and_has_the_name_that_is_documented(opened: Open, tmp_path: Path) -> None:
    store = opened()
    assert not (tmp_path / "chat.db.lock").exists()
    store.hold(0)
    store.close()
    assert (tmp_path / "chat.db.lock").read_bytes() == b""


def test_memory_is_nobody_elses(opened: Open) -> None:
    one, other = opened(":memory:"), opened(":memory:")
    assert one.hold(0)
    assert other.hold(0)
    one.let_go()


def test_a_lock_that_cannot_be_opened_says_what_to_do(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "chat.db.lock").mkdir()
    with pytest.raises(ConfigError, match=r"chat\.db\.lock', cannot be taken: Is a directory; let the process write"):
        opened().hold(0)


def test_without_such_locks_everybody_writes(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lock, "fcntl", None)
    one, other = opened(), opened()
    assert one.hold(0)
    assert other.hold(0)
    one.let_go()


def test_a_lock_that_the_file_system_does_not_have_says_so_and_leaves_nothing_open(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_none(file: int, operation: int) -> None:
        taken.append(file)
        raise OSError(errno.ENOLCK, "No locks available")

    taken: list[int] = []
    store = opened()
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", has_none)
        with pytest.raises(ConfigError, match=r"cannot be taken: No locks available; .*must be on this machine"):
            store.hold(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(taken[0])
    assert store.hold(0)


def test_a_store_that_is_closed_while_it_waits_holds_nothing(opened: Open) -> None:
    one, other = opened(), opened()
    assert one.hold(0)
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(other.hold(LONG_MS)))
    waiting.start()
    other.close()
    one.let_go()
    waiting.join()
    assert got == [False]
    assert one.hold(0)


async def test_a_wait_that_is_over_has_not_taken_the_lock(opened: Open) -> None:
    one, other = opened(), opened()
    assert one.hold(0)
    assert not await asyncio.to_thread(other.hold, 60)
    one.let_go()
    assert one.hold(0)


def test_who_holds_writes_beside_others_that_read_and_save(opened: Open) -> None:
    # The lock is a rule among chats. It keeps no statement from the file.
    one, other = opened(), opened()
    assert one.hold(0)
    other.save_messages([Message("id", "room", "alice", "hello", 1, "e", 1)])
    assert len(one.load_messages("room", limit=9)) == 1


WHO_MAY_ONLY_READ = """
import os, sys
from chatx import ConfigError
from chatx.adapters.sqlite import SQLitePersistence

if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
store = SQLitePersistence(sys.argv[1])
print(store.last_position("general"))
try:
    print(store.hold(0))
except ConfigError as error:
    print(error)
print(store._holds)
store.close()
"""


@pytest.mark.process
def test_who_may_only_read_the_file_is_not_the_one_who_writes() -> None:
    # Not in pytest's folder, into which only the user may who runs the tests.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.db"
        SQLitePersistence(path).close()
        Path(folder).chmod(0o777)
        path.chmod(0o444)
        ran = subprocess.run(
            [sys.executable, "-c", WHO_MAY_ONLY_READ, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            # Not measured: it may not write into the folder that the measurements are in either.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        )
    looked, refused, holds = ran.stdout.splitlines()
    assert (looked, holds, ran.stderr) == ("None", "False", "")
    assert refused.startswith(f"The file '{path}' cannot be written; this process may not read and write it")
