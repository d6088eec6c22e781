"""Programs that use the Python client, drawn from seeds: they come and go, cancel, are ended and started anew."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest

from chatx.client import Client, ClientError, Gap, Message, NotSent, Room, SendUnknown, Sent, StoredSend
from chatx.client.wire import NotOpened
from chatx.testing import run_virtual
from tests.clients.pretend import Pretend
from tests.clients.pretended import Pretended
from tests.seeds import Chance, chunks, promise

SEEDS = 80
ROOMS = ["a", "b"]


class MemoryOutbox:
    """A storage that takes its time."""

    def __init__(self, chance: Chance) -> None:
        self.kept: dict[tuple[str, str], StoredSend] = {}
        self._chance = chance

    async def load(self) -> list[StoredSend]:
        return list(self.kept.values())

    async def put(self, send: StoredSend) -> None:
        await asyncio.sleep(self._chance.random() / 10)
        self.kept[send.room, send.key] = send

    async def remove(self, room: str, key: str) -> None:
        await asyncio.sleep(self._chance.random() / 10)
        self.kept.pop((room, key), None)

    async def close(self) -> None:
        pass


class Life:
    """A program, or several one after the other with one storage."""

    def __init__(self, seed: int, *, stored: bool) -> None:
        self.chance = Chance(f"{seed} life")
        self.server = Pretend(Chance(f"{seed} server"), ROOMS)
        self.server.refuses = 7
        self.storage = MemoryOutbox(Chance(f"{seed} storage")) if stored else None
        self.rooms: dict[str, Room] = {}
        self.outcomes: dict[str, Message | ClientError] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.sent = 0

    async def __call__(self) -> None:
        for _ in range(3 if self.storage is not None else 1):
            await self.program(100, calm_s=0 if self.storage is not None else 60)
        self.server.refuses = 0
        await self.program(0, calm_s=60)
        promise(self.storage is None or not self.storage.kept, "Something is kept that has its outcome.")
        self.check()

    async def program(self, steps: int, calm_s: float) -> None:
        options: dict[str, Any] = {"queue_events": 8, "outbox_messages": 20}
        async with Pretended(self.server, storage=self.storage, **options) as client:
            visits = [asyncio.create_task(self.visit(client, name)) for name in ROOMS]
            for _ in range(steps):
                await asyncio.sleep(self.chance.random() * 0.4)
                self.step(client)
            if calm_s:
                await asyncio.sleep(calm_s)
                client.wire.holds = client.wire.swallows = False
                client.wire.look()
                await asyncio.sleep(calm_s)
                promise(client.conversation.outbox.count == 0, "Something waits for ever.")
                promise(client.conversation.sends._unanswered == 0, "Something is on its way for ever.")
            for visit in visits:
                visit.cancel()
            await asyncio.wait(visits)
            for visit in visits:
                with suppress(asyncio.CancelledError):
                    visit.result()
        if self.tasks:
            await asyncio.wait(self.tasks)
            for task in self.tasks:
                with suppress(asyncio.CancelledError):
                    task.result()
        self.tasks = []

    def step(self, client: Pretended) -> None:
        chance, name = self.chance, self.chance.pick(ROOMS)
        room = self.rooms.get(name)
        connected = len(client.dialled) > len(client.refuses) and hasattr(client, "wire")
        match chance.upto(12):
            case 1 | 2 | 3 | 4 if room is not None:
                self.sent += 1
                self.tasks.append(asyncio.create_task(self.send(room, f"k{self.sent}")))
            case 5 if self.tasks:
                chance.pick(self.tasks).cancel()
            case 6 if connected:
                client.wire.cut(chance.pick([1001, 1006, 1012, 4001]))
            case 7 if connected:
                client.say(name, "x")
            case 8 if connected:
                self.server.fail(name)
                client.wire.look()
            case 9 if connected:
                client.wire.holds = chance.once_in(3)
                client.wire.look()
            case 10 if connected:
                client.wire.swallows = chance.once_in(4)
            case 11 if room is not None:
                self.tasks.append(asyncio.create_task(self.history(room)))
            case _:
                client.refuses = [NotOpened("nobody is there") for _ in range(chance.upto(3))]

    async def visit(self, client: Client, name: str) -> None:
        """Be in a room, again and again."""
        while True:
            history, presence = self.chance.pick([0, 3]), self.chance.once_in(2)
            async with client.room(name, history=history, presence=presence) as room:
                self.rooms[name] = room
                try:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self.chance.random() * 60):
                            await self.read(room)
                finally:
                    del self.rooms[name]
            await asyncio.sleep(self.chance.random() * 2)

    async def read(self, room: Room) -> None:
        place: int | None = None
        async for event in room:
            promise(not isinstance(event, Gap), "There is a gap, though nothing was lost.", event)
            if isinstance(event, Message):
                promise(place is None or event.offset == place + 1, "It does not follow.", place, event)
                place = event.offset
            elif isinstance(event, (Sent, NotSent)):
                self.outcomes[event.key] = event.message if isinstance(event, Sent) else event.error
            if self.chance.once_in(5):
                await asyncio.sleep(self.chance.random())

    async def send(self, room: Room, key: str) -> None:
        try:
            self.outcomes[key] = await room.send(key, key=key)
        except ClientError as error:
            if self.storage is None or error.code != "closed":  # then it goes in the next program
                self.outcomes[key] = error

    async def history(self, room: Room) -> None:
        with suppress(ClientError):
            await room.history(limit=self.chance.upto(9))

    def check(self) -> None:
        said = [each["key"] for room in self.server.rooms.values() for each in room.said if each["key"]]
        promise(len(said) == len(set(said)), "A message is there twice.")
        for key, outcome in self.outcomes.items():
            if isinstance(outcome, Message):
                promise(key in said, "It is not there, though acknowledged.", key)
            elif not isinstance(outcome, SendUnknown):
                promise(key not in said, "It is there, though refused.", key, outcome)


@pytest.mark.parametrize("chunk", chunks(SEEDS, 40), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
@pytest.mark.parametrize("stored", [False, True])
def test_whatever_a_program_does_a_send_is_there_once_and_what_it_was_told_is_so(
    chunk: range, stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in chunk:
        try:
            run_virtual(Life(seed, stored=stored)())
            faults = [each for each in caplog.records if each.levelno >= logging.ERROR]
            promise(not faults, "Something failed that nobody saw.", [each.getMessage() for each in faults])
        except BaseException as error:
            error.add_note(f"Replay it: TEST_SEED={seed} python -m pytest {__file__}")
            raise
        caplog.clear()
