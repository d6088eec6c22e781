"""The outbox at every order of its steps: the log, the notifier and the process fail, and everybody is told.

100 schedules, TEST_SEEDS=n for more, TEST_SEED=n for one of them.
"""

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest

from chatx import Chat, Message
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.outbox import Outcome
from chatx.adapters.room_log import LogUnavailable
from chatx.runtime import outbox
from chatx.runtime.outbox import CALLS, CLAIMED_AT_ONCE
from chatx.runtime.outbox_round import Round
from chatx.testing.seeded import run_seeded
from tests.seeds import chunks

pytestmark = pytest.mark.usefixtures("schedules")

USERS = tuple(f"user {number}" for number in range(12))


class Chance(Random):
    """Draws the same on every version of Python."""

    def below(self, limit: int) -> int:
        return int(self.random() * limit)

    def is_(self, percent: float) -> bool:
        return self.random() * 100 < percent


class FlakyLog(MemoryLog):
    """A log whose outbox fails for some of the calls, before or after it has done what was asked."""

    def __init__(self, chance: Chance, percent: float) -> None:
        super().__init__()
        self.chance = chance
        self.percent = percent

    async def claim_notifications(self, *args: Any) -> Any:
        return await self._flaky(super().claim_notifications, *args)

    async def settle_notifications(self, *args: Any) -> Any:
        return await self._flaky(super().settle_notifications, *args)

    async def _flaky(self, do: Any, *args: Any) -> Any:
        fault = self.chance.below(4) if self.chance.is_(self.percent) else None
        if fault == 0:
            raise LogUnavailable("down")
        if fault == 1:
            await asyncio.sleep(self.chance.random() * 20)  # longer than it may take, at times
        answer = await do(*args)
        if fault == 2:
            raise ConnectionResetError("perhaps")
        if fault == 3:
            await asyncio.sleep(self.chance.random() * 20)
        return answer


class FlakyNotifier:
    """A notifier that fails or hangs for some of the calls."""

    def __init__(self, chance: Chance, percent: float, told: Counter[tuple[str, str]], broken: list[Any]) -> None:
        self.chance = chance
        self.percent = percent
        self.told = told
        self.under_way: Counter[tuple[str, str]] = Counter()
        self.broken = broken

    async def notify(self, user_id: str, message: Message) -> None:
        about = message.id, user_id
        self.under_way[about] += 1
        if self.under_way[about] > 1 or self.under_way.total() > CALLS:
            self.broken.append(dict(self.under_way))  # what is raised here is contained
        try:
            await asyncio.sleep(self.chance.random() * 0.2)
            if self.chance.is_(self.percent):
                if self.chance.is_(50):
                    raise RuntimeError("no")
                await self._deaf(self.chance.random() * 30)
            self.told[about] += 1
        finally:
            self.under_way[about] -= 1

    async def _deaf(self, seconds: float) -> None:
        """Wait, whoever cancels that."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue


class Play:
    """What one schedule does."""

    def __init__(self, seed: int) -> None:
        self.chance = Chance(seed)
        self.percent = self.chance.below(40)
        self.log = FlakyLog(self.chance, self.percent)
        self.told: Counter[tuple[str, str]] = Counter()
        self.wanted: set[tuple[str, str]] = set()
        self.given_up: set[tuple[str, str]] = set()
        self.broken: list[Any] = []
        self.names = 0

    def chat(self, **options: Any) -> Chat:
        notifier = FlakyNotifier(self.chance, self.percent, self.told, self.broken)
        return Chat(
            persistence=self.log,
            notifier=notifier,
            durability="stored",
            middlewares=(),
            delivery_max_retries=self.chance.below(4),
            drain_timeout_ms=1 + self.chance.below(20_000),
            **options,
        )

    async def begin(self) -> Chat:
        chat = self.chat()
        await chat.start()
        worker = chat.engine.delivery._outbox
        assert worker is not None
        self.names += 1
        worker._claimer, worker._jitter = f"claimer {self.names}", self.chance
        return chat

    async def end(self, chat: Chat) -> None:
        """Stop a chat, or have it die amid what it does."""
        if self.chance.is_(50):
            worker = chat.engine.delivery._outbox
            assert worker is not None
            for task in list(worker._tasks):
                task.cancel()
            worker._closed = True
        await chat.stop()
        self.given_up |= {(each.message.id, str(each.user_id)) for each in chat.dead_letters}

    async def send(self, chat: Chat) -> None:
        for _ in range(self.chance.below(100)):
            await self.say(chat)
            if self.chance.is_(10):
                await asyncio.sleep(self.chance.random() * 5)

    async def say(self, chat: Chat) -> None:
        message = await chat.send_message("room", "alice", "hello")
        self.wanted |= {(message.id, user) for user in self.members}

    async def __call__(self) -> None:
        for _ in range(1 + self.chance.below(4)):
            self.members = USERS[: 1 + self.chance.below(len(USERS))]
            chat, helper = await self.begin(), await self.begin()
            for user in self.members:
                await chat.join("room", user)
            await self.send(chat)
            await asyncio.sleep(self.chance.random() * 30)
            await self.end(chat)
            await self.end(helper)
        self.percent = self.log.percent = 0
        chat = await self.begin()
        async with asyncio.timeout(3600):
            while await chat.outbox(state="waiting") or await chat.outbox(state="claimed"):  # noqa: ASYNC110  # on virtual time
                await asyncio.sleep(1)
        await chat.stop()
        self.check(await self.log.list_notifications("dead", None, 10**6))

    def check(self, dead: Any) -> None:
        assert self.broken == [], "one process tells a user once at a time, and so many in all"
        kept = {(row.id, user) for row in dead for user in row.users}
        assert self.wanted <= self.told.keys() | kept, "who was not told stays in the outbox"
        assert kept <= self.given_up, "and what is dead was said to be"
        assert self.told.keys() <= self.wanted


@pytest.mark.parametrize("chunk", chunks(100, 10), ids=lambda chunk: f"{chunk.start}-{chunk.stop - 1}")
def test_everybody_is_told_in_every_order(chunk: range) -> None:
    for seed in chunk:
        run_seeded(seed, Play(seed)())


@pytest.mark.slow
def test_a_process_that_forgets_what_it_had_claimed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(self: outbox.Outbox, round_: Round) -> None:
        if not (round_.left or round_.under_way) and round_.row.id in self._rounds:
            self._worked -= 1
            self._ended(round_, Outcome(round_.row.id, "done"))

    monkeypatch.setattr(outbox.Outbox, "_end_if_over", forgets)
    with pytest.raises(AssertionError, match="who was not told stays in the outbox"):
        for seed in range(20):
            run_seeded(seed, Play(seed)())


@pytest.mark.slow
def test_the_schedules_reach_what_they_are_for() -> None:
    repeats = dead = full = 0
    for seed in range(20):
        play = Play(seed)
        run_seeded(seed, play())
        repeats += sum(count > 1 for count in play.told.values())
        dead += len(play.given_up)
        full += len(play.wanted) > CLAIMED_AT_ONCE
    assert min(repeats, dead, full) > 0
