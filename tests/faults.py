"""Adapters and rooms that fail in every way they can, as classes: what the fault is, is in the name."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from chatx import CallbackSubscription, Chat, Message
from chatx.core.fanout import Subscriber
from chatx.core.message import Draft, Entry, Event, PresenceMeta
from chatx.core.room import Effects, Room
from chatx.errors import ChatError, Closed
from chatx.runtime.engine import Engine

SECRET = "password=hunter2"
"""The text of every exception raised here: it must reach no user."""


class Broken(Exception):
    """What a broken adapter raises."""

    def __init__(self) -> None:
        super().__init__(SECRET)


class Unprintable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


Act = Callable[[], Any]


def raises() -> Any:
    raise Broken


def raises_unprintable() -> Any:
    raise Unprintable


def raises_cancelled() -> Any:
    raise asyncio.CancelledError


def raises_stop_iteration() -> Any:
    raise StopIteration


def raises_a_foreign_refusal() -> Any:
    raise Closed(SECRET)


def raises_system_exit() -> Any:
    raise SystemExit(SECRET)


def raises_generator_exit() -> Any:
    raise GeneratorExit(SECRET)


def raises_keyboard_interrupt() -> Any:
    raise KeyboardInterrupt(SECRET)


class Violent(BaseException):
    """What only `except BaseException` catches."""


def raises_a_base_exception() -> Any:
    raise Violent(SECRET)


def raises_a_base_group() -> Any:
    raise BaseExceptionGroup(SECRET, [Violent(), SystemExit()])


def returns_none() -> Any:
    return None


def returns_one() -> Any:
    return 1


def returns_text() -> Any:
    return "yes"


def returns_a_coroutine() -> Any:
    return asyncio.sleep(0, True)


VIOLENT: tuple[Act, ...] = (
    raises_system_exit,
    raises_generator_exit,
    raises_keyboard_interrupt,
    raises_a_base_exception,
    raises_a_base_group,
)
RAISING: tuple[Act, ...] = (
    *VIOLENT,
    raises,
    raises_unprintable,
    raises_cancelled,
    raises_stop_iteration,
    raises_a_foreign_refusal,
)
ANSWERING: tuple[Act, ...] = (returns_none, returns_one, returns_text, returns_a_coroutine)


class Hang:
    """Awaits for ever, and ends when it is cancelled."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0

    async def __call__(self) -> Any:
        self.begun += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class HangDeaf:
    """Awaits, and does not heed its cancellation, until it is released; then answers True."""

    def __init__(self) -> None:
        self._release = asyncio.Event()
        self.begun = 0

    def release(self) -> None:
        self._release.set()

    async def __call__(self) -> Any:
        self.begun += 1
        while not self._release.is_set():
            try:
                await self._release.wait()
            except asyncio.CancelledError:
                continue
        return True


class Block:
    """Blocks its thread until it is released."""

    def __init__(self) -> None:
        self._release = threading.Event()
        self.begun = 0

    def release(self) -> None:
        self._release.set()

    def __call__(self) -> Any:
        self.begun += 1
        assert self._release.wait(30)
        return True


class Gate:
    """Holds back whoever awaits it, until it is opened."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self.waiting = 0

    def open(self) -> None:
        self._open.set()

    async def __call__(self, draft: Draft) -> Draft:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1
        return draft


def awaited(act: Act) -> Callable[[], Awaitable[Any]]:
    """Return the plain fault as an async one."""

    async def acted() -> Any:
        return act()

    acted.__name__ = act.__name__
    return acted


class FaultyAuth:
    """Says yes, but acts its fault for one user."""

    def __init__(self, act: Act, victim: str = "victim") -> None:
        self.act = act
        self.victim = victim

    def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        return self.act() if user_id == self.victim else True


class AsyncFaultyAuth(FaultyAuth):
    """The same, awaiting."""

    async def authorize(self, user_id: str, room_id: str, action: str) -> Any:
        return await self.act() if user_id == self.victim else True


class FaultyModeration:
    """Says yes, but acts its fault for one content."""

    def __init__(self, act: Act, victim: str = "victim") -> None:
        self.act = act
        self.victim = victim

    def check(self, content: str) -> Any:
        return self.act() if self.victim in content else True


class AsyncFaultyModeration(FaultyModeration):
    """The same, awaiting."""

    async def check(self, content: str) -> Any:
        return await self.act() if self.victim in content else True


class FaultyMiddleware:
    """Passes every draft, but acts its fault for one user."""

    def __init__(self, act: Act, victim: str = "victim") -> None:
        self.act = act
        self.victim = victim

    def __call__(self, draft: Draft) -> Any:
        return self.act() if draft.user_id == self.victim else draft


class AsyncFaultyMiddleware(FaultyMiddleware):
    """The same, awaiting."""

    async def __call__(self, draft: Draft) -> Any:
        return await self.act() if draft.user_id == self.victim else draft


class FaultyPersistence:
    """Saves one message at a time, but acts its fault for one user's."""

    def __init__(self, act: Act, victim: str = "victim") -> None:
        self.act = act
        self.victim = victim
        self.saved: list[Message] = []
        self.attempts: list[Message] = []

    def save_message(self, message: Message) -> Any:
        self.attempts.append(message)
        if message.user_id == self.victim:
            return self.act()
        self.saved.append(message)
        return None

    async def wait_saved(self) -> None:
        """Wait, on a real loop, until something is saved."""
        while not self.saved:  # noqa: ASYNC110  # a thread saves it, which knows no asyncio.Event
            await asyncio.sleep(0.005)


class AsyncFaultyPersistence(FaultyPersistence):
    """The same, awaiting."""

    async def save_message(self, message: Message) -> Any:
        self.attempts.append(message)
        if message.user_id == self.victim:
            return await self.act()
        self.saved.append(message)
        return None


class FaultyNotifier:
    """Notifies, but acts its fault for one recipient."""

    def __init__(self, act: Act, victim: str = "victim") -> None:
        self.act = act
        self.victim = victim
        self.notified: list[tuple[str, str]] = []
        self.attempts: list[tuple[str, str]] = []

    def notify(self, user_id: str, message: Message) -> Any:
        self.attempts.append((user_id, message.content))
        if user_id == self.victim:
            return self.act()
        self.notified.append((user_id, message.content))
        return None


class AsyncFaultyNotifier(FaultyNotifier):
    """The same, awaiting."""

    async def notify(self, user_id: str, message: Message) -> Any:
        self.attempts.append((user_id, message.content))
        if user_id == self.victim:
            return await self.act()
        self.notified.append((user_id, message.content))
        return None


class SendsToItsRoom:
    """An auth adapter that sends to the room it is asked about: as the same user, or as another."""

    def __init__(self, as_user: str | None = None) -> None:
        self.chat: Chat | None = None
        self.as_user = as_user
        self.asked = 0
        self.sent: list[Message] = []

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        assert self.chat is not None
        self.asked += 1
        if self.asked == 1:
            self.sent.append(await self.chat.send_message(room_id, self.as_user or user_id, "from the adapter"))
        return True


class Batches:
    """Saves batches; fails as a whole where a batch holds poison, and at all while it is down."""

    def __init__(self, *poison: str) -> None:
        self.poison = poison
        self.down = False
        self.saved: list[Message] = []
        self.calls: list[tuple[float, list[str]]] = []

    async def save_messages(self, messages: Sequence[Message]) -> None:
        self.calls.append((asyncio.get_running_loop().time(), [each.content for each in messages]))
        if self.down or any(each.content in self.poison for each in messages):
            raise Broken
        self.saved += messages

    @property
    def contents(self) -> list[str]:
        """What is saved, in the order of saving."""
        return [each.content for each in self.saved]


class Scripted:
    """Saves each message alone; each call does the next thing of a script, and when that ends it saves.

    `ok` saves; `raise` raises; `hang` hangs until cancelled; `lost answer` saves, then raises; `slow` saves late.
    """

    def __init__(self, script: Sequence[str]) -> None:
        self._script = list(reversed(script))
        self.saved: list[Message] = []
        self.attempts: list[Message] = []
        self.answers_lost: set[str] = set()
        self._under_way: set[str] = set()

    async def save_message(self, message: Message) -> None:
        assert message.id not in self._under_way, "the same message twice at a time"
        self._under_way.add(message.id)
        try:
            await self._save(message)
        finally:
            self._under_way.discard(message.id)

    async def _save(self, message: Message) -> None:
        self.attempts.append(message)
        todo = self._script.pop() if self._script else "ok"
        if todo == "raise":
            raise Broken
        if todo == "hang":
            await Hang()()
        if todo == "slow":
            await asyncio.sleep(1.5)
        self.saved.append(message)
        if todo == "lost answer":
            self.answers_lost.add(message.id)
            raise Broken


class Stored:
    """Persistence in memory that serves history and marks streams: what a good adapter does, with faults to order.

    `fail` names methods that raise, `hang` those that hang.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], Message] = {}
        self.proven: dict[str, tuple[str, int]] = {}
        self.calls: list[str] = []
        self.fail: set[str] = set()
        self.hang: set[str] = set()
        self.wait_ms = 0

    async def save_messages(self, messages: Sequence[Message]) -> None:
        await self._called("save_messages")
        for message in messages:
            self.rows[message.room_id, message.epoch, message.offset] = message

    async def load_messages(
        self,
        room_id: str,
        *,
        after: tuple[str, int] | None = None,
        before: tuple[str, int] | None = None,
        limit: int,
    ) -> list[Message]:
        await self._called("load_messages")
        found = [each for each in self.rows.values() if each.room_id == room_id]
        if after is not None:
            found = [each for each in found if each.epoch == after[0] and each.offset > after[1]]
            return sorted(found, key=lambda each: each.offset)[:limit]
        if before is not None:
            found = [each for each in found if each.epoch != before[0] or each.offset < before[1]]
        return found[-limit:]

    async def last_position(self, room_id: str) -> tuple[str, int] | None:
        await self._called("last_position")
        return self.proven.get(room_id)

    async def mark_open(self, room_id: str, epoch: str) -> None:
        await self._called("mark_open")
        self.proven.pop(room_id, None)

    async def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        await self._called("mark_closed")
        self.proven[room_id] = (epoch, offset)

    async def _called(self, method: str) -> None:
        self.calls.append(method)
        if method in self.fail:
            raise Broken
        if method in self.hang:
            await Hang()()
        await asyncio.sleep(self.wait_ms / 1000)


class Crash(Exception):
    """What a crashing room raises."""


class CrashingRoom(Room):
    """A room whose code raises where `Crashes` says so."""

    __slots__ = ()

    def apply(self, entry: Entry) -> Sequence[tuple[Subscriber, BaseException]]:
        Crashes.at("publish: before", self.room_id)
        if Crashes.due("publish: recorded only", self.room_id):
            self.history.append(entry)
            raise Crash
        answer = super().apply(entry)
        Crashes.at("publish: after", self.room_id)
        return answer

    def flush(self, turn: int) -> Effects:
        Crashes.at("flush: before", self.room_id)
        answer = super().flush(turn)
        Crashes.at("flush: after", self.room_id)
        return answer

    def join(self, user_id: str, meta: PresenceMeta) -> bool:
        Crashes.at("join: before", self.room_id)
        answer = super().join(user_id, meta)
        Crashes.at("join: after", self.room_id)
        return answer

    def leave(self, user_id: str, ref: str) -> bool:
        Crashes.at("leave: before", self.room_id)
        answer = super().leave(user_id, ref)
        Crashes.at("leave: after", self.room_id)
        return answer

    def rebuilt(self) -> tuple[CrashingRoom, Effects]:
        Crashes.at("rebuilt: before", self.room_id)
        return super().rebuilt()


class Crashes:
    """Where a `CrashingRoom` raises next; (place, room id) once each."""

    planned: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def due(cls, place: str, room_id: str) -> bool:
        if (place, room_id) not in cls.planned:
            return False
        cls.planned.remove((place, room_id))
        return True

    @classmethod
    def at(cls, place: str, room_id: str) -> None:
        if cls.due(place, room_id):
            raise Crash(SECRET)


class CrashingChat(Chat):
    """A chat whose rooms are `CrashingRoom`s."""

    async def start(self) -> None:
        Crashes.planned = []
        self._engine = Engine(self.config, self.telemetry, self._dead_letters, room_class=CrashingRoom)

    def crash(self, place: str, room_id: str = "room", *, times: int = 1) -> None:
        """Let the room raise at this place, so many times."""
        Crashes.planned += [(place, room_id)] * times


class Listener:
    """A callback subscriber that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed: list[str] = []

    async def listen(self, chat: Chat, room_id: str, *, presence: bool = False) -> CallbackSubscription:
        """Subscribe it."""
        return await chat.subscribe_callback(room_id, self, presence=presence, on_closed=self.on_closed)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def on_closed(self, error: ChatError) -> None:
        self.closed.append(error.code)

    @property
    def contents(self) -> list[str]:
        """The contents of the messages among them."""
        return [each.content for each in self.events if isinstance(each, Message)]


def interrupt() -> None:
    """Be interrupted by a signal, as by Ctrl+C: where SIGINT is ignored too, which this does not touch."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
