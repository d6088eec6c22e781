"""`chatx db`: what it says of a store's tables, what it does to them, and what it leaves alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat, StoreInUse
from chatx.adapters import postgres_schema, sqlite_file, sqlite_schema
from chatx.adapters.postgres_connections import WriterLock as PostgresLock
from chatx.adapters.postgres_connections import connected
from chatx.adapters.sqlite import SQLitePersistence
from chatx.adapters.writer_lock import WriterLock
from chatx.cli import main
from tests.adapters.test_sqlite_schema import SCHEMA_1
from tests.postgres import Postgres
from tests.process import run, serve

NEWEST = sqlite_schema.SCHEMA_VERSION


def asked(capsys: pytest.CaptureFixture[str], action: str, store: object) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON of `chatx db`."""
    status = main(["db", action, "--store", str(store), "--json"])
    return status, json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["db", *arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("chatx: ")
    return status, printed.err


def of_version(folder: Path, version: int) -> Path:
    """Make a file with the tables of a version, by the steps that were committed."""
    path = folder / f"version-{version}.db"
    if version == 1:
        path.write_bytes(SCHEMA_1.read_bytes())
        return path
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        for statement in (each for step in sqlite_schema.STEPS[:version] for each in step):
            db.execute(statement)
    return path


def content(folder: Path) -> dict[str, str]:
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


@pytest.mark.parametrize("version", range(1, NEWEST + 1))
def test_each_version_is_named_without_a_change_and_taken_up(
    version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = of_version(tmp_path, version)
    before = content(tmp_path)
    state = "current" if version == NEWEST else "older"
    expected = {"store": str(path), "state": state, "version": version, "writes": NEWEST}
    assert asked(capsys, "current", path) == (0 if state == "current" else 3, expected)
    assert content(tmp_path) == before

    done = {"store": str(path), "state": "current", "version": NEWEST, "before": version, "writes": NEWEST}
    assert asked(capsys, "upgrade", path) == (0, done)
    assert asked(capsys, "current", path)[0] == 0
    assert asked(capsys, "upgrade", path) == (0, {**done, "before": NEWEST})
    if version == 1:
        with closing(SQLitePersistence(path)) as store:
            assert store.load_messages("general", limit=1)


def test_a_file_that_is_not_there_has_no_tables_and_is_made_by_an_upgrade_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chat.db"
    assert asked(capsys, "current", path) == (
        3,
        {"store": str(path), "state": "none", "version": 0, "writes": NEWEST},
    )
    assert list(tmp_path.iterdir()) == []
    assert asked(capsys, "upgrade", path)[0] == 0
    assert path.exists()


def test_a_database_of_the_applications_own_has_no_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (x)")
    assert asked(capsys, "current", path)[1]["state"] == "none"
    assert asked(capsys, "upgrade", path)[0] == 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM mine").fetchall() == []


def test_tables_of_a_later_version_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = of_version(tmp_path, NEWEST)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE chatx_schema SET version = 99")
    before = path.read_bytes()
    status, found = asked(capsys, "current", path)
    assert (status, found["state"], found["version"]) == (3, "newer", 99)
    status, said = refused(capsys, "upgrade", "--store", str(path))
    assert (status, "have version 99" in said) == (2, True)
    assert path.read_bytes() == before


def test_a_person_reads_it_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = of_version(tmp_path, 1)
    assert main(["db", "current", "--store", f"sqlite:///{path}"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"store   sqlite:///{path}", f"tables  version 1; this chatx writes version {NEWEST}"]
    assert "chatx db upgrade" in lines[2]
    assert main(["db", "upgrade", "--store", f"sqlite:///{path}"]) == 0
    assert "They were taken up" in capsys.readouterr().out


def test_the_store_may_come_from_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chatx.toml"
    file.write_text(f'[chatx]\nstore = "{of_version(tmp_path, NEWEST)}"\n')
    assert main(["db", "current", "--config", str(file)]) == 0
    monkeypatch.setenv("CHATX_STORE", str(of_version(tmp_path, 1)))
    assert main(["db", "current", "--config", str(file)]) == 3
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((), "No store was named"),
        (("--store", "sqlite://"), "in memory"),
        (("--store", "mysql://me:hunter2@db/x"), "There is no store mysql://db/x"),
        (("--config", "none.toml"), "cannot be read"),
        (("--store", "{folder}"), "it is a folder, so name a file in it"),
        (("--store", "{folder}/none/chat.db"), "/none' is not there"),
        (("--store", "postgresql://me:hun/ter2@db/x"), "a / in a password is %2F"),
        (("--store", "{folder}/notes.txt"), "not a database"),
    ],
)
@pytest.mark.parametrize("action", ["current", "upgrade"])
def test_what_is_no_store_is_refused(
    action: str, arguments: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but somebody's notes" * 100)
    status, said = refused(capsys, action, *(each.format(folder=tmp_path) for each in arguments))
    assert (status, named in said, "hunter2" in said) == (2, True, False)


# While a chat runs


@pytest.mark.process
def test_a_live_database_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'chat.db'}"
    with serve("--insecure-user-param", "--store", store) as server:
        for action in ("current", "upgrade"):
            ended = run("db", action, "--store", store, "--json")
            assert (ended.returncode, json.loads(ended.stdout)["state"]) == (0, "current")
        assert server.stop()[0] == 0


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """A chat of an earlier version, which has the lock of the one who writes."""
    lock = WriterLock(f"{path}.lock")
    assert lock.hold(0)
    try:
        yield
    finally:
        lock.let_go()


def test_tables_are_not_taken_up_under_the_hands_of_a_chat_of_an_earlier_version(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = of_version(tmp_path, 2)
    monkeypatch.setattr(sqlite_file, "OPENING_S", 0.1)
    with written_to(path):
        before = path.read_bytes()
        status, said = refused(capsys, "upgrade", "--store", str(path))
        assert (status, "tables of an earlier version" in said) == (1, True)
        assert [each.levelno for each in caplog.records] == [logging.WARNING]
        with pytest.raises(StoreInUse):
            SQLitePersistence(path)
        assert path.read_bytes() == before
    assert asked(capsys, "upgrade", path)[0] == 0


async def test_a_chat_waits_for_one_of_an_earlier_version_and_then_takes_its_tables_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_version(tmp_path, 2)
    monkeypatch.setattr(sqlite_file, "OPENING_S", 0.05)
    with written_to(path), pytest.raises(StoreInUse, match="of an earlier version"):
        await Chat(store=str(path), drain_timeout_ms=200).start()
    async with Chat(store=str(path)) as chat:
        assert (await chat.send_message("room", "ada", "hello", durability="stored")).stored


# PostgreSQL


def test_postgresql_has_versions_too(postgres: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    url, newest = postgres.new_database(), postgres_schema.SCHEMA_VERSION
    status, found = asked(capsys, "current", url)
    assert (status, found["state"], found["version"], found["writes"]) == (3, "none", 0, newest)
    assert asked(capsys, "current", url)[1]["state"] == "none"  # to look makes none
    status, done = asked(capsys, "upgrade", url)
    assert (status, done["before"], done["version"]) == (0, 0, newest)
    assert asked(capsys, "current", url)[0] == 0


@pytest.mark.parametrize("version", range(1, postgres_schema.SCHEMA_VERSION))
def test_each_version_in_postgresql_is_taken_up_unless_a_chat_of_it_writes(
    version: int, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.new_database()

    async def make() -> None:
        db = await connected(url, 10)
        for step in postgres_schema.STEPS[:version]:
            await db.execute(step)
        await db.execute("UPDATE chatx_schema SET version = $1", version)
        await db.close()

    async def upgrade_while_it_is_written() -> tuple[int, str]:
        lock = PostgresLock(lambda: connected(url, 10))
        assert await lock.take(0)
        try:
            return await asyncio.to_thread(refused, capsys, "upgrade", "--store", url)
        finally:
            await lock.let_go()

    asyncio.run(make())
    assert asked(capsys, "current", url)[1]["version"] == version
    status, said = asyncio.run(upgrade_while_it_is_written())
    assert (status, "tables of an earlier version" in said) == (1, True)
    assert asked(capsys, "current", url)[1]["version"] == version
    assert asked(capsys, "upgrade", url)[0] == 0
    assert asked(capsys, "current", url)[0] == 0


def test_tables_of_a_later_version_in_postgresql_are_left_alone(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.new_database()
    assert asked(capsys, "upgrade", url)[0] == 0
    postgres.psql("UPDATE chatx_schema SET version = 99", url.partition("@/")[2].partition("?")[0])
    assert asked(capsys, "current", url)[1]["state"] == "newer"
    assert refused(capsys, "upgrade", "--store", url)[0] == 2


@pytest.mark.parametrize("action", ["current", "upgrade"])
def test_a_postgresql_that_is_away_is_1_and_shows_no_password(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refused(capsys, action, "--store", "postgresql://me:hunter2@127.0.0.1:1/chat")
    assert (status, "cannot be used now" in said, "hunter2" in said) == (1, True, False)
    assert said.startswith("chatx: The store postgresql://127.0.0.1:1/chat: ")
