"""A chat in a process of its own, with its senders and readers, which tells what each of them is told as it happens.

`python -m tests.nothing_lost.talk <orders as JSON>` writes one fact a line to its standard output; a pipe keeps what
was written by a process that is killed. SIGTERM has it come to an end: every send gets its answer, every reader all.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from itertools import count
from random import Random
from typing import Any
from unittest.mock import patch

import msgspec

from chatx import Chat, ChatError, Gap, Message, RateLimit
from chatx.adapters.room_log import Answer, Found
from chatx.adapters.sqlite import SQLitePersistence
from tests.nothing_lost import sabotage
from tests.nothing_lost.world import ROOMS

SENDERS = 16

STORED = dict(zip(ROOMS, (1.0, 0.5, 0.0, 0.5), strict=True))
"""With which chance a message to each room is to be stored."""


class Try(msgspec.Struct, tag=True):
    """A message that somebody is about to send."""

    who: str
    room_id: str
    content: str
    key: str
    stored: bool


class Sent(msgspec.Struct, tag=True):
    """What a sender was answered."""

    content: str
    message: Message


class Refused(msgspec.Struct, tag=True):
    """That a sender was refused."""

    content: str
    code: str
    retryable: bool


class Got(msgspec.Struct, tag=True):
    """What a reader was given."""

    reader: str
    message: Message | None = None
    gap: Gap | None = None


class Now(msgspec.Struct, tag=True):
    """Where the process is: `began`, `ready`, `full`, `free`, `withdrawn` or `done`."""

    state: str


Fact = Try | Sent | Refused | Got | Now


class Orders(msgspec.Struct):
    """What a process is to do.

    Attributes:
        store: The store's URL.
        seed: Of its chances.
        first: The number of its first message.
        readers: By name: the room, and the place up to which the reader was told, if it was.
        pending: Sends whose outcome nobody knows.
        clock_s: By how much its clock is wrong, in seconds; it is set right, and wrong again, as it runs.
        slow: Whether the disk takes its time, sometimes longer than a call may.
        full: Whether the disk is full for a while.
        again_s: How long nothing unstored must have been said until a room's head is proven again, if not as long as
            it is otherwise.
        lull: Whether both rooms of both kinds are proven again before `rare` has unstored messages, and `mixed` none.
        sabotage: The name of a class of `sabotage`, or none.
    """

    store: str
    seed: int
    first: int
    readers: dict[str, tuple[str, tuple[str, int] | None]]
    pending: list[Try]
    clock_s: int = 0
    slow: bool = False
    full: bool = False
    again_s: float | None = None
    lull: bool = False
    sabotage: str | None = None


class SlowDisk(SQLitePersistence):
    """A file whose calls wait before or after they are done; now and then for longer than a call may take."""

    chance = Random()

    def append(self, appends: Any, /) -> list[Answer]:
        self._wait()
        answers = super().append(appends)
        self._wait()
        return list(answers)

    def read(self, room_id: str, /, **place: Any) -> Found:
        self._wait()
        return super().read(room_id, **place)

    def _wait(self) -> None:
        time.sleep(self.chance.choice((0, 0, 0, 0.02, 0.1, 0.4)))


def tell(fact: Fact) -> None:
    """Write a fact down, in one piece."""
    line = msgspec.json.encode(fact) + b"\n"
    while line:
        line = line[os.write(1, line) :]


class Talk:
    """The senders and readers of one process."""

    def __init__(self, chat: Chat, orders: Orders) -> None:
        self.chat = chat
        self.orders = orders
        self.chance = Random(orders.seed)
        self.numbers = count(orders.first)
        self.ending = asyncio.Event()
        self.positions: dict[str, tuple[str, int] | None] = {name: at for name, (_, at) in orders.readers.items()}
        self.last: dict[str, Message] = {}

    async def run(self) -> None:
        """Talk until it is to end."""
        readers = [asyncio.create_task(self._read(name, room)) for name, (room, _) in self.orders.readers.items()]
        if self.orders.lull:
            await self._all(self._send_pending)
            await self._lull()
            await self._all(self._send_on, {"mixed": 1.0, "rare": 0.0})
        else:
            await self._all(self._talk)
        for room_id in ROOMS:
            content = f"last {room_id} {next(self.numbers)}"
            self.last[room_id] = await self._until_sent(Try("last", room_id, content, content, True))
        for name, (room_id, _) in self.orders.readers.items():
            last = self.last[room_id]
            while self.positions[name] != (last.epoch, last.offset):  # noqa: ASYNC110  # each reader would need its own
                await asyncio.sleep(0.02)
        for each in readers:
            each.cancel()
        await asyncio.wait(readers)

    async def _all(self, send: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        await asyncio.gather(*(send(f"u{number}", *args) for number in range(SENDERS)))

    async def _talk(self, who: str) -> None:
        await self._send_pending(who)
        await self._send_on(who, STORED)

    async def _send_pending(self, who: str) -> None:
        for each in self.orders.pending:
            if each.who == who:
                await self._until_sent(each)

    async def _send_on(self, who: str, shares: dict[str, float]) -> None:
        while not self.ending.is_set():
            await self._send(who, shares)
            if self.chance.random() < 0.3:
                await asyncio.sleep(self.chance.random() / 50)

    async def _send(self, who: str, shares: dict[str, float]) -> None:
        """Send a message to one of the rooms; to be stored, with the room's chance of that."""
        room_id = self.chance.choice(tuple(shares))
        stored = self.chance.random() < shares[room_id]
        content = f"{who} {room_id} {next(self.numbers)}"
        await self._until_sent(Try(who, room_id, content, content, stored))

    async def _lull(self) -> None:
        """Send of both kinds; then only what is stored, until that proves the heads; then withdraw one of the two."""
        both = ("mixed", "rare")
        for _ in range(4):
            await self._all(self._send, dict.fromkeys(both, 0.5))
        while not all(self._proven(each) for each in both):
            await self._all(self._send, dict.fromkeys(both, 1.0))
        await self._send("u0", {"rare": 0.0})
        tell(Now("withdrawn"))

    def _proven(self, room_id: str) -> bool:
        process = self.chat.engine.rooms.find(room_id)
        return process is not None and process.proven

    async def _until_sent(self, draft: Try) -> Message:
        tell(draft)
        while True:
            try:
                message = await self.chat.send_message(
                    draft.room_id,
                    draft.who,
                    draft.content,
                    idempotency_key=draft.key,
                    durability="stored" if draft.stored else "sequenced",
                )
            except ChatError as error:
                tell(Refused(draft.content, error.code, error.retryable))
                await asyncio.sleep(0.02)
            else:
                tell(Sent(draft.content, message))
                return message

    async def _read(self, name: str, room_id: str) -> None:
        while True:
            try:
                async with self.chat.subscribe(room_id, after=self.positions[name]) as subscription:
                    async for event in subscription:
                        if isinstance(event, Message):
                            tell(Got(name, message=event))
                            self.positions[name] = (event.epoch, event.offset)
                        elif isinstance(event, Gap):
                            tell(Got(name, gap=event))
                            self.positions[name] = (event.epoch, event.offset)
            except ChatError:
                await asyncio.sleep(0.02)


async def full_for_a_while() -> None:
    """Let no file grow for two seconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    await asyncio.sleep(0.5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    tell(Now("full"))
    await asyncio.sleep(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tell(Now("free"))


class Clock:
    """The system's clock, set wrong every other moment."""

    def __init__(self, wrong_s: int) -> None:
        self._wrong_ns = wrong_s * 10**9
        self._time_ns = time.time_ns

    def time_ns(self) -> int:
        return self._time_ns() + self._wrong_ns * (self._time_ns() // 100_000_000 % 2)

    def time(self) -> float:
        return self.time_ns() / 1e9


async def main(orders: Orders) -> None:
    """Run one chat."""
    if orders.sabotage is not None:
        fault = getattr(sabotage, orders.sabotage)
        patch(sabotage.PLACES[fault], fault).start()
    if orders.again_s is not None:
        patch("chatx.runtime.appends.PROVEN_AGAIN_S", orders.again_s).start()
    if orders.clock_s:
        clock = Clock(orders.clock_s)
        patch("time.time_ns", clock.time_ns).start()
        patch("time.time", clock.time).start()
    store: dict[str, Any] = {"store": orders.store}
    if orders.slow:
        SlowDisk.chance = Random(orders.seed)
        store = {"persistence": SlowDisk(orders.store.removeprefix("sqlite:///"))}
    chat = Chat(
        **store,
        durability="stored",
        rate_limit=RateLimit(1e9, 10**9),
        history_size=64,
        room_idle_ms=100,
        adapter_timeout_ms=300 if orders.slow else 5000,
        drain_timeout_ms=30_000,
    )
    tell(Now("began"))
    async with chat:
        talk = Talk(chat, orders)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, talk.ending.set)
        tell(Now("ready"))
        filling = asyncio.create_task(full_for_a_while()) if orders.full else None
        await talk.run()
        if filling is not None:
            await filling
    tell(Now("done"))


if __name__ == "__main__":
    asyncio.run(main(msgspec.convert(json.loads(sys.argv[1]), Orders)))
