"""What the page on operating the store tells to do works, on real databases: backups, and what follows a restore."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from chatx import Chat, Gap, Message
from tests.docs.markdown import ROOT, blocks
from tests.postgres import Postgres

PAGE = ROOT / "docs" / "store.md"
(WITHDRAW,) = [block.code for block in blocks(PAGE, "sql")]


async def said(store: str, *contents: str) -> list[Message]:
    async with Chat(store=store, durability="stored") as chat:
        return [await chat.send_message("room", "ada", each) for each in contents]


@pytest.mark.parametrize("withdrawn", [True, False])
async def test_after_a_restore_a_reader_is_told_where_the_proofs_were_withdrawn_and_else_is_not(
    withdrawn: bool, tmp_path: Path
) -> None:
    live, backup = tmp_path / "chat.db", tmp_path / "backup.db"
    await said(str(live), "before the backup")
    with closing(sqlite3.connect(live)) as source, closing(sqlite3.connect(backup)) as copy:
        source.backup(copy)
    (_, lost) = await said(str(live), "behind it", "seen and lost")
    if withdrawn:
        with closing(sqlite3.connect(backup)) as db, db:
            db.execute(WITHDRAW)
    async with Chat(store=str(backup), durability="stored") as chat:
        new = [await chat.send_message("room", "ada", each) for each in ("new", "other", "more")]
        assert [each.content for each in await chat.history("room")] == ["before the backup", "new", "other", "more"]
        async with chat.subscribe("room", after=lost) as subscription:
            first = await anext(subscription)
        # Without it a reader goes on behind two messages that it has never seen.
        assert isinstance(first, Gap) is withdrawn
        assert (new[0].epoch != lost.epoch) is withdrawn


async def test_the_commands_for_postgresql_make_a_backup_that_a_chat_goes_on_with(
    postgres: Postgres, tmp_path: Path
) -> None:
    live, restored = postgres.new_database(), postgres.new_database()
    await said(live, "keep this")
    commands = [line for block in blocks(PAGE, "sh") for line in block.code.splitlines() if line.startswith("pg_")]
    assert [each.partition(" ")[0] for each in commands] == ["pg_dump", "pg_restore"]
    for command, url in zip(commands, (live, restored), strict=True):
        environment = os.environ | {"DATABASE_URL": url, "PATH": f"{postgres.programs}:{os.environ['PATH']}"}
        run = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, run.stderr
    name = restored.partition("@/")[2].partition("?")[0]
    postgres.psql(WITHDRAW, name)
    (message,) = await said(restored, "goes on")
    assert message.offset == 1
    async with Chat(store=restored) as chat:
        assert [each.content for each in await chat.history("room")] == ["keep this", "goes on"]
    vacuum = re.search(r"VACUUM \(ANALYZE\) chatx_entries", PAGE.read_text(encoding="utf-8"))
    assert vacuum is not None
    postgres.psql(vacuum[0], name)
