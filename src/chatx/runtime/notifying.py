"""Messages on their way to the notifier. Whatever it does, no send and nothing that is saved waits for it.

Rules:
1. A message waits here until each of its recipients was notified, or given up. A user whose notification fails is tried
   again alone, with exponential backoff and full jitter; after `delivery_max_retries` retries it is a dead letter.
2. At most `delivery_queue_limit` messages, and `NOTIFYING_BYTES`, wait. A message beyond that is not notified: it is a
   dead letter at once (`queue_full`). No send is refused for it.
3. At most `NOTIFYING` calls are under way. One that outlives its timeout keeps its place until it has ended, so that a
   notifier that hangs holds so many calls and not more.
4. Stopping notifies what is left until the deadline; what is left then is a dead letter too.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
from collections.abc import Iterable
from itertools import count, islice
from typing import Any

from msgspec import Struct

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.config import ChatConfig
from chatx.core.backoff import backoff_ms
from chatx.core.message import Message, weigh
from chatx.errors import ChatError
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

NOTIFYING = 8
"""Calls of the notifier under way at a time, at most."""

PARCELS = 4
"""Notifications in memory, as a multiple of `delivery_queue_limit`; a message's other recipients wait in it."""

NOTIFYING_BYTES = 64 * 1024 * 1024
"""Bytes of the messages that wait for the notifier, with their recipients, at most."""

RECIPIENTS = 100_000
"""The most users that `recipients` may name for one message."""

# What one recipient of a message weighs: its place in a tuple.
_RECIPIENT_BYTES = 8


class _Parcel(Struct, eq=False):
    """A message, and the users to notify of it.

    Attributes:
        users: The users to notify; None until `recipients` was asked.
        running: The call of an earlier attempt that has not returned yet.
    """

    message: Message
    users: tuple[str, ...] | None
    attempts: int = 0
    running: asyncio.Future[Any] | None = None


class Notifying:
    """The notifier's queue of one chat and the worker that empties it.

    Attributes:
        size: Messages that wait, or are being notified.
        bytes: What these messages weigh, with their recipients.
        delivered: Notifications that succeeded so far.
        retried: Failed attempts that were followed by another, so far.
        drained: Set when nothing waits.
    """

    def __init__(
        self,
        *,
        config: ChatConfig,
        boundary: Boundary,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        letters: DeadLetters,
    ) -> None:
        self._notifier: Any = config.notifier
        self._name = adapter_name(config.notifier)
        self._names_recipients = hasattr(config.notifier, "recipients")
        self._boundary = boundary
        self._call = boundary.caller("notifying")
        self._telemetry = telemetry
        self._loop = loop
        self._letters = letters
        self._limit = config.delivery_queue_limit
        self._tick_s = config.delivery_tick_ms / 1000
        self._max_retries = config.delivery_max_retries
        self._retry_base_ms = config.delivery_retry_base_ms
        self.size: int = 0
        self.bytes: int = 0
        self.delivered: int = 0
        self.retried: int = 0
        self.drained: asyncio.Event = asyncio.Event()
        self.drained.set()
        self._parcels: dict[str, tuple[int, int]] = {}  # message id -> parcels it still has, and what it weighs
        self._live: set[_Parcel] = set()
        self._due: list[tuple[float, int, _Parcel]] = []  # a heap by time
        self._order = count()
        self._rescheduled = asyncio.Event()
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(NOTIFYING)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to notify."""
        self._spawn(self._work(), "chatx delivery, notifications")

    def offer(self, message: Message, members: tuple[str, ...]) -> None:
        """Take a message that was published; `members` are the users who were in the room."""
        users: tuple[str, ...] | None = None
        if not self._names_recipients:
            users = tuple(user for user in members if user != message.user_id)
            if not users:
                return
        weight = weigh(message) + _RECIPIENT_BYTES * len(users or ())
        if self.size >= self._limit or self.bytes + weight > NOTIFYING_BYTES:
            self._letters.add(DeadLetter(message, "notifier", None, 0, "queue_full"))
            return
        self.size += 1
        self.bytes += weight
        self.drained.clear()
        self._parcels[message.id] = (0, weight)
        self._schedule(self._parcel(message, users), 0.0)

    async def close(self) -> None:
        """End the queue; a message whose users were not all notified is a dead letter. Twice is harmless."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for parcel in sorted(self._live, key=lambda parcel: parcel.message.id):
            self._give_up(parcel, "stopped")

    async def _work(self) -> None:
        while True:
            wait = self._due[0][0] - self._loop.time() if self._due else None
            if wait is None or wait > 0:
                self._rescheduled.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._rescheduled.wait()
                continue
            await self._slots.acquire()
            _, _, parcel = heapq.heappop(self._due)
            self._spawn(self._send(parcel), "chatx delivery, one notification")

    async def _send(self, parcel: _Parcel) -> None:
        earlier, parcel.running = parcel.running, None
        try:
            if earlier is not None and not earlier.done():
                # It may still succeed; a second one beside it could notify twice.
                earlier.add_done_callback(lambda _: self._schedule(parcel, 0.0))
            elif parcel.users is None:
                await self._find_recipients(parcel)
            elif len(parcel.users) == 1:
                await self._notify(parcel, parcel.users[0])
            else:
                self._divide(parcel, parcel.users)
        except Exception:
            # Ours, not the adapter's, which is contained.
            logger.exception(
                "The notifying worker failed; the message is tried again.",
                extra={"adapter": self._name, "room": parcel.message.room_id, "code": "internal"},
            )
            self._schedule(parcel, self._tick_s)
        finally:
            if parcel.running is None:
                self._slots.release()
            else:
                parcel.running.add_done_callback(lambda _: self._slots.release())

    def _divide(self, parcel: _Parcel, users: tuple[str, ...]) -> None:
        # A message has one parcel until here, so there is always room for some of these.
        space = max(0, PARCELS * self._limit - len(self._live))
        for user_id in users[:space]:
            self._schedule(self._parcel(parcel.message, (user_id,)), 0.0)
        parcel.users = users[space:]
        if parcel.users:
            self._schedule(parcel, self._tick_s)
        else:
            self._done(parcel)

    async def _notify(self, parcel: _Parcel, user_id: str) -> None:
        try:
            await self._call(self._name, self._notifier.notify, user_id, parcel.message)
        except (ChatError, AdapterFailure) as error:
            self._failed(parcel, error)
            return
        self.delivered += 1
        self._done(parcel)

    async def _find_recipients(self, parcel: _Parcel) -> None:
        try:
            answer = await self._call(self._name, self._notifier.recipients, parcel.message)
            # The answer may be a generator of the adapter's, which runs only now.
            users = self._boundary.plain(self._name, users_of, answer)
            if users is None:
                wrong = f"recipients() answered {type(answer).__name__}, not at most {RECIPIENTS} ids"
                self._boundary.failed(self._name, "wrong_answer", wrong)
        except (ChatError, AdapterFailure) as error:
            self._failed(parcel, error)
            return
        parcel.users = users
        parcel.attempts = 0
        self._schedule(parcel, 0.0)

    def _failed(self, parcel: _Parcel, error: Exception) -> None:
        parcel.attempts += 1
        parcel.running = getattr(error, "running", None)
        if parcel.attempts > self._max_retries:
            self._give_up(parcel, getattr(error, "failure", "raised"))
            return
        self.retried += 1
        wait_ms = backoff_ms(parcel.attempts, self._retry_base_ms, self._jitter.random())
        if self._telemetry.watched("delivery_retry"):
            message = parcel.message
            about = {"room_id": message.room_id, "message_id": message.id, "adapter": "notifier"}
            self._telemetry.emit("delivery_retry", {"attempt": parcel.attempts, "backoff_ms": wait_ms}, about)
        self._schedule(parcel, wait_ms / 1000)

    def _give_up(self, parcel: _Parcel, reason: str) -> None:
        user_id = parcel.users[0] if parcel.users and len(parcel.users) == 1 else None
        self._done(parcel)
        self._letters.add(DeadLetter(parcel.message, "notifier", user_id, parcel.attempts, reason))

    def _parcel(self, message: Message, users: tuple[str, ...] | None) -> _Parcel:
        parcel = _Parcel(message, users)
        self._live.add(parcel)
        parcels, weight = self._parcels[message.id]
        self._parcels[message.id] = (parcels + 1, weight)
        return parcel

    def _done(self, parcel: _Parcel) -> None:
        self._live.discard(parcel)
        parcels, weight = self._parcels[parcel.message.id]
        if parcels > 1:
            self._parcels[parcel.message.id] = (parcels - 1, weight)
            return
        del self._parcels[parcel.message.id]
        self.size -= 1
        self.bytes -= weight
        if not self.size:
            self.drained.set()

    def _schedule(self, parcel: _Parcel, wait_s: float) -> None:
        if parcel in self._live:
            heapq.heappush(self._due, (self._loop.time() + wait_s, next(self._order), parcel))
            self._rescheduled.set()

    def _spawn(self, coroutine: Any, name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def users_of(answer: Any) -> tuple[str, ...] | None:
    """Return the users that `recipients` names, or None where it does not name users, or too many."""
    if isinstance(answer, str):
        return (answer,)
    if not isinstance(answer, Iterable):
        return None
    users = tuple(islice(answer, RECIPIENTS + 1))
    return users if len(users) <= RECIPIENTS and all(isinstance(user, str) for user in users) else None
