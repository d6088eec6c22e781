"""Dead letters: deliveries that were given up. Each is kept, counted, logged, told as an event and to `on_dead_letter`.

Rules:
1. The newest `dead_letter_limit` letters are kept for looking at; the oldest goes.
2. At most `TELLING` calls of `on_dead_letter` are under way. The letters wait for theirs in order, and no delivery
   waits for them. A call that outlives its timeout keeps its place until it has ended.
3. At most `UNTOLD_LETTERS` and `UNTOLD_BYTES` wait so; a letter beyond that is not given to the handler, and that is
   logged.
4. Of each minute's letters `LOGGED_PER_MINUTE` have a line of their own in the log; the next line says how many had
   none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from chatx.adapters.boundary import AdapterFailure, Boundary
from chatx.config import ChatConfig
from chatx.core.log_limit import LogLimit
from chatx.core.message import Message, weigh
from chatx.errors import ChatError
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

TELLING = 8
"""Calls of `on_dead_letter` under way at a time, at most."""

UNTOLD_LETTERS = 50_000
"""Dead letters that wait for their call of `on_dead_letter`, at most."""

UNTOLD_BYTES = 64 * 1024 * 1024
"""The same in bytes of their messages."""

LOGGED_PER_MINUTE = 60
"""Dead letters with a line of their own in the log, in a minute."""

Target: TypeAlias = Literal["persistence", "notifier"]


class DeadLetter(Struct, frozen=True):
    """A delivery that was given up.

    Attributes:
        message: What was to be delivered.
        adapter: `persistence` or `notifier`.
        user_id: Whom the notifier was to tell. None for persistence, and where it stands for all whom the message was
            for: they could not be found, or the notifier's queue, or the outbox, was full.
        attempts: How often the delivery was tried. A try that failed because the store was away does not count.
        reason: How the last attempt failed: `raised`, `timeout`, `wrong_answer` or `busy`. Without one: `stopped` (the
            chat was), `queue_full` (the notifier's was, or the outbox) or `too_many_members` (a room's, for a notifier
            that does not say whom to notify).
    """

    message: Message
    adapter: Target
    user_id: str | None
    attempts: int
    reason: str


class DeadLetters:
    """The dead letters of one chat, and its calls of `on_dead_letter`.

    Attributes:
        count: Deliveries given up so far.
    """

    def __init__(
        self,
        *,
        config: ChatConfig,
        boundary: Boundary,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        kept: deque[DeadLetter],
    ) -> None:
        self._handler: Any = config.on_dead_letter
        self._call = boundary.caller("dead letters")
        self._telemetry = telemetry
        self._loop = loop
        self._kept = kept
        self._logged = LogLimit(LOGGED_PER_MINUTE)
        self._refused = LogLimit(1)
        self._untold: deque[DeadLetter] = deque()
        self._untold_bytes = 0
        self._telling: set[asyncio.Task[None]] = set()
        self._told = asyncio.Event()
        self._closed = False
        self.count: int = 0

    @property
    def has_handler(self) -> bool:
        """Whether there is an `on_dead_letter` to be told."""
        return self._handler is not None

    def add(self, letter: DeadLetter) -> None:
        """Take a delivery that is given up."""
        message = letter.message
        self.count += 1
        self._kept.append(letter)
        if (left_out := self._logged.due(self._loop.time())) is not None:
            logger.error(
                "Message %s of room %r is a dead letter: %s failed %d times (%s).%s",
                message.id,
                message.room_id,
                letter.adapter,
                letter.attempts,
                letter.reason,
                f" {left_out} dead letters before it were not logged." if left_out else "",
                extra={
                    "message_id": message.id,
                    "room": message.room_id,
                    "user": letter.user_id,
                    "adapter": letter.adapter,
                    "code": letter.reason,
                },
            )
        if self._telemetry.watched("dead_letter"):
            about = {"room_id": message.room_id, "message_id": message.id, "adapter": letter.adapter}
            self._telemetry.emit("dead_letter", {"attempts": letter.attempts}, about)
        if self._handler is not None:
            self._tell_soon(letter)

    async def close(self, deadline: float) -> None:
        """End the calls of `on_dead_letter`, which have until the deadline (loop time). Twice is harmless."""
        if self._telling:
            self._told.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, deadline - self._loop.time())):
                    await self._told.wait()
        self._closed = True
        hung = set(self._telling)
        for telling in hung:
            telling.cancel()
        if hung:
            logger.error(
                "%d calls of on_dead_letter did not end in time, and %d dead letters were not given to it.",
                len(hung),
                len(self._untold),
                extra={"adapter": "on_dead_letter", "code": "timeout"},
            )
            self._untold.clear()
            await asyncio.wait(hung)

    def _tell_soon(self, letter: DeadLetter) -> None:
        weight = weigh(letter.message)
        if len(self._untold) < UNTOLD_LETTERS and self._untold_bytes + weight <= UNTOLD_BYTES and not self._closed:
            self._untold.append(letter)
            self._untold_bytes += weight
            self._tell_next()
        elif (left_out := self._refused.due(self._loop.time())) is not None:
            logger.error(
                "A dead letter was not given to on_dead_letter, nor were %d before it: %d wait for that already.",
                left_out,
                len(self._untold),
                extra={
                    "adapter": "on_dead_letter",
                    "room": letter.message.room_id,
                    "user": letter.user_id,
                    "code": "queue_full",
                },
            )

    def _tell_next(self) -> None:
        while self._untold and len(self._telling) < TELLING and not self._closed:
            letter = self._untold.popleft()
            self._untold_bytes -= weigh(letter.message)
            telling = self._loop.create_task(self._tell(letter), name="chatx dead letter")
            self._telling.add(telling)
            telling.add_done_callback(self._ended)
        if not self._telling:
            self._told.set()

    def _ended(self, telling: asyncio.Task[None]) -> None:
        self._telling.discard(telling)
        self._tell_next()

    async def _tell(self, letter: DeadLetter) -> None:
        try:
            await self._call("on_dead_letter", self._handler, letter)
        except ChatError:
            pass
        except AdapterFailure as failure:
            if failure.running is not None:
                await asyncio.wait((failure.running,))
