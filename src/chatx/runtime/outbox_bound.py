"""How much a log keeps for the notifier, and what becomes of a message when that is as much as it may be.

Rules:
1. The log is asked once in `COUNTED_EVERY_S`. In between, what is written and settled is added up: what others drop or
   let be tried again shows with the next count.
2. At `outbox_limit` rows, dead ones included, no more is written. A message is stored and acknowledged as ever; its
   notification is a dead letter at once (`queue_full`), as it is with the notifier's queue in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from chatx.adapters.outbox import Outcome
from chatx.core.log_limit import LogLimit
from chatx.core.message import Message
from chatx.runtime.dead_letters import DeadLetter, DeadLetters

logger: logging.Logger = logging.getLogger("chatx")

COUNTED_EVERY_S = 60.0
"""Seconds from one count to the next."""


class OutboxBound:
    """What one log keeps for the notifier, about, and its bound.

    Attributes:
        alive: Rows that are not dead, about.
        dead: Rows that are, about.
    """

    def __init__(self, limit: int, letters: DeadLetters, log_name: str) -> None:
        self._limit = limit
        self._letters = letters
        self._log_name = log_name
        self._logged = LogLimit(1)
        self._next = 0.0
        self._written = 0
        self.alive: int = 0
        self.dead: int = 0

    @property
    def full(self) -> bool:
        """Whether no more is to be written."""
        return self.alive + self.dead >= self._limit

    def wrote(self, rows: int) -> None:
        """Take note of rows that were written."""
        self.alive += rows
        self._written += rows

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of what became of rows."""
        dead = sum(each.state == "dead" for each in outcomes)
        self.alive = max(0, self.alive - dead - sum(each.state == "done" for each in outcomes))
        self.dead += dead

    def begin_count(self, now: float) -> bool:
        """Return whether the log is to be asked now (loop time); what is written from here on adds to its answer."""
        if now < self._next:
            return False
        self._next = now + COUNTED_EVERY_S
        self._written = 0
        return True

    def counted(self, alive: int, dead: int) -> None:
        """Take the log's answer."""
        self.alive, self.dead = alive + self._written, dead

    def leave_out(self, messages: Sequence[Message], now: float) -> None:
        """Give up the notifications of messages that were stored while it was full."""
        if (left_out := self._logged.due(now)) is not None:
            logger.error(
                "The log %s keeps %d notifications, %d of them dead, which is as much as it may (outbox_limit): what "
                "is stored now is not told to the notifier, and is a dead letter. See to the notifier, and let the "
                "dead ones be tried again or drop them (chatx outbox retry --all, drop --all). %d lines like this were "
                "left out.",
                self._log_name,
                self.alive + self.dead,
                self.dead,
                left_out,
                extra={"adapter": self._log_name, "code": "queue_full"},
            )
        for message in messages:
            self._letters.add(DeadLetter(message, "notifier", None, 0, "queue_full"))
