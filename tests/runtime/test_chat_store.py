"""The store of a chat: opened and closed by whoever made it, and one writer at a time."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from chatx import AdapterError, AlreadyStarted, Chat, ChatConfig, ChatError, Closed, ConfigError, StoreInUse, WrongLoop
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import LogUnavailable
from chatx.adapters.sqlite import SQLitePersistence
from tests.faults import SECRET, Block, Hang, HangDeaf, raises, returns_none, returns_one
from tests.gateway.real_client import until
from tests.postgres import Postgres
from tests.virtual import turns, virtual


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'chat.db'}"


def files(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("chatx")]


async def until_it_waits(caplog: pytest.LogCaptureFixture, many: int = 1) -> None:
    await until(lambda: sum("Waiting up to" in each.getMessage() for each in caplog.records) >= many)


# Opened and closed


async def test_a_chat_opens_its_store_when_it_starts_and_closes_it_when_it_stops(url: str, tmp_path: Path) -> None:
    chat = Chat(store=url)
    assert files(tmp_path) == []
    assert chat.config.persistence is None
    for offset in (1, 2):
        async with chat:
            sent = await chat.send_message("room", "ada", f"number {offset}", durability="stored")
            assert (sent.offset, sent.stored) == (offset, True)
        # A file whose last connection is closed has no write-ahead log beside it.
        assert files(tmp_path) == ["chat.db", "chat.db.lock"]
    assert threads() == []
    with closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        assert [each.content for each in store.load_messages("room", limit=9)] == ["number 1", "number 2"]


async def test_stored_may_be_the_default_of_a_chat_with_a_store() -> None:
    async with Chat(store="sqlite://", durability="stored") as chat:
        assert (await chat.send_message("room", "ada", "hello")).stored
    async with chat:  # in memory: gone with the chat
        assert await chat.history("room") == []


async def test_a_file_that_cannot_be_used_is_an_error_when_it_starts(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, but somebody's notes" * 100)
    chat = Chat(store=str(notes))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"The store .*notes\.txt"):
            await chat.start()
        assert threads() == []
    await chat.stop()


FULL_DISK = """
import asyncio, logging, resource, sys
from chatx import AdapterError, Chat
from chatx.cli import main

store = sys.argv[1]
none, all_ = resource.getrlimit(resource.RLIMIT_FSIZE)
logged = []

class MakesRoom(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())
        resource.setrlimit(resource.RLIMIT_FSIZE, (none, all_))

async def start():
    chat = Chat(store=store, drain_timeout_ms=50)
    try:
        await chat.start()
    except AdapterError as error:
        print(error)
    logging.getLogger("chatx").addHandler(MakesRoom())
    async with Chat(store=store, drain_timeout_ms=50_000) as chat:
        print((await chat.send_message("room", "ada", "hello", durability="stored")).stored)
    print(*logged)

resource.setrlimit(resource.RLIMIT_FSIZE, (0, all_))
logging.getLogger("chatx").propagate = False
print(main(["db", "upgrade", "--store", store]))
asyncio.run(start())
"""


@pytest.mark.process
def test_a_disk_that_is_full_is_waited_for_and_then_told(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    status, refused, stored, waiting = ran.stdout.splitlines()
    assert (status, stored) == ("1", "True"), ran.stderr
    assert "make room on its disk" in ran.stderr
    assert refused.startswith(f"The store {path} could not be used within 0.05 s")
    assert refused.endswith("make room on its disk, or see whether that fails.")
    assert waiting.startswith(f"Waiting up to 50 s for the store {path}: it cannot be used (")


async def test_what_was_given_is_let_go_of_and_not_closed(tmp_path: Path) -> None:
    with closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        async with Chat(persistence=store) as chat:
            await chat.send_message("room", "ada", "hello")
            with closing(SQLitePersistence(tmp_path / "chat.db")) as beside:
                assert not beside.hold(0)
        assert len(store.load_messages("room", limit=9)) == 1
        with closing(SQLitePersistence(tmp_path / "chat.db")) as beside:
            assert beside.hold(0)


@virtual
async def test_without_a_store_a_chat_starts_at_once() -> None:
    for log in (None, MemoryLog()):
        chat = Chat(persistence=log)
        begins = asyncio.ensure_future(chat.start())
        await turns(1)
        assert begins.done()
        await chat.stop()


async def test_a_store_that_is_locked_by_others_does_not_hold_up_the_end(url: str, tmp_path: Path) -> None:
    chat = Chat(store=url, drain_timeout_ms=300)
    await chat.start()
    with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ChatError):
            await chat.send_message("room", "ada", "hello", durability="stored")
        async with asyncio.timeout(10):
            await chat.stop()
        other.execute("ROLLBACK")
    await until(lambda: threads() == [])


# One writer


async def test_a_second_chat_waits_and_is_then_refused(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Chat(store=url) as first:
        second = Chat(store=url, drain_timeout_ms=600)
        with pytest.raises(StoreInUse) as refused:
            await second.start()
        assert (refused.value.code, refused.value.retryable) == ("store_in_use", True)
        assert url in refused.value.reason
        assert "within 0.6 s (drain_timeout_ms)" in refused.value.reason
        assert [each.levelno for each in caplog.records if "Waiting up to 0.6 s" in each.getMessage()] == [
            logging.WARNING
        ]
        with pytest.raises(Closed):
            await second.send_message("room", "ada", "hello")
        await first.send_message("room", "ada", "hello", durability="stored")
    async with second:
        assert [each.content for each in await second.history("room")] == ["hello"]
    assert threads() == []


async def test_the_same_file_by_another_path_is_the_same_store(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    async with Chat(store=str(tmp_path / "chat.db")):
        with pytest.raises(StoreInUse):
            await Chat(store=str(tmp_path / "link" / "chat.db"), drain_timeout_ms=1).start()
        async with Chat(store=str(tmp_path / "another.db")), Chat(store="sqlite://"), Chat(store="sqlite://"):
            pass


async def test_one_object_that_two_chats_were_given_has_one_writer_too(tmp_path: Path) -> None:
    with closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        first, second = Chat(persistence=store), Chat(persistence=store, drain_timeout_ms=1)
        async with first:
            with pytest.raises(StoreInUse):
                await second.start()
            await second.stop()
            # Who was refused took nothing from who has it.
            with closing(SQLitePersistence(tmp_path / "chat.db")) as beside:
                assert not beside.hold(0)
        async with second:
            pass


async def test_a_stop_elsewhere_while_it_starts_is_refused(url: str, caplog: pytest.LogCaptureFixture) -> None:
    second = Chat(store=url, drain_timeout_ms=60_000)
    async with Chat(store=url):
        begins = asyncio.create_task(second.start())
        await until_it_waits(caplog)
        with pytest.raises(WrongLoop):
            await asyncio.to_thread(asyncio.run, second.stop())
        await stopped(second, begins)


async def test_who_waits_begins_when_the_other_has_ended(url: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Chat(store=url), Chat(store=url, drain_timeout_ms=60_000)
    await first.start()
    begins = asyncio.create_task(second.start())
    await until_it_waits(caplog)
    with pytest.raises(AlreadyStarted):
        await second.start()
    sent = await first.send_message("room", "ada", "hello", durability="stored")
    await first.stop()
    await begins
    again = await second.send_message("room", "ada", "again")
    assert (again.epoch, again.offset) == (sent.epoch, 2)
    await second.stop()
    assert threads() == []


async def cancelled(chat: Chat, begins: asyncio.Task[None]) -> None:
    begins.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begins


async def stopped(chat: Chat, begins: asyncio.Task[None]) -> None:
    await chat.stop()
    with pytest.raises(Closed, match="stopped while it started"):
        await begins


GivenUp = Callable[[Chat, "asyncio.Task[None]"], Awaitable[None]]


@pytest.mark.parametrize("given_up", [cancelled, stopped])
@pytest.mark.parametrize("own", [True, False], ids=["opened here", "given"])
async def test_a_wait_that_is_given_up_holds_nothing(
    given_up: GivenUp, own: bool, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        given: dict[str, Any] = {"store": url} if own else {"persistence": store}
        second = Chat(drain_timeout_ms=60_000, **given)
        async with Chat(store=url):
            begins = asyncio.create_task(second.start())
            await until_it_waits(caplog)
            await given_up(second, begins)
            assert not second.statistics().running
        async with Chat(store=url, drain_timeout_ms=1):
            pass
        async with second:
            pass
    assert threads() == []


async def test_postgresql_has_one_writer_too(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    url = await asyncio.to_thread(postgres.new_database)
    first, second = Chat(store=url), Chat(store=url, drain_timeout_ms=60_000)
    async with Chat(store=await asyncio.to_thread(postgres.new_database)):
        await first.start()
        with pytest.raises(StoreInUse):
            await Chat(store=url, drain_timeout_ms=1).start()
        begins = asyncio.create_task(second.start())
        await until_it_waits(caplog)
        await stopped(second, begins)
        begins = asyncio.create_task(second.start())
        await until_it_waits(caplog, 2)
        sent = await first.send_message("room", "ada", "hello", durability="stored")
        await first.stop()
        await begins
        assert (await second.send_message("room", "ada", "again")).offset == sent.offset + 1
        await second.stop()


async def test_a_postgresql_that_is_away_is_waited_for_and_then_told_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = Chat(store="postgresql://me:hunter2@127.0.0.1:1/chat", drain_timeout_ms=300)
    with pytest.raises(AdapterError, match=r"The store postgresql://127.0.0.1:1/chat could not be used within 0.3 s"):
        await chat.start()
    assert "it cannot be used" in caplog.text
    assert "hunter2" not in caplog.text + repr(chat.config)
    await chat.stop()


# Logs that hold as they like


class Held(MemoryLog):
    """A log whose `hold` does this."""

    def __init__(self, hold: Callable[[], Any]) -> None:
        super().__init__()
        self._hold = hold
        self.let_go_of = 0

    async def hold(self, wait_ms: int, /) -> Any:
        answer = self._hold()
        return await answer if asyncio.iscoroutine(answer) else answer

    async def let_go(self) -> None:
        self.let_go_of += 1


class HeldInThread(MemoryLog):
    """The same, with plain methods."""

    def __init__(self, hold: Callable[[], Any]) -> None:
        super().__init__()
        self._hold = hold
        self.let_go_of = 0

    def hold(self, wait_ms: int, /) -> Any:
        return self._hold()

    def let_go(self) -> None:
        self.let_go_of += 1


def unavailable() -> Any:
    raise LogUnavailable("no route")


@pytest.mark.parametrize("kind", [Held, HeldInThread])
@pytest.mark.parametrize(
    "act, error, said",
    [
        (unavailable, AdapterError, "no route"),
        (raises, AdapterError, "the log says how"),
        (returns_none, StoreInUse, "did not end"),
        (returns_one, StoreInUse, "did not end"),
    ],
)
async def test_a_hold_that_fails_or_is_no_true_refuses_the_start(
    kind: Any, act: Callable[[], Any], error: type[Exception], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = kind(act)
    with pytest.raises(error, match=said) as refused:
        await Chat(persistence=log, drain_timeout_ms=50).start()
    assert SECRET not in str(refused.value)
    assert log.let_go_of == 1
    assert threads() == []


@pytest.mark.parametrize("hang", [Hang, HangDeaf])
async def test_a_hold_that_hangs_is_not_waited_for_for_ever(hang: Any) -> None:
    act = hang()
    with pytest.raises(AdapterError, match="did not answer"):
        await Chat(persistence=Held(act), drain_timeout_ms=1, adapter_timeout_ms=1).start()
    with suppress(AttributeError):
        act.release()
    await turns()


async def test_a_hold_that_hangs_in_a_thread_is_left_behind() -> None:
    act = Block()
    with pytest.raises(AdapterError, match="did not answer"):
        await Chat(persistence=HeldInThread(act), drain_timeout_ms=1, adapter_timeout_ms=1).start()
    act.release()


async def test_a_lock_that_a_thread_takes_when_nobody_waits_any_more_is_let_go_of() -> None:
    act, events = Block(), list[str]()

    class Late(HeldInThread):
        def hold(self, wait_ms: int, /) -> Any:
            answer = super().hold(wait_ms)
            events.append("held")
            return answer

        def let_go(self) -> None:
            events.append("let go")

    begins = asyncio.create_task(Chat(persistence=Late(act)).start())
    await until(lambda: act.begun == 1)
    begins.cancel()
    asyncio.get_running_loop().call_later(0.05, act.release)
    with pytest.raises(asyncio.CancelledError):
        await begins
    assert events == ["held", "let go"]


async def test_a_file_that_is_opened_when_nobody_waits_any_more_is_closed(url: str, tmp_path: Path) -> None:
    async with Chat(store=url):
        pass
    with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begins = asyncio.create_task(Chat(store=url).start())
        await until(lambda: threads() != [])
        begins.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begins
        other.execute("ROLLBACK")
    await until(lambda: threads() == [])
    assert files(tmp_path) == ["chat.db", "chat.db.lock"]


async def test_a_let_go_that_fails_does_not_keep_the_chat_from_stopping(caplog: pytest.LogCaptureFixture) -> None:
    class Clings(Held):
        async def let_go(self) -> None:
            raises()

    log = Clings(lambda: True)
    async with Chat(persistence=log):
        pass
    assert "let_go() of the store" in caplog.text
    async with Chat(persistence=log):
        pass


def test_a_store_and_a_persistence_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="store and persistence are both given"):
        ChatConfig(store="sqlite://", persistence=MemoryLog())
