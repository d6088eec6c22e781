"""A chat that is stopped or dies, and goes on from SQLite: streams, resume and history across the restart.

On a real loop: SQLite runs in threads, which virtual time does not wait for.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatx import Chat, Event, Gap, Message
from chatx.adapters.sqlite import SQLitePersistence
from chatx.testing import ChatClient

Open = Callable[..., Any]


class SavesOnly:
    """The file as a store that saves, serves history and marks streams, and is no log."""

    def __init__(self, path: Path) -> None:
        self.file = SQLitePersistence(path)
        self.load_messages = self.file.load_messages
        self.last_position = self.file.last_position
        self.mark_closed = self.file.mark_closed
        self.mark_all_closed = self.file.mark_all_closed
        self.close = self.file.close

    def save_messages(self, messages: Sequence[Message], /) -> None:
        self.file.save_messages(messages)

    def mark_open(self, room_id: str, epoch: str, /) -> None:
        self.file.mark_open(room_id, epoch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Open]:
    """Opens the test's file anew, as a new process does; closes all in the end."""
    with contextlib.ExitStack() as stack:

        def open_(kind: Callable[[Path], Any] = SQLitePersistence) -> Any:
            return stack.enter_context(contextlib.closing(kind(tmp_path / "chat.db")))

        yield open_


@contextlib.asynccontextmanager
async def running(persistence: Any, **options: Any) -> AsyncIterator[Chat]:
    async with Chat(persistence=persistence, delivery_tick_ms=1, middlewares=(), **options) as chat:
        yield chat


async def send(chat: Chat, count: int, room_id: str = "general") -> list[Message]:
    return [await chat.send_message(room_id, "alice", f"message {number}") for number in range(count)]


async def saved(chat: Chat) -> None:
    """Wait until everything sent is in the file."""
    batch = asyncio.Event()
    detach = chat.telemetry.attach("delivery_batch", lambda *_: batch.set())
    while chat.statistics().delivery_waiting:
        batch.clear()
        await batch.wait()
    detach()


async def read(chat: Chat, count: int, after: Any, room_id: str = "general") -> list[Event]:
    async with chat.subscribe(room_id, after=after) as subscription:
        return [await anext(subscription) for _ in range(count)]


async def test_after_a_clean_stop_the_stream_goes_on(store: Open) -> None:
    async with running(store()) as chat:
        first = await send(chat, 3)
    async with running(store()) as chat:
        second = await send(chat, 2)
    assert {each.epoch for each in first + second} == {first[0].epoch}
    assert [each.offset for each in first + second] == [1, 2, 3, 4, 5]
    assert len({each.id for each in first + second}) == 5


async def test_a_life_in_which_nothing_was_said_does_not_break_the_stream(store: Open) -> None:
    async with running(store()) as chat:
        (first,) = await send(chat, 1)
    for _ in range(2):
        async with running(store()) as chat:
            await chat.join("general", "alice")
    async with running(store()) as chat:
        (second,) = await send(chat, 1)
    assert (second.epoch, second.offset) == (first.epoch, 2)


async def test_after_a_crash_a_new_stream_begins_and_a_reader_is_told(store: Open) -> None:
    crashing = store()
    async with running(crashing) as chat:
        seen = await send(chat, 3)
        await saved(chat)
        # What another process finds in the file now is what a crash now would leave.
        crashing.let_go()
        async with running(store()) as after_the_crash:
            (message,) = await send(after_the_crash, 1)
            assert message.epoch != seen[0].epoch
            assert message.offset == 1
            (gap,) = await read(after_the_crash, 1, seen[-1])
            assert gap == Gap("general", "epoch_changed", message.epoch, 1, None)
            # What was saved is not lost: it comes before in the history.
            assert await after_the_crash.history("general") == [*seen, message]


async def test_a_stop_that_did_not_save_everything_begins_a_new_stream(store: Open) -> None:
    class FullDisk(SavesOnly):
        def save_messages(self, messages: Sequence[Message], /) -> None:
            if any(message.offset == 2 for message in messages):
                raise OSError("no space left")
            super().save_messages(messages)

    async with running(store(FullDisk), delivery_max_retries=0) as chat:
        first = await send(chat, 3)
    assert [letter.message for letter in chat.dead_letters] != []
    async with running(store()) as chat:
        (message,) = await send(chat, 1)
        # Going on at offset 2 would give two messages one place.
        assert message.epoch != first[0].epoch


async def test_a_proof_that_cannot_be_withdrawn_is_not_built_on(store: Open) -> None:
    class CannotMark(SavesOnly):
        def mark_open(self, room_id: str, epoch: str, /) -> None:
            raise OSError("read-only")

    async with running(store()) as chat:
        first = await send(chat, 3)
    async with running(store(CannotMark)) as chat:
        second = await send(chat, 1)
        assert second[0].epoch != first[0].epoch
        await saved(chat)
        # A crash now: the old proof stands in the file, but it is not the newest stream's.
        async with running(store()) as after_the_crash:
            third = await send(after_the_crash, 1)
            assert len({each.epoch for each in first + second + third}) == 3
            assert await after_the_crash.history("general") == first + second + third


async def test_a_room_forgotten_while_the_chat_runs_goes_on_too(store: Open) -> None:
    forgotten = asyncio.Event()
    async with running(store(), room_idle_ms=1) as chat:
        chat.telemetry.attach("room_forgotten", lambda *_: forgotten.set())
        first = await send(chat, 3)
        await forgotten.wait()
        second = await send(chat, 2)
        assert [(each.epoch, each.offset) for each in second] == [(first[0].epoch, 4), (first[0].epoch, 5)]
        assert await read(chat, 4, first[0]) == first[1:] + second


async def test_a_reader_resumes_across_a_clean_restart(store: Open) -> None:
    async with running(store()) as chat:
        first = await send(chat, 5)
    async with running(store()) as chat:
        async with chat.subscribe("general", after=first[1]) as subscription:
            second = await send(chat, 2)
            got = [await anext(subscription) for _ in range(5)]
        assert got == first[2:] + second


async def test_a_connection_resumes_across_a_clean_restart(store: Open) -> None:
    async with running(store()) as chat, ChatClient(chat, "bob") as bob:
        await bob.join("general")
        first = await send(chat, 2)
        assert await bob.expect_message() == first[0]
    async with running(store()) as chat, ChatClient(chat, "bob") as bob:
        await bob.join("general", after=first[0])
        second = await send(chat, 1)
        assert [await bob.expect_message(), await bob.expect_message()] == [first[1], *second]


async def test_a_reader_far_behind_catches_up_from_the_file(store: Open) -> None:
    # More than two pages of the file, and far more than memory holds.
    async with running(store(), history_size=4) as chat:
        everything = await send(chat, 1200)
    async with running(store(), history_size=4) as chat:
        async with chat.subscribe("general", after=(everything[0].epoch, 0)) as subscription:
            everything += await send(chat, 3)
            got = [await anext(subscription) for _ in range(1203)]
        assert got == everything
        # And with memory that begins in the middle of what was missed.
        assert await read(chat, 4, everything[-5]) == everything[-4:]
        await saved(chat)
        everything += await send(chat, 3)
        await saved(chat)
        assert await read(chat, 8, everything[-9]) == everything[-8:]


async def test_a_reader_who_comes_while_others_send_misses_nothing_and_gets_nothing_twice(store: Open) -> None:
    async with running(store(), history_size=4, mailbox_size=10_000) as chat:
        everything = await send(chat, 600)
        await saved(chat)
        done = asyncio.Event()

        async def go_on() -> None:
            while not done.is_set():
                everything.extend(await send(chat, 1))
                await saved(chat)

        sender = asyncio.create_task(go_on())
        async with chat.subscribe("general", after=everything[99]) as subscription:
            got = [await anext(subscription) for _ in range(700)]
        done.set()
        await sender
        assert got == everything[100:800]


async def test_a_reader_too_far_behind_is_told(store: Open) -> None:
    async with running(store(), resume_max_messages=10, history_size=4) as chat:
        everything = await send(chat, 12)
    async with running(store(), resume_max_messages=10, history_size=4) as chat:
        assert await read(chat, 10, everything[1]) == everything[2:]
        assert await read(chat, 1, everything[0]) == [Gap("general", "too_many", everything[0].epoch, 12, 11)]


async def test_a_hole_in_the_file_is_a_gap_in_its_place(store: Open) -> None:
    class Forgets(SavesOnly):
        def save_messages(self, messages: Sequence[Message], /) -> None:
            super().save_messages([message for message in messages if message.offset not in (3, 4, 7)])

    async with running(store(Forgets)) as chat:
        sent = await send(chat, 7)
    epoch = sent[0].epoch
    async with running(store()) as chat:
        (live,) = await send(chat, 1)
        assert await read(chat, 6, sent[0]) == [
            sent[1],
            Gap("general", "missing", epoch, 4, 2),
            sent[4],
            sent[5],
            Gap("general", "missing", epoch, 7, 1),
            live,
        ]


async def test_history_reaches_across_restarts_and_streams(store: Open) -> None:
    crashing = store()
    async with running(crashing, history_size=3) as chat:
        everything = await send(chat, 10)
        await saved(chat)
        crashing.let_go()
        async with running(store(), history_size=3) as after_a_crash:
            everything += await send(after_a_crash, 5)
    async with running(store(), history_size=3) as chat:
        # Not even the room is in memory.
        assert await chat.history("general", limit=100) == everything
        assert chat.statistics().rooms == 0
        everything += await send(chat, 4)
        await saved(chat)
        assert everything[-1].offset == 9
        assert await chat.history("general", limit=2) == everything[-2:]
        assert await chat.history("general", limit=8) == everything[-8:]
        assert await chat.history("general", limit=100) == everything
        for place in range(len(everything)):
            expected = everything[max(0, place - 6) : place]
            assert await chat.history("general", before=everything[place], limit=6) == expected


async def test_pages_of_history_read_backwards_cover_everything_once(store: Open) -> None:
    async with running(store(), history_size=5) as chat:
        everything = await send(chat, 23)
    async with running(store(), history_size=5) as chat:
        everything += await send(chat, 9)
        await saved(chat)
        pages: list[Message] = []
        place = None
        while page := await chat.history("general", before=place, limit=7):
            pages = page + pages
            place = page[0]
        assert pages == everything


async def test_many_rooms_go_on_by_themselves(store: Open) -> None:
    rooms = [f"room {number}" for number in range(30)]
    async with running(store()) as chat:
        first = {room_id: await send(chat, number + 1, room_id) for number, room_id in enumerate(rooms)}
    async with running(store()) as chat:
        second = await asyncio.gather(*(send(chat, 1, room_id) for room_id in rooms))
    for room_id, (message,) in zip(rooms, second, strict=True):
        assert (message.epoch, message.offset) == (first[room_id][-1].epoch, first[room_id][-1].offset + 1)


SERVER = """
import asyncio, sys
from chatx import Chat
from chatx.adapters.sqlite import SQLitePersistence

async def main():
    chat = Chat(persistence=SQLitePersistence(sys.argv[1]), delivery_tick_ms=1, middlewares=())
    await chat.start()
    while True:
        message = await chat.send_message("general", "alice", "hello")
        while chat.statistics().delivery_waiting:
            await asyncio.sleep(0)
        print(message.epoch, message.offset, flush=True)

asyncio.run(main())
"""


def killed_server(path: Path) -> tuple[str, int]:
    """Run a server that sends without end, kill it, and return the last place it said was saved."""
    with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        places = [server.stdout.readline() for _ in range(10)]
        server.kill()
        places += server.stdout.read().splitlines()
    epoch, offset = places[-1].split()
    return epoch, int(offset)


@pytest.mark.process
async def test_a_killed_server_leaves_all_it_saved_and_its_stream_is_not_continued(store: Open, tmp_path: Path) -> None:
    epoch, offset = await asyncio.to_thread(killed_server, tmp_path / "chat.db")
    async with running(store()) as chat:
        (message,) = await send(chat, 1)
        assert message.epoch != epoch
        *stored, newest = await chat.history("general", limit=10_000)
        assert newest == message
        assert [(each.epoch, each.offset) for each in stored] == [(epoch, n) for n in range(1, len(stored) + 1)]
        assert len(stored) >= offset
