"""Entries on their way to a log: of many rooms in one transaction, one batch of each room at a time.

What is `stored` is asked for at once; whatever comes while a transaction is under way goes into the next one together,
so a hundred senders in a hundred rooms cost one commit. What everybody has already waits for company, as long as
`delivery_tick_ms`.

Rules:
1. A batch is formed by its room's sequencer and ends in one of four ways: committed, surely not written, fenced, or not
   known.
2. Where it is not known, the room is taken over anew, which fences the call that may still be under way, and what is
   behind the head is read: the batch is there as a whole, or nothing of it is.
   Until then whoever sends it again with its key waits for that: nobody publishes it beside what may be there.
3. A log that is away is tried again after a backoff of at most `AWAY_CEILING_MS`. Who waits for it is refused with
   `RoomUnavailable` when `adapter_timeout_ms` have passed, at once where the batch surely failed. What everybody has is
   kept, in order, until the log takes it; at most `delivery_queue_limit` entries are, and then sends are refused.
4. A room that somebody else has taken over is closed: what the log never got of it is a dead letter (`fenced`).
5. Stopping writes what is left until the deadline; what is left then is a dead letter.
6. Where a batch has drafts, all that was seen is in the log once it is: its head is proven with it, if nothing unstored
   was said for `PROVEN_AGAIN_S`. What is proven is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeAlias

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.adapters.room_log import (
    APPENDED_AT_ONCE,
    APPENDED_BYTES,
    FENCED,
    Append,
    Found,
    LogUnavailable,
    Opened,
    Recipients,
    Record,
)
from chatx.config import ChatConfig
from chatx.core.idempotency import key_of
from chatx.core.message import Draft, Entry, Message, Position
from chatx.core.sequencer import Flight, Owed, Sequencer, Waiting
from chatx.errors import AdapterError, ChatError, Closed, RoomUnavailable
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.process import RoomProcess
from chatx.runtime.store_state import StoreState
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

GROUP_ROOMS = 256
"""Rooms in one transaction, at most."""

OWING_ROOMS = 64
"""Rooms of these that are kept for what nobody waits for, where there is some, or it would wait for ever under load."""

GROUP_ENTRIES = 2048
"""Entries in one transaction beyond which no further room is added to it."""

REFUSED_S = 1.0
"""How long a room waits whose batch the log has answered to be wrong, in seconds."""

PROVEN_AGAIN_S = 10.0
"""How long nothing unstored must have been said in a room until a stored message proves its head again, in seconds. The
next unstored one awaits that the proof is withdrawn, so it is not to be so each time where both are said."""

SETTLING = 16
"""Rooms that are being settled at a time, at most."""


_Sender: TypeAlias = "asyncio.Future[Message | ChatError]"


class Publisher(Protocol):
    """Who places drafts, and is told what became of them."""

    def place(self, draft: Draft, head: Position, stored: bool) -> Message:
        """Return the draft as the message behind that head."""
        ...

    def committed(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        """Let everybody have a message that the log has; raise `RoomUnavailable` where the room cannot."""
        ...

    def publish(self, process: RoomProcess, draft: Draft, scope: bytes | None) -> Message:
        """Place a draft that needs no storing and let everybody have it; errors as `Sending`."""
        ...


class Committing:
    """The worker that brings one chat's entries to its log.

    Attributes:
        size: Entries that everybody has and the log does not.
        bytes: What they weigh, and the drafts that wait for the log.
        saved: Entries committed so far.
        retried: Batches that failed and were tried again, so far.
        drained: Set when the log has everything.
        publisher: See `Publisher`.
        recipients: Says whom the notifier is to tell of a message, by the log's outbox; None where there is none.
        on_fenced: Called with a room that somebody else has taken over.
    """

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
        self._log: Any = config.persistence
        self._name = adapter_name(config.persistence)
        self._call = boundary.caller("saving")
        self._timeout_s = boundary.timeout_s
        self._telemetry = telemetry
        self._loop = loop
        self._letters = letters
        self._storage = storage
        self._batch_size = config.delivery_batch_size
        self._tick_s = config.delivery_tick_ms / 1000
        self.size: int = 0
        self.bytes: int = 0
        self.saved: int = 0
        self.retried: int = 0
        self.drained: asyncio.Event = asyncio.Event()
        self.drained.set()
        self.publisher: Publisher | None = None
        self.recipients: Callable[[RoomProcess, Message], Recipients | None] | None = None
        self.on_fenced: Callable[[RoomProcess], object] | None = None
        self._store = StoreState(self._name, loop, telemetry, config.delivery_retry_base_ms)
        self._jitter = random.Random()
        self._busy: dict[str, list[RoomProcess]] = {}  # room id -> its lives of which something is under way
        self._written: dict[str, asyncio.Event] = {}  # room id -> set when there is none any more
        self._urgent: dict[RoomProcess, None] = {}  # somebody waits for their next batch
        self._owing: dict[RoomProcess, None] = {}
        # By key, what may be published without its sender; a repeat waits for that. At most a batch of each room.
        self._left: dict[bytes, tuple[RoomProcess, Waiting]] = {}
        # Who waits for the log, and until when, in the order of that; a room admits so many, so these are bounded.
        self._waits: dict[_Sender, tuple[RoomProcess, Waiting, float]] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._resting: set[RoomProcess] = set()  # the log refused their batch just now
        self._wanted = asyncio.Event()  # something is to be written
        self._soon = asyncio.Event()  # it is not to wait for company
        self._hurried = False
        self._at_once = asyncio.Event()  # a log that is away is to be tried now, once
        transactions = getattr(config.persistence, "transactions", 1)
        self._transactions = asyncio.Semaphore(transactions)
        self._one_at_a_time = transactions == 1
        self._settling = asyncio.Semaphore(SETTLING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

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

    def waits(self, room_id: str) -> bool:
        """Return whether something of this room is not in the log yet."""
        return room_id in self._busy

    def latest(self, room_id: str) -> RoomProcess | None:
        """Return the room's latest life of which something is not in the log yet, or None."""
        lives = self._busy.get(room_id)
        return lives[-1] if lives else None

    def has_all(self, room_id: str) -> bool:
        """Return whether the log has every entry of this room."""
        return room_id not in self._busy

    def forget(self, room_id: str) -> None:
        """Do nothing: a log has no holes that a room's life could leave."""

    async def written(self, room_id: str) -> None:
        """Wait until nothing of the room's earlier lives is under way, for as long as a call may take.

        Raises:
            AdapterError: It is still.
        """
        if room_id not in self._busy:
            return
        event = self._written.setdefault(room_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await event.wait()
        if room_id in self._busy:
            raise AdapterError("What was said in this room before is not in the log yet; try again later.")

    def owe(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        """Take a message that everybody has."""
        sequencer = self._sequencer(process, Position(message.epoch, message.offset - 1))
        owed = sequencer.owe(message, scope)
        process.unstored_at = self._loop.time()
        self.size += 1
        self.bytes += owed.weight
        self.drained.clear()
        self._note(process, sequencer)

    def submit(self, process: RoomProcess, draft: Draft, scope: bytes | None, stored: bool) -> Waiting:
        """Take a draft that waits for its place; what became of it is told to its `sender`, a future of a message.

        Raises:
            RoomUnavailable: Somebody else has the room.
        """
        sequencer = process.sequencer or self._sequencer(process, process.head)
        if sequencer.fenced:
            raise _lost()
        noted = sequencer.blocked  # since one that is ahead of this one came, or its batch was formed
        weight = len(draft.content.encode()) + (0 if draft.data is None else draft.data.weight) + _WEIGHT
        waiting = Waiting(draft, scope, stored, self._loop.create_future(), weight)
        sequencer.submit(waiting)
        self.bytes += weight
        if not noted:
            self._note(process, sequencer)
        return waiting

    async def outcome(self, process: RoomProcess, waiting: Waiting) -> Message:
        """Wait for what becomes of a draft.

        Raises:
            RoomUnavailable: The log did not take it in time, or at all; its text says whether it may be there.
        """
        sender: _Sender = waiting.sender
        if not sender.done():
            # One timer for all who wait: one each, and a future beside this one, cost a fifth of a stored send.
            self._waits[sender] = process, waiting, self._loop.time() + self._timeout_s
            if self._expiry is None:
                self._expiry = self._loop.call_later(self._timeout_s, self._expire)
        try:
            told = await sender
        except asyncio.CancelledError:
            if sender.cancelled() and not self._withdraw(process, waiting):
                self._leave(process, waiting)
            raise
        finally:
            self._waits.pop(sender, None)
        if isinstance(told, ChatError):
            # A copy that no future holds: with its traceback it would hold this frame, and that the future.
            raise told.again()
        return told

    def _expire(self) -> None:
        """Refuse those who have waited for as long as a call may take."""
        self._expiry = None
        now = self._loop.time()
        due: list[tuple[RoomProcess, Waiting]] = []
        for process, waiting, until in self._waits.values():
            if until > now:
                self._expiry = self._loop.call_at(until, self._expire)
                break
            due.append((process, waiting))
        for process, waiting in due:
            sender: _Sender = waiting.sender
            del self._waits[sender]
            if sender.done():
                continue
            if self._withdraw(process, waiting):
                text = f"The store took nothing for {self._timeout_s:g} s, so nothing was sent; send again later."
            else:
                self._leave(process, waiting)
                text = (
                    f"The store has not answered for {self._timeout_s:g} s, so it is not known whether the message was "
                    "published; send it again with the same idempotency key."
                )
            sender.set_result(RoomUnavailable(text, retry_after=self.retry_after))

    def left(self, scope: bytes) -> tuple[RoomProcess, Waiting] | None:
        """Return the draft that was sent with this key, whose sender waits no more, and which may be published yet."""
        return self._left.get(scope)

    def _leave(self, process: RoomProcess, waiting: Waiting) -> None:
        """Go on without the sender, who waits no more: a repeat of its key waits for the outcome in its place."""
        if waiting.over:
            return  # it came to its end after the sender was cancelled, and before that was heard here
        sender: _Sender = self._loop.create_future()
        waiting.sender = sender
        scope = waiting.scope
        if scope is None or self._left.get(scope, (process, waiting))[1] is not waiting:
            return
        self._left[scope] = process, waiting

        def told(_: _Sender) -> None:
            if waiting.sender is sender:
                self._left.pop(scope, None)

        sender.add_done_callback(told)

    def hurry(self) -> None:
        """Wait for no further entry, and try a log that is away at once: the chat stops."""
        self._hurried = True
        self._soon.set()
        self._at_once.set()

    async def close(self) -> None:
        """End; what the log never got is a dead letter. Twice is harmless."""
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
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

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
        group = self._group()
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

    def _group(self) -> list[tuple[RoomProcess, Flight]]:
        """Form the batches of the next transaction: of those rooms first for which somebody waits."""
        publisher = self.publisher
        if publisher is None:
            raise RuntimeError("Nobody places what is to be written.")
        group: list[tuple[RoomProcess, Flight]] = []
        entries = 0
        kept = min(OWING_ROOMS, len(self._owing))
        for queue, rooms, most in (
            (self._urgent, GROUP_ROOMS - kept, GROUP_ENTRIES - GROUP_ENTRIES // GROUP_ROOMS * kept),
            (self._owing, GROUP_ROOMS, GROUP_ENTRIES),
        ):
            while queue and len(group) < rooms and entries < most:
                process = next(iter(queue))
                del queue[process]
                sequencer = process.sequencer
                if sequencer is None or not sequencer.ready:
                    continue
                flight = sequencer.form(APPENDED_AT_ONCE, APPENDED_BYTES, publisher.place)
                process.update_detour()
                group.append((process, flight))
                entries += len(flight.owed) + len(flight.drafts)
        self._look()
        return group

    async def _write(self, group: list[tuple[RoomProcess, Flight]]) -> None:
        try:
            group = await self._with_terms(group)
            if not group:
                return
            began = self._loop.time()
            appends = [self._append(process, flight) for process, flight in group]
            try:
                answers = await self._call(self._name, self._log.append, appends)
            except (ChatError, AdapterFailure) as error:
                surely = isinstance(error.__cause__, LogUnavailable) or getattr(error, "failure", "") in _NOT_CALLED
                self._went_wrong(getattr(error, "failure", "raised"))
                for process, flight in group:
                    if surely:
                        self._failed(process)
                    else:
                        self._leave_open(process, flight, getattr(error, "running", None))
                return
            if isinstance(answers, str) or not isinstance(answers, Sequence) or len(answers) != len(group):
                self._boundary_wrong(answers, len(group))
                self._went_wrong("wrong_answer")
                for process, flight in group:
                    self._leave_open(process, flight, None)
                return
            self._came_back()
            self._tell(group, answers, began)
            for (process, flight), answer in zip(group, answers, strict=True):
                if answer is None:
                    self._committed(process)
                elif not isinstance(answer, str) or (answer == FENCED and self._storage.doubts(process.room_id)):
                    # It may be there, or a take-over of ours came late and fenced this: the log is asked.
                    if answer != FENCED:
                        self._went_wrong("wrong_answer")
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
                    self._failed(process)
        except Exception:
            # Ours, or of an answer that cannot be read. What is in flight still is settled, or it would be so for ever.
            logger.exception("What the log %s answered could not be taken.", self._name, extra={"adapter": self._name})
            self._went_wrong("raised")
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
                self._went_wrong("raised")
                self._failed(process)
            else:
                raise answer
        return [each for each in group if each[0] not in unable]

    def _append(self, process: RoomProcess, flight: Flight) -> Append:
        records = tuple(
            Record(entry, None if scope is None else key_of(scope), self._notify(process, entry))
            for entry, scope in flight.entries
        )
        stored = any(each.stored for each in flight.drafts)
        # Nothing unstored is seen while drafts are in flight, and what is owed is ahead of them.
        flight.proves = bool(flight.drafts) and (
            not process.unstored_seen or (stored and self._loop.time() >= process.unstored_at + PROVEN_AGAIN_S)
        )
        # A power cut that took back entries and left the proof of the head before them would have places used again.
        durable = stored or process.proven or flight.proves
        term = self._storage.term(process.room_id)
        return Append(process.room_id, term or 0, flight.after, records, durable, flight.proves)

    def _notify(self, process: RoomProcess, entry: Entry) -> Recipients | None:
        if self.recipients is None or not isinstance(entry, Message) or not entry.stored:
            return None
        return self.recipients(process, entry)

    # How it ended

    def _committed(self, process: RoomProcess) -> None:
        sequencer, publisher = process.sequencer, self.publisher
        if sequencer is None or publisher is None or sequencer.flight is None:
            return  # it was given up meanwhile
        flight = sequencer.committed()
        self.saved += len(flight.owed) + len(flight.drafts)
        self._landed(flight)
        if flight.proves:
            process.proofs += 1
            process.proven = True
        for waiting in flight.drafts:
            message, sender = waiting.message, waiting.sender
            self.bytes -= waiting.weight
            if message is None:
                continue
            try:
                publisher.committed(process, message, waiting.scope)
            except ChatError as error:
                _tell(sender, error)
            else:
                if not sender.done():
                    sender.set_result(message)
        self._go_on(process)

    def _failed(self, process: RoomProcess) -> None:
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
                _tell(waiting.sender, error)
        self._go_on(process)

    def _rest(self, process: RoomProcess) -> None:
        """Form no batch of this room for a while."""
        self._resting.add(process)

        def over() -> None:
            self._resting.discard(process)
            if process.sequencer is not None and not self._closed:
                self._note(process, process.sequencer)

        self._loop.call_later(REFUSED_S, over)

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
                _tell(sender, error)
            else:
                sender.set_result(message)
        process.update_detour()
        self._note(process, sequencer)

    def _leave_open(self, process: RoomProcess, flight: Flight, running: asyncio.Future[Any] | None) -> None:
        sequencer = process.sequencer
        if sequencer is None or sequencer.flight is not flight or sequencer.unsettled:
            return
        sequencer.unsettled = True
        self._spawn(self._settle(process, flight, running), "chatx log, one room settled")

    async def _settle(self, process: RoomProcess, flight: Flight, running: asyncio.Future[Any] | None) -> None:
        if running is not None and not running.done():
            # It may still write: it is not asked about before it has ended.
            await asyncio.wait((running,))
        tail = None
        while tail is None:
            tail = await self._tail(process.room_id, flight)
            if tail is None:
                await asyncio.sleep(max(0.01, self._store.next_try - self._loop.time()))
        opened, found = tail
        # That it can be read says nothing of writing: where nothing was written the next append waits for its backoff.
        sequencer = process.sequencer
        if sequencer is None or sequencer.flight is not flight:
            return
        mine = [entry.id for entry, _ in flight.entries]
        theirs = [entry.id for entry in found.entries]
        # Somebody had the room meanwhile: they wrote more, or withdrew its proof, and then what comes behind the head
        # may have been seen there.
        elsewhere = len(theirs) > len(mine) or (process.proven and not opened.proven)
        if theirs[: len(mine)] == mine:
            self._came_back()
            self._committed(process)
            if elsewhere:
                self.fenced(process)
        elif elsewhere:
            self.fenced(process)
        elif not theirs and self._storage.unwritten(process.room_id, flight.after, opened):
            self._failed(process)
        else:
            self.fenced(process)

    async def _tail(self, room_id: str, flight: Flight) -> tuple[Opened, Found] | None:
        """Fence whatever is under way for a room, and read what is behind its batch's place; None where that fails."""
        try:
            async with self._settling:
                opened = await self._storage.take_over(room_id)
                found = await self._storage.read(room_id, after=flight.after, limit=len(flight.entries) + 1)
        except AdapterError:
            self._went_wrong("raised")
            return None
        return opened, found

    def fenced(self, process: RoomProcess) -> None:
        """Close a room that somebody else has taken over."""
        logger.error(
            "Room %r was taken over by somebody else and is closed here; two chats write to one store.",
            process.room_id,
            extra={"room": process.room_id, "code": "fenced"},
        )
        if self._telemetry.watched("room_fenced"):
            self._telemetry.emit("room_fenced", {}, {"room_id": process.room_id})
        self._storage.forget(process.room_id)
        self._give_up(process, "fenced", _lost())
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
            _tell(one.sender, error)
        self._urgent.pop(process, None)
        self._owing.pop(process, None)
        self._not_busy(process)

    # Accounts

    def _sequencer(self, process: RoomProcess, head: Position) -> Sequencer:
        sequencer = process.sequencer
        if sequencer is None:
            sequencer = process.sequencer = Sequencer(head)
        return sequencer

    def _note(self, process: RoomProcess, sequencer: Sequencer) -> None:
        """Note what a room has for the log now."""
        process.update_detour()
        if sequencer.flight is None and not sequencer.ready:
            self._not_busy(process)
            return
        lives = self._busy.setdefault(process.room_id, [])
        if process not in lives:
            lives.append(process)
        if process in self._resting or lives[0] is not process:
            return  # an earlier life's entries come first: once the next epoch has begun no log takes them
        if sequencer.urgent:
            self._owing.pop(process, None)
            self._urgent[process] = None
        elif sequencer.ready and process not in self._urgent:
            self._owing[process] = None
        self._look()

    def _not_busy(self, process: RoomProcess) -> None:
        lives = self._busy.get(process.room_id)
        if lives is None or process not in lives:
            return
        lives.remove(process)
        if lives:
            if lives[0].sequencer is not None:
                self._note(lives[0], lives[0].sequencer)
            return
        del self._busy[process.room_id]
        event = self._written.pop(process.room_id, None)
        if event is not None:
            event.set()

    def _look(self) -> None:
        if self._urgent or self._owing:
            self._wanted.set()
        else:
            self._wanted.clear()
        if self._urgent or self._hurried or self.size >= self._batch_size:
            self._soon.set()
        else:
            self._soon.clear()

    def _landed(self, flight: Flight) -> None:
        self._no_longer_owed(flight.owed)

    def _no_longer_owed(self, owed: Sequence[Owed]) -> None:
        self.size -= len(owed)
        self.bytes -= sum(each.weight for each in owed)
        if not self.size:
            self.drained.set()

    def _withdraw(self, process: RoomProcess, waiting: Waiting) -> bool:
        sequencer = process.sequencer
        if sequencer is None or not sequencer.withdraw(waiting):
            return False
        self.bytes -= waiting.weight
        self._go_on(process)
        return True

    # Whether it is there

    def _went_wrong(self, reason: str) -> None:
        first = not self._store.rounds
        self._store.backs_off(self._jitter.random())
        if first:
            self._store.goes_away(reason, self.size)

    def _came_back(self) -> None:
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


# What a draft weighs beside its texts.
_WEIGHT = 128

# Failures of the boundary before the log was called at all.
_NOT_CALLED = frozenset({"busy", "stopped"})


def _lost() -> RoomUnavailable:
    return RoomUnavailable("The room is somebody else's now: another chat writes to the same store. Send again later.")


def _tell(sender: _Sender, error: ChatError) -> None:
    if not sender.done():
        sender.set_result(error)
