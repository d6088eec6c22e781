"""A store's URL: what it names, what is refused, and that no password is shown."""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatx import ConfigError
from chatx.adapters.postgres_log import PostgresLog
from chatx.adapters.sqlite import SQLitePersistence
from chatx.adapters.stores import check_store, kind_of, open_store, path_of, shown
from tests.postgres import Postgres


@pytest.mark.parametrize(
    "form", ["a.db", "sqlite:///a.db", "SQLITE:a.db", "sqlite:///{here}/a.db", "{here}/a.db", "./a.db"]
)
def test_a_file_of_sqlite_is_named_with_a_scheme_or_without(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = form.format(here=tmp_path)
    check_store(url)
    assert kind_of(url) == "sqlite"
    assert not list(tmp_path.iterdir())  # a look at the form makes nothing
    store = open_store(url)
    assert isinstance(store, SQLitePersistence)
    store.close()
    assert (tmp_path / "a.db").exists()


@pytest.mark.parametrize("url", ["sqlite://", ":memory:", "sqlite:///:memory:"])
def test_sqlite_in_memory_makes_no_file(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    assert isinstance(store, SQLitePersistence)
    with closing(store):
        assert not list(tmp_path.iterdir())


def test_a_drive_of_windows_is_no_kind_of_store() -> None:
    assert path_of("C:\\chat.db") == "C:\\chat.db"


@pytest.mark.parametrize("url", ["postgresql://db/chat", "postgres://me:secret@db:5432/chat", "PostgreSQL://db"])
def test_a_database_of_postgresql_is_not_connected_to_before_it_is_used(url: str) -> None:
    check_store(url)
    assert kind_of(url) == "postgres"
    assert isinstance(open_store(url), PostgresLog)


@pytest.mark.parametrize("adapter_timeout_ms, expected", [(5000, 2.499), (600_000, 3.0), (1, 0.001)])
def test_a_call_to_postgresql_gives_up_before_the_engine_does(adapter_timeout_ms: int, expected: float) -> None:
    store: Any = open_store("postgresql://db", adapter_timeout_ms=adapter_timeout_ms)
    assert store._timeout_s == expected


async def test_the_tables_in_postgresql_are_made_where_they_are_not(postgres: Postgres) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    store: Any = open_store(url)
    assert (await store.take_over("room")).term == 1
    await store.close()


@pytest.mark.parametrize(
    "url, named",
    [
        ("", "names no file"),
        ("sqlite:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://host/x", "names a host"),
        ("sqlite://me:hunter2@db/x", "names a host"),
        ("sqlite:///a.db?mode=ro", "has options"),
        ("sqlite:///a\0b", "NUL"),
        ("mysql://me:hunter2@db/x", "There is no store mysql://db/x"),
        ("postgresql:db", "There is no store postgresql:..."),
        ("me:hunter2@db/x", "There is no store me:..."),
        ("postgresql+asyncpg://me:hunter2@db/x", "There is no store postgresql+asyncpg://db/x"),
        ("postgresql+asyncpg://me:hunter2@db/x", "name no driver, and give one of"),
        (None, "NoneType"),
        (Path("a.db"), "PosixPath"),
        (b"a.db", "bytes"),
    ],
)
def test_what_names_no_store_is_refused_with_the_forms_and_without_a_password(url: Any, named: str) -> None:
    for function in (check_store, kind_of, open_store):
        with pytest.raises(ConfigError) as refused:
            function(url)
        assert named in refused.value.reason
        assert "sqlite:///chat.db" in refused.value.reason
        assert "hunter2" not in refused.value.reason


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("chatx.adapters.postgres_"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    for function in (check_store, open_store):
        with pytest.raises(ConfigError, match=r"A store in PostgreSQL needs asyncpg.*chatx-engine\[postgres\]"):
            function("postgresql://db")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, but somebody's notes" * 100)
    with pytest.raises(ConfigError, match=r"^The store .*notes\.txt: .*not a database"):
        open_store(f"sqlite:///{notes}")
    assert notes.read_text().startswith("not a database")


@pytest.mark.parametrize(
    "url, expected",
    [
        ("postgresql://me:hunter2@db.example:5432/chat?password=hunter2", "postgresql://db.example:5432/chat"),
        ("postgres://[::1]:5432/chat", "postgres://[::1]:5432/chat"),
        ("postgresql://me:hunt/er2@db/chat", "postgresql:..."),
        ("postgresql://me:hunt?er2@db/chat", "postgresql:..."),
        ("postgresql://me:hunt#er2@db/chat", "postgresql:..."),
        ("postgresql://me:hunter2", "postgresql:..."),
        ("postgresql://me:h@nter2@db/chat", "postgresql://db/chat"),
        ("postgresql://[me:hunter2@db", "postgresql:..."),
        ("postgresql:///chat?host=/run/postgresql", "postgresql:///chat"),
        ("sqlite:////home/me@work/chat.db", "sqlite:////home/me@work/chat.db"),
        ("/var/lib/chat.db", "/var/lib/chat.db"),
    ],
)
def test_a_url_is_shown_without_who_and_the_password(url: str, expected: str) -> None:
    assert shown(url) == expected
