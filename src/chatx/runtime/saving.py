"""Messages on their way to persistence: in batches, in order, off the hot path.

Rules:
1. First attempts keep each room's order; one batch is under way at a time. When a batch fails as a whole, each of its
   messages is tried alone, in order.
2. A message that fails while others behind it are saved has failed by its own fault. It is set aside and tried again
   alone, with exponential backoff and full jitter, and the others do not wait for it. After `max_retries` retries it is
   a dead letter. The first failure that says the store is away does not count: it may have been.
3. Where two messages fail and nothing is saved after them, the store is away; so it is where one fails in a way that
   says so (`adapters.away`) and there is nothing to compare it with. Nobody's attempts are counted then. Everything
   waits in order, and after a backoff of at most `AWAY_CEILING_MS` some messages are tried until one is saved: the
   oldest, some drawn from behind it and the newest, so that a crowd that fails by its own fault cannot look like a
   store that is away for ever. Two that say so are enough for a round.
4. One message that fails alone in another way, with nothing to compare it with, is taken to be at fault, until another
   one fails too.
5. A call that outlives its timeout keeps its place among the calls under way until it has ended, and its messages are
   not given to another meanwhile.
6. Nothing is dropped on the way. Stopping saves what is left until the deadline; what is left then is a dead letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
from collections import deque
from collections.abc import Coroutine, Iterable
from itertools import count
from typing import Any

from msgspec import Struct

from chatx.adapters.away import says_away
from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.config import ChatConfig
from chatx.core.backoff import backoff_ms
from chatx.core.log_limit import LogLimit
from chatx.core.message import Message, weigh
from chatx.errors import ChatError
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

SAVING = 4
"""Calls of persistence under way for messages that are saved for the first time, at most."""

RETRYING = 4
"""The same for messages that are tried again alone."""

AWAY_CEILING_MS = 5_000
"""The longest wait before a store that is away is tried again, in ms."""

AWAY_LOGGED_PER_MINUTE = 10
"""Lines of the log in a minute that say that the store went away, at most; the same for its coming back."""

# How many messages in a row that fail in a way that says "away" are taken to say it for all behind them.
_ENOUGH = 2

# How long a call that was cancelled at its timeout is waited for before its messages are tried in another way.
_SETTLE_S = 0.05


class _Parcel(Struct, eq=False):
    """A message that is not saved yet.

    Attributes:
        number: Its place in the order of publishing.
        weight: The bytes that it counts for.
        attempts: Failures that were its own fault.
        unjudged: Failures of which it is not known yet whose fault they were.
        failures: Failures in a row, whosever fault; what its backoff grows with.
        failed_at: When it failed last, on the clock of `_calls`.
        suspect: Whether it has failed by its own fault.
        says_away: Whether its last failure says that the store is away.
        reason: How it failed last.
        trying: Whether a call with it is under way.
        turn: Its valid entry among those set aside, or -1.
        running: The call of an earlier attempt that has not returned yet.
    """

    message: Message
    number: int
    weight: int
    attempts: int = 0
    unjudged: int = 0
    failures: int = 0
    failed_at: int = 0
    suspect: bool = False
    says_away: bool = False
    reason: str = ""
    trying: bool = False
    turn: int = -1
    running: asyncio.Future[Any] | None = None


class Saving:
    """The persistence's queue of one chat and the worker that empties it.

    Attributes:
        size: Messages that wait, or are being saved.
        bytes: What they weigh.
        saved: Messages saved so far.
        retried: Failed attempts that were followed by another, so far; those of a store that was away do not count.
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
        self._persistence: Any = config.persistence
        self._name = adapter_name(config.persistence)
        self._in_batches = hasattr(config.persistence, "save_messages")
        self._call = boundary.caller("saving")
        self._telemetry = telemetry
        self._loop = loop
        self._letters = letters
        self._batch_size = config.delivery_batch_size
        self._tick_s = config.delivery_tick_ms / 1000
        self._max_retries = config.delivery_max_retries
        self._retry_base_ms = config.delivery_retry_base_ms
        self.size: int = 0
        self.bytes: int = 0
        self.saved: int = 0
        self.retried: int = 0
        self.drained = asyncio.Event()
        self.drained.set()
        self._numbers = count()
        self._live: dict[_Parcel, None] = {}
        self._unsaved: dict[str, int] = {}  # room id -> messages that persistence does not have yet
        self._holes: set[str] = set()  # rooms with a message that persistence never got
        self._first: deque[_Parcel] = deque()  # by number
        self._unjudged: dict[_Parcel, None] = {}
        self._aside: list[tuple[float, int, _Parcel]] = []  # a heap by time
        self._turns = count()
        self._calls = count(1)  # rises with each call that begins and each that fails
        self._away_rounds = 0  # 0: the store is there
        self._away_since = 0.0
        self._away_from = 0  # the same on the clock of `_calls`
        self._next_probe = 0.0
        self._logged_away = LogLimit(AWAY_LOGGED_PER_MINUTE)
        self._logged_back = LogLimit(AWAY_LOGGED_PER_MINUTE)
        self._in_round = False
        self._in_a_row = 0  # failures in this round that say "away", since something was saved
        self._arrived = asyncio.Event()
        self._full_batch = asyncio.Event()
        self._rescheduled = asyncio.Event()
        self._back = asyncio.Event()
        self._back.set()
        self._stopping = False
        self._poked = asyncio.Event()
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(SAVING)
        self._retry_slots = asyncio.Semaphore(RETRYING)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to save."""
        self._spawn(self._work(), "chatx delivery")
        self._spawn(self._retry(), "chatx delivery, retries")

    @property
    def retry_after(self) -> float:
        """About how many seconds until something is saved."""
        wait = 0.0
        if self._away_rounds:
            wait = self._next_probe - self._loop.time()
        elif self._aside and not self._first:
            wait = self._aside[0][0] - self._loop.time()
        return max(wait, self._tick_s)

    def offer(self, message: Message) -> None:
        """Take a message that was published."""
        room_id = message.room_id
        parcel = _Parcel(message, next(self._numbers), weigh(message))
        self.size += 1
        self.bytes += parcel.weight
        self._live[parcel] = None
        self._unsaved[room_id] = self._unsaved.get(room_id, 0) + 1
        self._first.append(parcel)
        self._arrived.set()
        if len(self._first) >= self._batch_size:
            self._full_batch.set()
        self.drained.clear()

    def has_all(self, room_id: str) -> bool:
        """Return whether persistence has every message of this room's life."""
        return room_id not in self._unsaved and room_id not in self._holes

    def waits(self, room_id: str) -> bool:
        """Return whether a message of this room is not saved yet."""
        return room_id in self._unsaved

    def forget(self, room_id: str) -> None:
        """Forget whether the room's stored history has holes, as its life ends."""
        self._holes.discard(room_id)

    def hurry(self) -> None:
        """Wait for no further message, and try a store that is away at once: the chat stops."""
        self._stopping = True
        self._full_batch.set()
        self._poked.set()

    async def close(self) -> None:
        """End; what is not saved is a dead letter. Twice is harmless."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for parcel in sorted(self._live, key=_number):
            self._give_up(parcel, "stopped")

    # The worker

    async def _work(self) -> None:
        while True:
            try:
                if self._away_rounds:
                    await self._probe()
                else:
                    await self._save_next()
            except Exception:
                # Ours, not the adapter's, which is contained. The worker goes on, and so do the messages.
                logger.exception(
                    "The saving worker failed; the messages are tried again.", extra={"adapter": self._name}
                )
                waiting = set(self._first)
                self._put_back(
                    parcel for parcel in self._live if parcel.turn < 0 and not parcel.trying and parcel not in waiting
                )
                await asyncio.sleep(self._tick_s)

    async def _save_next(self) -> None:
        await self._arrived.wait()
        if len(self._first) < self._batch_size and not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick_s):
                    await self._full_batch.wait()
        if self._away_rounds or not self._first:
            return  # a message that was tried again alone has told meanwhile
        batch = [self._first.popleft() for _ in range(min(self._batch_size, len(self._first)))]
        self._count_first()
        began = self._loop.time()
        for parcel in batch:
            parcel.reason = ""
        await self._save(batch)
        if self._telemetry.watched("delivery_batch"):
            self._telemetry.emit(
                "delivery_batch",
                {
                    "messages": len(batch),
                    "failed": sum(parcel.reason != "" for parcel in batch),
                    "duration_ms": (self._loop.time() - began) * 1000,
                },
                {},
            )

    async def _save(self, batch: list[_Parcel]) -> None:
        if not self._in_batches:
            rooms: dict[str, list[_Parcel]] = {}
            for parcel in batch:
                rooms.setdefault(parcel.message.room_id, []).append(parcel)
            await self._round(list(rooms.values()))
        elif len(batch) == 1 or not await self._save_whole(batch):
            await self._round([batch])

    async def _save_whole(self, batch: list[_Parcel]) -> bool:
        await self._slots.acquire()
        began = next(self._calls)
        running = None
        try:
            await self._call(self._name, self._persistence.save_messages, [parcel.message for parcel in batch])
        except (ChatError, AdapterFailure) as error:
            running = getattr(error, "running", None)
            watched = self._telemetry.watched("delivery_retry")
            for parcel in batch:
                parcel.unjudged = 1
                parcel.running = running
                parcel.reason = getattr(error, "failure", "raised")
                if watched:
                    self._tell_retry(parcel, 1, 0.0)
            return False
        finally:
            self._release(self._slots, running)
        for parcel in batch:
            self._done(parcel)
        self._succeeded(len(batch), began)
        return True

    async def _round(self, groups: list[list[_Parcel]], *, until_saved: bool = False) -> None:
        """Try each message alone: the groups side by side, the messages of a group in order."""
        self._in_round = True
        self._in_a_row = 0
        try:
            if len(groups) == 1:
                await self._try_in_order(groups[0], until_saved)
            else:
                await asyncio.gather(*(self._try_in_order(group, until_saved) for group in groups))
        finally:
            self._in_round = False
        self._judge()

    async def _try_in_order(self, group: list[_Parcel], until_saved: bool) -> None:
        for place, parcel in enumerate(group):
            await self._slots.acquire()
            if self._in_a_row >= _ENOUGH:
                self._slots.release()
                self._put_back(group[place:])
                return
            saved = await self._try(parcel, self._slots)
            if saved and until_saved:
                self._put_back(group[place + 1 :])
                return

    async def _try(self, parcel: _Parcel, slots: asyncio.Semaphore) -> bool:
        """Give one message alone, and the slot back; return whether it is saved."""
        earlier, parcel.running = parcel.running, None
        parcel.trying = True
        began = next(self._calls)
        message = parcel.message
        try:
            if earlier is not None and not earlier.done():
                # It was cancelled just now and ends, or it may still succeed: a call beside it could save it twice.
                await asyncio.wait((earlier,), timeout=_SETTLE_S)
                if not earlier.done():
                    parcel.running = earlier
                    self._failed(parcel, "timeout", away=True)
                    return False
            if parcel.reason:
                self.retried += bool(parcel.attempts + parcel.unjudged)
            if self._in_batches:
                await self._call(self._name, self._persistence.save_messages, [message])
            else:
                await self._call(self._name, self._persistence.save_message, message)
        except (ChatError, AdapterFailure) as error:
            parcel.running = getattr(error, "running", None)
            self._failed(parcel, getattr(error, "failure", "raised"), away=says_away(error))
            return False
        finally:
            parcel.trying = False
            # A slot is not free before a call that outlived its timeout has ended; the earlier one holds its own.
            self._release(slots, None if parcel.running is earlier else parcel.running)
        self._done(parcel)
        self._succeeded(1, began)
        return True

    async def _retry(self) -> None:
        while True:
            await self._back.wait()
            while self._aside and self._aside[0][1] != self._aside[0][2].turn:
                heapq.heappop(self._aside)  # it went elsewhere meanwhile
            wait = self._aside[0][0] - self._loop.time() if self._aside else None
            if wait is None or wait > 0:
                self._rescheduled.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._rescheduled.wait()
                continue
            if self._retry_slots.locked():
                async with self._retry_slots:
                    continue  # much may have changed while it was waited for
            await self._retry_slots.acquire()  # without waiting, for it is not locked
            _, _, parcel = heapq.heappop(self._aside)
            parcel.turn = -1
            parcel.trying = True
            self._spawn(self._try_again(parcel), "chatx delivery, one")

    async def _try_again(self, parcel: _Parcel) -> None:
        await self._try(parcel, self._retry_slots)
        if not self._in_round:
            self._judge()

    # Whose fault it was

    def _failed(self, parcel: _Parcel, reason: str, *, away: bool) -> None:
        parcel.reason, parcel.says_away, parcel.trying = reason, away, False
        parcel.failed_at = next(self._calls)
        if not parcel.suspect:
            parcel.unjudged += 1
            self._unjudged[parcel] = None
            self._in_a_row = self._in_a_row + 1 if away else 0
        elif self._away_rounds:
            self._back_off(parcel)
        elif away and reason == "raised":
            # What it says may be so, and there is nobody to ask: it counts once something was saved since.
            parcel.unjudged = 1
            self._unjudged[parcel] = None
            self._back_off(parcel)
        else:
            parcel.attempts += 1
            self._set_aside_or_give_up(parcel)

    def _succeeded(self, messages: int, began: int) -> None:
        """Take note that the store is there: who failed before this call began has done so by its own fault."""
        self.saved += messages
        self._in_a_row = 0
        if self._away_rounds and began > self._away_from:
            self._come_back()
        for parcel in [each for each in self._unjudged if each.failed_at < began]:
            del self._unjudged[parcel]
            # One that says the store is away may be right: it has come back since. The second time it is not believed.
            if parcel.suspect or not parcel.says_away:
                parcel.attempts += parcel.unjudged
            parcel.unjudged = 0
            parcel.suspect = True
            if parcel.trying:
                continue  # what becomes of it is told by how this call ends
            if parcel.turn < 0:
                self._set_aside_or_give_up(parcel)
            elif parcel.attempts > self._max_retries:
                self._give_up(parcel, parcel.reason)

    def _judge(self) -> None:
        """Judge those who failed and behind whom nothing was saved."""
        open_ones = [each for each in self._unjudged if not each.suspect and not each.trying]
        if len(open_ones) > 1 or (open_ones and (self._away_rounds or open_ones[0].says_away)):
            self._go_away(open_ones)
        elif open_ones and open_ones[0].turn < 0:
            # Nothing to compare it with.
            self._set_aside_or_give_up(open_ones[0])

    def _go_away(self, failed: list[_Parcel]) -> None:
        now = self._loop.time()
        self._away_rounds += 1
        self._away_from = next(self._calls)
        wait_ms = self._away_backoff_ms()
        self._next_probe = now + wait_ms / 1000
        reason = failed[-1].reason
        watched = self._telemetry.watched("delivery_retry")
        for parcel in failed:
            parcel.unjudged = parcel.failures = 0
            if watched:
                self._tell_retry(parcel, parcel.attempts + 1, wait_ms)
        for parcel in self._unjudged:
            parcel.unjudged = 0
        self._unjudged.clear()
        self._put_back(failed)
        if self._away_rounds > 1:
            return
        self._away_since = now
        self._back.clear()
        if (left_out := self._logged_away.due(now)) is not None:
            logger.error(
                "The persistence adapter %s saves nothing (%s): %d messages wait for it in order; none is given up.%s",
                self._name,
                reason,
                self.size,
                f" {left_out} lines like this were left out." if left_out else "",
                extra={"adapter": self._name, "code": reason},
            )
        if self._telemetry.watched("persistence_away"):
            self._telemetry.emit("persistence_away", {"waiting": self.size}, {"adapter": self._name, "failure": reason})

    def _away_backoff_ms(self) -> float:
        return min(AWAY_CEILING_MS, backoff_ms(self._away_rounds, self._retry_base_ms, self._jitter.random()))

    def _come_back(self) -> None:
        self._away_rounds = 0
        self._back.set()
        self._poked.set()
        now = self._loop.time()
        away_s = now - self._away_since
        if (left_out := self._logged_back.due(now)) is not None:
            logger.warning(
                "The persistence adapter %s saves again after %.1f s; %d messages wait for it.%s",
                self._name,
                away_s,
                self.size,
                f" {left_out} lines like this were left out." if left_out else "",
                extra={"adapter": self._name},
            )
        if self._telemetry.watched("persistence_back"):
            measured = {"waiting": self.size, "away_ms": away_s * 1000}
            self._telemetry.emit("persistence_back", measured, {"adapter": self._name})

    async def _probe(self) -> None:
        """Wait, then try the oldest message and some drawn from behind it, until one is saved."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._next_probe - self._loop.time()):
                await self._poked.wait()
        self._poked.clear()
        if not self._away_rounds:
            return
        free = [parcel for parcel in self._first if parcel.running is None or parcel.running.done()]
        if not free:
            running = {parcel.running for parcel in self._first if parcel.running is not None}
            if running:  # they hang; one that comes meanwhile is looked at after the next backoff
                self._away_rounds += 1
                await asyncio.wait(running, timeout=max(self._tick_s, self._away_backoff_ms() / 1000))
            else:
                self._come_back()  # only those that were set aside are left, and they are tried again by themselves
            return
        # The newest is one of them: it may be of another kind than a crowd that fails by its own fault.
        between = free[1:-1]
        drawn = self._jitter.sample(between, min(len(between), max(1, self._batch_size - 2)))
        probes = [free[0], *sorted(drawn, key=_number), *free[1:][-1:]]
        chosen = set(probes)
        self._first = deque(parcel for parcel in self._first if parcel not in chosen)
        self._count_first()
        await self._round([probes], until_saved=True)

    # Where messages go

    def _set_aside_or_give_up(self, parcel: _Parcel) -> None:
        if parcel.attempts + parcel.unjudged > self._max_retries:
            self._give_up(parcel, parcel.reason)
        else:
            self._back_off(parcel)

    def _back_off(self, parcel: _Parcel) -> None:
        parcel.failures = max(parcel.failures + 1, parcel.attempts + parcel.unjudged)
        wait_ms = backoff_ms(parcel.failures, self._retry_base_ms, self._jitter.random())
        if self._telemetry.watched("delivery_retry"):
            self._tell_retry(parcel, parcel.failures, wait_ms)
        self._set_aside(parcel, wait_ms / 1000)

    def _tell_retry(self, parcel: _Parcel, attempt: int, wait_ms: float) -> None:
        message = parcel.message
        about = {"room_id": message.room_id, "message_id": message.id, "adapter": "persistence"}
        self._telemetry.emit("delivery_retry", {"attempt": attempt, "backoff_ms": wait_ms}, about)

    def _set_aside(self, parcel: _Parcel, wait_s: float) -> None:
        parcel.turn = next(self._turns)
        heapq.heappush(self._aside, (self._loop.time() + wait_s, parcel.turn, parcel))
        self._rescheduled.set()

    def _put_back(self, parcels: Iterable[_Parcel]) -> None:
        """Let them be tried as if for the first time, each in its place."""
        back = sorted(parcels, key=_number)
        for parcel in back:
            parcel.unjudged = parcel.failures = 0
            parcel.turn = -1
        self._first = deque(heapq.merge(back, self._first, key=_number))
        self._count_first()

    def _count_first(self) -> None:
        for event, holds in (
            (self._arrived, bool(self._first)),
            (self._full_batch, self._stopping or len(self._first) >= self._batch_size),
        ):
            if holds:
                event.set()
            else:
                event.clear()

    def _give_up(self, parcel: _Parcel, reason: str) -> None:
        self._holes.add(parcel.message.room_id)
        self._done(parcel)
        attempts = parcel.attempts + parcel.unjudged
        self._letters.add(DeadLetter(parcel.message, "persistence", None, attempts, reason))

    def _done(self, parcel: _Parcel) -> None:
        room_id = parcel.message.room_id
        del self._live[parcel]
        self._unjudged.pop(parcel, None)
        parcel.turn = -1
        self.size -= 1
        self.bytes -= parcel.weight
        left = self._unsaved[room_id] - 1
        if left:
            self._unsaved[room_id] = left
        else:
            del self._unsaved[room_id]
        if not self.size:
            self.drained.set()

    def _release(self, slots: asyncio.Semaphore, running: asyncio.Future[Any] | None) -> None:
        if running is None:
            slots.release()
        else:
            running.add_done_callback(lambda _: slots.release())

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _number(parcel: _Parcel) -> int:
    return parcel.number
