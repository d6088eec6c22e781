"""Dead letters and their handler: bounded, in order, and nothing else waits for it."""

import asyncio
import logging

import pytest

from chatx import Chat, DeadLetter, Message
from chatx.runtime import dead_letters
from chatx.runtime.dead_letters import LOGGED_PER_MINUTE, TELLING
from tests.faults import Block, Hang, HangDeaf, raises
from tests.virtual import virtual


class Refuses:
    """Notifies nobody."""

    async def notify(self, user_id: str, message: Message) -> None:
        raises()


class Handler:
    """Takes its time for each dead letter, and counts how many it has at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.under_way = self.most = 0
        self.told: list[str] = []

    async def __call__(self, letter: DeadLetter) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.told.append(letter.message.content)
        await asyncio.sleep(self.seconds)
        self.under_way -= 1


async def give_up(chat: Chat, messages: int) -> None:
    """Let so many messages become dead letters."""
    await chat.join("room", "bob")
    for number in range(messages):
        await chat.send_message("room", "alice", str(number))


@virtual
async def test_so_many_handlers_run_at_once_and_all_letters_are_told_in_order() -> None:
    handler = Handler(0.01)
    chat = Chat(notifier=Refuses(), middlewares=(), delivery_max_retries=0, on_dead_letter=handler)
    async with chat:
        await give_up(chat, 5000)
        await asyncio.sleep(60)
        assert chat.statistics().dead_letters == 5000
        assert handler.most == TELLING
        assert handler.told == [str(number) for number in range(5000)]


@virtual
async def test_a_handler_that_does_not_heed_its_end_keeps_its_place_and_no_more_are_begun() -> None:
    deaf = HangDeaf()

    async def handle(letter: DeadLetter) -> None:
        await deaf()

    chat = Chat(
        notifier=Refuses(), middlewares=(), delivery_max_retries=0, on_dead_letter=handle, adapter_timeout_ms=100
    )
    async with chat:
        await give_up(chat, 100)
        await asyncio.sleep(600)
        assert deaf.begun == TELLING
        assert chat.statistics().dead_letters == 100
        deaf.release()
        await asyncio.sleep(1)
        assert deaf.begun == 100


async def test_a_plain_handler_that_hangs_takes_no_thread_of_the_notifiers() -> None:
    block = Block()

    class PlainRefuses:
        def notify(self, user_id: str, message: Message) -> None:
            raises()

    def handle(letter: DeadLetter) -> None:
        block()

    chat = Chat(
        notifier=PlainRefuses(),
        middlewares=(),
        delivery_max_retries=0,
        on_dead_letter=handle,
        adapter_timeout_ms=60_000,
        drain_timeout_ms=100,
    )
    async with chat:
        await give_up(chat, 50)
        async with asyncio.timeout(30):
            while chat.statistics().dead_letters < 50 or block.begun < TELLING:  # noqa: ASYNC110  # threads
                await asyncio.sleep(0.01)
        assert block.begun == TELLING
        block.release()


@virtual
async def test_letters_that_cannot_wait_are_kept_and_counted_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dead_letters, "UNTOLD_LETTERS", 10)

    async def hangs(letter: DeadLetter) -> None:
        await Hang()()

    chat = Chat(notifier=Refuses(), middlewares=(), delivery_max_retries=0, on_dead_letter=hangs, drain_timeout_ms=1000)
    async with chat:
        await give_up(chat, 100)
        await asyncio.sleep(1)
        assert chat.statistics().dead_letters == len(chat.dead_letters) == 100
    assert "was not given to on_dead_letter" in caplog.text
    assert f"{TELLING} calls of on_dead_letter did not end in time, and 10 dead letters" in caplog.text


@virtual
async def test_letters_that_wait_are_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "UNTOLD_BYTES", 10_000)
    handler = Handler(60)
    chat = Chat(
        notifier=Refuses(),
        middlewares=(),
        delivery_max_retries=0,
        on_dead_letter=handler,
        adapter_timeout_ms=100_000,
    )
    async with chat:
        await chat.join("room", "bob")
        for _ in range(50):
            await chat.send_message("room", "alice", "x" * 3872)  # 4,000 bytes with what a message weighs
        await asyncio.sleep(300)
        assert chat.statistics().dead_letters == 50
    assert len(handler.told) == TELLING + 2


@virtual
async def test_a_minute_has_so_many_lines_of_dead_letters(caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[logging.LogRecord]:
        return [each for each in caplog.records if "is a dead letter" in each.getMessage()]

    chat = Chat(notifier=Refuses(), middlewares=(), delivery_max_retries=0)
    async with chat:
        await give_up(chat, 500)
        await asyncio.sleep(100)
        assert len(lines()) == LOGGED_PER_MINUTE
        await chat.send_message("room", "alice", "one more")
        await asyncio.sleep(1)
        assert f"{500 - LOGGED_PER_MINUTE} dead letters before it were not logged." in lines()[-1].getMessage()
    fields = vars(lines()[0])
    assert (fields["room"], fields["user"], fields["adapter"], fields["code"]) == ("room", "bob", "notifier", "raised")


@virtual
async def test_a_drain_leaves_the_handler_some_of_its_time() -> None:
    class Away:
        async def save_message(self, message: Message) -> None:
            raise ConnectionRefusedError

    handler = Handler(0.01)
    loop = asyncio.get_running_loop()
    chat = Chat(persistence=Away(), middlewares=(), on_dead_letter=handler, drain_timeout_ms=2000)
    await chat.start()
    for number in range(100):
        await chat.send_message("room", "alice", str(number))
    began = loop.time()
    await chat.stop()
    assert loop.time() - began <= 2.2
    assert handler.told == [str(number) for number in range(100)]
