"""A log that answers late, wrongly or at the worst moment, and senders that go: nothing is stuck, lost or doubled."""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import Chat, ChatError, Message, RoomOverloaded, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append, Found, LogUnavailable, Opened
from chatx.core.message import Position
from chatx.runtime import delivery
from chatx.testing.faulty_log import FaultyLog, Script
from tests.faults import CrashingChat
from tests.virtual import turns, virtual


class Gated(MemoryLog):
    """A log whose appends wait for a gate, and fail then where they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        await self.gate.wait()
        if self.fails:
            raise LogUnavailable("away")
        return await super().append(appends)


def chat_on(log: Any, **options: Any) -> Chat:
    return Chat(persistence=log, middlewares=(), **options)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("steps", range(12))
@virtual
async def test_a_key_whose_sender_goes_at_any_moment_is_usable_again_and_leaves_nothing(
    steps: int, fails: bool
) -> None:
    log = Gated()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "first")
        log.gate.clear()
        log.fails = fails
        sending = asyncio.ensure_future(chat.send_message("a", "ann", "hi", idempotency_key="k"))
        await turns()
        log.gate.set()
        await turns(steps)
        sending.cancel()
        await asyncio.wait([sending])
        await asyncio.sleep(5)
        log.fails = False
        committing = chat.engine.delivery.committing
        assert committing is not None
        assert not committing.senders._left
        assert (await chat.send_message("a", "ann", "hi", idempotency_key="k")).offset == 2
        assert [each.entry.content for each in log.records("a")] == ["first", "hi"]


@virtual
async def test_a_repeat_is_answered_with_the_data_of_the_first() -> None:
    for log in (None, MemoryLog()):
        async with chat_on(log) as chat:
            first = await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
            same = await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
            other = await chat.send_message("a", "ann", "hi", data={"n": 2}, idempotency_key="k")
            bare = await chat.send_message("a", "ann", "hi", idempotency_key="k")
            assert {each.id for each in (same, other, bare)} == {first.id}
            assert [each.data for each in (first, same, other, bare)] == [{"n": 1}] * 4
    # Memory has let go of it.
    async with chat_on(MemoryLog(), history_size=1) as chat:
        await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
        await chat.send_message("a", "ann", "next")
        await asyncio.sleep(1)
        other = await chat.send_message("a", "ann", "hi", idempotency_key="k")
        assert other.data == {"n": 1}
    # A first one without data stays without.
    async with chat_on(None) as chat:
        await chat.send_message("a", "ann", "hi", idempotency_key="k")
        assert (await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")).data is None


@virtual
async def test_what_a_room_owed_when_it_crashed_too_often_is_written_ahead_of_its_next_life() -> None:
    log = Gated()
    async with CrashingChat(persistence=log, middlewares=(), adapter_timeout_ms=500) as chat:
        log.fails = True
        sent = [await chat.send_message("a", "ann", str(each)) for each in range(5)]
        await asyncio.sleep(1)
        for _ in range(4):
            chat.crash("publish: before", "a")
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "crash")
        later = await chat.send_message("a", "ann", "later")
        assert later.epoch != sent[0].epoch
        await asyncio.sleep(1)
        log.fails = False
        await asyncio.sleep(10)
        assert chat.dead_letters == ()
        contents = [each.entry.content for each in log.records("a")]
        assert contents[:5] == [str(each) for each in range(5)]
        assert contents[-1] == "later"


@virtual
async def test_a_stop_tries_a_log_that_is_away_now_and_then_and_once_more_at_once() -> None:
    log = FaultyLog(MemoryLog(), lambda method: "unavailable" if method == "append" else "ok")
    chat = chat_on(log, drain_timeout_ms=3000)
    loop = asyncio.get_running_loop()
    async with chat:
        await chat.send_message("a", "ann", "hi")
        await asyncio.sleep(60)
        before = len(log.calls)
        began = loop.time()
    assert 2.5 < loop.time() - began < 4
    assert 1 <= len(log.calls) - before < 40
    assert [each.reason for each in chat.dead_letters] == ["stopped"]


@virtual
async def test_a_stop_writes_what_is_left_where_the_log_is_back() -> None:
    log = FaultyLog(MemoryLog(), lambda method: "unavailable" if method == "append" else "ok")
    chat = chat_on(log, drain_timeout_ms=1000)
    async with chat:
        await chat.send_message("a", "ann", "hi")
        await asyncio.sleep(60)
        log.choose = Script()
    assert chat.dead_letters == ()


class LateTakeOver(MemoryLog):
    """A log whose first take-over is answered by nobody and done all the same, when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.late = asyncio.Event()
        self.calls = 0

    async def take_over(self, room_id: str, /) -> Opened:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionResetError("perhaps")
        return await super().take_over(room_id)

    async def lands(self, room_id: str) -> None:
        await super().take_over(room_id)


@pytest.mark.parametrize("durability", ["stored", "sequenced"])
@virtual
async def test_a_take_over_of_ours_that_comes_late_closes_no_room(durability: Any) -> None:
    log = LateTakeOver()
    async with chat_on(log) as chat:
        if durability == "stored":
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "0", durability=durability)
            assert (await chat.send_message("a", "ann", "1", durability=durability)).offset == 1
        else:
            assert (await chat.send_message("a", "ann", "1")).offset == 1
        await asyncio.sleep(10)
        assert log.calls > 1
        await log.lands("a")
        if durability == "stored":
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "2", durability=durability)
        assert (await chat.send_message("a", "ann", "2", durability=durability)).offset == 2
        await asyncio.sleep(10)
        assert chat.dead_letters == ()
        assert [each.entry.content for each in log.records("a")] == ["1", "2"]
        # It is doubted once: whoever takes the room over then is somebody else.
        await log.lands("a")
        with pytest.raises(RoomUnavailable, match="somebody else"):
            await chat.send_message("a", "ann", "3", durability="stored")


@virtual
async def test_a_room_that_somebody_has_taken_over_closes_before_anything_unstored_is_said() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "1")
        closed: list[ChatError] = []
        async with chat.subscribe_callback("a", print, on_closed=closed.append):
            await log.take_over("a")
            with pytest.raises(ChatError):
                await chat.send_message("a", "ann", "2", durability="sequenced")
            assert [each.code for each in closed] == ["room_unavailable"]
        await asyncio.sleep(6)
        assert (await chat.send_message("a", "ann", "3", durability="sequenced")).offset == 2


class WrongLog(MemoryLog):
    """A log that answers one of its calls with what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.method = ""
        self.answer: Any = None

    async def look(self, room_id: str, /) -> Opened:
        right = await super().look(room_id)
        return self.answer if self.method == "look" else right

    async def take_over(self, room_id: str, /) -> Opened:
        right = await super().take_over(room_id)
        return self.answer if self.method == "take_over" else right

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        right = await super().append(appends)
        return self.answer if self.method == "append" else right

    async def read(
        self, room_id: str, /, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        right = await super().read(room_id, after=after, before=before, limit=limit)
        return self.answer if self.method == "read" else right


class Unreadable(list[None]):
    """A list that cannot be read."""

    def __iter__(self) -> Any:
        raise RuntimeError("no")


_AT = Position("e", 1)

# Built as anybody may build one: nothing checks what is in it.
_opened: Any = Opened
_found: Any = Found

WRONG: dict[str, list[Any]] = {
    "look, take_over": [
        None,
        _opened("1", _AT, 1, True),
        _opened(1, "e:1", 1, True),
        _opened(1, _AT, None, True),
        _opened(1, _AT, 1, 1),
        _opened(1, _AT, 1, True, None),
        _opened(1, _AT, 1, True, ("k",)),
    ],
    "append": [None, [], [True], [False], ["", ""], "x", [b"fenced"], Unreadable([None])],
    "read": [None, [], _found(None, None), _found(("x",), None), _found((), 3)],
}
CASES = [(method, answer) for methods, wrong in WRONG.items() for method in methods.split(", ") for answer in wrong]


@pytest.mark.parametrize("method, answer", CASES, ids=[f"{method}-{n}" for n, (method, _) in enumerate(CASES)])
@virtual
async def test_a_wrong_answer_of_a_log_is_contained_and_nothing_is_lost_by_it(method: str, answer: Any) -> None:
    log = WrongLog()
    chat = chat_on(log, adapter_timeout_ms=500, history_size=1)
    async with chat:
        log.method, log.answer = method, answer
        answers: list[Any] = []
        for number in range(3):
            try:
                answers.append(await chat.send_message("a", "ann", str(number), durability="stored"))
            except ChatError as error:
                answers.append(error)
            try:
                await chat.history("a", limit=5)
            except ChatError:
                pass
            await asyncio.sleep(1)
        log.method = ""
        await asyncio.sleep(10)
        last = await chat.send_message("a", "ann", "last", durability="stored")
        assert last.stored
        assert chat.dead_letters == ()
        kept = [each.entry.content for each in log.records("a")]
        assert kept == [each.content for each in await chat.history("a")]
        assert [each.content for each in answers if isinstance(each, Message)] == [
            each for each in kept if each in {each.content for each in answers if isinstance(each, Message)}
        ]
        assert len(set(kept)) == len(kept)


@virtual
async def test_a_repeat_after_a_crash_is_found_also_behind_a_thousand_other_keys() -> None:
    log = MemoryLog()
    before = chat_on(log)
    await before.start()
    first = await before.send_message("a", "ann", "hi", idempotency_key="mine", durability="stored")
    for number in range(1100):
        await before.send_message("a", "bob", "x", idempotency_key=str(number))
    await asyncio.sleep(1)
    async with chat_on(log) as chat:
        await chat.join("a", "bob")
        await chat.send_message("a", "bob", "x")
        repeat = await chat.send_message("a", "ann", "hi", idempotency_key="mine")
        assert (repeat.id, repeat.duplicate) == (first.id, True)
        # Whatever was said before this life is past its window now: nothing needs to be asked any more.
        await asyncio.sleep(301)
        assert isinstance(chat.engine.send_at_once("a", "bob", "y", "new"), Message)
    await before.stop(drain_timeout_ms=1)


@virtual
async def test_a_stream_of_which_all_was_stored_goes_on_although_the_log_was_away_at_the_first_send() -> None:
    log = FaultyLog(MemoryLog())
    async with chat_on(log, durability="stored") as chat:
        first = await chat.send_message("a", "ann", "1")
    async with chat_on(log, durability="stored", adapter_timeout_ms=1000) as chat:
        for fault in ("unavailable", "hang"):
            log.choose = lambda _, fault=fault: fault  # type: ignore[misc]
            began = asyncio.get_running_loop().time()
            with pytest.raises(RoomUnavailable) as caught:
                await chat.send_message("a", "ann", "away")
            assert caught.value.retryable
            assert asyncio.get_running_loop().time() - began <= 1.1
        log.choose = Script()
        await log.release()
        second = await chat.send_message("a", "ann", "2")
        assert (second.epoch, second.offset) == (first.epoch, 2)


@pytest.mark.parametrize("fault", ["lost", "unavailable"])
@virtual
async def test_a_log_that_reads_and_does_not_write_is_tried_ever_less_often(fault: Any) -> None:
    log = FaultyLog(MemoryLog(), lambda method: fault if method == "append" else "ok")
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "hi")
        await asyncio.sleep(60)
        assert 10 < len(log.calls) < 120
        stores = [chat.engine.store]
        log.choose = Script()
        await asyncio.sleep(6)
        stores.append(chat.engine.store)
        assert stores == ["away", "ok"]
        assert chat.dead_letters == ()


class Told:
    """A notifier that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def notify(self, user_id: str, message: Message) -> None:
        self.told.append((user_id, message.content))


@pytest.mark.parametrize("place", ["publish: before", "publish: recorded only", "publish: after"])
@pytest.mark.parametrize("times", [1, 2, 4])
@virtual
async def test_the_notifier_is_told_once_of_what_is_stored_although_the_room_crashed_on_it(
    place: str, times: int
) -> None:
    notifier = Told()
    log = FaultyLog(MemoryLog())  # it has no outbox
    async with CrashingChat(persistence=log, notifier=notifier, middlewares=(), durability="stored") as chat:
        await chat.join("a", "bob")
        await chat.send_message("a", "ann", "first")
        chat.crash(place, "a", times=times)
        with contextlib.suppress(RoomUnavailable):
            await chat.send_message("a", "ann", "hi", idempotency_key="k")
        await asyncio.sleep(5)
        assert (await chat.send_message("a", "ann", "hi", idempotency_key="k")).duplicate
        await asyncio.sleep(5)
    assert notifier.told == [("bob", "first"), ("bob", "hi")]


@virtual
async def test_a_repeat_of_what_is_not_settled_waits_for_that_also_where_the_room_was_closed_by_crashes() -> None:
    log = FaultyLog(MemoryLog())
    async with CrashingChat(persistence=log, middlewares=(), adapter_timeout_ms=500) as chat:
        await chat.send_message("a", "ann", "first", durability="stored")
        log.choose = Script(append=["hang"], take_over=["unavailable"] * 4)
        with pytest.raises(RoomUnavailable):
            await chat.send_message("a", "ann", "once", durability="stored", idempotency_key="k")
        chat.crash("join: before", "a", times=4)
        for _ in range(4):
            with pytest.raises(RoomUnavailable):
                await chat.join("a", "bob")
        await chat.join("a", "bob")
        await chat.send_message("a", "bob", "in the next life")
        with contextlib.suppress(RoomUnavailable):
            await chat.send_message("a", "ann", "once", idempotency_key="k")
        await log.release()
        await asyncio.sleep(30)
        with contextlib.suppress(RoomUnavailable):
            await chat.send_message("a", "ann", "once", idempotency_key="k")
        await asyncio.sleep(30)
        assert chat.dead_letters == ()
        kept = [each.entry.content for each in memory(log).records("a")]
        assert sorted(kept) == ["first", "in the next life", "once"]


def memory(log: FaultyLog) -> MemoryLog:
    """Return the log in memory that is behind one that fails."""
    assert isinstance(log._log, MemoryLog)
    return log._log


@virtual
async def test_ten_thousand_rooms_that_another_chat_takes_are_closed_within_linear_work() -> None:
    log = MemoryLog()
    async with chat_on(log, durability="stored") as chat:
        rooms = chat.engine.rooms
        for each in range(10_000):
            rooms._fenced[str(each)] = asyncio.get_running_loop().time() + 5
        await chat.send_message("a", "ann", "1")
        process = rooms.find("a")
        assert process is not None

        class Counted(dict[str, float]):
            looked = 0

            def items(self) -> Any:
                for each in super().items():
                    Counted.looked += 1
                    yield each

        rooms._fenced = Counted(rooms._fenced)
        rooms.fenced(process)
        assert Counted.looked <= 2
        await asyncio.sleep(6)
        await chat.send_message("b", "ann", "1")
        other = rooms.find("b")
        assert other is not None
        rooms.fenced(other)
        assert list(rooms._fenced) == ["b"]


@virtual
async def test_a_repeat_that_says_something_else_gets_what_is_owed_beyond_the_history_too() -> None:
    log = Gated()
    log.fails = True
    async with chat_on(log, history_size=1) as chat:
        first = await chat.send_message("a", "ann", "hi", data={"n": 1}, idempotency_key="k")
        await chat.send_message("a", "ann", "next")
        other = await chat.send_message("a", "ann", "other", idempotency_key="k")
        assert (other.id, other.content, other.data) == (first.id, "hi", {"n": 1})
        log.fails = False


@virtual
async def test_a_room_in_which_only_stored_messages_were_said_of_late_goes_on_after_a_crash() -> None:
    log = MemoryLog()
    chat = chat_on(log)
    await chat.start()
    for room in ("long ago", "of late"):
        await chat.send_message(room, "ann", "0", durability="stored")
    await chat.send_message("long ago", "ann", "1")
    await asyncio.sleep(11)
    await chat.send_message("of late", "ann", "1")
    await asyncio.sleep(1)
    before = {room: await chat.send_message(room, "ann", "2", durability="stored") for room in ("long ago", "of late")}
    # It is killed: nothing more is written.
    async with chat_on(log) as again:
        after = {room: await again.send_message(room, "ann", "3", durability="stored") for room in before}
        assert after["long ago"].epoch == before["long ago"].epoch
        assert after["of late"].epoch != before["of late"].epoch
    await chat.stop(drain_timeout_ms=1)


class Raced(MemoryLog):
    """A log that withdraws a proof at once and answers late, or the other way round, and so with appends."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: dict[str, asyncio.Event] = {}

    async def wait(self, what: str) -> None:
        if (event := self.waits.get(what)) is not None:
            await event.wait()

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        await self.wait("unproven")
        answer = await super().unproven(room_id, term, head)
        await self.wait("unproven answered")
        return answer

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        await self.wait("append")
        answers = await super().append(appends)
        await self.wait("append answered")
        return answers


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "order", list(itertools.permutations(["unproven", "unproven answered", "append", "append answered"]))
)
@virtual
async def test_no_proof_stands_when_something_unstored_is_seen_whoever_comes_first(
    order: tuple[str, ...], earlier: bool
) -> None:
    log = Raced()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "0", durability="stored")
        if earlier:
            await chat.send_message("a", "ann", "0", durability="sequenced")
            await asyncio.sleep(11)
            await chat.send_message("a", "ann", "0", durability="stored")
            await asyncio.sleep(11)
        log.waits = {each: asyncio.Event() for each in order}
        stored = asyncio.ensure_future(chat.send_message("a", "ann", "1", durability="stored"))
        await turns()
        sequenced = asyncio.ensure_future(chat.send_message("a", "bob", "2"))
        await turns()
        proven: list[bool] = []

        def seen(event: Any) -> None:
            if not event.stored:
                there = log._rooms["a"]
                in_log = there.head is not None and there.head.offset >= event.offset
                proven.append(there.proven and not in_log)

        async with chat.subscribe_callback("a", seen):
            for each in order:
                log.waits[each].set()
                await turns(10)
            await asyncio.gather(stored, sequenced)
            if not earlier:
                await chat.send_message("a", "bob", "3")
        assert proven == [False] * len(proven)
        assert proven
    # A clean stop proves it, whatever came first.
    assert log._rooms["a"].proven


@virtual
async def test_what_is_appended_where_the_head_is_proven_survives_a_power_cut() -> None:
    log = Recording()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "0", durability="stored")
        log.gate.clear()
        first = asyncio.ensure_future(chat.send_message("a", "ann", "1", durability="stored"))
        await turns()
        second = asyncio.ensure_future(chat.send_message("a", "bob", "2"))
        await turns(20)
        log.gate.set()
        await asyncio.gather(first, second)
        proven, kept = True, 0
        for each in log.appended:
            proven = each.proven or proven
            assert each.durable or not proven
            kept += len(each.records)
        assert kept == 3


class Recording(Gated):
    """A log that notes its appends."""

    def __init__(self) -> None:
        super().__init__()
        self.appended: list[Append] = []

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        self.appended += appends
        return await super().append(appends)


@virtual
async def test_what_waits_for_a_commit_is_bounded_in_bytes_and_counted_out_however_it_ends() -> None:
    log = Gated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "SAVING_BYTES", 20_000)
        async with chat_on(log, durability="stored", adapter_timeout_ms=500) as chat:
            committing = chat.engine.delivery.committing
            assert committing is not None
            await chat.send_message("a", "ann", "first")
            ends: list[Any] = []
            for fails in (False, True):
                log.gate.clear()
                log.fails = fails
                sends = [
                    asyncio.ensure_future(
                        chat.send_message(f"r{n % 2}", f"u{n}", "x" * 4000, durability="sequenced" if n > 3 else None)
                    )
                    for n in range(5)
                ]
                await turns(30)
                with pytest.raises(RoomOverloaded, match="wait to be saved"):
                    await chat.send_message("a", "ann", "x")
                sends[2].cancel()
                await turns(30)
                log.gate.set()
                ends += await asyncio.gather(*sends, return_exceptions=True)
                await asyncio.sleep(5)
                log.fails = False
                await asyncio.sleep(10)
                assert committing.bytes == committing.size == 0
            log.gate.clear()
            sends = [asyncio.ensure_future(chat.send_message("a", f"u{n}", "x" * 4000)) for n in range(3)]
            await asyncio.wait(sends)
            await turns(30)
            log.gate.set()
            await asyncio.sleep(5)
            assert committing.bytes == 0
            kinds = {type(each) for each in ends}
            assert kinds == {Message, asyncio.CancelledError, RoomUnavailable}


@virtual
async def test_what_nobody_waits_for_is_written_however_many_rooms_somebody_waits_for() -> None:
    log = Gated()
    async with chat_on(log) as chat:
        over = False

        async def keeps_sending(room: str) -> None:
            while not over:
                await chat.send_message(room, "ann", "x", durability="stored")

        sending = [asyncio.ensure_future(keeps_sending(f"busy {each}")) for each in range(600)]
        await turns(50)
        await chat.send_message("quiet", "ann", "hi")
        for _ in range(60):
            await turns(10)
        kept = [each.entry.content for each in log.records("quiet")]
        over = True
        await asyncio.gather(*sending)
        assert kept == ["hi"]


class Slow(MemoryLog):
    """A log whose appends take a second, and whose withdrawals take longer."""

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        await asyncio.sleep(1)
        return await super().append(appends)

    async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
        await asyncio.sleep(1.5)
        return await super().unproven(room_id, term, head)


@virtual
async def test_a_sequenced_message_comes_through_where_stored_ones_never_pause() -> None:
    async with chat_on(Slow()) as chat:
        await chat.send_message("a", "ann", "first", durability="stored")
        over = False

        async def keeps_sending(user: str) -> None:
            while not over:
                await chat.send_message("a", user, "x", durability="stored")

        sending = [asyncio.ensure_future(keeps_sending(f"u{each}")) for each in range(3)]
        await asyncio.sleep(3.5)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(60):
                await chat.send_message("a", "bob", "hi")
        finally:
            over = True
            await asyncio.gather(*sending)
        assert loop.time() - began < 5
