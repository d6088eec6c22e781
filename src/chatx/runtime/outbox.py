"""The outbox as its chat works at it: what the log keeps for the notifier is claimed, told, and settled.

Rules:
1. A stored entry's notification is written with it and claimed from the log, by whoever gets there first; it is never
   only in memory. What the process has claimed when it dies is claimed anew when its lease is over.
2. A round tells each user of a row once. Those with whom that failed stay in the row, which is due again after a
   backoff; after `delivery_max_retries` retries it is dead.
3. At most `CLAIMED_AT_ONCE` rows are claimed, `CALLS` of them are worked at, and `CALLS` calls of the notifier are
   under way. A call that outlives its timeout keeps its place until it has ended, and its user is not told before.
4. A lease is made longer while a round goes on, and with it what was told is written down.
5. The log's calls for the outbox have threads of their own, and so have the notifier's.
6. The log keeps at most `outbox_limit` rows; see `outbox_bound`.
7. Stopping tells what is due until the deadline; what is left stays in the log, and is due at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.adapters.outbox import OUTBOX_USERS, Claimed, Outcome
from chatx.adapters.room_log import Recipients
from chatx.config import ChatConfig
from chatx.core.backoff import CEILING_MS, backoff_ms
from chatx.core.log_limit import LogLimit
from chatx.core.message import Message
from chatx.errors import ChatError
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.runtime.notifying import RECIPIENTS, users_of
from chatx.runtime.outbox_bound import OutboxBound
from chatx.runtime.outbox_round import Round
from chatx.runtime.process import RoomProcess
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

CALLS = 8
"""Calls of the notifier under way at a time, at most, and rows that are worked at."""

CLAIMED_AT_ONCE = 64
"""Rows that are claimed at a time, at most."""

LEASE_MS = 15_000
"""How long a row is another's when its claimer has died, in ms."""

LOOKED_EVERY_S = 5.0
"""How often the log is looked into for rows that others have left, in seconds."""

# Times at which the log is looked into are so far apart, in ms, so that there are few of them.
_STEP_MS = 100


class Outbox:
    """The worker that tells one chat's notifier what its log keeps for it.

    Attributes:
        bound: How much the log keeps.
        delivered: Users told so far.
        retried: Rows that failed and were put back, so far.
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
        self._log: Any = config.persistence
        self._log_name = adapter_name(config.persistence)
        self._notifier: Any = config.notifier
        self._name = adapter_name(config.notifier)
        self._names_recipients = hasattr(config.notifier, "recipients")
        self._boundary = boundary
        self._call_log = boundary.caller("outbox")
        self._call = boundary.caller("notifying from the outbox")
        self._telemetry = telemetry
        self._loop = loop
        self._letters = letters
        self._tick_s = config.delivery_tick_ms / 1000
        self._max_retries = config.delivery_max_retries
        self._retry_base_ms = config.delivery_retry_base_ms
        self.bound: OutboxBound = OutboxBound(config.outbox_limit, letters, self._log_name)
        self.delivered: int = 0
        self.retried: int = 0
        self._claimer = secrets.token_hex(8)
        # The clock of rows goes on with the loop's, so that a step of the machine's delays nothing.
        self._began_ms = time.time_ns() // 1_000_000
        self._began = loop.time()
        self._rounds: dict[str, Round] = {}
        self._waiting: deque[Round] = deque()  # behind those that are worked at
        self._turns: deque[Round] = deque()  # those with somebody to tell, in turns
        self._worked = 0
        self._free = CALLS
        self._late: dict[tuple[str, str], asyncio.Future[Any]] = {}  # (row, user) -> a call that outlived its time
        self._outcomes: dict[str, Outcome] = {}
        self._due: set[int] = set()  # when rows that were put back are due, in steps of `_STEP_MS`
        self._longer_at = 0.0
        self._failures = 0
        self._more = False  # the last claim brought as much as was asked for
        self._wake = asyncio.Event()
        self._hurried = False
        self._idle = asyncio.Event()
        self._jitter = random.Random()
        self._too_large = LogLimit(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self) -> None:
        """Begin to look into the log."""
        self._spawn(self._work(), "chatx delivery, outbox")

    @property
    def size(self) -> int:
        """Rows that are claimed."""
        return len(self._rounds)

    @property
    def full(self) -> bool:
        """Whether the log is to keep no more."""
        return self.bound.full

    def recipients(self, process: RoomProcess, message: Message) -> Recipients | None:
        """Return whom the notifier is to tell of a message that is to be stored, or None where that is nobody."""
        due_at = self._now_ms()
        # One member more than fit may be the sender.
        if self._names_recipients or process.members_count > OUTBOX_USERS + 1:
            return Recipients(None, due_at)
        users = tuple(user for user in process.members if user != message.user_id)
        if len(users) > OUTBOX_USERS:
            return Recipients(None, due_at)
        return Recipients(users, due_at) if users else None

    def wrote(self, rows: int) -> None:
        """Take note of rows that were written."""
        self.bound.wrote(rows)

    def left_out(self, process: RoomProcess, messages: Sequence[Message]) -> None:
        """Give up the notifications of messages that were stored while the log was to keep no more."""
        untold = [each for each in messages if each.stored and self.recipients(process, each) is not None]
        if untold:
            self.bound.leave_out(untold, self._loop.time())

    def named(self, process: RoomProcess) -> int:
        """Return how many users are written down with each of the room's messages, at most."""
        many = self._names_recipients or process.members_count > OUTBOX_USERS + 1
        return 0 if many else process.members_count

    def look(self) -> None:
        """Look into the log soon: something was written there."""
        self._idle.clear()
        self._wake.set()

    async def drain(self) -> None:
        """Wait until nothing is due any more, or the log cannot be used."""
        self._hurried = True
        if self._failures and not self._rounds:
            return
        self._idle.clear()
        self._wake.set()
        await self._idle.wait()

    async def close(self, deadline: float) -> None:
        """End the worker, and put back the rows it has claimed, until the deadline (loop time). Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for round_ in self._rounds.values():
            row = round_.row
            attempts = row.attempts + bool(round_.failed or round_.unnamed)
            self._outcomes[row.id] = Outcome(row.id, "waiting", round_.users, attempts, self._now_ms())
        self._rounds.clear()
        left = deadline - self._loop.time()
        if self._outcomes and left > 0:
            # What is not put back is claimed anew when its lease is over.
            with contextlib.suppress(TimeoutError, ChatError, AdapterFailure):
                async with asyncio.timeout(left):
                    await self._settle()

    # The log

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                self._make_leases_longer()
                await self._settle()
                await self._claim()
                await self._count()
            except (ChatError, AdapterFailure):
                # It was logged and counted. All that is to be settled waits.
                self._failures += 1
                if not self._rounds:
                    self._idle.set()
                await asyncio.sleep(max(self._tick_s, self._backoff_ms(self._failures) / 1000))
                self._wake.set()
                continue
            except Exception:
                # Ours, not the log's, which is contained.
                logger.exception("The outbox failed; it goes on.", extra={"adapter": self._log_name})
                await asyncio.sleep(self._tick_s)
                self._wake.set()
                continue
            self._failures = 0
            if not (self._more or self._rounds or self._outcomes or self._wake.is_set()):
                self._idle.set()
            await self._wait()

    async def _wait(self) -> None:
        """Wait until there is something to do with the log."""
        now_ms = self._now_ms()
        self._due = {each for each in self._due if each > now_ms}
        wait = LOOKED_EVERY_S
        if self._due:
            wait = min(wait, (min(self._due) - now_ms) / 1000)
        if self._rounds:
            wait = min(wait, max(0.0, self._longer_at - self._loop.time()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()
        if not (self._more or self._hurried):
            # What comes within a moment is claimed together.
            await asyncio.sleep(self._tick_s)

    async def _claim(self) -> None:
        room = CLAIMED_AT_ONCE - len(self._rounds)
        if room <= 0:
            return
        now_ms = self._now_ms()
        answer = await self._call_log(
            self._log_name, self._log.claim_notifications, self._claimer, room, now_ms, now_ms + LEASE_MS
        )
        if not isinstance(answer, Sequence) or not all(isinstance(each, Claimed) for each in answer):
            wrong = f"claim_notifications() answered {type(answer).__name__}, not a list of Claimed"
            self._boundary.failed(self._log_name, "wrong_answer", wrong)
        self._more = len(answer) >= room
        if not self._rounds:
            self._longer_at = self._loop.time() + LEASE_MS / 3000
        for each in answer:
            # One that is worked at still was claimed anew because its lease could not be made longer in time.
            if each.notification.id not in self._rounds:
                self._begin(each)
        self._go_on()

    async def _count(self) -> None:
        if not self.bound.begin_count(self._loop.time()):
            return
        answer = await self._call_log(self._log_name, self._log.count_notifications)
        if not isinstance(answer, tuple) or [type(each) for each in answer] != [int, int]:
            wrong = f"count_notifications() answered {answer!r:.100}, not two numbers of rows"
            self._boundary.failed(self._log_name, "wrong_answer", wrong)
        self.bound.counted(*answer)

    async def _settle(self) -> None:
        while self._outcomes:
            some = dict(list(self._outcomes.items())[: 2 * CLAIMED_AT_ONCE])
            outcomes = list(some.values())
            await self._call_log(self._log_name, self._log.settle_notifications, self._claimer, outcomes)
            self.bound.settled(outcomes)
            for id_, outcome in some.items():
                if self._outcomes.get(id_) is outcome:
                    del self._outcomes[id_]

    def _make_leases_longer(self) -> None:
        if not self._rounds or self._loop.time() < self._longer_at:
            return
        self._longer_at = self._loop.time() + LEASE_MS / 3000
        until = self._now_ms() + LEASE_MS
        for id_, each in self._rounds.items():
            self._outcomes[id_] = Outcome(id_, "claimed", each.users, each.row.attempts, until)

    # The rounds

    def _begin(self, claimed: Claimed) -> None:
        row, message = claimed.notification, claimed.entry
        if not isinstance(message, Message):
            # Retention has taken what it was about.
            self._outcomes[row.id] = Outcome(row.id, "dead", row.users, row.attempts, row.due_at, "entry_gone")
            logger.error(
                "The notification of message %s of room %r is dead: the log does not keep the message any more.",
                row.id,
                row.room_id,
                extra={"message_id": row.id, "room": row.room_id, "code": "entry_gone"},
            )
            self._wake.set()
            return
        round_ = Round(row, message, None if row.users is None else deque(row.users), set(), [], [])
        self._rounds[row.id] = round_
        if row.users is None and not self._names_recipients:
            if (left_out := self._too_large.due(self._loop.time())) is not None:
                logger.error(
                    "Room %r has more than %d members, so the notifier has to say whom to notify: give it "
                    "recipients(message), and let the dead notification be tried again (chatx outbox retry). "
                    "%d others like it were not logged.",
                    row.room_id,
                    OUTBOX_USERS,
                    left_out,
                    extra={"room": row.room_id, "adapter": self._name, "code": "too_many_members"},
                )
            round_.unnamed = True
            self._give_up(round_, row.attempts, "too_many_members")
            return
        self._waiting.append(round_)

    def _go_on(self) -> None:
        """Begin as many calls as there are places for."""
        while self._waiting and self._worked < CALLS:
            self._worked += 1
            self._turns.append(self._waiting.popleft())
        while self._turns and self._free:
            round_ = self._turns.popleft()
            if round_.left is None:
                self._free -= 1
                self._spawn(self._find_recipients(round_), "chatx delivery, one notification")
                continue
            user_id = round_.left.popleft() if round_.left else None
            if round_.left:
                self._turns.append(round_)
            if user_id is None:
                self._end_if_over(round_)
            elif (round_.row.id, user_id) in self._late:
                round_.postponed.append(user_id)
                self._end_if_over(round_)
            else:
                self._free -= 1
                round_.under_way.add(user_id)
                self._spawn(self._notify(round_, user_id), "chatx delivery, one notification")

    async def _notify(self, round_: Round, user_id: str) -> None:
        running = None
        try:
            await self._call(self._name, self._notifier.notify, user_id, round_.message)
            self.delivered += 1
        except (ChatError, AdapterFailure) as error:
            round_.failed.append(user_id)
            round_.reason = getattr(error, "failure", "raised")
            running = getattr(error, "running", None)
        round_.under_way.discard(user_id)
        self._called((round_.row.id, user_id), running)
        self._end_if_over(round_)
        self._go_on()

    async def _find_recipients(self, round_: Round) -> None:
        running = None
        try:
            answer = await self._call(self._name, self._notifier.recipients, round_.message)
            # The answer may be a generator of the adapter's, which runs only now.
            users = self._boundary.plain(self._name, users_of, answer)
            if users is None:
                wrong = f"recipients() answered {type(answer).__name__}, not at most {RECIPIENTS} ids"
                self._boundary.failed(self._name, "wrong_answer", wrong)
            round_.left = deque(dict.fromkeys(users))
            self._turns.append(round_)
        except (ChatError, AdapterFailure) as error:
            round_.unnamed = True
            round_.left = deque()
            round_.reason = getattr(error, "failure", "raised")
            running = getattr(error, "running", None)
            self._end_if_over(round_)
        self._called((round_.row.id, ""), running)
        self._go_on()

    def _called(self, about: tuple[str, str], running: asyncio.Future[Any] | None) -> None:
        """Give a call's place back, when it has ended."""
        if running is None or running.done():
            self._free += 1
            return
        self._late[about] = running

        def ended(_: object) -> None:
            del self._late[about]
            self._free += 1
            if not self._closed:
                self._go_on()

        running.add_done_callback(ended)

    def _end_if_over(self, round_: Round) -> None:
        if round_.left or round_.under_way or round_.row.id not in self._rounds:
            return
        self._worked -= 1
        row, failed = round_.row, bool(round_.failed or round_.unnamed)
        if not (failed or round_.postponed):
            self._ended(round_, Outcome(row.id, "done"))
            return
        attempts = row.attempts + failed
        if attempts > self._max_retries:
            self._give_up(round_, attempts, round_.reason)
            return
        self.retried += failed
        # Whose earlier call has not ended is not asked for at once.
        wait_ms = self._backoff_ms(attempts) if failed else min(self._boundary.timeout_s * 1000, CEILING_MS)
        if failed and self._telemetry.watched("delivery_retry"):
            about = {"room_id": row.room_id, "message_id": row.id, "adapter": "notifier"}
            self._telemetry.emit("delivery_retry", {"attempt": attempts, "backoff_ms": wait_ms}, about)
        due_at = self._now_ms() + round(wait_ms)
        self._due.add((due_at // _STEP_MS + 1) * _STEP_MS)
        self._ended(round_, Outcome(row.id, "waiting", round_.users, attempts, due_at))

    def _give_up(self, round_: Round, attempts: int, reason: str) -> None:
        row, users = round_.row, round_.users
        self._ended(round_, Outcome(row.id, "dead", users, attempts, row.due_at, reason))
        for user_id in users if users is not None else (None,):
            self._letters.add(DeadLetter(round_.message, "notifier", user_id, attempts, reason))

    def _ended(self, round_: Round, outcome: Outcome) -> None:
        del self._rounds[round_.row.id]
        self._outcomes[round_.row.id] = outcome
        # Where the log has more, the next are claimed when half of these are over: many together.
        if not self._more or len(self._rounds) <= CLAIMED_AT_ONCE // 2:
            self._wake.set()

    def _backoff_ms(self, attempt: int) -> float:
        return backoff_ms(attempt, self._retry_base_ms, self._jitter.random())

    def _now_ms(self) -> int:
        return self._began_ms + round((self._loop.time() - self._began) * 1000)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
