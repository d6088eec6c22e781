"""One run on virtual time: chats over one log, one after another and sometimes two at once, all drawn from one seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from chatx import Chat, ChatError, Message
from chatx.adapters.room_log import RoomLog
from chatx.core.fanout import Subscriber
from chatx.core.message import Draft, Entry, Position
from chatx.runtime.appends import PROVEN_AGAIN_S
from chatx.runtime.dead_letters import DeadLetter
from chatx.runtime.engine import Engine
from chatx.testing.faulty_log import Chance as Faults
from chatx.testing.faulty_log import Fault, FaultyLog
from tests.faults import Crashes, CrashingRoom
from tests.nothing_lost.evidence import Evidence, Kept, Reading
from tests.nothing_lost.keeping import PACE, Notifications, TrimmedLog, draws, everything, options
from tests.seeds import Chance, Traced, promise

ROOMS = ("vault", "mixed", "plain", "rare")
"""In the first all is stored, in the third nothing; the others have both."""

TIMEOUT_S = 0.05
ANSWERED_S = 8 * TIMEOUT_S
"""In virtual seconds. A send may wait for an earlier life of its room, its opening, its key, its user's turn, the
withdrawal of a proof, and its commit: for each as long as one call of an adapter may take."""

BROKEN: tuple[Fault, ...] = ("unavailable", "unavailable", "lost", "lost answer", "lost answer", "slow", "hang", "hang")
EPOCH_MS = 1_700_000_000_000
"""When a run begins, in ms since the Unix epoch."""

SHOWN = 60
"""Lines of a failed run that are shown."""


class Line(FaultyLog):
    """One chat's way to the log. It is down for a time, and ends with its chat; what is on its way may arrive still.

    Attributes:
        dead: Whether the chat at its end was killed.
        down: Whether the log cannot be reached.
    """

    def __init__(self, log: RoomLog, chance: Chance, faults: Callable[[str], Fault], slow_s: float) -> None:
        super().__init__(log, faults, slow_s=slow_s)
        self.dead = False
        self.down = False
        self._chance = chance

    async def _called(self, method: str, rooms: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        if self.dead:
            await asyncio.get_running_loop().create_future()
        if self.down:
            self.choose, choose = (lambda method: "unavailable"), self.choose
            try:
                return await super()._called(method, rooms, *args, **kwargs)
            finally:
                self.choose = choose
        return await super()._called(method, rooms, *args, **kwargs)

    async def _do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        await self._some_time()
        answer = await super()._do(method, *args, **kwargs)
        await self._some_time()
        return answer

    async def _some_time(self) -> None:
        match self._chance.pick(("none", "turn", "turn", "time")):
            case "turn":
                await asyncio.sleep(0)
            case "time":
                await asyncio.sleep(self._chance.upto(4) / 1000)


class SeenRoom(CrashingRoom):
    """A room that tells the evidence what it lets everybody have, and that crashes where it is told to."""

    __slots__ = ()
    life: Life

    def apply(self, entry: Entry) -> Sequence[tuple[Subscriber, BaseException]]:
        before = self.history.offset
        try:
            return super().apply(entry)
        finally:
            if self.history.offset > before:
                self.life.world.told(self.life.applied, entry)


class LifeChat(Chat):
    """A chat whose rooms tell, and whose backoff is drawn from the seed."""

    life: Life

    async def start(self) -> None:
        room_class = type("RoomOfThisLife", (self.life.world.room_class,), {"__slots__": (), "life": self.life})
        self._engine = Engine(self.config, self.telemetry, self._dead_letters, room_class=room_class)
        delivery = self._engine.delivery
        for worker in (delivery.committing, delivery._notifying, delivery._outbox):
            if worker is not None:
                worker._jitter = self.life.chance


class Life:
    """One chat from its start to its stop or its death, and who uses it.

    Attributes:
        dead: Whether it was killed: what it does from then on nobody sees.
        actors: The tasks of who uses it.
        sequenced: What was answered here, and need not be stored.
    """

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"chat-{number}"
        self._began: set[str] = set()  # rooms of which something was said here
        world.lives.append(self)
        self.chance = chance = world.chances(self.name)
        self.dead = False
        self.actors: list[asyncio.Task[None]] = []
        self.sequenced: list[Message] = []
        percent = chance.pick((0, 0, 5, 20))
        kinds = BROKEN if chance.once_in(2) else (*BROKEN, "fenced")
        faults = Faults(world.chances(f"{self.name} faults"), percent, kinds)
        self.line = Line(world.log, world.chances(f"{self.name} line"), faults, chance.pick((0.01, 2 * TIMEOUT_S)))
        self.chat = LifeChat(
            persistence=self.line,
            middlewares=(self._step,) if chance.once_in(3) else (),
            durability=world.durability,
            history_size=chance.pick((2, 256)),
            room_idle_ms=chance.pick((80, 60_000)),
            adapter_timeout_ms=int(TIMEOUT_S * 1000),
            drain_timeout_ms=1000,
            delivery_tick_ms=chance.pick((1, 20)),
            delivery_batch_size=chance.pick((2, 100)),
            delivery_retry_base_ms=5,
            dead_letter_limit=100_000,
            **options(world, self, chance),
        )
        self.chat.life = self

    async def _step(self, draft: Draft) -> Draft:
        await asyncio.sleep(self.chance.upto(3) / 1000)
        return draft

    def applied(self, entry: Entry) -> None:
        """Everybody may have seen this entry."""
        if self.dead:
            return
        if entry.offset > 1 and entry.room_id not in self._began:
            self.world.note(self.name, entry.room_id, "goes on in epoch")
        self._began.add(entry.room_id)
        self.shown(entry, self.name)

    def shown(self, entry: Entry, who: str) -> None:
        """Somebody was given this entry, which the log has if it says so."""
        self.world.evidence.seen(entry, who)
        if isinstance(entry, Message) and entry.stored:
            kept = [each.entry for each in self.world.everything(entry.room_id)]
            promise(entry in kept, "seen before it was stored:", entry)

    async def start(self) -> None:
        """Start it."""
        self.world.note(self.name, "starts")
        await self.chat.start()

    async def kill(self) -> None:
        """End it as `kill -9` does: nothing more is written, answered or seen."""
        self.world.note(self.name, "is killed")
        self.dead = self.line.dead = True
        await self._end_actors()
        await self.chat.stop(drain_timeout_ms=1)

    async def stop(self) -> None:
        """Stop it as an operator does."""
        self.world.note(self.name, "stops")
        await self.chat.stop()
        await self._end_actors()
        given_up = {each.message.id for each in self.unsaved()}
        for message in self.sequenced:
            kept = {each.entry.id for each in self.world.everything(message.room_id)}
            promise(message.id in kept | given_up, "neither in the log nor a dead letter:", message)

    def unsaved(self) -> list[DeadLetter]:
        """Return what the log was never given."""
        return [each for each in self.chat.dead_letters if each.adapter == "persistence"]

    async def _end_actors(self) -> None:
        for each in self.actors:
            each.cancel()
        if self.actors:
            await asyncio.wait(self.actors)
        for each in self.actors:
            if not each.cancelled():
                each.result()
        self.actors.clear()


class World(Traced):
    """The log, what is known of it, and who reads and writes.

    Attributes:
        pending: Sends with a key whose outcome nobody knows: (who, room, content, key, stored).
        idle: Readers that are in no chat now.
    """

    def __init__(self, seed: int, room_class: type[SeenRoom]) -> None:
        super().__init__(seed)
        self.room_class = room_class
        self.log = TrimmedLog(self)
        self.notifications = Notifications()
        self.notifies, self.keep = draws(self.chances("keeping"))
        chance = self.chances("world")
        # Where not everything is to be stored, a room that is opened while the log is away begins a new stream.
        self.durability = chance.pick(("stored", "stored", "sequenced"))
        self.crashes = chance.once_in(4)
        # Most runs are too short for a head to be proven again.
        self.again_s = chance.pick((PROVEN_AGAIN_S, 0.02))
        self.evidence = Evidence(unbroken={"vault"} if self.durability == "stored" else ())
        self.pending: list[tuple[str, str, str, str, bool]] = []
        self.idle: list[Reading] = []
        self.readings: list[Reading] = []
        self.lives: list[Life] = []
        self.numbers = 0
        self.calm = False

    def now_ms(self) -> int:
        """Return what the machine's clock says, which goes with the loop's."""
        return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)

    def reading(self, room_id: str) -> Reading:
        """Return a new reader of a room."""
        reading = Reading(self.evidence, f"reader-{len(self.readings)} of {room_id}", room_id)
        self.readings.append(reading)
        return reading

    async def send(
        self, life: Life, who: str, room_id: str, content: str, key: str | None, stored: bool
    ) -> Message | None:
        """Send a message as an actor, and hold its answer against what is known; None where it was refused."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        durability: Any = "stored" if stored else "sequenced"
        try:
            message = await life.chat.send_message(room_id, who, content, idempotency_key=key, durability=durability)
        except ChatError as error:
            if not life.dead:
                self._in_time(loop.time() - began, content)
                self.note(life.name, who, "is refused", content, error.code, error)
                promise(error.retryable or error.code == "closed", "refused for good:", content, error)
            return None
        if life.dead:
            return None
        self._in_time(loop.time() - began, content)
        self.note(life.name, who, "sent", content, message.offset, "again" if message.duplicate else "")
        promise(message.stored or not stored or message.duplicate, "stored was asked for:", message)
        self.evidence.answered(message, content, stored=message.stored)
        if not message.stored and not message.duplicate:
            life.sequenced.append(message)
        return message

    def known(self, who: str, content: str) -> None:
        """It is known what became of a send; of two chats that tried it, one may have known before."""
        self.pending = [each for each in self.pending if (each[0], each[2]) != (who, content)]

    def _in_time(self, took: float, content: str) -> None:
        promise(took <= ANSWERED_S, "answered late:", content, took)

    def check_log(self) -> None:
        """Hold the log against all that is known."""
        self.check()
        self.evidence.in_the_log({room_id: self.everything(room_id) for room_id in ROOMS})

    def everything(self, room_id: str) -> list[Kept]:
        """Return all that the log has of a room or had, in order."""
        return everything(self.evidence, self.log, room_id)

    async def check_told(self) -> None:
        """Hold what the notifier was told against all that was stored."""
        if self.notifies:
            await self.notifications.check(self.log, [each for room_id in ROOMS for each in self.everything(room_id)])

    async def check_proofs(self, rooms: Iterable[str]) -> None:
        """After a clean stop a room goes on where it stood."""
        for room_id in rooms:
            records = self.log.records(room_id)
            opened = await self.log.take_over(room_id)
            head = Position(records[-1].entry.epoch, records[-1].entry.offset) if records else None
            promise(opened.head == head and opened.proven, "a clean stop proved nothing:", room_id, opened.head, head)


Play = Callable[[World], Coroutine[Any, Any, None]]


def run(seed: int, play: Play, room_class: type[SeenRoom] = SeenRoom) -> World:
    """Run the play of this seed; what it raises tells how to replay it, and what happened last."""
    world = World(seed, room_class)
    Crashes.planned = []
    try:
        with ExitStack() as patched:
            patched.enter_context(patch("chatx.runtime.appends.PROVEN_AGAIN_S", world.again_s))
            patched.enter_context(patch("time.time_ns", lambda: world.now_ms() * 1_000_000))
            for name, value in PACE.items():
                patched.enter_context(patch(name, value))
            world.run(play(world), "tests/nothing_lost/test_schedules.py", SHOWN)
    except BaseException:
        for task in (each for life in world.lives for each in life.actors if each.done() and not each.cancelled()):
            task.exception()  # that it failed too is not to be reported later
        raise
    return world
