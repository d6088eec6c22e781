"""A run's notifier and its retention: who was told of what, and what the log let go of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chatx import Message
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.retention import Retention
from chatx.adapters.room_log import Record
from tests.nothing_lost.evidence import Evidence, Kept
from tests.seeds import Chance, promise

if TYPE_CHECKING:
    from tests.nothing_lost.world import Life, World

USERS = ("bob", "carol")
"""Whom the notifier is to tell of every message."""

SPARED_MS = 1_000
"""How long every entry is kept: longer than it takes to settle what is not known."""

KEYS_KEPT_MS = 30_000
"""How long an entry with a key is kept: longer than anybody tries again."""

PACE: dict[str, float] = {
    "chatx.runtime.outbox.LEASE_MS": 400,
    "chatx.runtime.outbox.LOOKED_EVERY_S": 0.2,
    "chatx.runtime.trimming.ROUND_S": 0.3,
    "chatx.runtime.trimming.RETRY_S": 0.05,
    "chatx.runtime.trimming.PAUSE_S": 0.01,
    "chatx.runtime.trimming.SPARED_MS": SPARED_MS,
    "chatx.runtime.trimming.KEYS_KEPT_MS": KEYS_KEPT_MS,
}
"""Times of the engine that are too long for a run."""


class Notifications:
    """Who was told of what."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()  # (the entry's id, a user)

    def tell(self, message: Message, user_id: str) -> bool:
        """Note that a user was told; return whether they were before."""
        about = message.id, user_id
        again = about in self._told
        self._told.add(about)
        return again

    async def check(self, log: MemoryLog, entries: Sequence[Kept]) -> None:
        """Hold what was told against everything that was ever stored, and what was given up."""
        dead = {each.id: each.users for each in await log.list_notifications("dead", None, 1_000_000)}
        for entry in (each.entry for each in entries):
            if not isinstance(entry, Message) or not entry.stored:
                continue
            left = dead.get(entry.id, ())
            missed = [each for each in USERS if (entry.id, each) not in self._told]
            missed = [] if left is None else [each for each in missed if each not in left]
            promise(not missed, "nobody told them of what was stored:", missed, entry)


class LifeNotifier:
    """One chat's notifier, which fails now and then, and tells nobody any more when its chat was killed."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._chance = life.world.chances(f"{life.name} notifier")

    async def recipients(self, message: Message) -> Sequence[str]:
        await self._some_time()
        return USERS

    async def notify(self, user_id: str, message: Message) -> None:
        await self._some_time()
        life, world = self._life, self._life.world
        world.told(life.shown, message, f"{life.name}'s notifier")
        if world.notifications.tell(message, user_id):
            world.note(user_id, "is told again of", message.content)

    async def _some_time(self) -> None:
        await asyncio.sleep(self._chance.upto(4) / 1000)
        if self._life.dead:
            await asyncio.get_running_loop().create_future()
        if not self._life.world.calm and self._chance.once_in(6):
            raise ConnectionError("The notifier fails.")


class TrimmedLog(MemoryLog):
    """A log that has what it lets go of looked at."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def trim(self, room_ids: Sequence[str], retention: Retention, limit: int, /) -> int:
        before = {each: self.records(each) for each in room_ids}
        waiting = {each.id for each in self._rows.values() if each.state != "dead"}
        gone = await super().trim(room_ids, retention, limit)
        for room_id, records in before.items():
            self._world.told(self._look, room_id, records, waiting)
        return gone

    def _look(self, room_id: str, records: list[Record], waiting: set[str]) -> None:
        world, kept = self._world, self.records(room_id)
        gone = records[: len(records) - len(kept)]
        promise(records[len(gone) :] == kept, "not the oldest was let go of:", room_id)
        promise(not gone or len(kept) >= world.keep, "let go of what is inside the bound:", room_id, len(kept))
        for record in gone:
            age_ms = world.now_ms() - record.entry.inserted_at
            spared_ms = SPARED_MS if record.key is None else KEYS_KEPT_MS
            promise(age_ms > spared_ms, "let go of too early:", age_ms, record)
            promise(record.entry.id not in waiting, "let go of before all were told:", record)
            world.evidence.let_go(Kept(record.entry, record.key))
        if gone:
            world.note(len(gone), "are let go of in", room_id)


def everything(evidence: Evidence, log: MemoryLog, room_id: str) -> list[Kept]:
    """Return all that was ever kept of a room, in order."""
    return [*evidence.gone[room_id], *(Kept(each.entry, each.key) for each in log.records(room_id))]


def draws(chance: Chance) -> tuple[bool, int]:
    """Return whether a run has a notifier, and how many entries of a room are to be kept; 0: all."""
    return chance.once_in(4), chance.pick((0, 0, 0, 0, 1, 4))


def options(world: World, life: Life, chance: Chance) -> dict[str, Any]:
    """Return what a chat of this run has of both."""
    given: dict[str, Any] = {"retention_messages": world.keep}
    if world.notifies:
        given |= {"notifier": LifeNotifier(life), "delivery_max_retries": chance.pick((0, 5, 5))}
    return given
