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
   oldest, twice as many in each round, and those of some other rooms. So a crowd that fails by its own fault cannot
   look like a store that is away for ever, and a room's order is kept all the same.
4. One message that fails alone in another way, with nothing to compare it with, is taken to be at fault, until another
   one fails too.
5. A call that outlives its timeout keeps its place among the calls under way until it has ended, and its messages are
   not given to another meanwhile.
6. Nothing is dropped on the way. Stopping saves what is left until the deadline; what is left then is a dead letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine
from itertools import count
from typing import Any

from chatx.adapters.away import says_away
from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.config import ChatConfig
from chatx.core.backoff import backoff_ms
from chatx.errors import ChatError
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.runtime.store_state import StoreState
from chatx.runtime.unsaved import Parcel, Unsaved
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

SAVING = 4
"""Calls of persistence under way for messages that are saved for the first time, at most."""

RETRYING = 4
"""The same for messages that are tried again alone."""

# How many messages in a row that fail in a way that says "away" are taken to say it for all behind them.
_ENOUGH = 2

# After how many rounds one more that says so is tried in each: some that hang whenever they are given, which looks the
# same as a store that is away, are not to hold up the others for ever.
_PATIENCE = 16

# How long a call that was cancelled at its timeout is waited for before its messages are tried in another way.
_SETTLE_S = 0.05


class Saving:
    """The worker that brings one chat's messages to persistence.

    Attributes:
        unsaved: The messages that it does not have yet.
        saved: Messages saved so far.
        retried: Failed attempts that were followed by another, so far; those of a store that was away do not count.
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
        self.unsaved: Unsaved = Unsaved(loop, config.delivery_batch_size)
        self.saved: int = 0
        self.retried: int = 0
        self._store = StoreState(self._name, loop, telemetry, config.delivery_retry_base_ms)
        self._calls = count(1)  # rises with each call that begins and each that fails
        self._away_from = 0  # when the store was found away last, on that clock
        self._unjudged: dict[Parcel, None] = {}
        self._in_round = False
        self._in_a_row = 0  # failures in this round that say "away", since something was saved
        self._enough = _ENOUGH
        self._poked = asyncio.Event()
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(SAVING)
        self._retry_slots = asyncio.Semaphore(RETRYING)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def size(self) -> int:
        """Messages that persistence does not have yet."""
        return self.unsaved.size

    @property
    def bytes(self) -> int:
        """What they weigh."""
        return self.unsaved.bytes

    @property
    def drained(self) -> asyncio.Event:
        """Set when there are none."""
        return self.unsaved.drained

    def waits(self, room_id: str) -> bool:
        """Return whether a message of this room is not saved yet."""
        return self.unsaved.waits(room_id)

    def has_all(self, room_id: str) -> bool:
        """Return whether persistence has every message of this room's life."""
        return self.unsaved.has_all(room_id)

    def forget(self, room_id: str) -> None:
        """Forget whether the room's stored history has holes, as its life ends."""
        self.unsaved.forget(room_id)

    def start(self) -> None:
        """Begin to save."""
        self._spawn(self._work(), "chatx delivery")
        self._spawn(self._retry(), "chatx delivery, retries")

    @property
    def retry_after(self) -> float:
        """About how many seconds until something is saved."""
        wait: float | None = None
        if self._store.rounds:
            wait = self._store.next_try - self._loop.time()
        elif not self.unsaved.arrived.is_set():
            wait = self.unsaved.next_due()
        return max(wait or 0.0, self._tick_s)

    def hurry(self) -> None:
        """Wait for no further message, and try a store that is away at once: the chat stops."""
        self.unsaved.wait_no_more()
        self._poked.set()

    async def close(self) -> None:
        """End; what is not saved is a dead letter. Twice is harmless."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for parcel in self.unsaved.all():
            self._give_up(parcel, "stopped")

    # The worker

    async def _work(self) -> None:
        while True:
            try:
                if self._store.rounds:
                    await self._probe()
                else:
                    await self._save_next()
            except Exception:
                # Ours, not the adapter's, which is contained. The worker goes on, and so do the messages.
                logger.exception(
                    "The saving worker failed; the messages are tried again.", extra={"adapter": self._name}
                )
                self.unsaved.put_all_back()
                await asyncio.sleep(self._tick_s)

    async def _save_next(self) -> None:
        unsaved = self.unsaved
        await unsaved.arrived.wait()
        if not unsaved.full_batch.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick_s):
                    await unsaved.full_batch.wait()
        if self._store.rounds:
            return  # a message that was tried again alone has told meanwhile
        batch = unsaved.take_batch()
        if not batch:
            return
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

    async def _save(self, batch: list[Parcel]) -> None:
        if not self._in_batches:
            rooms: dict[str, list[Parcel]] = {}
            for parcel in batch:
                rooms.setdefault(parcel.message.room_id, []).append(parcel)
            await self._round(list(rooms.values()))
        elif len(batch) == 1 or not await self._save_whole(batch):
            await self._round([batch])

    async def _save_whole(self, batch: list[Parcel]) -> bool:
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

    async def _round(self, groups: list[list[Parcel]], *, enough: int = _ENOUGH, until_saved: bool = False) -> None:
        """Try each message alone: the groups side by side, the messages of a group in order.

        So many in a row that say the store is away are `enough`: the others wait. `until_saved`, so does one that is.
        """
        self._in_round = True
        self._in_a_row = 0
        self._enough = enough
        try:
            if len(groups) == 1:
                await self._try_in_order(groups[0], until_saved)
            else:
                await asyncio.gather(*(self._try_in_order(group, until_saved) for group in groups))
        finally:
            self._in_round = False
        self._judge()

    async def _try_in_order(self, group: list[Parcel], until_saved: bool) -> None:
        for place, parcel in enumerate(group):
            await self._slots.acquire()
            if self._in_a_row >= self._enough:
                self._slots.release()
                self.unsaved.put_back(group[place:])
                return
            saved = await self._try(parcel, self._slots)
            if saved and until_saved:
                self.unsaved.put_back(group[place + 1 :])
                return

    async def _try(self, parcel: Parcel, slots: asyncio.Semaphore) -> bool:
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
                    self._failed(parcel, "timeout", away=True, called=False)
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
            await self._store.here.wait()
            wait = self.unsaved.next_due()
            if wait is None or wait > 0:
                self.unsaved.rescheduled.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self.unsaved.rescheduled.wait()
                continue
            if self._retry_slots.locked():
                async with self._retry_slots:
                    continue  # much may have changed while it was waited for
            await self._retry_slots.acquire()  # without waiting, for it is not locked
            parcel = self.unsaved.take_due()
            parcel.trying = True
            self._spawn(self._try_again(parcel), "chatx delivery, one")

    async def _try_again(self, parcel: Parcel) -> None:
        await self._try(parcel, self._retry_slots)
        if not self._in_round:
            self._judge()

    async def _probe(self) -> None:
        """Wait, then try the oldest message and some from behind it, until one is saved."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._store.next_try - self._loop.time()):
                await self._poked.wait()
        self._poked.clear()
        if not self._store.rounds:
            return
        probes = self.unsaved.take_probes(self._jitter, 2 ** min(self._store.rounds, 30))
        if probes:
            # At first the oldest alone: were the store back between two, the second would be saved ahead of the first.
            enough = 1 + self._store.rounds // _PATIENCE
            await self._round([probes], enough=enough, until_saved=True)
        elif self.unsaved.hanging:
            self._store.backs_off(self._jitter.random())  # there is nothing to try it with
        else:
            self._come_back()  # only those that were set aside are left, and they are tried again by themselves

    # Whose fault it was

    def _failed(self, parcel: Parcel, reason: str, *, away: bool, called: bool = True) -> None:
        parcel.reason, parcel.says_away, parcel.trying = reason, away, False
        parcel.failed_at = next(self._calls)
        if not parcel.suspect:
            parcel.unjudged += 1
            self._unjudged[parcel] = None
            self._in_a_row = self._in_a_row + 1 if away else 0
        elif not called and parcel.running is not None:
            parcel.running.add_done_callback(lambda _: self.unsaved.set_aside(parcel, 0.0))
        elif self._store.rounds:
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
        if self._store.rounds and began > self._away_from:
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
        if len(open_ones) > 1 or (open_ones and (self._store.rounds or open_ones[0].says_away)):
            self._go_away(open_ones)
        elif open_ones and open_ones[0].turn < 0:
            # Nothing to compare it with.
            self._set_aside_or_give_up(open_ones[0])

    def _go_away(self, failed: list[Parcel]) -> None:
        first = not self._store.rounds
        wait_ms = self._store.backs_off(self._jitter.random())
        self._away_from = next(self._calls)
        for parcel in self._unjudged:
            parcel.unjudged = 0
        self._unjudged.clear()
        if self._telemetry.watched("delivery_retry"):
            for parcel in failed:
                self._tell_retry(parcel, parcel.attempts + 1, wait_ms)
        self.unsaved.put_back(failed)
        if first:
            self._poked.clear()
            self._store.goes_away(failed[-1].reason, self.unsaved.size)

    def _come_back(self) -> None:
        self._poked.set()
        self._store.comes_back(self.unsaved.size)

    def _set_aside_or_give_up(self, parcel: Parcel) -> None:
        if parcel.attempts + parcel.unjudged > self._max_retries:
            self._give_up(parcel, parcel.reason)
        else:
            self._back_off(parcel)

    def _back_off(self, parcel: Parcel) -> None:
        parcel.failures = max(parcel.failures + 1, parcel.attempts + parcel.unjudged)
        wait_ms = backoff_ms(parcel.failures, self._retry_base_ms, self._jitter.random())
        if self._telemetry.watched("delivery_retry"):
            self._tell_retry(parcel, parcel.failures, wait_ms)
        self.unsaved.set_aside(parcel, wait_ms / 1000)

    def _tell_retry(self, parcel: Parcel, attempt: int, wait_ms: float) -> None:
        message = parcel.message
        about = {"room_id": message.room_id, "message_id": message.id, "adapter": "persistence"}
        self._telemetry.emit("delivery_retry", {"attempt": attempt, "backoff_ms": wait_ms}, about)

    def _give_up(self, parcel: Parcel, reason: str) -> None:
        self._unjudged.pop(parcel, None)
        self.unsaved.remove(parcel, lost=True)
        attempts = parcel.attempts + parcel.unjudged
        self._letters.add(DeadLetter(parcel.message, "persistence", None, attempts, reason))

    def _done(self, parcel: Parcel) -> None:
        self._unjudged.pop(parcel, None)
        self.unsaved.remove(parcel)

    def _release(self, slots: asyncio.Semaphore, running: asyncio.Future[Any] | None) -> None:
        if running is None:
            slots.release()
        else:
            running.add_done_callback(lambda _: slots.release())

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
