"""Retention: the log lets go of what is old or too much, a little at a time, and nobody sees less than is kept."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatx import Chat, Gap, Message, Position, TooOld
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import Outcome
from chatx.adapters.retention import ROOMS_AT_ONCE, TRIMMED_AT_ONCE, Retention
from chatx.adapters.room_log import KEYS_KEPT_MS, Append, LogUnavailable, Recipients, Record
from chatx.adapters.sqlite import SQLitePersistence
from chatx.runtime import trimming, wall_clock
from chatx.runtime.trimming import DAY_MS, ROUND_S, SPARED_MS
from chatx.runtime.wall_clock import BELIEVED_S
from tests.gateway.real_client import until
from tests.logs import sent, stored_on
from tests.virtual import virtual

NEVER = 2**62


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock of retention forward, by so many ms altogether; it is believed where it was set to."""
    monkeypatch.setattr(wall_clock, "BELIEVED_S", 0.0)
    ahead = 0
    real = trimming._now_ms
    monkeypatch.setattr(trimming, "_now_ms", lambda: real() + ahead)

    def later(by_ms: int) -> None:
        nonlocal ahead
        ahead = by_ms

    return later


class Log(MemoryLog):
    """Notes what it is asked to trim, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.trims: list[tuple[int, int]] = []
        self.answer: Any = None

    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        gone = await super().trim(room_ids, retention, limit)
        self.trims.append((len(room_ids), gone))
        return gone


async def round_() -> None:
    await asyncio.sleep(2 * ROUND_S)


@virtual
async def test_what_is_too_much_goes_a_little_at_a_time_in_all_rooms(later: Callable[[int], None]) -> None:
    log = Log()
    rooms = [f"room {number}" for number in range(ROOMS_AT_ONCE + 10)]
    async with stored_on(log, retention_messages=3, room_idle_ms=10**9) as chat:
        many = await sent(chat, 2 * TRIMMED_AT_ONCE + 10)
        for room_id in rooms:
            await sent(chat, 5, room_id)
        await round_()
        assert {gone for _, gone in log.trims} == {0}  # all that is there was sent just now
        later(SPARED_MS + 1000)
        log.trims.clear()
        await round_()
        assert [each.entry for each in log.records("room")] == many[-3:]
        assert all(len(log.records(room_id)) == 3 for room_id in rooms)
        assert max(count for count, _ in log.trims) <= ROOMS_AT_ONCE
        assert max(gone for _, gone in log.trims) == TRIMMED_AT_ONCE
        (more,) = await sent(chat, 1)
        assert (more.epoch, more.offset) == (many[-1].epoch, many[-1].offset + 1)


@virtual
async def test_what_is_below_what_is_kept_is_too_old_in_every_way_to_read_it(later: Callable[[int], None]) -> None:
    log = Log()
    async with stored_on(log, retention_days=30) as chat:
        old = await sent(chat, 10)
    later(30 * DAY_MS + 60_000)
    async with stored_on(log, retention_days=30) as chat:
        await round_()
        assert await chat.history("room") == []
        assert await chat.history("room", after=old[9]) == []
        with pytest.raises(TooOld, match=f"{old[0].epoch}:11"):
            await chat.history("room", after=old[8])
        async with chat.subscribe("room", after=old[3]) as subscription:
            assert await anext(subscription) == Gap("room", "too_old", old[0].epoch, 10, 6)
            (new,) = await sent(chat, 1)
            assert (new.epoch, new.offset) == (old[0].epoch, 11)
            assert await anext(subscription) == new


@virtual
async def test_a_key_that_must_answer_keeps_its_message_and_those_behind_it(later: Callable[[int], None]) -> None:
    log = Log()
    later(SPARED_MS + 1000)
    async with stored_on(log, retention_messages=1) as chat:
        before = await sent(chat, 5)
        (keyed,) = await sent(chat, 1, idempotency_key="key")
        behind = await sent(chat, 5)
        await round_()
        assert [each.entry for each in log.records("room")] == [keyed, *behind]
        assert before
        later(KEYS_KEPT_MS + 1000)
        await round_()
        assert [each.entry for each in log.records("room")] == behind[-1:]


@pytest.mark.parametrize("answer", [LogUnavailable("down"), RuntimeError("boom"), -1, None, "5", True], ids=repr)
@virtual
async def test_a_log_that_fails_is_asked_again_and_nobody_else_notices(
    answer: Any, later: Callable[[int], None]
) -> None:
    log = Log()
    later(SPARED_MS + 1000)
    async with stored_on(log, retention_messages=2) as chat:
        log.answer = answer if answer is not None else "none at all"
        await sent(chat, 5)
        await round_()
        assert len(await sent(chat, 1)) == 1
        assert len(log.records("room")) == 6
        log.answer = None
        await round_()
        assert len(log.records("room")) == 2


@pytest.mark.parametrize("answer", [["", "room"], [5], None, 5, "room"], ids=repr)
@virtual
async def test_what_is_no_list_of_rooms_behind_a_place_is_refused_and_asked_for_again_after_a_while(
    answer: Any,
) -> None:
    class Wrong(Log):
        asked = 0

        async def list_rooms(self, after: str, limit: int, /) -> Any:
            self.asked += 1
            assert after == ""
            return answer

    log = Wrong()
    async with stored_on(log, retention_messages=2) as chat:
        await round_()
        assert 1 < log.asked <= 2 * ROUND_S
        assert log.trims == []
        assert len(await sent(chat, 1)) == 1


@virtual
async def test_it_rests_longer_than_the_log_takes_and_asks_nothing_while_that_is_away(
    later: Callable[[int], None],
) -> None:
    class Slow(Log):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[float, float]] = []
            self.away = False

        async def list_rooms(self, after: str, limit: int, /) -> list[str]:
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(2)
            self.asked.append((began, asyncio.get_running_loop().time()))
            return await super().list_rooms(after, limit)

        async def append(self, appends: Sequence[Append], /) -> Any:
            if self.away:
                raise LogUnavailable("down")
            return await super().append(appends)

    log = Slow()
    async with Chat(persistence=log, middlewares=(), retention_messages=1) as chat:
        await chat.send_message("room", "ada", "hello")
        await asyncio.sleep(10 * ROUND_S)
        waits = [began - ended for (_, ended), (began, _) in pairwise(log.asked)]
        assert waits
        assert min(waits) >= 18
        log.away = True
        await chat.send_message("room", "ada", "hello")
        await asyncio.sleep(ROUND_S)
        log.asked.clear()
        await asyncio.sleep(10 * ROUND_S)
        assert log.asked == []
        log.away = False
        await asyncio.sleep(2 * ROUND_S)
        assert log.asked


async def test_a_store_that_is_a_url_keeps_within_its_retention_too(
    tmp_path: Any, later: Callable[[int], None]
) -> None:
    later(SPARED_MS + 60_000)
    options: Any = {"store": f"sqlite:///{tmp_path}/chat.db", "durability": "stored", "middlewares": ()}
    async with Chat(**options) as chat:
        messages = await sent(chat, 5)
    async with Chat(**options, retention_messages=2, history_size=1) as chat:
        with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as db:
            await until(lambda: db.execute("SELECT count(*) FROM chatx_entries").fetchone() == (2,))
        assert await chat.history("room") == messages[3:]


@virtual
async def test_a_clock_that_was_set_far_ahead_takes_nothing_unless_it_stays_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began_ms, loop = trimming._now_ms(), asyncio.get_running_loop()
    ahead_ms = 0
    monkeypatch.setattr(trimming, "_now_ms", lambda: began_ms + ahead_ms + round(loop.time() * 1000))
    log = Log()
    async with stored_on(log, retention_days=30, retention_messages=1) as chat:
        messages = await sent(chat, 3)
        ahead_ms = 365 * DAY_MS
        await asyncio.sleep(BELIEVED_S - 2 * ROUND_S)
        ahead_ms = 0  # set right
        await sent(chat, 1, "other")
        log.trims.clear()
        await asyncio.sleep(ROUND_S)
        # It goes on at once, with what is too much now.
        assert log.trims
        assert [each.entry for each in log.records("room")] == messages[-1:]
        ahead_ms = 365 * DAY_MS
        await asyncio.sleep(BELIEVED_S - 2 * ROUND_S)
        assert len(log.records("room")) == 1
        await asyncio.sleep(4 * ROUND_S)
        assert log.records("room") == []
    assert [each.getMessage().partition(", or")[0] for each in caplog.records if "set ahead" in each.getMessage()] == [
        "The machine's clock was set ahead by 31536000 s"
    ] * 2


@virtual
async def test_a_clock_that_is_set_far_ahead_while_rooms_are_listed_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began_ms, loop = trimming._now_ms(), asyncio.get_running_loop()
    ahead_ms = 0
    monkeypatch.setattr(trimming, "_now_ms", lambda: began_ms + ahead_ms + round(loop.time() * 1000))

    class SetsTheClock(Log):
        async def list_rooms(self, after: str, limit: int, /) -> Any:
            nonlocal ahead_ms
            found = await super().list_rooms(after, limit)
            ahead_ms = 365 * DAY_MS if found else 0
            return found

    log = SetsTheClock()
    async with stored_on(log, retention_days=30) as chat:
        messages = await sent(chat, 3)
        await round_()
        assert ahead_ms
        assert [each.entry for each in log.records("room")] == messages


@virtual
async def test_without_a_bound_nothing_is_asked() -> None:
    log = Log()
    async with stored_on(log) as chat:
        await sent(chat, 3)
        await round_()
        assert log.trims == []


@virtual
async def test_a_stop_does_not_wait_for_a_log_that_hangs_in_it(later: Callable[[int], None]) -> None:
    class Hangs(Log):
        async def list_rooms(self, after: str, limit: int, /) -> Any:
            await asyncio.Event().wait()

    async with asyncio.timeout(60), stored_on(Hangs(), retention_days=1) as chat:
        await sent(chat, 1)


# The same in memory and in SQLite


def message(epoch: str, offset: int, at: int) -> Message:
    return Message(f"{epoch}-{offset}", "room", "ada", "hello", at, epoch, offset)


Steps = list[tuple[int, int, bool]]
steps = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans()), min_size=1, max_size=14
)  # (a new epoch where 0, ms since the one before, keyed)
cuts = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 100)),
        st.one_of(st.none(), st.integers(1, 12)),
        st.integers(0, 120),
        st.integers(0, 120),
        st.integers(1, 6),
    ),
    max_size=6,
)


@given(steps=steps, cuts=cuts)
def test_sqlite_and_memory_let_go_of_the_same_and_hold_the_rest(steps: Steps, cuts: list[Any]) -> None:
    memory, at, epoch, offset = MemoryLog(), 0, 0, 0

    async def run(store: SQLitePersistence) -> None:
        nonlocal at, epoch, offset
        assert store.take_over("room").term == (await memory.take_over("room")).term
        for begins, wait, keyed in steps:
            at += wait
            epoch, offset = (epoch + 1, 1) if not begins else (epoch, offset + 1)
            record = Record(message(f"e{epoch}", offset, at), f"key {at} {offset}" if keyed else None)
            append = Append("room", 1, Position(f"e{epoch}", offset - 1), (record,), durable=False)
            assert store.append([append]) == await memory.append([append]) == [None]
        everything = [each.entry for each in memory.records("room")]
        keys_spared = 0
        for before_ms, keep, spared, later, limit in cuts:
            keys_spared = max(keys_spared, later)  # a key that need not answer once may be gone
            retention = Retention(before_ms, keep, max(spared, keys_spared), keys_spared)
            gone = await memory.trim(["room"], retention, limit)
            assert store.trim(["nobody", "room"], retention, limit) == gone
            assert gone <= limit
            everything = everything[gone:]
            found = store.read("room", limit=100)
            assert list(found.entries) == everything
            assert found == await memory.read("room", limit=100)
            opened, same = store.look("room"), await memory.look("room")
            assert (opened.head, opened.oldest, opened.proven) == (same.head, same.oldest, same.proven)
            for each in range(1, epoch + 1):
                place = Position(f"e{each}", 0)
                assert store.read("room", after=place, limit=100) == await memory.read("room", after=place, limit=100)
            if keep is not None and gone < limit and before_ms is None and spared >= 120 == keys_spared:
                assert len(everything) <= keep

    with contextlib.closing(SQLitePersistence()) as store:
        asyncio.run(run(store))


def test_what_the_notifier_is_still_to_be_told_of_stays_until_it_was(tmp_path: Any) -> None:
    retention = Retention(NEVER, None, NEVER, NEVER)

    async def run(log: Any, call: Callable[..., Any]) -> None:
        await call(log.take_over, "room")
        records = tuple(
            Record(message("e", offset, 1), None, Recipients(("bob",), 0) if offset == 3 else None)
            for offset in range(1, 6)
        )
        await call(log.append, [Append("room", 1, Position("e", 0), records, durable=False)])
        assert await call(log.trim, ["room"], retention, 100) == 2
        (claimed,) = await call(log.claim_notifications, "worker", 10, 1, 2)
        assert claimed.entry == records[2].entry
        assert await call(log.trim, ["room"], retention, 100) == 0
        await call(log.settle_notifications, "worker", [Outcome("e-3", "dead", ("bob",), 5, 0, "raised")])
        assert await call(log.trim, ["room"], retention, 100) == 3
        assert len(await call(log.list_notifications, "dead", None, 10)) == 1

    async def awaited(method: Any, *given: Any) -> Any:
        return await method(*given)

    async def plain(method: Any, *given: Any) -> Any:
        return method(*given)

    asyncio.run(run(MemoryLog(), awaited))
    with contextlib.closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        asyncio.run(run(store, plain))


def test_a_file_keeps_no_keys_of_what_is_gone_and_knows_its_epochs(tmp_path: Any) -> None:
    with contextlib.closing(SQLitePersistence(tmp_path / "chat.db")) as store:
        store.take_over("room")
        for number in range(20):
            record = Record(message(f"e{number}", 1, number), f"key {number}")
            store.append([Append("room", 1, Position(f"e{number}", 0), (record,), durable=False)])
        assert store.trim(["room"], Retention(NEVER, None, NEVER, NEVER), 100) == 20
        with store._snapshot() as db:
            for table, count in (("streams", 20), ("keys", 0), ("entries", 0), ("rooms", 1)):
                assert db.execute(f"SELECT count(*) FROM chatx_{table}").fetchone() == (count,), table  # constants
        assert store.find("room", "ada", "key 3") is None
        assert store.read("room", before=Position("e7", 9), limit=9).entries == ()
        assert store.take_over("room").head == ("e19", 1)


async def test_a_file_that_cannot_be_read_says_that_nothing_was_written(tmp_path: Any) -> None:
    store = SQLitePersistence(tmp_path / "chat.db")
    store.close()
    for call in (lambda: store.list_rooms("", 1), lambda: store.trim(["room"], Retention(1, 1, 1, 1), 1)):
        with pytest.raises(LogUnavailable):
            call()
