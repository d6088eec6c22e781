"""The notifications of what is stored: told at least once, whatever dies or fails meanwhile, or given up and kept."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from chatx import AdapterError, Chat, Closed, ConfigError, DeadLetter, InvalidMessage, Message, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import OUTBOX_USERS, Claimed, Notification, NotificationState, Outcome
from chatx.adapters.room_log import Answer, Append, LogUnavailable
from chatx.runtime import outbox
from chatx.runtime.outbox import CALLS, CLAIMED_AT_ONCE, LEASE_MS, LOOKED_EVERY_S
from chatx.runtime.outbox_bound import COUNTED_EVERY_S
from tests.faults import AsyncFaultyNotifier, Hang, HangDeaf, awaited, raises
from tests.logs import stored_on
from tests.virtual import virtual


class Told:
    """A notifier that works, and counts."""

    def __init__(self) -> None:
        self.told: Counter[tuple[str, str]] = Counter()

    async def notify(self, user_id: str, message: Message) -> None:
        await asyncio.sleep(0.01)
        self.told[user_id, message.content] += 1


class Names(Told):
    """One that says whom to notify."""

    def __init__(self, *users: str) -> None:
        super().__init__()
        self.users: Any = users
        self.asked = 0

    async def recipients(self, message: Message) -> Any:
        self.asked += 1
        if isinstance(self.users, Exception):
            raise self.users
        return self.users


class Log(MemoryLog):
    """A log in memory whose outbox fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[str] = set()
        self.calls: Counter[str] = Counter()

    async def claim_notifications(self, claimer: str, limit: int, now_ms: int, until_ms: int, /) -> list[Claimed]:
        self._called("claim")
        return await super().claim_notifications(claimer, limit, now_ms, until_ms)

    async def settle_notifications(self, claimer: str, outcomes: Sequence[Outcome], /) -> None:
        self._called("settle")
        await super().settle_notifications(claimer, outcomes)

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        self._called("append")
        return await super().append(appends)

    def _called(self, what: str) -> None:
        self.calls[what] += 1
        if what in self.away:
            raise LogUnavailable("no outbox now")

    async def rows(self, state: NotificationState | None = None) -> list[Notification]:
        return await self.list_notifications(state, None, 10_000)


def telling(log: Any, notifier: Any, **options: Any) -> Chat:
    return stored_on(log, **{"notifier": notifier} | options)


async def join(chat: Chat, *users: str) -> None:
    for user in users:
        await chat.join("room", user)


@virtual
async def test_the_members_of_the_moment_are_told_once_of_what_is_stored_and_nothing_is_left() -> None:
    log, notifier = Log(), Told()
    async with telling(log, notifier) as chat:
        await join(chat, "alice", "bob", "carol")
        await chat.send_message("room", "alice", "one")
        await chat.leave("room", "carol")
        await join(chat, "dave")
        await asyncio.sleep(1)
        await chat.send_message("room", "bob", "two")
        await asyncio.sleep(1)
        assert notifier.told == {
            ("bob", "one"): 1,
            ("carol", "one"): 1,
            ("alice", "two"): 1,
            ("dave", "two"): 1,
        }
        assert await log.rows() == []
        assert chat.statistics().delivered == 2 + 4, "two messages saved, four users told"


@virtual
async def test_what_is_only_sequenced_does_not_go_through_the_outbox() -> None:
    log, notifier = Log(), Told()
    async with telling(log, notifier, durability="sequenced") as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "sequenced")
        stored = asyncio.create_task(chat.send_message("room", "alice", "stored", durability="stored"))
        await asyncio.sleep(0)
        await chat.send_message("room", "alice", "behind it", durability="sequenced")
        await stored
        records = log.records("room")
    assert [each.notify is not None for each in records] == [False, True, False]
    assert notifier.told == {("bob", "sequenced"): 1, ("bob", "stored"): 1, ("bob", "behind it"): 1}


@virtual
async def test_nothing_is_kept_where_nobody_is_to_be_told() -> None:
    log = Log()
    async with telling(log, Told()) as chat:
        await join(chat, "alice")
        await chat.send_message("room", "alice", "to nobody")
    async with telling(log, None) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "no notifier")
    assert [each.notify for each in log.records("room")] == [None, None]


@virtual
async def test_stopping_tells_what_was_just_stored() -> None:
    log, notifier = Log(), Told()
    async with telling(log, notifier) as chat:
        await join(chat, "bob")
        for number in range(3 * CLAIMED_AT_ONCE):
            await chat.send_message("room", "alice", str(number))
    assert notifier.told == {("bob", str(number)): 1 for number in range(3 * CLAIMED_AT_ONCE)}
    assert await log.rows() == []


@virtual
async def test_who_fails_is_told_again_alone_and_is_dead_in_the_end_and_can_be_tried_again() -> None:
    log, letters = Log(), []

    async def on_dead_letter(letter: DeadLetter) -> None:
        letters.append(letter)

    notifier = AsyncFaultyNotifier(awaited(raises), victim="bob")
    options = {"delivery_max_retries": 2, "on_dead_letter": on_dead_letter}
    async with telling(log, notifier, **options) as chat:
        await join(chat, "bob", "carol")
        message = await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(10)
        assert Counter(notifier.attempts) == {("bob", "hello"): 3, ("carol", "hello"): 1}
        (row,) = await log.rows()
        assert (row.id, row.state, row.users, row.attempts, row.reason) == (message.id, "dead", ("bob",), 3, "raised")
        assert letters == list(chat.dead_letters) == [DeadLetter(message, "notifier", "bob", 3, "raised")]
        assert chat.statistics().delivery_retries == 2
    notifier = AsyncFaultyNotifier(awaited(raises), victim="nobody")
    async with telling(log, notifier) as chat:
        await asyncio.sleep(60)
        assert notifier.attempts == [], "what is dead stays so"
        assert await log.retry_notifications([message.id]) == 1
        await asyncio.sleep(10)
        assert notifier.notified == [("bob", "hello")]
        assert await log.rows() == []


@virtual
async def test_what_a_dead_process_had_claimed_is_told_when_its_lease_is_over() -> None:
    log, notifier = Log(), Told()
    async with telling(log, AsyncFaultyNotifier(awaited(raises), victim="bob")) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(0.05)
    now = time.time_ns() // 1_000_000
    assert len(await log.claim_notifications("of a process that dies now", 10, now + 60_000, now + LEASE_MS)) == 1
    async with telling(log, notifier):
        await asyncio.sleep(LEASE_MS / 1000 - 1)
        assert not notifier.told
        await asyncio.sleep(1 + outbox.LOOKED_EVERY_S + 1)
        assert notifier.told == {("bob", "hello"): 1}
    assert await log.rows() == []


@virtual
async def test_a_lease_is_made_longer_while_a_round_goes_on_and_a_stop_puts_back_who_was_not_told() -> None:
    log = Log()
    notifier = AsyncFaultyNotifier(Hang(), victim="bob")
    async with telling(log, notifier, adapter_timeout_ms=100_000, drain_timeout_ms=1000) as chat:
        await join(chat, "bob", "carol")
        await chat.send_message("room", "alice", "hello")
        for _ in range(60):
            await asyncio.sleep(1)
            others = await log.claim_notifications("another", 10, outbox_now(chat), outbox_now(chat) + 1)
            assert others == []
        (row,) = await log.rows()
        assert (row.state, row.users) == ("claimed", ("bob",)), "and with it, who was told is written down"
        now = outbox_now(chat)
    (row,) = await log.rows()
    assert (row.state, row.users, row.attempts) == ("waiting", ("bob",), 0)
    assert now < row.due_at <= now + 2000
    assert chat.dead_letters == ()


def outbox_now(chat: Chat) -> int:
    worker = chat.engine.delivery._outbox
    assert worker is not None
    return worker._now_ms()


@virtual
async def test_a_notifier_that_hangs_holds_no_send_and_nobody_is_called_again_before_a_call_has_ended() -> None:
    log, deaf = Log(), HangDeaf()
    notifier = AsyncFaultyNotifier(deaf, victim="bob")
    options = {"adapter_timeout_ms": 1000, "delivery_retry_base_ms": 1, "drain_timeout_ms": 1000}
    async with telling(log, notifier, **options) as chat:
        await join(chat, "bob")
        for number in range(2 * CLAIMED_AT_ONCE):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(100)
        assert deaf.begun == CALLS
        assert all(count == 1 for count in Counter(notifier.attempts).values())
        assert chat.statistics().notifications_waiting <= CLAIMED_AT_ONCE
        assert len(await log.rows()) == 2 * CLAIMED_AT_ONCE
        await chat.send_message("room", "alice", "what is only sequenced is told beside it", durability="sequenced")
        await asyncio.sleep(1)
        assert deaf.begun == CALLS + 1
        deaf.release()
        await asyncio.sleep(100)
        assert await log.rows() == []
        assert set(Counter(notifier.attempts)) >= {("bob", str(number)) for number in range(2 * CLAIMED_AT_ONCE)}


@virtual
async def test_one_user_whose_calls_hang_keeps_no_others_waiting_for_long() -> None:
    log, notifier = Log(), AsyncFaultyNotifier(Hang(), victim="bob")
    async with telling(log, notifier, adapter_timeout_ms=100, delivery_max_retries=1) as chat:
        await join(chat, "bob", "carol")
        for number in range(20):
            await chat.send_message("room", "alice", str(number))
        await asyncio.sleep(5)
        assert sorted(content for _, content in notifier.notified) == sorted(map(str, range(20)))
        assert {(each.users, each.state) for each in await log.rows()} == {(("bob",), "dead")}


@virtual
async def test_a_notifier_says_whom_to_tell_and_is_asked_again_where_that_fails() -> None:
    log, notifier = Log(), Names("x", "y", "x")
    async with telling(log, notifier, delivery_max_retries=1) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "one")
        await asyncio.sleep(1)
        assert notifier.told == {("x", "one"): 1, ("y", "one"): 1}
        notifier.users = ()
        await chat.send_message("room", "alice", "to nobody")
        await asyncio.sleep(1)
        assert await log.rows() == []
        notifier.asked, notifier.users = 0, RuntimeError("no")
        message = await chat.send_message("room", "alice", "two")
        await asyncio.sleep(5)
        assert notifier.asked == 2
        (row,) = await log.rows()
        assert (row.state, row.users, row.attempts) == ("dead", None, 2)
        assert chat.dead_letters == (DeadLetter(message, "notifier", None, 2, "raised"),)


@virtual
async def test_users_that_fail_are_kept_up_to_a_rows_bound_and_else_all_are_asked_for_again() -> None:
    log = Log()
    notifier = Names(*(f"u{number}" for number in range(OUTBOX_USERS + 1)))

    async def fails(user_id: str, message: Message) -> None:
        notifier.told[user_id, message.content] += 1
        if notifier.asked == 1:
            raise RuntimeError("all of them")

    notifier.notify = fails  # type: ignore[method-assign]
    async with telling(log, notifier) as chat:
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(10)
        assert notifier.asked == 2
        assert set(notifier.told.values()) == {2}
        assert await log.rows() == []


@virtual
async def test_in_a_room_of_too_many_members_the_notifier_has_to_say_whom(caplog: pytest.LogCaptureFixture) -> None:
    log, notifier = Log(), Told()
    async with telling(log, notifier) as chat:
        await join(chat, "alice", *(f"u{number}" for number in range(OUTBOX_USERS)))
        await chat.send_message("room", "alice", "as many as fit")
        await asyncio.sleep(10)
        assert len(notifier.told) == OUTBOX_USERS
        caplog.clear()
        first = await chat.send_message("room", "bob", "too many")
        await join(chat, "one more")
        second = await chat.send_message("room", "alice", "too many")
        await asyncio.sleep(10)
        assert len(notifier.told) == OUTBOX_USERS
        rows = await log.rows()
        assert [(each.state, each.users, each.reason) for each in rows] == [("dead", None, "too_many_members")] * 2
        assert chat.dead_letters == tuple(
            DeadLetter(each, "notifier", None, 0, "too_many_members") for each in (first, second)
        )
    (said,) = (each for each in caplog.records if "recipients(message)" in each.getMessage())
    assert said.levelno == logging.ERROR
    assert "Room 'room' has more than 1000 members" in said.getMessage()
    names = Names("carol")
    async with telling(log, names):
        await log.retry_notifications([each.id for each in rows])
        await asyncio.sleep(10)
        assert names.told == {("carol", "too many"): 2}


@virtual
async def test_while_the_outbox_is_away_sends_go_on_and_what_was_told_is_not_told_again() -> None:
    log, notifier = Log(), Told()
    async with telling(log, notifier) as chat:
        await join(chat, "bob")
        log.away = {"settle"}
        await chat.send_message("room", "alice", "one")
        await asyncio.sleep(5)
        assert notifier.told == {("bob", "one"): 1}
        log.away = {"settle", "claim"}
        await chat.send_message("room", "alice", "two")
        await asyncio.sleep(40)
        assert log.calls["claim"] + log.calls["settle"] < 50
        log.away.clear()
        await asyncio.sleep(31)
        assert notifier.told == {("bob", "one"): 1, ("bob", "two"): 1}
        assert await log.rows() == []
        assert chat.statistics().dead_letters == 0


@virtual
async def test_a_stop_does_not_wait_for_an_outbox_that_is_away() -> None:
    log, notifier = Log(), Told()
    chat = telling(log, notifier, drain_timeout_ms=100_000)
    async with chat:
        await join(chat, "bob")
        log.away = {"settle", "claim"}
        await chat.send_message("room", "alice", "one")
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(30)
    assert asyncio.get_running_loop().time() - began < 31
    assert [each.state for each in await log.rows()] == ["waiting"]


@virtual
async def test_a_wrong_answer_of_the_outbox_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Log):
        async def claim_notifications(self, *args: Any) -> Any:
            return None

    async with telling(Wrong(), Told()) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "one")
        await asyncio.sleep(5)
        assert chat.statistics().adapter_failures
    assert "claim_notifications() answered NoneType, not a list of Claimed" in caplog.text


@virtual
async def test_a_row_whose_message_is_gone_is_dead_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    log, notifier = Log(), Told()
    log.away = {"claim"}
    async with telling(log, notifier, drain_timeout_ms=100) as chat:
        await join(chat, "bob")
        message = await chat.send_message("room", "alice", "one")
    log.forget("room", (await log.take_over("room")).head._replace(offset=2))  # type: ignore[union-attr]
    log.away.clear()
    async with telling(log, notifier):
        await asyncio.sleep(5)
    assert [(each.id, each.state, each.reason) for each in await log.rows()] == [(message.id, "dead", "entry_gone")]
    assert not notifier.told
    assert "the log does not keep the message any more" in caplog.text


@virtual
async def test_two_chats_on_one_outbox_tell_everything_once() -> None:
    log, one, other = Log(), Told(), Told()
    async with telling(log, one) as chat, telling(log, other):
        await join(chat, "bob")
        await asyncio.gather(*(chat.send_message("room", f"u{number}", str(number)) for number in range(300)))
        await asyncio.sleep(60)
    assert one.told + other.told == {("bob", str(number)): 1 for number in range(300)}


@virtual
async def test_many_rows_are_claimed_and_settled_together() -> None:
    log, notifier = Log(), Told()
    async with telling(log, notifier, room_queue_limit=2000) as chat:
        await join(chat, "bob")
        await asyncio.gather(*(chat.send_message("room", f"u{number}", str(number)) for number in range(1000)))
        await asyncio.sleep(60)
        assert len(notifier.told) == 1000
        assert log.calls["claim"] < 100
        assert log.calls["settle"] < 100


@virtual
async def test_what_an_outbox_has_no_room_for_is_stored_and_a_dead_letter_and_what_is_dropped_makes_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log()
    notifier = AsyncFaultyNotifier(awaited(raises), "bob")
    async with telling(log, notifier, outbox_limit=3, delivery_max_retries=0) as chat:
        await join(chat, "bob")
        await chat.send_message("empty", "alice", "nobody is there")
        for number in range(3):
            await chat.send_message("room", "alice", str(number))
        assert (chat.statistics().outbox, chat.statistics().outbox_dead) == (3, 0)
        await asyncio.sleep(5)
        assert [len(await log.rows("dead")), chat.statistics().outbox, chat.statistics().outbox_dead] == [3, 0, 3]
        letters = len(chat.dead_letters)

        untold = [await chat.send_message("room", "alice", content) for content in ("more", "and more")]
        await chat.send_message("empty", "alice", "nobody is there")
        await chat.send_message("room", "alice", "by memory", durability="sequenced")
        assert all(each.stored for each in untold)
        assert chat.dead_letters[letters:] == tuple(
            DeadLetter(each, "notifier", None, 0, "queue_full") for each in untold
        )
        assert [each.getMessage()[:64] for each in caplog.records if "outbox_limit" in each.getMessage()] == [
            "The log Log keeps 3 notifications, 3 of them dead, which is as m"
        ]
        assert len(await log.rows()) == 3

        dropped = await log.drop_notifications([each.id for each in await log.rows()][:2])
        assert dropped == 2
        await asyncio.sleep(COUNTED_EVERY_S + LOOKED_EVERY_S + 1)
        assert (chat.statistics().outbox, chat.statistics().outbox_dead) == (0, 1)
        notifier.victim = "nobody"
        await chat.send_message("room", "alice", "again")
        await asyncio.sleep(5)
        assert ("bob", "again") in notifier.notified
        assert [each.reason for each in chat.dead_letters[letters:]].count("queue_full") == 2
        assert (chat.statistics().outbox, chat.statistics().outbox_dead) == (0, 1)


@virtual
async def test_what_an_outbox_had_before_the_start_counts_and_what_was_written_in_vain_does_not() -> None:
    log = Log()
    log.away = {"claim"}
    async with telling(log, Told(), drain_timeout_ms=1) as chat:
        await join(chat, "bob")
        for number in range(3):
            await chat.send_message("room", "alice", str(number))
    log.away = set()
    async with telling(log, AsyncFaultyNotifier(Hang(), "bob"), outbox_limit=5, drain_timeout_ms=1) as chat:
        await join(chat, "bob")
        await asyncio.sleep(1)
        assert chat.statistics().outbox == 3
        log.away = {"append"}
        for _ in range(3):
            with pytest.raises(RoomUnavailable):
                await chat.send_message("room", "alice", "in vain")
            await asyncio.sleep(5)
        kept = chat.statistics()
        assert kept.outbox + kept.outbox_dead == 3


@pytest.mark.parametrize("answer", [3, (1,), (1, True), ("1", 2), None], ids=repr)
@virtual
async def test_a_wrong_count_is_contained_and_notifications_go_on(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Miscounts(Log):
        async def count_notifications(self) -> Any:
            return answer

    notifier = Told()
    async with telling(Miscounts(), notifier) as chat:
        await join(chat, "bob")
        await chat.send_message("room", "alice", "hi")
        await asyncio.sleep(10)
        assert notifier.told == {("bob", "hi"): 1}
    assert "count_notifications() answered" in caplog.text


@virtual
async def test_the_outbox_is_looked_at_page_by_page() -> None:
    log = Log()
    log.away = {"claim"}
    async with telling(log, Told(), drain_timeout_ms=1) as chat:
        await join(chat, "bob")
        sent = [await chat.send_message("room", "alice", str(number)) for number in range(5)]
        first = await chat.outbox(limit=3)
        assert [each.id for each in first] == [each.id for each in sent[:3]]
        assert {(each.room_id, each.users, each.attempts, each.state) for each in first} == {
            ("room", ("bob",), 0, "waiting")
        }
        assert await chat.outbox(after=first[-1]) == await chat.outbox(after=first[-1].id) != ()
        assert [each.id for each in await chat.outbox(after=first[-1])] == [each.id for each in sent[3:]]
        assert await chat.outbox(state="dead") == ()
        for wrong, said in (
            ({"state": "gone"}, "state is 'gone'; give one of waiting, claimed, dead"),
            ({"after": 3}, "after is 3; give the Notification"),
            ({"limit": 0}, "limit is 0; give a whole number from 1 to 1000"),
            ({"limit": 1001}, "limit is 1001"),
            ({"limit": True}, "limit is True"),
        ):
            with pytest.raises(InvalidMessage, match=said):
                await chat.outbox(**wrong)


@virtual
async def test_an_outbox_that_is_not_there_or_cannot_be_read_is_said() -> None:
    class Unreadable(Log):
        async def list_notifications(self, *args: Any) -> Any:
            return 7

    chat = Chat()
    with pytest.raises(Closed):
        await chat.outbox()
    async with chat:
        with pytest.raises(ConfigError, match="persistence keeps no outbox; give a log"):
            await chat.outbox()
    async with telling(Unreadable(), None) as chat:
        with pytest.raises(AdapterError, match="Unreadable could not list its outbox"):
            await chat.outbox()


@virtual
async def test_a_stop_puts_back_what_was_to_be_held_longer_just_then() -> None:
    log = Log()
    notifier = AsyncFaultyNotifier(Hang(), victim="bob")
    async with telling(log, notifier, adapter_timeout_ms=100_000, drain_timeout_ms=1) as chat:
        await join(chat, "bob", "carol")
        await chat.send_message("room", "alice", "hello")
        await asyncio.sleep(1)
        log.away = {"settle"}
        await asyncio.sleep(2 * LEASE_MS / 3000)
        log.away.clear()
        worker = chat.engine.delivery._outbox
        assert worker is not None
        assert [each.state for each in worker._outcomes.values()] == ["claimed"]
    assert [(each.state, each.users) for each in await log.rows()] == [("waiting", ("bob",))]
