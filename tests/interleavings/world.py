"""One run of everything at once: a chat, its adapters and their faults, and the promises, all drawn from one seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from chatx import Chat, ChatError, Message, RateLimit
from chatx.core.fanout import Subscriber
from chatx.core.message import Draft, Entry, Position
from chatx.core.room import Room
from chatx.runtime.engine import Engine
from tests.faults import Broken, Crashes, CrashingRoom, Hang, Stored
from tests.interleavings.model import RoomModel, View
from tests.seeds import Chance, Traced, promise

X = TypeVar("X")

ROOMS = ("red", "blue")
ACTORS_S = 600.0
"""By then every actor has long done its share, in virtual seconds; one that has not is stuck."""
SHOWN = 40
"""Actions of a failed run that are shown."""


class WorldRoom(CrashingRoom):
    """A room that tells the model what happens to it. Sabotage derives from it."""

    __slots__ = ()

    def __init__(self, room_id: str, position: Position, history_size: int) -> None:
        super().__init__(room_id, position, history_size)
        model = World.now.rooms[room_id]
        if model.head != position:  # a rebuilt room goes on where it was
            World.now.told(model.began, position)

    def apply(self, entry: Entry) -> Sequence[tuple[Subscriber, BaseException]]:
        before = self.history.offset
        try:
            return super().apply(entry)
        finally:
            if self.history.offset > before:
                World.now.told(World.now.rooms[self.room_id].published, self.history.newest(1)[0])


class WorldChat(Chat):
    """A chat whose rooms are of a class given, and whose backoff is drawn from the seed."""

    room_class: type[Room] = WorldRoom
    chance: Chance

    async def start(self) -> None:
        Crashes.planned = []
        self._engine = Engine(self.config, self.telemetry, self._dead_letters, room_class=self.room_class)
        delivery = self._engine.delivery
        for queue in (delivery._saving, delivery._notifying):
            if queue is not None:
                queue._jitter = self.chance


class Faulty:
    """Does as it should, but for a chance of failing, hanging or taking its time."""

    def __init__(self, chance: Chance, once_in: float) -> None:
        self._chance = chance
        self._once_in = once_in

    async def act(self) -> None:
        """Act a fault, or none."""
        if not self._chance.once_in(self._once_in):
            await asyncio.sleep(0)
            return
        match self._chance.pick(("raise", "slow", "slow", "hang", "cancel")):
            case "raise":
                raise Broken
            case "hang":
                await Hang()()
            case "cancel":
                raise asyncio.CancelledError
            case _:
                await asyncio.sleep(self._chance.upto(20) / 1000)


class Auth(Faulty):
    async def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        await self.act()
        return self._chance.pick((True,) * 30 + (False, None))


class PlainAuth(Faulty):
    def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        if self._chance.once_in(30):
            raise Broken
        return self._chance.pick((True,) * 30 + (False, None))


class Moderation(Faulty):
    async def check(self, content: str) -> Any:
        await self.act()
        return self._chance.pick((True,) * 30 + (False, None))


class Notifier(Faulty):
    async def notify(self, user_id: str, message: Message) -> None:
        await self.act()


class Saves(Faulty):
    """Saves one at a time, and serves no history."""

    def __init__(self, chance: Chance, once_in: float) -> None:
        super().__init__(chance, once_in)
        self.saved: dict[str, Message] = {}

    async def save_message(self, message: Message) -> None:
        await self.act()
        self.saved[message.id] = message


class Serves(Stored):
    """Serves history too."""

    def __init__(self, chance: Chance, once_in: float) -> None:
        super().__init__()
        self._faults = Faulty(chance, once_in)

    async def _called(self, method: str) -> None:
        await self._faults.act()

    @property
    def saved(self) -> dict[str, Message]:
        """What is saved, by id."""
        return {message.id: message for message in self.rows.values()}


class World(Traced):
    """The chat, its model and its actors."""

    now: World

    def __init__(self, seed: int, room_class: type[Room]) -> None:
        super().__init__(seed)
        World.now = self
        self.rooms = {room_id: RoomModel(room_id) for room_id in ROOMS}
        self.acked: dict[str, Message] = {}
        self.by_key: dict[tuple[str, str, str], str] = {}
        self.ranks: dict[str, int] = {}  # by content
        self.views: list[View] = []
        self.calm: asyncio.Event = asyncio.Event()
        self.live: set[View] = set()
        self.inside: dict[str, int] = dict.fromkeys(ROOMS, 0)
        self.chance = chance = self.chances("world")
        self.history_size = chance.pick((4, 16, 256))
        self.queue_limit = chance.pick((2, 3, 64))
        self.persistence: Saves | Serves | None = None
        adapters: dict[str, Any] = {}
        if chance.once_in(2):
            faults, once_in = self.chances("persistence"), chance.pick((3, 1000))
            self.persistence = Saves(faults, once_in) if chance.once_in(2) else Serves(faults, once_in)
            adapters["persistence"] = self.persistence
        if chance.once_in(3):
            adapters["auth"] = chance.pick((Auth, PlainAuth))(self.chances("auth"), 10)
        if chance.once_in(4):
            adapters["moderation"] = Moderation(self.chances("moderation"), 10)
        if chance.once_in(4):
            adapters["notifier"] = Notifier(self.chances("notifier"), 5)
        steps: list[Any] = ["auth", "rate_limit", "moderation"]
        if chance.once_in(2):
            steps.insert(chance.upto(4) - 1, self.stall)
        self._stalls = self.chances("stall")
        self.chat = WorldChat(
            middlewares=tuple(steps),
            rate_limit=chance.pick((RateLimit(1000, 1000), RateLimit(100, 3))),
            history_size=self.history_size,
            mailbox_size=chance.pick((2, 8, 64)),
            # A page of what was missed has one, three or many messages.
            message_size_limit=self.chances("pages").pick((1_000_000, 300_000, 4096)),
            room_queue_limit=self.queue_limit,
            room_idle_ms=chance.pick((5, 60000)),
            adapter_timeout_ms=50,
            delivery_tick_ms=chance.pick((1, 20)),
            delivery_batch_size=chance.pick((2, 100)),
            delivery_retry_base_ms=5,
            delivery_max_retries=2,
            dead_letter_limit=100_000,
            **adapters,
        )
        self.chat.room_class = room_class
        self.chat.chance = self.chances("backoff")
        self.chat.telemetry.attach("room_crash", self._crashed)

    def chat_crash(self, place: str, room_id: str, times: int) -> None:
        """Let a room crash at this place, so many times."""
        self.note(room_id, "is to crash", place, times)
        Crashes.planned += [(place, room_id)] * times

    async def stall(self, draft: Draft) -> Draft:
        """Take some time, as a middleware, and count who is in here."""
        room_id = draft.room_id
        self.inside[room_id] += 1
        try:
            # Those of a room that crashed for good end in its next lives, which count anew.
            within = self.inside[room_id] <= self.queue_limit * self.rooms[room_id].lives
            self.told(promise, within, "more messages admitted than the limit in", room_id)
            if not self._stalls.once_in(3):
                await asyncio.sleep(self._stalls.upto(10) / 1000)
        finally:
            self.inside[room_id] -= 1
        return draft

    async def pause(self, chance: Chance) -> None:
        """Let others go on: not at all, for some rounds, or for some time."""
        match chance.pick(("on", "rounds", "rounds", "time", "time")):
            case "rounds":
                for _ in range(chance.upto(3)):
                    await asyncio.sleep(0)
            case "time":
                await asyncio.sleep(chance.upto(12) / 1000)

    def view(self, name: str, room_id: str, *, drops: bool) -> View:
        """Return a view of the room for a reader of this name."""
        stored = isinstance(self.persistence, Serves)
        view = View(f"{name} in {room_id}", self.rooms[room_id], self.history_size, stored=stored, drops=drops)
        self.views.append(view)
        return view

    async def send(
        self,
        who: str,
        number: int,
        room_id: str,
        key: str | None,
        rank: int | None = None,
        epoch: str | None = None,
    ) -> Message | None:
        """Send a message as an actor, and hold what becomes of it against the model.

        A sender's messages keep the order of their ranks, which are their numbers unless given.
        """
        room = self.rooms[room_id]
        content = f"{who} {room_id} {number}"
        self.ranks.setdefault(content, number if rank is None else rank)
        others = room.in_flight
        room.in_flight += 1
        try:
            message = await self.chat.send_message(room_id, who, content, idempotency_key=key, epoch=epoch)
        except ChatError as error:
            self.note(who, "is refused", content, error.code)
            if error.code == "room_overloaded":
                # It may have waited for the room to be opened, and others came meanwhile.
                others = max(others, room.in_flight - 1)
                promise(others >= self.queue_limit, "overloaded with so few in flight:", others, self.queue_limit)
            if error.code == "epoch_changed":
                promise(room.head is None or room.head.epoch != epoch, "refused in its own epoch:", content)
            return None
        finally:
            room.in_flight -= 1
        self.note(who, "sent", content, message.offset, "again" if message.duplicate else "")
        promise(message.content == content, "another message was acknowledged:", message, content)
        promise(message.duplicate or epoch in (None, message.epoch), "published in another epoch:", content)
        if key is not None:
            first = self.by_key.setdefault((room_id, who, key), message.id)
            promise(first == message.id, "one key, two messages:", key, message)
        known = self.acked.setdefault(message.id, message)
        promise((known.epoch, known.offset) == (message.epoch, message.offset), "two places:", known, message)
        return message

    def check(self) -> None:
        """What holds at any time: acknowledged is published, each sender's order, everybody's order."""
        super().check()
        everything = {each.id: each for room in self.rooms.values() for s in room.streams.values() for each in s}
        for message in self.acked.values():
            found = everything.get(message.id)
            promise(found is not None, "acknowledged, but not in the history:", message)
            assert found is not None
            promise((found.epoch, found.offset) == (message.epoch, message.offset), "moved:", message, found)
        contents = [message.content for message in everything.values()]
        promise(len(contents) == len(set(contents)), "a message was doubled:", contents)
        for room in self.rooms.values():
            last: dict[str, int] = {}
            for message in (each for stream in room.streams.values() for each in stream):
                rank = self.ranks[message.content]
                promise(last.get(message.user_id, 0) <= rank, "a sender's order was broken:", message)
                last[message.user_id] = rank
        for view in self.views:
            view.check_order()

    async def check_rooms(self) -> None:
        """What holds while nothing is under way: who is there, and what the history tells."""
        for room in self.rooms.values():
            await self.check_presence(room.room_id)
            process = self.chat.engine.rooms.find(room.room_id)
            if process is None or room.head is None:
                continue
            kept = process.room.history.newest(10_000)
            stream = room.streams[room.head.epoch]
            promise(not kept or kept == stream[-len(kept) :], "the history is not what was published in", room.room_id)
            promise(len(kept) <= self.history_size, "the history outgrew its size in", room.room_id)
        for view in sorted(self.live, key=lambda each: each.name):
            if self.chat.engine.rooms.find(view.room.room_id) is not None:
                view.check_caught_up()
                view.check_presence()

    async def check_presence(self, room_id: str) -> None:
        """Who is there is who came and did not leave."""
        there = {user: len(metas) for user, metas in (await self.chat.presence(room_id)).items()}
        expected = dict(self.rooms[room_id].presences())
        promise(there == expected, f"presence of {room_id} is", there, "not", expected)

    def check_stopped(self) -> None:
        """Nothing is left, and what was published is saved or known not to be."""
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        promise(not left, "tasks were left:", left)
        timers = [each for each in asyncio.get_running_loop()._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        promise(not timers, "timers were left:", timers)
        if self.persistence is not None:
            known = set(self.persistence.saved) | {
                letter.message.id for letter in self.chat.dead_letters if letter.adapter == "persistence"
            }
            lost = [message for message in self.acked.values() if message.id not in known]
            promise(not lost, "neither saved nor a dead letter:", lost)

    def _crashed(self, event: str, measurements: Any, metadata: Any) -> None:
        self.note(metadata["room_id"], "crashed", "for good" if metadata["closed"] else "")
        if metadata["closed"]:
            self.rooms[metadata["room_id"]].died()


Play = Callable[[World], Coroutine[Any, Any, None]]


async def finish(actors: Iterable[asyncio.Task[Any]]) -> None:
    """Wait for the actors; raise what the first of them raised, and for those that are stuck."""
    waited = list(actors)
    if not waited:
        return
    done, stuck = await asyncio.wait(waited, timeout=ACTORS_S, return_when=asyncio.FIRST_EXCEPTION)
    for each in waited:
        if each in done and not each.cancelled() and (error := each.exception()) is not None:
            raise error
    promise(not stuck, "stuck:", sorted(each.get_name() for each in stuck))


def run(seed: int, play: Play, room_class: type[Room] = WorldRoom) -> World:
    """Run the play of this seed; what it raises tells how to replay it, and what happened last."""
    world = World(seed, room_class)
    world.run(play(world), "tests/interleavings/test_interleavings.py", SHOWN)
    return world
