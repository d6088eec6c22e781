"""Who does what in a run: chats that live and die over one log, senders and readers who come back to the next one."""

from __future__ import annotations

import asyncio
from typing import Any

from chatx import ChatError, Event
from chatx.adapters.outbox import Notification
from chatx.runtime.rooms import FENCED_S
from tests.faults import Crashes
from tests.nothing_lost.evidence import Reading
from tests.nothing_lost.keeping import KEYS_KEPT_MS, SPARED_MS
from tests.nothing_lost.world import ROOMS, Life, World
from tests.seeds import Chance, promise

READERS = 5
CRASHES = ("publish: before", "publish: recorded only", "publish: after", "flush: before", "flush: after")
CALM_S = 12.0
"""Longer than any backoff, and than a room that somebody else had is kept closed, in virtual seconds."""


async def sender(world: World, life: Life, who: str) -> None:
    """First send again what nobody knows the outcome of; then send one at a time, or some at once."""
    chance = world.chances(f"{life.name} {who}")
    for each in [each for each in world.pending if each[0] == who]:
        await _until_known(world, life, chance, *each)
    for _ in range(chance.upto(10)):
        await pause(chance)
        room_id = chance.pick(ROOMS)
        stored = room_id == "vault" or (room_id != "plain" and chance.once_in(2))
        world.numbers += 1
        content = f"{who} {room_id} {world.numbers}"
        # A key holds what is behind it in the log, so some rooms that are trimmed have none.
        keyless = world.keep and room_id in ("vault", "mixed")
        match chance.pick(("plain", "burst") if keyless else ("plain", "key", "key", "twice", "burst", "cancel")):
            case "plain":
                await world.send(life, who, room_id, content, None, stored)
            case "key":
                world.pending.append((who, room_id, content, content, stored))
                await _until_known(world, life, chance, who, room_id, content, content, stored)
            case "twice":
                world.pending.append((who, room_id, content, content, stored))
                sends = [world.send(life, who, room_id, content, content, stored) for _ in range(2)]
                answers = await asyncio.gather(*sends)
                if any(answers):
                    world.known(who, content)
            case "burst":
                several = [f"{content}.{number}" for number in range(chance.upto(4))]
                await asyncio.gather(*(world.send(life, who, room_id, each, None, stored) for each in several))
            case _:
                world.pending.append((who, room_id, content, content, stored))
                sending = asyncio.ensure_future(world.send(life, who, room_id, content, content, stored))
                try:
                    await pause(chance)
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])
                if not sending.cancelled():
                    sending.result()
                await _until_known(world, life, chance, who, room_id, content, content, stored)


async def _until_known(
    world: World, life: Life, chance: Chance, who: str, room_id: str, content: str, key: str, stored: bool
) -> None:
    for _ in range(chance.upto(4)):
        if await world.send(life, who, room_id, content, key, stored) is not None:
            world.known(who, content)
            return
        await pause(chance)


async def pause(chance: Chance) -> None:
    """Let others go on: not at all, for some rounds, or for some time."""
    match chance.pick(("on", "rounds", "rounds", "time", "time", "long")):
        case "rounds":
            for _ in range(chance.upto(3)):
                await asyncio.sleep(0)
        case "time":
            await asyncio.sleep(chance.upto(12) / 1000)
        case "long":
            await asyncio.sleep(chance.upto(120) / 1000)


async def reader(world: World, life: Life, reading: Reading) -> None:
    """Read by a mailbox or a callback, go away, come back with a place, for as long as the chat runs."""
    chance = world.chances(f"{life.name} {reading.name}")
    try:
        while not life.dead:
            try:
                await (_by_mailbox if chance.once_in(2) else _by_callback)(world, life, reading, chance)
            except ChatError as error:
                world.note(
                    life.name, reading.name, "is ended:", error.code, "at", reading.position and reading.position.offset
                )
                if error.code == "closed":
                    return
            await asyncio.sleep(0.2 if world.calm else chance.upto(60) / 1000)
    finally:
        world.idle.append(reading)


async def _by_mailbox(world: World, life: Life, reading: Reading, chance: Chance) -> None:
    async with life.chat.subscribe(reading.room_id, after=reading.position) as subscription:
        for _ in range(chance.upto(12) if chance.once_in(2) else 1_000_000):
            event = await anext(subscription)
            if not life.dead:
                reading.got(event)
            if chance.once_in(8):
                await pause(chance)


async def _by_callback(world: World, life: Life, reading: Reading, chance: Chance) -> None:
    ended: asyncio.Queue[ChatError] = asyncio.Queue()

    def got(event: Event) -> None:
        if not life.dead:
            world.told(reading.got, event)

    async with life.chat.subscribe_callback(reading.room_id, got, after=reading.position, on_closed=ended.put_nowait):
        try:
            async with asyncio.timeout(chance.upto(200) / 1000 if chance.once_in(2) else None):
                raise await ended.get()
        except TimeoutError:
            pass


async def weather(world: World, life: Life) -> None:
    """Let the log be away for a time, and what hangs arrive late."""
    chance = world.chances(f"{life.name} weather")
    while True:
        await asyncio.sleep(chance.upto(200) / 1000)
        if world.crashes and chance.once_in(2):
            place, room_id, times = chance.pick(CRASHES), chance.pick(ROOMS), chance.pick((1, 1, 2, 5))
            world.note(room_id, "is to crash", place, times)
            Crashes.planned += [(place, room_id)] * times
        match chance.pick(("down", "late", "late")):
            case "down":
                world.note(life.name, "finds no log")
                life.line.down = True
                await asyncio.sleep(chance.upto(200) / 1000)
                life.line.down = False
            case _:
                await life.line.release()


async def play(world: World) -> None:
    """Some chats, one after another or overlapping, each with its end; then a calm in which all must come right."""
    chance = world.chances("play")
    overlapping: list[asyncio.Task[None]] = []
    for number in range(chance.upto(4)):
        life = Life(world, number)
        await life.start()
        _begin(world, life, chance)
        await asyncio.sleep(chance.upto(400) / 1000)
        world.check()
        match chance.pick(("kill", "kill", "stop", "overlap")):
            case "kill":
                # Its last calls may arrive while the next chat is at work.
                overlapping.append(asyncio.create_task(_release(life, chance.upto(100) / 1000)))
                await life.kill()
            case "stop":
                await life.stop()
            case _:
                ends = life.kill if chance.once_in(2) else life.stop
                overlapping.append(asyncio.create_task(_later(ends, chance.upto(300) / 1000)))
        if world.keep and chance.once_in(2):
            await asyncio.sleep(2 * SPARED_MS / 1000)
    last = Life(world, 99)
    await last.start()
    _begin(world, last, chance)
    await asyncio.sleep(chance.upto(400) / 1000)
    await asyncio.gather(*overlapping)
    await calm(world, last)


async def calm(world: World, life: Life) -> None:
    """Nothing fails any more: every send succeeds, every reader has everything, and a stop leaves nothing undone."""
    world.note("calm")
    world.calm = True
    weather_task = life.actors[0]
    weather_task.cancel()
    await asyncio.wait([weather_task])
    life.line.choose = lambda method: "ok"
    life.line.down = False
    Crashes.planned = []
    await life.line.release()
    await asyncio.sleep(1)
    world.check()
    for who, room_id, content, key, stored in world.pending:
        await _in_the_calm(world, life, who, room_id, content, key, stored)
    for room_id in ROOMS:
        await _in_the_calm(world, life, "last", room_id, f"last {room_id}", f"last {room_id}", room_id != "plain")
    while world.idle:
        life.actors.append(asyncio.create_task(reader(world, life, world.idle.pop())))
    behind = world.readings
    for _ in range(int(CALM_S / 0.25)):
        await asyncio.sleep(0.25)
        world.check()
        behind = [each for each in world.readings if not _caught_up(life, each)]
        if not behind:
            break
    promise(not behind, "readers miss the newest:", [(each.name, each.position) for each in behind])
    await _kept_and_told(world, life)
    await life.stop()
    world.check_log()
    await world.check_told()
    given_up = {each.message.room_id for each in life.unsaved()}
    await world.check_proofs(room_id for room_id in ROOMS if room_id not in given_up)


async def _kept_and_told(world: World, life: Life) -> None:
    """All are told, and then each room is trimmed to its bound."""
    if world.notifies:
        waiting: list[Notification] = []
        for _ in range(int(CALM_S / 0.25)):
            await asyncio.sleep(0.25)
            waiting = [each for each in await life.chat.outbox() if each.state != "dead"]
            if not waiting:
                break
        promise(not waiting, "nobody is told of these:", waiting)
    if world.keep:
        wait_ms = KEYS_KEPT_MS if world.chances("end").once_in(8) else SPARED_MS
        await asyncio.sleep(wait_ms / 1000 + 1)
        world.check()
        left = {room_id: len(world.log.records(room_id)) for room_id in ROOMS}
        keyless = {room_id: left[room_id] for room_id in ("vault", "mixed")}
        promise(max(keyless.values()) <= world.keep, "more is kept than should be:", left)


def _caught_up(life: Life, reading: Reading) -> bool:
    process = life.chat.engine.rooms.find(reading.room_id)
    return reading.position is None or (process is not None and reading.position == process.head)


async def _in_the_calm(world: World, life: Life, who: str, *message: Any) -> None:
    for _ in range(2):
        if await world.send(life, who, *message) is not None:
            return
        # That another chat has had the room meanwhile is found with the first that is written.
        await asyncio.sleep(FENCED_S)
    promise(await world.send(life, who, *message), "still refused in the calm:", message)


def _begin(world: World, life: Life, chance: Chance) -> None:
    life.actors.append(asyncio.create_task(weather(world, life)))
    for number in range(chance.upto(3)):
        life.actors.append(asyncio.create_task(sender(world, life, f"u{number}")))
    while len(world.readings) < READERS:
        world.idle.append(world.reading(chance.pick(ROOMS)))
    while world.idle:
        life.actors.append(asyncio.create_task(reader(world, life, world.idle.pop())))


async def _release(life: Life, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    await life.line.release()


async def _later(ends: object, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    await ends()  # type: ignore[operator]
