"""`chatx outbox`: what it shows of a store, and what it does with what is dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat, Message
from chatx.adapters.outbox import Outcome
from chatx.adapters.sqlite import SQLitePersistence
from chatx.cli import main
from tests.adapters.test_sqlite_schema import SCHEMA_1
from tests.postgres import Postgres


class Down:
    """A notifier that fails."""

    async def notify(self, user_id: str, message: Message) -> None:
        raise RuntimeError(user_id)


async def sent(url: str, count: int = 3) -> list[str]:
    """Fill a store's outbox: all but the last are dead."""
    options: dict[str, Any] = {"store": url, "notifier": Down(), "durability": "stored"}
    async with Chat(delivery_max_retries=0, delivery_tick_ms=1, **options) as chat:
        for user in ("bob", "carol"):
            await chat.join("room", user)
        ids = [(await chat.send_message("room", "alice", str(number))).id for number in range(count - 1)]
        async with asyncio.timeout(30):
            while len(await chat.outbox(state="dead")) < count - 1:  # noqa: ASYNC110  # a database does it
                await asyncio.sleep(0.01)
    async with Chat(delivery_max_retries=5, delivery_retry_base_ms=10_000, **options) as chat:
        await chat.join("room", "bob")
        return [*ids, (await chat.send_message("room", "alice", "waiting")).id]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chat.db"


def outbox(*arguments: str) -> int:
    return main(["outbox", *arguments])


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert outbox("list", "--json", *arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    rows: list[dict[str, Any]] = json.loads(printed.out)["notifications"]
    return rows


def test_it_is_listed_page_by_page_and_by_state(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = asyncio.run(sent(url))
    rows = listed(capsys, "--store", url)
    assert [each["id"] for each in rows] == ids
    assert [each["state"] for each in rows] == ["dead", "dead", "waiting"]
    assert (rows[0]["room_id"], rows[0]["users"], rows[0]["attempts"]) == ("room", ["bob", "carol"], 1)
    assert rows[0]["reason"] == "raised"
    monkeypatch.setenv("CHATX_STORE", url)
    assert [each["id"] for each in listed(capsys, "--state", "dead")] == ids[:2]
    assert [each["id"] for each in listed(capsys, "--limit", "1", "--after", ids[0])] == [ids[1]]

    assert outbox("list", "--limit", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{ids[0]}  dead  room  to bob, carol  (raised after 1 attempts)"
    assert lines[2].startswith(f"{ids[2]}  waiting  room  to bob  (due 20")
    assert lines[3] == f"There may be more: --after {ids[2]}"


def test_what_is_dead_is_tried_again_or_dropped(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = asyncio.run(sent(url, 5))
    assert outbox("retry", ids[0], "--store", url) == 0
    assert capsys.readouterr().out == "1 retried.\n"
    row = listed(capsys, "--store", url)[0]
    assert (row["state"], row["attempts"], row["due_at"], row["reason"]) == ("waiting", 0, 0, None)
    assert outbox("list", "--store", url) == 0
    assert "(due now, 0 attempts)" in capsys.readouterr().out

    assert outbox("retry", "--json", ids[0], ids[1], "--store", url) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"retried": 1}
    assert printed.err == "chatx: 1 of 2 ids are not dead; `chatx outbox list` has those.\n"

    assert outbox("drop", ids[2], "--store", url) == 0
    assert outbox("drop", ids[2], "--store", url) == 1
    assert "1 of 1 ids are not in the outbox" in capsys.readouterr().err
    assert outbox("drop", "--all", "--json", "--store", url) == 0
    assert json.loads(capsys.readouterr().out) == {"dropped": 1}
    assert [each["id"] for each in listed(capsys, "--store", url)] == [ids[0], ids[1], ids[4]]


def test_all_that_is_dead_is_tried_again_however_much_it_is(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(sent(url, 2))
    with contextlib.closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        with store._transaction() as db:
            db.executemany(
                """INSERT INTO chatx_outbox (id, room_id, rank, "offset", users, due_at, claimer)
                VALUES (?, 'room', 1, 1, '["bob"]', 0, 'me')""",
                [(f"id {number:04}",) for number in range(2500)],
            )
        store.settle_notifications(
            "me", [Outcome(f"id {number:04}", "dead", reason="raised") for number in range(2500)]
        )
    assert outbox("retry", "--all", "--store", url) == 0
    assert capsys.readouterr().out == "2501 retried.\n"
    assert listed(capsys, "--store", url, "--state", "dead") == []
    assert outbox("list", "--store", url, "--state", "dead") == 0
    assert capsys.readouterr().out == "There is nothing.\n"


@pytest.mark.process
def test_it_does_the_same_with_postgresql(postgres: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    url = postgres.new_database()
    ids = asyncio.run(sent(url))
    assert [each["id"] for each in listed(capsys, "--store", url)] == ids
    assert outbox("retry", "--all", "--store", url) == 0
    assert outbox("drop", *ids, "--store", url) == 0
    assert listed(capsys, "--store", url) == []


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["list"], 2, "No store was named; give --store sqlite:///chat.db, or set CHATX_STORE."),
        (["list", "--store", "redis://host"], 2, "There is no store redis:"),
        (["list", "--store", "nowhere.db"], 1, "There is no file nowhere.db"),
        (["list", "--store", "sqlite://"], 1, "There is no file sqlite:"),
        (["retry", "--store", "chat.db"], 2, "Give the ids of what to retry, or --all for every dead one; not both."),
        (["drop", "id", "--all", "--store", "chat.db"], 2, "Give the ids of what to drop, or --all"),
        (["list", "--store", "text.db"], 1, "The store text.db cannot be read: file is not a database"),
        (
            ["list", "--store", "postgresql://chat:hunter2@127.0.0.1:1/chat"],
            1,
            "The store postgresql://127.0.0.1:1/chat: PostgreSQL cannot be used now: ",
        ),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text.db").write_text("this is no database " * 100)
    monkeypatch.chdir(tmp_path)
    assert outbox(*arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("chatx: ")
    assert said in printed.err
    assert "hunter2" not in printed.err
    assert not (tmp_path / "nowhere.db").exists()


def test_whoever_looks_makes_no_tables_and_takes_none_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, older = tmp_path / "theirs.db", tmp_path / "older.db"
    with contextlib.closing(sqlite3.connect(theirs)) as db:
        db.execute("CREATE TABLE mine (x)")
    older.write_bytes(SCHEMA_1.read_bytes())
    made = sorted(tmp_path.iterdir())
    for path, said in ((theirs, "has no tables of chatx"), (older, "have version 1, and this chatx uses version")):
        before = path.read_bytes()
        for action in (["list"], ["retry", "--all"], ["drop", "--all"]):
            assert outbox(*action, "--store", str(path)) == 1
            assert said in capsys.readouterr().err
        assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == made
    with contextlib.closing(SQLitePersistence(older)), contextlib.closing(sqlite3.connect(older)) as db, db:
        db.execute("UPDATE chatx_schema SET version = 99")
    assert outbox("list", "--store", str(older)) == 1
    assert "use the chatx that made them" in capsys.readouterr().err


@pytest.mark.process
def test_whoever_looks_makes_no_tables_in_postgresql(postgres: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    url = postgres.new_database()
    assert outbox("list", "--store", url) == 1
    assert "has no tables of chatx" in capsys.readouterr().err
    assert outbox("list", "--store", url) == 1  # still


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "many", ""])
def test_a_limit_that_is_none_is_refused(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        outbox("list", "--limit", limit)
    assert ended.value.code == 2
    assert "give a whole number from 1 to 1000" in capsys.readouterr().err
