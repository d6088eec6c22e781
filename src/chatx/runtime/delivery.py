"""The delivery worker: messages to persistence and to the notifier, off the hot path.

Rules:
1. First attempts go to persistence in each room's order, in batches; one batch is under way at a time.
2. A message whose delivery fails is set aside and tried again alone, with exponential backoff and full jitter. The
   others do not wait for it.
3. After `max_retries` retries a delivery is a dead letter: kept, bounded, reported to `on_dead_letter`, logged.
4. At most `limit` messages wait in all; beyond that sends are refused. Nothing is dropped on the way.
5. Stopping delivers what is left until the deadline; what is left then is a dead letter too.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from itertools import count
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.config import ChatConfig
from chatx.core.backoff import backoff_ms
from chatx.core.message import Message
from chatx.errors import ChatError
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

PARCELS = 4
"""Deliveries in memory, as a multiple of `delivery_queue_limit`; the other recipients of a message wait in it."""

CONCURRENT = 8
"""Retries and notifications under way at a time, at most."""

Target: TypeAlias = Literal["persistence", "notifier"]


class DeadLetter(Struct, frozen=True):
    """A delivery that was given up.

    Attributes:
        message: What was to be delivered.
        adapter: `persistence` or `notifier`.
        user_id: Whom the notifier was to tell; None for persistence and where the recipients could not be found.
        attempts: How often it was tried.
        reason: How the last attempt failed: `raised`, `timeout` or `stopped`.
    """

    message: Message
    adapter: Target
    user_id: str | None
    attempts: int
    reason: str


class _Parcel(Struct, eq=False):
    """One delivery: a message to persistence, or to the notifier.

    Attributes:
        users: Whom to notify; None until `recipients` was asked. Empty for persistence.
        running: The call of an earlier attempt that has not returned yet.
    """

    message: Message
    target: Target
    users: tuple[str, ...] | None = ()
    attempts: int = 0
    running: asyncio.Future[Any] | None = None


class Delivery:
    """The delivery queue of one chat and the worker that empties it.

    Attributes:
        enabled: Whether there is anybody to deliver to.
        limit: How many messages may wait.
        size: Messages that wait for a delivery or are in one.
        delivered: Deliveries that succeeded so far.
        retried: Failed attempts that were followed by another, so far.
        dead: Deliveries given up so far.
    """

    def __init__(
        self,
        *,
        config: ChatConfig,
        boundary: Boundary,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        dead_letters: deque[DeadLetter],
    ) -> None:
        self._persistence: Any = config.persistence
        self._notifier: Any = config.notifier
        self._boundary = boundary
        self._telemetry = telemetry
        self._loop = loop
        self._batch_size = config.delivery_batch_size
        self._tick_s = config.delivery_tick_ms / 1000
        self._max_retries = config.delivery_max_retries
        self._retry_base_ms = config.delivery_retry_base_ms
        self._on_dead_letter = config.on_dead_letter
        self._dead_letters = dead_letters
        self.enabled: bool = config.persistence is not None or config.notifier is not None
        self.limit: int = config.delivery_queue_limit
        self.size: int = 0
        self.delivered: int = 0
        self.retried: int = 0
        self.dead: int = 0
        self._reserved = 0
        self._parcels: dict[str, int] = {}  # message id -> parcels it still has
        self._live: set[_Parcel] = set()
        self._unsaved: dict[str, int] = {}  # room id -> messages that persistence does not have yet
        self._holes: set[str] = set()  # rooms with a message that persistence never got
        self._first: deque[_Parcel] = deque()
        self._due: list[tuple[float, int, _Parcel]] = []  # a heap by time
        self._order = count()
        self._arrived = asyncio.Event()
        self._full_batch = asyncio.Event()
        self._rescheduled = asyncio.Event()
        self._drained = asyncio.Event()
        self._stopping = False
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to deliver."""
        if self._persistence is not None:
            self._spawn(self._send_batches(), "chatx delivery")
        if self.enabled:
            self._spawn(self._send_due(), "chatx delivery, retries")

    @property
    def full(self) -> bool:
        """Whether no further message may be sent now."""
        return self.enabled and self.size + self._reserved >= self.limit

    @property
    def retry_after(self) -> float:
        """About how many seconds until there is room again."""
        wait = self._due[0][0] - self._loop.time() if self._due and not self._first else 0.0
        return max(wait, self._tick_s)

    def reserve(self) -> None:
        """Keep a place for a message that is on its way; `release` follows, whatever becomes of it."""
        self._reserved += 1

    def release(self) -> None:
        """Give the place back."""
        self._reserved -= 1

    def offer(self, message: Message, members: tuple[str, ...]) -> None:
        """Take a message that was published; `members` are the users who were in the room."""
        if not self.enabled:
            return
        self.size += 1
        if self._persistence is not None:
            self._unsaved[message.room_id] = self._unsaved.get(message.room_id, 0) + 1
            self._first.append(self._parcel(message, "persistence"))
            self._arrived.set()
            if len(self._first) >= self._batch_size:
                self._full_batch.set()
        if self._notifier is not None:
            asks = hasattr(self._notifier, "recipients")
            users = None if asks else tuple(user for user in members if user != message.user_id)
            self._schedule(self._parcel(message, "notifier", users), 0.0)

    def saved(self, room_id: str) -> bool:
        """Return whether persistence has every message of this room's life."""
        return room_id not in self._unsaved and room_id not in self._holes

    def waiting(self, room_id: str) -> bool:
        """Return whether a message of this room still waits for persistence."""
        return room_id in self._unsaved

    def forget(self, room_id: str) -> None:
        """Forget whether the room's stored history has holes, as its life ends."""
        self._holes.discard(room_id)

    async def drain(self, deadline: float) -> None:
        """Deliver what is left, until the deadline (loop time). `close` follows."""
        self._stopping = True
        self._full_batch.set()
        self._drained.clear()
        left = deadline - self._loop.time()
        if self.size and left > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._drained.wait()

    async def close(self, deadline: float) -> None:
        """End; what was not delivered is a dead letter. Handlers have until the deadline. Twice is harmless."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        left_over = sorted(self._live, key=lambda parcel: parcel.message.id)
        for parcel in left_over:
            self._give_up(parcel, "stopped")
        if self._telling:
            _, hung = await asyncio.wait(self._telling, timeout=max(0.0, deadline - self._loop.time()))
            for telling in hung:
                telling.cancel()
            if hung:
                logger.error("%d calls of on_dead_letter did not end in time.", len(hung))
                await asyncio.wait(hung)

    async def _send_batches(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._first) < self._batch_size and not self._stopping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._tick_s):
                        await self._full_batch.wait()
            batch = [self._first.popleft() for _ in range(min(self._batch_size, len(self._first)))]
            if len(self._first) < self._batch_size:
                self._full_batch.clear()
            if not self._first:
                self._arrived.clear()
            try:
                await self._save(batch)
            except Exception:
                # Ours, not the adapter's, which is contained. The worker goes on, and so do the messages.
                logger.exception("The delivery worker failed; the batch is tried again.")
                for parcel in batch:
                    self._schedule(parcel, self._tick_s)

    async def _save(self, batch: list[_Parcel]) -> None:
        began = self._loop.time()
        dead = self.retried + self.dead
        if hasattr(self._persistence, "save_messages"):
            await self._attempt(batch, self._persistence.save_messages, [each.message for each in batch])
        else:
            rooms: dict[str, list[_Parcel]] = {}
            for parcel in batch:
                rooms.setdefault(parcel.message.room_id, []).append(parcel)
            await asyncio.gather(*map(self._save_in_order, rooms.values()))
        if self._telemetry.watched("delivery_batch"):
            self._telemetry.emit(
                "delivery_batch",
                {
                    "messages": len(batch),
                    "failed": self.retried + self.dead - dead,
                    "duration_ms": (self._loop.time() - began) * 1000,
                },
                {},
            )

    async def _save_in_order(self, parcels: list[_Parcel]) -> None:
        for parcel in parcels:
            async with self._slots:
                await self._attempt([parcel], self._persistence.save_message, parcel.message)

    async def _send_due(self) -> None:
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
            self._spawn(self._send_alone(parcel), "chatx delivery, one")

    async def _send_alone(self, parcel: _Parcel) -> None:
        try:
            message = parcel.message
            if parcel.running is not None and not parcel.running.done():
                # The earlier call may still succeed; giving it the message a second time could save it twice.
                parcel.running.add_done_callback(lambda _: self._schedule(parcel, 0.0))
            elif parcel.target == "persistence":
                if hasattr(self._persistence, "save_messages"):
                    await self._attempt([parcel], self._persistence.save_messages, [message])
                else:
                    await self._attempt([parcel], self._persistence.save_message, message)
            elif parcel.users is None:
                await self._find_recipients(parcel)
            elif len(parcel.users) == 1:
                await self._attempt([parcel], self._notifier.notify, parcel.users[0], message)
            else:
                # A message has two parcels at most until here, so there is always room for some of these.
                space = max(0, PARCELS * self.limit - len(self._live))
                now, parcel.users = parcel.users[:space], parcel.users[space:]
                for user_id in now:
                    self._schedule(self._parcel(message, "notifier", (user_id,)), 0.0)
                if parcel.users:
                    self._schedule(parcel, self._tick_s)
                else:
                    self._done(parcel)
        except Exception:
            logger.exception("The delivery worker failed; the message is tried again.")
            self._schedule(parcel, self._tick_s)
        finally:
            self._slots.release()

    async def _find_recipients(self, parcel: _Parcel) -> None:
        name = adapter_name(self._notifier)
        try:
            answer = await self._boundary.call(name, self._notifier.recipients, parcel.message)
            # The answer may be a generator of the adapter's, which runs only now.
            users = self._boundary.plain(name, _users, answer)
            if users is None:
                self._boundary.failed(name, "wrong_answer", f"recipients() answered {type(answer).__name__}, not ids")
        except (ChatError, AdapterFailure) as error:
            self._failed(parcel, error)
            return
        parcel.users = users
        parcel.attempts = 0
        self._schedule(parcel, 0.0)

    async def _attempt(self, parcels: list[_Parcel], method: Callable[..., Any], *args: Any) -> None:
        adapter = self._notifier if parcels[0].target == "notifier" else self._persistence
        try:
            await self._boundary.call(adapter_name(adapter), method, *args)
        except (ChatError, AdapterFailure) as error:
            for parcel in parcels:
                self._failed(parcel, error)
            return
        for parcel in parcels:
            self.delivered += 1
            self._done(parcel)

    def _failed(self, parcel: _Parcel, error: Exception) -> None:
        parcel.attempts += 1
        parcel.running = getattr(error, "running", None)
        if parcel.attempts > self._max_retries:
            self._give_up(parcel, getattr(error, "failure", "raised"))
            return
        self.retried += 1
        wait_ms = backoff_ms(parcel.attempts, self._retry_base_ms, self._jitter.random())
        if self._telemetry.watched("delivery_retry"):
            self._telemetry.emit(
                "delivery_retry", {"attempt": parcel.attempts, "backoff_ms": wait_ms}, self._about(parcel)
            )
        self._schedule(parcel, wait_ms / 1000)

    def _give_up(self, parcel: _Parcel, reason: str) -> None:
        message = parcel.message
        self.dead += 1
        if parcel.target == "persistence":
            self._holes.add(message.room_id)
        user_id = parcel.users[0] if parcel.users and len(parcel.users) == 1 else None
        letter = DeadLetter(message, parcel.target, user_id, parcel.attempts, reason)
        self._dead_letters.append(letter)
        self._done(parcel)
        logger.error(
            "Message %s of room %r is a dead letter: %s failed %d times (%s).",
            message.id,
            message.room_id,
            parcel.target,
            parcel.attempts,
            reason,
        )
        if self._telemetry.watched("dead_letter"):
            self._telemetry.emit("dead_letter", {"attempts": parcel.attempts}, self._about(parcel))
        if self._on_dead_letter is not None:
            # Nobody waits for it but `stop`: a handler that hangs holds up no delivery.
            telling = self._loop.create_task(self._tell(letter), name="chatx dead letter")
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell(self, letter: DeadLetter) -> None:
        handler: Any = self._on_dead_letter
        with contextlib.suppress(ChatError, AdapterFailure):
            await self._boundary.call("on_dead_letter", handler, letter)

    def _parcel(self, message: Message, target: Target, users: tuple[str, ...] | None = ()) -> _Parcel:
        parcel = _Parcel(message, target, users)
        self._live.add(parcel)
        self._parcels[message.id] = self._parcels.get(message.id, 0) + 1
        return parcel

    def _done(self, parcel: _Parcel) -> None:
        message = parcel.message
        self._live.discard(parcel)
        if parcel.target == "persistence":
            left = self._unsaved[message.room_id] - 1
            if left:
                self._unsaved[message.room_id] = left
            else:
                del self._unsaved[message.room_id]
        left = self._parcels[message.id] - 1
        if left:
            self._parcels[message.id] = left
            return
        del self._parcels[message.id]
        self.size -= 1
        if not self.size:
            self._drained.set()

    def _schedule(self, parcel: _Parcel, wait_s: float) -> None:
        if parcel in self._live:
            heapq.heappush(self._due, (self._loop.time() + wait_s, next(self._order), parcel))
            self._rescheduled.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _about(self, parcel: _Parcel) -> dict[str, Any]:
        message = parcel.message
        return {"room_id": message.room_id, "message_id": message.id, "adapter": parcel.target}


def _users(answer: Any) -> tuple[str, ...] | None:
    """Return the users that `recipients` names, or None where it does not name users."""
    if isinstance(answer, str):
        return (answer,)
    if not isinstance(answer, Iterable):
        return None
    users = tuple(answer)
    return users if all(isinstance(user, str) for user in users) else None
