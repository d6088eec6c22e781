"""A real process killed amid its notifications: everybody is told of every message that was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chatx.adapters.stores import open_store
from tests.postgres import Postgres
from tests.process import ENVIRONMENT

pytestmark = pytest.mark.process

USERS = ("bob", "carol", "dave")

PATIENCE_S = 120.0

KILLS = int(os.environ.get("TEST_KILLS") or 5)

# Leases are short, so that the test is.
CHAT = """
import asyncio, os, sys
from chatx import Chat, RateLimit
from chatx.runtime import outbox

outbox.LEASE_MS, outbox.LOOKED_EVERY_S = 1000, 0.1
told = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Notifier:
    async def notify(self, user_id, message):
        await asyncio.sleep(0.001)
        os.write(told, f"{message.id} {user_id}\\n".encode())


async def send(chat, room):
    while True:
        message = await chat.send_message(room, "alice", "hello")
        print(message.id, flush=True)


async def main():
    chat = Chat(
        store=sys.argv[1], notifier=Notifier(), durability="stored", middlewares=(), delivery_tick_ms=1,
        drain_timeout_ms=60_000,
    )
    async with chat:
        for room in ("one", "two"):
            for user in sys.argv[4:]:
                await chat.join(room, user)
        if sys.argv[3] == "send":
            await asyncio.gather(*(send(chat, room) for room in ("one", "two") for _ in range(4)))
        while await chat.outbox():
            await asyncio.sleep(0.05)
        print("told", flush=True)

asyncio.run(main())
"""


@contextlib.contextmanager
def chat(url: str, folder: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """Run a chat in a process of its own, and kill it in the end."""
    arguments = (url, str(folder / "told"), mode, *USERS)
    process = subprocess.Popen(
        [sys.executable, "-c", CHAT, *arguments], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    # One that hangs ends the test by what it did not say.
    watchdog = threading.Timer(PATIENCE_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def asked(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """Return what a store answers."""

    async def ask() -> Any:
        store: Any = open_store(url)
        try:
            answer = getattr(store, method)(*args, **kwargs)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            closed = store.close()
            if inspect.isawaitable(closed):
                await closed

    return asyncio.run(ask())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/chat.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database()


def test_a_process_that_is_killed_amid_its_notifications_loses_none(url: str, tmp_path: Path) -> None:
    random = Random(12)
    acknowledged: list[str] = []
    claimed = 0
    for _ in range(KILLS):
        with chat(url, tmp_path, "send") as process:
            assert process.stdout is not None
            for _ in range(random.randint(1, 150)):
                line = process.stdout.readline()
                assert line.endswith("\n")
                acknowledged.append(line.strip())
        claimed += len(asked(url, "list_notifications", "claimed", None, 1000))
    assert claimed, "it was killed amid them"
    with chat(url, tmp_path, "tell") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "told\n"

    told = Counter(tuple(line.split()) for line in (tmp_path / "told").read_text().splitlines())
    missed = [(each, user) for each in acknowledged for user in USERS if not told[each, user]]
    assert missed == []
    stored = {each.id for room in ("one", "two") for each in asked(url, "read", room, limit=100_000).entries}
    assert {id_ for id_, _ in told} == stored, "nobody is told of what is not there"
    assert asked(url, "list_notifications", None, None, 1) == []
    # What was claimed when the process died may be told again; nothing else.
    assert sum(count - 1 for count in told.values()) <= KILLS * 64 * len(USERS)
