"""A single send does not yield; a tight loop of sends starves nobody."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from chatx import Chat, ChatError, Event, InvalidMessage, Message, RateLimit, RateLimited
from chatx.runtime.turn import BURST, Turn
from tests.faults import CrashingChat
from tests.virtual import unlimited, virtual


class Adapter:
    """Auth and moderation that answer at once."""

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        return True

    def check(self, content: str) -> bool:
        return True


def driven(coroutine: Any) -> tuple[int, Any]:
    """Drive a coroutine by hand; return how often it yielded to the loop, and its result."""
    yields = 0
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return yields, stop.value
        yields += 1


@virtual
async def test_a_single_send_never_yields() -> None:
    adapter = Adapter()
    async with Chat(auth=adapter, moderation=adapter) as chat, chat.subscribe("general") as subscription:
        yields, message = driven(chat.send_message("general", "alice", "hi"))
        assert yields == 0
        assert await anext(subscription) == message
        yields, message = driven(chat.send_message("general", "alice", "hi", idempotency_key="k"))
        assert (yields, message.duplicate) == (0, False)
        yields, repeat = driven(chat.send_message("general", "alice", "hi", idempotency_key="k"))
        assert (yields, repeat.id, repeat.duplicate) == (0, message.id, True)
        assert driven(chat.send_message("a new room", "bob", "hi"))[0] == 0


@virtual
async def test_a_send_gives_way_after_a_burst_and_begins_to_count_anew() -> None:
    async with unlimited() as chat:
        assert BURST == 64
        for _ in range(3):
            for _ in range(BURST - 1):
                assert driven(chat.send_message("general", "alice", "hi"))[0] == 0
            await asyncio.sleep(0)
        for _ in range(BURST - 1):
            assert driven(chat.send_message("general", "alice", "hi"))[0] == 0
        assert driven(chat.send_message("general", "alice", "hi"))[0] == 1


@virtual
async def test_the_burst_is_counted_over_rooms_and_users() -> None:
    async with unlimited() as chat:
        yields = [driven(chat.send_message(f"room {n}", f"user {n}", "hi"))[0] for n in range(BURST)]
        assert yields == [0] * (BURST - 1) + [1]


async def count_turns(turns: list[int]) -> None:
    while True:
        turns[0] += 1
        await asyncio.sleep(0)


async def send(chat: Chat, how: str, number: int) -> None:
    if how == "published":
        await chat.send_message("general", "alice", "hi")
    elif how == "repeated":
        await chat.send_message("general", "alice", "hi", idempotency_key="k")
    elif how == "rate limited":
        with suppress(RateLimited):
            await chat.send_message("general", "alice", "hi")
    else:
        with suppress(InvalidMessage):
            await chat.send_message("general", "alice", "")


@pytest.mark.parametrize("how", ["published", "repeated", "rate limited", "invalid"])
@virtual
async def test_a_tight_loop_of_sends_starves_nobody_whatever_becomes_of_them(how: str) -> None:
    async with Chat(rate_limit=RateLimit(1e-3, 1)) if how == "rate limited" else unlimited() as chat:
        turns = [0]
        other = asyncio.create_task(count_turns(turns))
        most = 0
        for number in range(10 * BURST):
            before = turns[0]
            await send(chat, how, number)
            most = most + 1 if turns[0] == before else 0
            assert most <= BURST
        other.cancel()
        assert turns[0] >= 9


@virtual
async def test_gathered_sends_of_one_user_keep_their_order() -> None:
    async with unlimited() as chat:
        async with chat.subscribe("general") as subscription:
            sends = [chat.send_message("general", "alice", str(number)) for number in range(5 * BURST)]
            messages = await asyncio.gather(*sends)
            seen = [await anext(subscription) for _ in sends]
        assert seen == messages
        assert [each.content for each in messages] == [str(number) for number in range(5 * BURST)]


@virtual
async def test_a_reader_is_woken_in_the_turn_a_message_is_published() -> None:
    async with unlimited() as chat, chat.subscribe("general") as subscription:
        reader = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        message = await chat.send_message("general", "alice", "hi")
        for _ in range(3):
            await asyncio.sleep(0)
        assert reader.done()
        assert reader.result() == message


@virtual
async def test_cancelling_a_send_that_gives_way_leaves_the_message_published() -> None:
    async with unlimited() as chat:
        for _ in range(BURST - 1):
            await chat.send_message("general", "alice", "hi")
        task = asyncio.create_task(chat.send_message("general", "alice", "the last"))
        asyncio.get_running_loop().call_soon(task.cancel)
        with suppress(asyncio.CancelledError):
            await task
        history = await chat.history("general", limit=BURST)
        assert len(history) == BURST
        assert history[-1].content == "the last"


@virtual
async def test_a_reader_that_publishes_what_it_reads_does_not_run_away_with_the_loop() -> None:
    """Readers go on where the turn ends; what they publish there belongs to the next turn."""
    async with unlimited() as chat:
        turns = [0]
        other = asyncio.create_task(count_turns(turns))

        async def echo() -> None:
            async with chat.subscribe("general") as subscription:
                async for event in subscription:
                    assert isinstance(event, Message)
                    if event.offset > 200:
                        return
                    await chat.send_message("general", "echo", event.content)

        echoing = asyncio.create_task(echo())
        await asyncio.sleep(0)
        await chat.send_message("general", "alice", "hi")
        await echoing
        other.cancel()
        assert turns[0] >= 100


@virtual
async def test_a_chat_that_is_refusing_still_says_why() -> None:
    async with Chat(rate_limit=RateLimit(1e-3, 1)) as chat:
        codes = []
        for _ in range(2 * BURST):
            try:
                await chat.send_message("general", "alice", "hi")
            except ChatError as refusal:
                codes.append(refusal.code)
        assert codes == ["rate_limited"] * (2 * BURST - 1)


def uvloop_loop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("factory", [asyncio.SelectorEventLoop, uvloop_loop])
def test_readers_keep_up_on_real_loops_too(factory: Callable[[], asyncio.AbstractEventLoop], debug: bool) -> None:
    """Readers are resumed in a way of our own, which must suit every loop; one is cancelled while it waits."""

    async def main() -> None:
        async with unlimited(mailbox_size=4) as chat:

            async def read(room_id: str, count: int) -> list[Event]:
                async with chat.subscribe(room_id) as subscription:
                    return [await anext(subscription) for _ in range(count)]

            readers = [asyncio.create_task(read("general", 300)) for _ in range(5)]
            cancelled = [asyncio.create_task(read("general", 1)), asyncio.create_task(read("quiet", 1))]
            await asyncio.sleep(0)
            cancelled[1].cancel()
            messages = [await chat.send_message("general", "alice", str(number)) for number in range(300)]
            cancelled[0].cancel()
            assert await asyncio.gather(*readers) == [messages] * 5
            ended = await asyncio.gather(*cancelled, return_exceptions=True)
            assert ended[0] == messages[:1]
            assert isinstance(ended[1], asyncio.CancelledError)

    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        runner.run(main())


class Part:
    """What is flushed at the end of a turn: raises if it has something to raise."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1
        if self.error is not None:
            raise self.error


@virtual
async def test_a_flush_that_raises_keeps_nobody_elses_messages_back() -> None:
    turn = Turn(asyncio.get_running_loop())
    parts = [Part(), Part(ZeroDivisionError()), Part(), Part(ValueError()), Part()]
    for part in parts:
        turn.touch(part)
    await asyncio.sleep(0)
    assert [part.flushed for part in parts] == [1] * 5
    assert turn.number == 1
    turn.touch(parts[0])
    await asyncio.sleep(0)
    assert (parts[0].flushed, parts[1].flushed, turn.number) == (2, 1, 2)


@virtual
async def test_a_signal_amid_a_flush_goes_through_and_the_others_are_flushed_in_the_next_turn() -> None:
    turn = Turn(asyncio.get_running_loop())
    parts = [Part(), Part(KeyboardInterrupt()), Part(), Part()]
    for part in parts:
        turn.touch(part)
    with pytest.raises(KeyboardInterrupt):
        turn.end()
    assert [part.flushed for part in parts] == [1, 1, 0, 0]
    await asyncio.sleep(0)
    assert [part.flushed for part in parts] == [1, 1, 1, 1]


@virtual
async def test_a_room_whose_presence_cannot_be_told_does_not_keep_the_others_back() -> None:
    chat = CrashingChat()
    async with chat, chat.subscribe("room 0") as first, chat.subscribe("room 2") as last:
        chat.crash("flush: before", "room 1")
        await chat.join("room 1", "alice")
        for number in range(3):
            await chat.send_message(f"room {number}", "alice", "hello")
        await asyncio.sleep(0)
        assert (first.unread, last.unread) == (1, 1)
