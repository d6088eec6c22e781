"""What `stored` promises: nobody sees what could still fail, and an acknowledgement says that the log has it."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from chatx import Blocked, Chat, ChatError, ConfigError, Draft, InvalidMessage, Message, RoomUnavailable
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import FENCED, Answer, Append, LogUnavailable, Opened
from chatx.core.message import Position
from chatx.gateway.session.gateway import Gateway
from chatx.runtime import committing
from tests.gateway.fakes import Client
from tests.logs import chat_on
from tests.virtual import turns, virtual


class Log(MemoryLog):
    """A log in memory whose appends can be held up, fail, or not say."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.appends: list[Sequence[Append]] = []
        self.plan: list[str] = []
        self.taking = asyncio.Event()
        self.taking.set()

    async def take_over(self, room_id: str, /) -> Opened:
        await self.taking.wait()
        return await super().take_over(room_id)

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        self.appends.append(appends)
        await self.gate.wait()
        match self.plan.pop(0) if self.plan else "":
            case "unavailable":
                raise LogUnavailable("down")
            case "unknown":
                raise ConnectionResetError("perhaps")
            case "written, unknown":
                await super().append(appends)
                raise ConnectionResetError("perhaps")
            case "written, hangs":
                await super().append(appends)
                await asyncio.sleep(3600)
            case "fenced":
                return [FENCED] * len(appends)
        return await super().append(appends)


@virtual
async def test_a_stored_message_is_seen_by_nobody_before_the_log_has_it() -> None:
    log = Log()
    async with chat_on(log, durability="stored") as chat:
        seen: list[Any] = []
        async with chat.subscribe_callback("a", seen.append):
            log.gate.clear()
            sending = asyncio.ensure_future(chat.send_message("a", "ann", "hi"))
            await turns(20)
            assert seen == []
            assert await chat.history("a") == []
            log.gate.set()
            message = await sending
            assert message.stored
            assert message.offset == 1
            assert seen == [message]
            assert await chat.history("a") == [message]
            assert [each.entry for each in log.records("a")] == [message]


@virtual
async def test_what_comes_while_a_batch_is_in_flight_is_in_the_next_one_in_order() -> None:
    log = Log()
    async with chat_on(log) as chat:
        log.gate.clear()
        sends = [asyncio.ensure_future(chat.send_message("a", "u0", "0", durability="stored"))]
        await turns(20)
        for number in range(1, 20):
            durability: Any = "stored" if number % 3 else "sequenced"
            sends.append(
                asyncio.ensure_future(chat.send_message("a", f"u{number}", str(number), durability=durability))
            )
        await turns(20)
        log.gate.set()
        messages = await asyncio.gather(*sends)
        assert [each.offset for each in messages] == list(range(1, 21))
        assert [each.stored for each in messages] == [bool(number % 3) or not number for number in range(20)]
        assert [len(each[0].records) for each in log.appends] == [1, 19]
        assert [each.content for each in await chat.history("a")] == [str(number) for number in range(20)]


@virtual
async def test_many_rooms_share_one_transaction() -> None:
    log = Log()
    async with chat_on(log, durability="stored") as chat:
        await asyncio.gather(*(chat.send_message(f"r{each}", "ann", "open") for each in range(64)))
        log.appends.clear()
        log.gate.clear()
        first = asyncio.ensure_future(chat.send_message("first", "ann", "hi"))
        await turns(20)
        sends = [asyncio.ensure_future(chat.send_message(f"r{each}", "ann", "hi")) for each in range(64)]
        await turns(20)
        log.gate.set()
        await asyncio.gather(first, *sends)
        assert [len(each) for each in log.appends] == [1, 64]


@virtual
async def test_who_is_told_and_sends_again_at_once_goes_with_those_who_wait() -> None:
    log = Log()
    async with chat_on(log, durability="stored") as chat:
        await asyncio.gather(*(chat.send_message(f"r{each}", "ann", "open") for each in range(9)))
        log.appends.clear()
        log.gate.clear()

        async def twice(room_id: str) -> None:
            for content in ("once", "twice"):
                await chat.send_message(room_id, "ann", content)

        sending = [asyncio.ensure_future(twice("r0"))]
        await turns(20)
        sending += [asyncio.ensure_future(twice(f"r{each}")) for each in range(1, 9)]
        await turns(20)
        log.gate.set()
        await asyncio.gather(*sending)
        # Those of the first transaction are in the second one too, not each half in every other one.
        assert [len(each) for each in log.appends] == [1, 9, 8]


@virtual
async def test_each_sender_waits_for_the_log_as_long_as_a_call_may_take_and_no_longer() -> None:
    log = Log()
    async with chat_on(log, durability="stored", adapter_timeout_ms=5000) as chat:
        await chat.send_message("a", "ann", "first")
        log.gate.clear()
        loop = asyncio.get_running_loop()

        async def refused_after(room_id: str) -> float:
            began = loop.time()
            with pytest.raises(RoomUnavailable):
                await chat.send_message(room_id, "ann", "hi")
            return loop.time() - began

        waits = []
        for room_id in ("a", "b", "a"):
            waits.append(asyncio.ensure_future(refused_after(room_id)))
            await asyncio.sleep(1)
        assert await asyncio.gather(*waits) == pytest.approx([5.0, 5.0, 5.0], abs=0.01)
        log.gate.set()
        assert (await chat.send_message("a", "ann", "again")).stored


@virtual
async def test_a_stored_message_is_behind_an_earlier_one_of_its_user_that_waits_for_the_proof() -> None:
    class Slow(Log):
        async def unproven(self, room_id: str, term: int, head: Position, /) -> bool:
            await self.taking.wait()
            return await super().unproven(room_id, term, head)

    log = Slow()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "0", durability="stored")
        log.taking.clear()
        sends = [asyncio.ensure_future(chat.send_message("a", "ann", "1"))]
        await turns(20)
        sends.append(asyncio.ensure_future(chat.send_message("a", "ann", "2", durability="stored")))
        await turns(20)
        log.taking.set()
        assert [each.offset for each in await asyncio.gather(*sends)] == [2, 3]


@virtual
async def test_a_batch_that_surely_failed_is_refused_and_its_places_are_used_again() -> None:
    log = Log()
    async with chat_on(log) as chat:
        log.plan = ["unavailable"]
        with pytest.raises(RoomUnavailable) as caught:
            await chat.send_message("a", "ann", "lost", durability="stored")
        assert caught.value.retryable
        message = await chat.send_message("a", "ann", "hi")
        assert message.offset == 1
        await chat.send_message("a", "ann", "stored", durability="stored")
        assert [each.content for each in await chat.history("a")] == ["hi", "stored"]
        assert [each.entry.content for each in log.records("a")] == ["hi", "stored"]


@pytest.mark.parametrize("outcome", ["unknown", "written, unknown"])
@virtual
async def test_a_batch_of_which_it_is_not_known_is_settled_by_the_log(outcome: str) -> None:
    log = Log()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "first")
        log.plan = [outcome]
        sends = [asyncio.ensure_future(chat.send_message("a", f"u{each}", str(each))) for each in range(3)]
        answers = await asyncio.gather(*sends, return_exceptions=True)
        written = outcome == "written, unknown"
        assert all(isinstance(each, Message) if written else isinstance(each, RoomUnavailable) for each in answers)
        await chat.send_message("a", "ann", "last")
        contents = [each.content for each in await chat.history("a")]
        assert contents == (["first", "0", "1", "2", "last"] if written else ["first", "last"])
        assert [each.entry.content for each in log.records("a")] == contents


@virtual
async def test_who_waits_for_a_log_that_hangs_is_refused_in_time_and_all_goes_on_by_itself() -> None:
    log = Log()
    async with chat_on(log, adapter_timeout_ms=1000) as chat:
        loop = asyncio.get_running_loop()
        await chat.send_message("a", "ann", "first", durability="stored")
        log.gate.clear()
        began = loop.time()
        in_flight = asyncio.ensure_future(chat.send_message("a", "ann", "in flight", durability="stored"))
        await turns(20)
        behind = asyncio.ensure_future(chat.send_message("a", "bob", "behind"))
        elsewhere = await chat.send_message("b", "ann", "elsewhere")
        assert elsewhere.offset == 1
        for each in (in_flight, behind):
            with pytest.raises(RoomUnavailable):
                await each
        assert loop.time() - began <= 1.1
        assert await chat.presence("a") == {}
        log.gate.set()
        await asyncio.sleep(10)
        assert (await chat.send_message("a", "ann", "last", durability="stored")).stored
        contents = [each.content for each in await chat.history("a")]
        assert contents[0] == "first"
        assert contents[-1] == "last"
        assert "behind" not in contents
        assert [each.entry.content for each in log.records("a")] == contents


@pytest.mark.parametrize("goes", [False, True])
@virtual
async def test_a_repeat_of_what_is_not_settled_waits_for_that_and_is_not_published_beside_it(goes: bool) -> None:
    log = Log()
    async with chat_on(log, durability="stored", adapter_timeout_ms=1000) as chat:
        await chat.send_message("a", "ann", "first")
        log.plan = ["written, hangs"]
        log.taking.clear()
        sending = asyncio.ensure_future(chat.send_message("a", "ann", "once", idempotency_key="key"))
        if goes:
            await turns(20)
            sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled() if goes else isinstance(sending.exception(), RoomUnavailable)
        # Nobody knows yet whether it is there: so whoever asks again is told no more than the first time.
        with pytest.raises(RoomUnavailable, match="not known"):
            await chat.send_message("a", "ann", "once", idempotency_key="key")
        repeat = asyncio.ensure_future(chat.send_message("a", "ann", "once", idempotency_key="key"))
        await turns(20)
        log.taking.set()
        assert (await repeat).duplicate
        assert (await repeat).offset == 2
        assert (await chat.send_message("a", "ann", "last")).offset == 3
        assert [each.entry.content for each in log.records("a")] == ["first", "once", "last"]


@virtual
async def test_sequenced_messages_go_on_while_the_log_is_away_and_are_written_when_it_is_back() -> None:
    log = Log()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "0")
        await asyncio.sleep(1)
        log.plan = ["unavailable"] * 8
        for number in range(1, 40):
            await chat.send_message("a", "ann", str(number))
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)
        assert [each.entry.content for each in log.records("a")] == [str(number) for number in range(40)]
        assert chat.dead_letters == ()
        assert chat.statistics().delivery_waiting == 0


@virtual
async def test_a_room_that_somebody_else_took_over_closes_and_is_not_opened_at_once() -> None:
    log = Log()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "first")
        closed: list[ChatError] = []
        async with chat.subscribe_callback("a", print, on_closed=closed.append):
            await log.take_over("a")
            with pytest.raises(RoomUnavailable):
                await chat.send_message("a", "ann", "second")
            assert [each.code for each in closed] == ["room_unavailable"]
            with pytest.raises(RoomUnavailable) as caught:
                await chat.send_message("a", "ann", "third")
            assert caught.value.retry_after == pytest.approx(5, abs=0.1)
            await asyncio.sleep(5)
            assert (await chat.send_message("a", "ann", "fourth")).offset == 2


@virtual
async def test_a_room_of_which_all_was_stored_goes_on_after_a_crash_and_another_does_not() -> None:
    log = Log()
    chat = chat_on(log)
    await chat.start()
    one = await chat.send_message("stored", "ann", "1", durability="stored")
    two = await chat.send_message("both", "ann", "1", durability="stored")
    await chat.send_message("both", "ann", "2")
    three = await chat.send_message("sequenced", "ann", "1")
    # It is killed: nothing more is written.
    again = chat_on(log)
    async with again:
        assert (await again.send_message("stored", "ann", "2")).epoch == one.epoch
        assert (await again.send_message("both", "ann", "3")).epoch != two.epoch
        assert (await again.send_message("sequenced", "ann", "2")).epoch != three.epoch
    await chat.stop(drain_timeout_ms=1)
    # A clean stop proves every head.
    async with chat_on(log) as last:
        assert (await last.send_message("stored", "ann", "3")).offset == 3
        assert (await last.send_message("both", "ann", "4")).offset == 2


@virtual
async def test_a_key_answers_across_a_crash() -> None:
    log = Log()
    chat = chat_on(log, durability="stored")
    await chat.start()
    first = await chat.send_message("a", "ann", "hi", idempotency_key="k")
    async with chat_on(log, durability="stored") as again:
        repeat = await again.send_message("a", "ann", "hi", idempotency_key="k")
        assert repeat.duplicate
        assert (repeat.id, repeat.offset, repeat.epoch) == (first.id, first.offset, first.epoch)
        assert not (await again.send_message("a", "bob", "hi", idempotency_key="k")).duplicate
    await chat.stop(drain_timeout_ms=1)


async def test_stored_without_a_log_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="persistence is no log"):
        Chat(durability="stored")
    with pytest.raises(ConfigError, match="must be one of sequenced, stored"):
        Chat(durability="safe")
    async with Chat() as chat:
        with pytest.raises(ConfigError, match="persistence is no log"):
            await chat.send_message("a", "ann", "hi", durability="stored")
        with pytest.raises(InvalidMessage, match="durability is 'safe'"):
            await chat.send_message("a", "ann", "hi", durability="safe")  # type: ignore[arg-type]


@virtual
async def test_a_log_that_is_away_is_said_where_operators_look_and_keeps_nobody_out() -> None:
    log = Log()
    said: list[str | None] = []
    async with chat_on(log, adapter_timeout_ms=500) as chat:
        said.append(chat.engine.store)
        log.plan = ["unavailable"] * 3
        with pytest.raises(RoomUnavailable):
            await chat.send_message("a", "ann", "hi", durability="stored")
        said.append(chat.engine.store)
        assert (await chat.send_message("b", "ann", "hi")).offset == 1
        await asyncio.sleep(30)
        said.append(chat.engine.store)
    async with Chat() as without:
        said.append(without.engine.store)
    assert said == ["ok", "away", "ok", None]


@virtual
async def test_the_reply_on_the_wire_says_that_a_message_is_stored() -> None:
    async with chat_on(Log(), durability="stored") as chat:
        client = Client(Gateway(chat.engine), "ann")
        await client.join("room:a")
        status, response = await client.call("room:a", "new_message", {"content": "hi", "key": "k"})
        assert (status, response["stored"], "duplicate" in response) == ("ok", True, False)
        status, response = await client.call("room:a", "new_message", {"content": "hi", "key": "k"})
        assert (status, response["stored"], response["duplicate"]) == ("ok", True, True)
        client.session.end()
    async with chat_on(Log()) as chat:
        client = Client(Gateway(chat.engine), "ann")
        await client.join("room:a")
        status, response = await client.call("room:a", "new_message", {"content": "hi"})
        assert (status, "stored" in response) == ("ok", False)
        client.session.end()


@virtual
async def test_data_is_kept_by_the_log_and_seen_by_a_moderation_that_asks_for_the_whole_message() -> None:
    class Moderates:
        def check_message(self, draft: Draft) -> bool:
            return draft.data != {"bad": True}

    def add(draft: Draft) -> Draft:
        return replace(draft, data={"added": [1]}) if draft.content == "add" else draft

    log = Log()
    chat = Chat(persistence=log, moderation=Moderates(), middlewares=(add, "moderation"), durability="stored")
    async with chat:
        message = await chat.send_message("a", "ann", "", data={"n": [1, {"x": None}]})
        assert message.data == {"n": [1, {"x": None}]}
        assert hash(message)
        with pytest.raises(Blocked):
            await chat.send_message("a", "ann", "x", data={"bad": True})
        assert (await chat.send_message("a", "ann", "add")).data == {"added": [1]}
        assert (await chat.send_message("a", "ann", "none")).data is None
    async with Chat(persistence=log, history_size=1) as again:
        assert [each.data for each in await again.history("a")] == [{"n": [1, {"x": None}]}, {"added": [1]}, None]


@virtual
async def test_a_refusal_by_the_log_leaves_nothing() -> None:
    log = Log()
    async with chat_on(log, durability="stored") as chat:
        await chat.send_message("a", "ann", "first")
        gc.collect()
        gc.disable()
        try:
            log.plan = ["unavailable"] * 3
            before = sum(type(each) is RoomUnavailable for each in gc.get_objects())
            for _ in range(3):
                try:
                    await chat.send_message("a", "ann", "hi")
                except RoomUnavailable as error:
                    del error
                await asyncio.sleep(10)
            assert sum(type(each) is RoomUnavailable for each in gc.get_objects()) == before
        finally:
            gc.enable()


@virtual
async def test_a_batch_that_could_not_be_formed_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    async with chat_on(log) as chat:
        await chat.send_message("a", "ann", "first", durability="stored")
        sending = chat.engine.sending
        place, broken = sending.place, ["once"]

        def place_or_raise(draft: Draft, epoch: str, offset: int, stored: bool) -> Message:
            if draft.content == "broken" and broken:
                broken.clear()
                raise ZeroDivisionError
            return place(draft, epoch, offset, stored)

        monkeypatch.setattr(sending, "place", place_or_raise)
        log.gate.clear()
        sends = [asyncio.ensure_future(chat.send_message("a", "u0", "held", durability="stored"))]
        await turns(20)
        for number, content in enumerate(["ahead", "broken", "behind"]):
            sends.append(asyncio.ensure_future(chat.send_message("a", f"u{number}", content, durability="stored")))
        await turns(20)
        log.gate.set()
        answers = await asyncio.gather(*sends, return_exceptions=True)
        assert isinstance(answers[1], RoomUnavailable)
        assert (await chat.send_message("a", "ann", "last", durability="stored")).stored
        contents = [each.content for each in await chat.history("a")]
        assert contents == ["first", "held", "broken", "behind", "last"]
        assert [each.entry.content for each in log.records("a")] == contents


@virtual
async def test_who_is_to_be_told_bounds_a_transaction_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "NAMED_AT_ONCE", 100)

    class Quiet:
        async def notify(self, user_id: str, message: Message) -> None:
            pass

    log = Log()
    async with chat_on(log, notifier=Quiet(), durability="stored") as chat:
        for room in ("a", "b", "c"):
            for member in range(30):
                await chat.join(room, f"member {member}")
            await chat.send_message(room, "first", "x")
        log.gate.clear()
        held = asyncio.ensure_future(chat.send_message("held", "ann", "x"))
        await turns(20)
        sends = [
            asyncio.ensure_future(chat.send_message(room, f"u{each}", "x"))
            for room in ("a", "b", "c")
            for each in range(9)
        ]
        await turns(20)
        log.appends.clear()
        log.gate.set()
        await asyncio.gather(held, *sends)
        named = [
            [sum(len(record.notify.users or ()) for record in each.records if record.notify) for each in appends]
            for appends in log.appends
        ]
        assert sum(map(sum, named)) == 27 * 30
        assert all(0 < batch <= 100 for appends in named for batch in appends)
        assert all(sum(appends[:-1]) < 100 for appends in named)
