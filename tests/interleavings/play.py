"""Who does what in a run. Each actor draws its own chances, and ends by itself; readers go on until they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import count
from typing import Any

from chatx import Chat, ChatError, Event, Subscription
from chatx.core.mailbox import OverflowPolicy
from chatx.core.message import SubscriptionEnded
from tests.interleavings.model import View
from tests.interleavings.world import ROOMS, Serves, World, finish
from tests.seeds import Chance, promise

CRASHES = (
    "publish: before",
    "publish: recorded only",
    "publish: after",
    "flush: before",
    "flush: after",
    "join: before",
    "join: after",
    "leave: before",
    "leave: after",
)


class Fault(Exception):
    """What ends a connection's block."""


async def sender(world: World, who: str) -> None:
    """Send one at a time, with a key until it is known what became of it, or many at once, or one that is given up."""
    chance = world.chances(who)
    number = 0
    for _ in range(chance.upto(20)):
        await world.pause(chance)
        room_id = chance.pick(ROOMS)
        number += 1
        key = f"key {number}"
        match chance.pick(("plain", "plain", "key", "key", "epoch", "twice", "burst", "cancel")):
            case "plain":
                await world.send(who, number, room_id, None)
            case "key":
                for _ in range(4):
                    if await world.send(who, number, room_id, key) is not None:
                        break
                    await world.pause(chance)
            case "epoch":
                head = world.rooms[room_id].head
                epoch = "another" if head is None or chance.once_in(4) else head.epoch
                await world.pause(chance)  # the room may begin anew
                await world.send(who, number, room_id, key, epoch=epoch)
            case "twice":
                await _together(world.send(who, number, room_id, key) for _ in range(2))
            case "burst":
                first, number = number, number + 6
                # Behind those who waited for a room to be opened goes whoever asks at that very moment, in the order in
                # which asyncio runs them: the one place that needs its order across tasks, which is not kept here.
                rank = first if isinstance(world.persistence, Serves) else None
                await _together(_burst(world, who, first, room_id, rank, chance.upto(5) + 1))
            case _:
                sending = asyncio.ensure_future(world.send(who, number, room_id, key))
                await world.pause(chance)
                sending.cancel()
                await asyncio.wait([sending])
                if not sending.cancelled():
                    sending.result()


def _burst(
    world: World, who: str, first: int, room_id: str, rank: int | None, size: int
) -> Iterable[Coroutine[Any, Any, object]]:
    numbers = count(first)

    async def one() -> None:
        # The order of calls is the order of the tasks' first steps.
        await world.send(who, next(numbers), room_id, None, rank)

    return [one() for _ in range(size)]


async def _together(calls: Iterable[Coroutine[Any, Any, Any]]) -> None:
    await finish([asyncio.create_task(call) for call in calls])


async def member(world: World, who: str) -> None:
    """Join and leave, plainly and by connections whose blocks end in every way."""
    chance = world.chances(who)
    for _ in range(chance.upto(8)):
        await world.pause(chance)
        room_id = chance.pick(ROOMS)
        if chance.once_in(2):
            await _connect(world, who, chance)
        elif chance.once_in(2):
            await _join(world, who, room_id)
        else:
            try:
                await world.chat.leave(room_id, who)
            except ChatError:
                continue
            world.rooms[room_id].members.pop((who, "plain"), None)
            world.note(who, "left", room_id)


async def _join(world: World, who: str, room_id: str) -> None:
    try:
        await world.chat.join(room_id, who)
    except ChatError as error:
        world.note(who, "may not join", room_id, error.code)
    else:
        world.rooms[room_id].members[who, "plain"] = who
        world.note(who, "joined", room_id)


async def _connect(world: World, who: str, chance: Chance) -> None:
    held = object()
    try:
        async with world.chat.connect(who) as connection:
            for _ in range(chance.upto(4)):
                room_id = chance.pick(ROOMS)
                if chance.once_in(3):
                    await connection.leave(room_id)
                    world.rooms[room_id].members.pop((held, room_id), None)
                else:
                    await connection.join(room_id)
                    world.rooms[room_id].members[held, room_id] = who
                world.note(who, "came or left by a connection:", room_id)
                await world.pause(chance)
            if chance.once_in(3):
                raise Fault
    except (ChatError, Fault):
        pass
    finally:
        for room in world.rooms.values():
            room.members.pop((held, room.room_id), None)
    world.note(who, "disconnected")


async def reader(world: World, who: str) -> None:
    """Subscribe, read fast or slowly, go away, come back with a cursor, for as long as the chat runs."""
    chance = world.chances(who)
    room_id = chance.pick(ROOMS)
    overflow: OverflowPolicy = chance.pick(("disconnect", "drop_oldest"))
    slow = chance.once_in(2)
    view = world.view(who, room_id, drops=overflow == "drop_oldest")
    while True:
        resumes = view.position is not None
        try:
            async with world.chat.subscribe(
                room_id, after=view.position, presence=chance.once_in(2), overflow=overflow
            ) as subscription:
                view.opened(resumed=resumes)
                world.live.add(view)
                stays = chance.upto(12) if chance.once_in(3) and not world.calm.is_set() else 1_000_000
                for _ in range(stays):
                    view.got(await _next(subscription, chance))
                    if slow and not world.calm.is_set():
                        await world.pause(chance)
            world.note(view.name, "goes away at", view.offset)
        except ChatError as error:
            world.note(view.name, "is ended:", error.code, "at", view.offset)
            if error.code == "closed":
                return
        finally:
            world.live.discard(view)
        await world.pause(chance)


async def _next(subscription: Subscription, chance: Chance) -> Event:
    """Take the next event; sometimes the wait is given up and begun anew."""
    while True:
        if not chance.once_in(4):
            return await anext(subscription)
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.wait([waiting], timeout=chance.upto(8) / 1000)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            return waiting.result()


async def listener(world: World, who: str) -> None:
    """Subscribe a callback, and again with a cursor when the room ends it."""
    chance = world.chances(who)
    room_id = chance.pick(ROOMS)
    view = world.view(who, room_id, drops=False)
    while True:
        ended: asyncio.Queue[ChatError] = asyncio.Queue()
        resumes = view.position is not None
        if resumes:
            view.opened(resumed=True)  # what it missed is told before the subscription has opened
        opening = world.chat.subscribe_callback(
            room_id,
            lambda event: world.told(view.got, event),
            after=view.position,
            presence=resumes and chance.once_in(2),
            on_closed=ended.put_nowait,
        )
        try:
            async with opening:
                if not resumes:
                    view.opened(resumed=False)
                world.live.add(view)
                async with asyncio.timeout(chance.upto(80) / 1000 if not world.calm.is_set() else None):
                    raise await ended.get()
        except TimeoutError:
            world.note(view.name, "goes away at", view.offset)
        except ChatError as error:
            world.note(view.name, "is ended:", error.code, "at", view.offset)
            if error.code == "closed":
                return
        finally:
            world.live.discard(view)
        await world.pause(chance)


async def client(world: World, who: str) -> None:
    """Read both rooms over one connection, and each again with a cursor when it is ended."""
    chance = world.chances(who)
    overflow: OverflowPolicy = chance.pick(("disconnect", "drop_oldest"))
    views = {room_id: world.view(who, room_id, drops=overflow == "drop_oldest") for room_id in ROOMS}
    while True:
        due = set(ROOMS)
        try:
            async with world.chat.connect(who, overflow=overflow) as connection:
                while True:
                    for room_id in sorted(due):
                        await _subscribe(world, connection, views[room_id], chance)
                        due.discard(room_id)
                    event = await anext(connection)
                    if isinstance(event, SubscriptionEnded):
                        world.note(who, "is ended in", event.room_id, event.code)
                        world.live.discard(views[event.room_id])
                        due.add(event.room_id)
                    else:
                        views[event.room_id].got(event)
                    if chance.once_in(6) and not world.calm.is_set():
                        room_id = chance.pick(ROOMS)
                        await connection.unsubscribe(room_id)
                        world.live.discard(views[room_id])
                        due.add(room_id)
        except ChatError as error:
            world.note(who, "is ended:", error.code)
            if error.code == "closed":
                return
        finally:
            world.live.difference_update(views.values())
        await world.pause(chance)


async def _subscribe(world: World, connection: Any, view: View, chance: Chance) -> None:
    room_id = view.room.room_id
    for _ in range(200):
        try:
            await connection.subscribe(room_id, after=view.position, presence=chance.once_in(2))
        except ChatError as error:
            if error.code not in {"unauthorized", "adapter_error", "room_unavailable"}:
                raise
            await asyncio.sleep(0.001)
            continue
        view.opened(resumed=view.position is not None)
        world.live.add(view)
        return
    promise(False, "never let in:", view.name)


async def crasher(world: World, who: str) -> None:
    """Let the rooms crash, now and then too often."""
    chance = world.chances(who)
    for _ in range(chance.upto(5)):
        await asyncio.sleep(chance.upto(40) / 1000)
        times = chance.pick((1, 1, 1, 2, 4, 5))
        world.chat_crash(chance.pick(CRASHES), chance.pick(ROOMS), times)


async def checker(world: World, who: str) -> None:
    """Look who is there, at any time."""
    chance = world.chances(who)
    for _ in range(10):
        await world.pause(chance)
        try:
            for room_id in ROOMS:
                await world.check_presence(room_id)
                for message in await world.chat.history(room_id, limit=3):
                    known = world.rooms[room_id].find(message.epoch, message.offset)
                    promise(known == message, "the history tells what was not published:", message)
        except ChatError:
            return


async def stopper(world: World, who: str) -> None:
    """Stop the chat under everybody."""
    chance = world.chances(who)
    await asyncio.sleep(chance.upto(80) / 1000)
    world.note("stopping")
    await world.chat.stop()


Actor = Callable[[World, str], Coroutine[Any, Any, None]]


async def play(world: World) -> None:
    """Everybody at once; then, where nobody stopped the chat meanwhile, a calm in which all must agree, and a stop."""
    chance = world.chances("cast")
    crashes, stops = chance.once_in(2), chance.once_in(3)
    cast: list[tuple[Actor, int]] = [(sender, 1 + chance.upto(4)), (member, chance.upto(3)), (checker, 1)]
    cast += [(crasher, int(crashes)), (stopper, int(stops))]
    audience: list[tuple[Actor, int]] = [(reader, 1 + chance.upto(3)), (listener, 1), (client, 1)]
    chat: Chat = world.chat
    await chat.start()
    begin = partial(_begin, world)
    readers, busy = begin(audience), begin(cast)
    await finish_unless(readers, busy)
    if not stops:
        world.note("calm")
        world.calm.set()
        # Longer than any timeout, backoff and pause.
        await asyncio.sleep(2)
        world.check()
        await world.check_rooms()
        world.note("stopping")
        await chat.stop()
    await finish(readers)
    world.check()
    world.check_stopped()


async def finish_unless(readers: list[asyncio.Task[None]], busy: list[asyncio.Task[None]]) -> None:
    """Wait for the busy ones; raise at once what a reader raises."""
    broken = asyncio.create_task(finish(readers))
    working = asyncio.create_task(finish(busy))
    await asyncio.wait([broken, working], return_when=asyncio.FIRST_COMPLETED)
    if broken.done():
        broken.result()
    await working
    broken.cancel()
    await asyncio.wait([broken])


def _begin(world: World, cast: list[tuple[Actor, int]]) -> list[asyncio.Task[None]]:
    return [
        asyncio.create_task(actor(world, f"{actor.__name__}-{number}"), name=f"{actor.__name__}-{number}")
        for actor, size in cast
        for number in range(size)
    ]
