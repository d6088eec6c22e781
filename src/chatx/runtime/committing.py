"""Entries on their way to a log: of many rooms in one transaction, one batch of each room at a time.

What is `stored` is asked for at once; whatever comes while a transaction is under way goes into the next one together,
so a hundred senders in a hundred rooms cost one commit. What everybody has already waits for company, as long as
`delivery_tick_ms`.

Rules:
1. A batch is formed by its room's sequencer and ends in one of four ways: committed, surely not written, fenced, or not
   known.
2. Where it is not known it is settled (`runtime/settling.py`). Until then whoever sends it again with its key waits for
   that: nobody publishes it beside what may be there.
3. A log that is away is tried again after a backoff of at most `AWAY_CEILING_MS`. Who waits for it is refused with
   `RoomUnavailable` when `adapter_timeout_ms` have passed, at once where the batch surely failed. What everybody has is
   kept, in order, until the log takes it; at most `delivery_queue_limit` entries are, and then sends are refused.
4. A room that somebody else has taken over is closed: what the log never got of it is a dead letter (`fenced`).
5. Stopping writes what is left until the deadline; what is left then is a dead letter.
6. Where a batch has drafts, all that was seen is in the log once it is: its head is proven with it, if nothing unstored
   was said for `PROVEN_AGAIN_S` (`runtime/appends.py`). What is proven is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.adapters.room_log import APPENDED_AT_ONCE, APPENDED_BYTES, FENCED, LogUnavailable
from chatx.config import ChatConfig
from chatx.core.message import Draft, Message
from chatx.core.sequencer import Flight, Waiting
from chatx.errors import AdapterError, ChatError, Closed, RoomUnavailable
from chatx.runtime.appends import Names, append_of
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.runtime.log_backlog import LogBacklog, room_lost
from chatx.runtime.log_senders import LogSenders, tell
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.process import RoomProcess
from chatx.runtime.settling import Settling
from chatx.runtime.store_state import StoreState
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

GROUP_ROOMS = 256
"""Rooms in one transaction, at most."""

OWING_ROOMS = 64
"""Rooms of these that are kept for what nobody waits for, where there is some, or it would wait for ever under load."""

GROUP_ENTRIES = 2048
"""Entries in one transaction beyond which no further room is added to it."""

NAMED_AT_ONCE = 65_536
"""Users that one room's batch names for the outbox, at most, but for a single entry; and those in a transaction beyond
which no further room is added."""


class Publisher(Protocol):
    """Who places drafts, and is told what became of them."""

    def place(self, draft: Draft, epoch: str, offset: int, stored: bool) -> Message:
        """Return the draft as the message at that place."""
        ...

    def committed(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        """Let everybody have a message that the log has; raise `RoomUnavailable` where the room cannot."""
        ...

    def publish(self, process: RoomProcess, draft: Draft, scope: bytes | None) -> Message:
        """Place a draft that needs no storing and let everybody have it; errors as `Sending`."""
        ...


class Committing(LogBacklog):
    """The worker that brings one chat's entries to its log.

    Attributes:
        saved: Entries committed so far.
        retried: Batches that failed and were tried again, so far.
        senders: Who waits for the log.
        publisher: See `Publisher`.
        names: See `Names`; None where the log keeps no outbox.
        on_fenced: Called with a room that somebody else has taken over.
    """

    bytes: int  # of the backlog; again, since it changes here too

    def __init__(
        self,
        *,
        config: ChatConfig,
        boundary: Boundary,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        letters: DeadLetters,
        storage: LogStorage,
    ) -> None:
        super().__init__(config, loop, boundary.timeout_s)
        self._log: Any = config.persistence
        self._name = adapter_name(config.persistence)
        self._call = boundary.caller("saving")
        self._telemetry = telemetry
        self._letters = letters
        self._storage = storage
        self._tick_s = config.delivery_tick_ms / 1000
        self._nodes = config.cluster_strategy != "local"
        self.saved: int = 0
        self.retried: int = 0
        self.publisher: Publisher | None = None
        self.names: Names | None = None
        self.on_fenced: Callable[[RoomProcess], object] | None = None
        self._store = StoreState(self._name, loop, telemetry, config.delivery_retry_base_ms)
        self._jitter = random.Random()
        self.senders: LogSenders = LogSenders(
            loop, boundary.timeout_s, withdraw=self._withdraw, retry_after=lambda: self.retry_after
        )
        self._at_once = asyncio.Event()  # a log that is away is to be tried now, once
        transactions = getattr(config.persistence, "transactions", 1)
        self._transactions = asyncio.Semaphore(transactions)
        self._one_at_a_time = transactions == 1
        self._settling = Settling(storage, self._store, self)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to write."""
        self._spawn(self._work(), "chatx log")

    @property
    def away(self) -> bool:
        """Whether the log could not be used when it was tried last."""
        return bool(self._store.rounds)

    @property
    def retry_after(self) -> float:
        """About how many seconds until something is written."""
        if self._store.rounds:
            return max(self._store.next_try - self._loop.time(), self._tick_s)
        return self._tick_s

    def hurry(self) -> None:
        """Wait for no further entry, and try a log that is away at once: the chat stops."""
        self._hurried = True
        self._soon.set()
        self._at_once.set()

    def try_at_once(self) -> None:
        """Have a log that is away tried now: something says that it is back."""
        if self._store.rounds:
            self._store.try_at_once()
            self._at_once.set()

    async def close(self) -> None:
        """End the worker; an entry that the log never got is a dead letter. Twice is harmless."""
        self._closed = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        error = Closed("The chat was stopped before the store had this; send it again with the same idempotency key.")
        for processes in list(self._busy.values()):
            for process in list(processes):
                self._give_up(process, "stopped", error)
        self.senders.close()

    # The worker

    async def _work(self) -> None:
        while True:
            try:
                await self._wanted.wait()
                await self._wait_for_company()
                if self._store.rounds:
                    await self._wait_for_the_log()
                await self._transactions.acquire()
                await self._begin()
            except Exception:
                # Ours, not the log's, which is contained. The worker goes on, and what was not in flight waits.
                logger.exception("The log's worker failed; it goes on.", extra={"adapter": self._name})
                await asyncio.sleep(self._tick_s)

    async def _begin(self) -> None:
        formed: list[RoomProcess] = []
        try:
            group = self._group(formed)
        except Exception:
            # Nothing of it was given to the log: no batch stays in flight for it, and no transaction is held.
            self._transactions.release()
            for process in formed:
                self.failed(process)
            raise
        if not group:
            self._transactions.release()
        elif self._one_at_a_time:
            await self._write(group)  # a task of its own would be two turns of the loop more for who waits
            # Who was told just now and sends again at once goes with those who wait already, or both halves of them
            # would wait for two commits each, for as long as they go on.
            await asyncio.sleep(0)
        else:
            self._spawn(self._write(group), "chatx log, one transaction")

    async def _wait_for_company(self) -> None:
        if not self._soon.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._tick_s):
                    await self._soon.wait()

    async def _wait_for_the_log(self) -> None:
        wait = self._store.next_try - self._loop.time()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._at_once.wait()
        self._at_once.clear()

    def _group(self, formed: list[RoomProcess]) -> list[tuple[RoomProcess, Flight]]:
        """Form the batches of the next transaction, of those rooms first for which somebody waits; add to `formed`."""
        publisher = self.publisher
        if publisher is None:
            raise RuntimeError("Nobody places what is to be written.")
        group: list[tuple[RoomProcess, Flight]] = []
        entries = users = 0
        kept = min(OWING_ROOMS, len(self._owing))
        for queue, rooms, most in (
            (self._urgent, GROUP_ROOMS - kept, GROUP_ENTRIES - GROUP_ENTRIES // GROUP_ROOMS * kept),
            (self._owing, GROUP_ROOMS, GROUP_ENTRIES),
        ):
            while queue and len(group) < rooms and entries < most and users < NAMED_AT_ONCE:
                process = next(iter(queue))
                del queue[process]
                sequencer = process.sequencer
                if sequencer is None or not sequencer.ready:
                    continue
                formed.append(process)
                named = 0 if self.names is None else self.names.named(process)
                at_once = max(1, min(APPENDED_AT_ONCE, NAMED_AT_ONCE // named)) if named else APPENDED_AT_ONCE
                flight = sequencer.form(at_once, APPENDED_BYTES, publisher.place)
                process.update_detour()
                group.append((process, flight))
                entries += len(flight.owed) + len(flight.drafts)
                users += named * len(flight.drafts)
        self._look()
        return group

    async def _write(self, group: list[tuple[RoomProcess, Flight]]) -> None:
        try:
            group = await self._with_terms(group)
            if not group:
                return
            began = self._loop.time()
            appends = [
                append_of(process, flight, self._storage.term(process.room_id), began, self.names)
                for process, flight in group
            ]
            try:
                answers = await self._call(self._name, self._log.append, appends)
            except (ChatError, AdapterFailure) as error:
                surely = isinstance(error.__cause__, LogUnavailable) or getattr(error, "failure", "") in _NOT_CALLED
                self.went_wrong(getattr(error, "failure", "raised"))
                for process, flight in group:
                    if surely:
                        self.failed(process)
                    else:
                        self._leave_open(process, flight, getattr(error, "running", None))
                return
            if isinstance(answers, str) or not isinstance(answers, Sequence) or len(answers) != len(group):
                self._boundary_wrong(answers, len(group))
                self.went_wrong("wrong_answer")
                for process, flight in group:
                    self._leave_open(process, flight, None)
                return
            self.came_back()
            self._tell(group, answers, began)
            for (process, flight), answer in zip(group, answers, strict=True):
                if answer is None:
                    self.committed(process)
                elif not isinstance(answer, str) or (answer == FENCED and self._storage.doubts(process.room_id)):
                    # It may be there, or a take-over of ours came late and fenced this: the log is asked.
                    if answer != FENCED:
                        self.went_wrong("wrong_answer")
                    self._leave_open(process, flight, None)
                elif answer == FENCED:
                    self.fenced(process)
                else:
                    logger.error(
                        "The log refuses what room %r has for it, and is asked again: %s",
                        process.room_id,
                        answer,
                        extra={"room": process.room_id},
                    )
                    self._rest(process)
                    self.failed(process)
        except Exception:
            # Ours, or of an answer that cannot be read. What is in flight still is settled, or it would be so for ever.
            logger.exception("What the log %s answered could not be taken.", self._name, extra={"adapter": self._name})
            self.went_wrong("raised")
            for process, flight in group:
                self._leave_open(process, flight, None)
        finally:
            self._transactions.release()

    async def _with_terms(self, group: list[tuple[RoomProcess, Flight]]) -> list[tuple[RoomProcess, Flight]]:
        """Take those rooms over of which this is the first that is written; return what can be."""
        new = [each for each in group if self._storage.term(each[0].room_id) is None]
        if not new:
            return group
        owned = await asyncio.gather(
            *(self._storage.owns(process.room_id, flight.after) for process, flight in new), return_exceptions=True
        )
        unable: set[RoomProcess] = set()
        for (process, _), answer in zip(new, owned, strict=True):
            if answer is True:
                continue
            unable.add(process)
            if answer is False:
                self.fenced(process)
            elif isinstance(answer, AdapterError):
                self.went_wrong("raised")
                self.failed(process)
            else:
                raise answer
        return [each for each in group if each[0] not in unable]

    # How it ended

    def committed(self, process: RoomProcess) -> None:
        """Let everybody have what is in flight in a room, which the log has."""
        sequencer, publisher = process.sequencer, self.publisher
        if sequencer is None or publisher is None or sequencer.flight is None:
            return  # it was given up meanwhile
        flight = sequencer.committed()
        self.saved += len(flight.owed) + len(flight.drafts)
        self._no_longer_owed(flight.owed)
        if flight.proves:
            process.proofs += 1
            # Where the proof was withdrawn while this was in flight, nobody knows which of the two came last.
            process.doubted = process.doubted or (flight.stood and not process.proven)
            process.proven = True
        for waiting in flight.drafts:
            message, sender = waiting.message, waiting.sender
            self.bytes -= waiting.weight
            if message is None:
                continue
            try:
                publisher.committed(process, message, waiting.scope)
            except ChatError as error:
                tell(sender, error)
            else:
                if not sender.done():
                    sender.set_result(message)
        if self.names is not None:
            self.names.wrote(flight.told)
            if flight.untold:
                self.names.left_out(process, [each.message for each in flight.drafts if each.message is not None])
        self._go_on(process)

    def failed(self, process: RoomProcess) -> None:
        """Take back what is in flight in a room: the log has nothing of it."""
        sequencer = process.sequencer
        if sequencer is None or sequencer.flight is None:
            return
        flight = sequencer.failed()
        self.retried += 1
        error = RoomUnavailable(
            "The store could not take this, so nothing was sent; send again later.", retry_after=self.retry_after
        )
        for waiting in flight.drafts:
            if waiting.over:
                self.bytes -= waiting.weight
                tell(waiting.sender, error)
        self._go_on(process)

    def _go_on(self, process: RoomProcess) -> None:
        """Publish what waits behind nothing any more, and note what is to be written next."""
        sequencer, publisher = process.sequencer, self.publisher
        if sequencer is None or publisher is None:
            return
        process.update_detour()
        # A proof that stands must be withdrawn before anything unstored is seen: then they go with the next batch.
        while not process.proven and (waiting := sequencer.next_free()) is not None:
            sender = waiting.sender
            self.bytes -= waiting.weight
            if sender.done():
                continue  # nobody waits for it any more, and nobody has it
            try:
                message = publisher.publish(process, waiting.draft, waiting.scope)
            except ChatError as error:
                tell(sender, error)
            else:
                sender.set_result(message)
        process.update_detour()
        self._note(process, sequencer)

    def _leave_open(self, process: RoomProcess, flight: Flight, running: asyncio.Future[Any] | None) -> None:
        sequencer = process.sequencer
        if sequencer is None or sequencer.flight is not flight or sequencer.unsettled:
            return
        sequencer.unsettled = True
        self._spawn(self._settling.settle(process, flight, running), "chatx log, one room settled")

    def fenced(self, process: RoomProcess) -> None:
        """Close a room that somebody else has taken over."""
        # Nodes take rooms over from each other where they could not agree for a while.
        whose = "another node" if self._nodes else "somebody else, so two chats write to one store"
        logger.log(
            logging.WARNING if self._nodes else logging.ERROR,
            "Room %r was taken over by %s; it is closed here.",
            process.room_id,
            whose,
            extra={"room": process.room_id, "code": "fenced"},
        )
        if self._telemetry.watched("room_fenced"):
            self._telemetry.emit("room_fenced", {}, {"room_id": process.room_id})
        self._storage.forget(process.room_id)
        self._give_up(process, "fenced", room_lost())
        if self.on_fenced is not None:
            self.on_fenced(process)

    def _give_up(self, process: RoomProcess, reason: str, error: ChatError) -> None:
        sequencer = process.sequencer
        if sequencer is None:
            return
        owed, waiting = sequencer.fence()
        process.update_detour()
        for each in owed:
            if isinstance(each.entry, Message):
                self._letters.add(DeadLetter(each.entry, "persistence", None, 0, reason))
        self._no_longer_owed(owed)
        for one in waiting:
            self.bytes -= one.weight
            tell(one.sender, error)
        self._urgent.pop(process, None)
        self._owing.pop(process, None)
        self._not_busy(process)

    def _withdraw(self, process: RoomProcess, waiting: Waiting) -> bool:
        sequencer = process.sequencer
        if sequencer is None or not sequencer.withdraw(waiting):
            return False
        self.bytes -= waiting.weight
        self._go_on(process)
        return True

    # Whether it is there

    def went_wrong(self, reason: str) -> None:
        """Take note that the log could not be used."""
        first = not self._store.rounds
        self._store.backs_off(self._jitter.random())
        if first:
            self._store.goes_away(reason, self.size)

    def came_back(self) -> None:
        """Take note that the log could be used."""
        if self._store.rounds:
            self._store.comes_back(self.size)

    def _boundary_wrong(self, answers: object, expected: int) -> None:
        logger.error(
            "The log %s answered append with %.100r, not with one answer for each of %d rooms.",
            self._name,
            answers,
            expected,
            extra={"adapter": self._name, "failure": "wrong_answer"},
        )

    def _tell(self, group: list[tuple[RoomProcess, Flight]], answers: Sequence[object], began: float) -> None:
        if self._telemetry.watched("delivery_batch"):
            counts = [len(flight.owed) + len(flight.drafts) for _, flight in group]
            failed = sum(count for count, answer in zip(counts, answers, strict=True) if answer is not None)
            self._telemetry.emit(
                "delivery_batch",
                {
                    "messages": sum(counts),
                    "failed": failed,
                    "duration_ms": (self._loop.time() - began) * 1000,
                },
                {},
            )

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


# Failures of the boundary before the log was called at all.
_NOT_CALLED = frozenset({"busy", "stopped"})
