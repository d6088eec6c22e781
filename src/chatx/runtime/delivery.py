"""What a room hands its messages to: one way to persistence, one to the notifier, and neither waits for the other.

Rules:
1. At most `limit` messages, and `SAVING_BYTES`, wait to be saved, those that wait for a commit included; beyond that
   sends are refused. Nothing is dropped.
2. The notifier has bounds of its own, and no send is refused for it. Of what is stored it is told from the log's
   outbox, where the log has one.
3. Stopping delivers what is left until the deadline; what is left then is a dead letter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from chatx.adapters.boundary import Boundary
from chatx.adapters.outbox import has_outbox
from chatx.config import ChatConfig
from chatx.core.message import Message
from chatx.runtime.committing import Committing
from chatx.runtime.dead_letters import DeadLetter, DeadLetters
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.notifying import Notifying
from chatx.runtime.outbox import Outbox
from chatx.runtime.process import RoomProcess
from chatx.runtime.saving import Saving
from chatx.runtime.storage import Storage
from chatx.telemetry import Telemetry

SAVING_BYTES = 64 * 1024 * 1024
"""Bytes of the messages that wait to be saved, at most; the messages that are in a middleware then come on top."""

_TELLING_SHARE = 0.1
"""The part of a drain that is kept for telling `on_dead_letter` of what it could not deliver."""


class Delivery:
    """The delivery queues of one chat.

    Attributes:
        enabled: Whether there is anybody to deliver to.
        limit: How many messages may wait to be saved.
        committing: The way to a log, where persistence is one.
        letters: The deliveries that were given up.
    """

    def __init__(
        self,
        *,
        config: ChatConfig,
        boundary: Boundary,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        dead_letters: deque[DeadLetter],
        storage: Storage,
    ) -> None:
        self._loop = loop
        self._reserved = 0
        self.enabled: bool = config.persistence is not None or config.notifier is not None
        self.limit: int = config.delivery_queue_limit
        self.letters: DeadLetters = DeadLetters(
            config=config, boundary=boundary, telemetry=telemetry, loop=loop, kept=dead_letters
        )
        self._saving: Saving | None = None
        self.committing: Committing | None = None
        self._notifying: Notifying | None = None
        self._outbox: Outbox | None = None
        if isinstance(storage, LogStorage):
            self.committing = Committing(
                config=config,
                boundary=boundary,
                telemetry=telemetry,
                loop=loop,
                letters=self.letters,
                storage=storage,
            )
        elif config.persistence is not None:
            self._saving = Saving(
                config=config, boundary=boundary, telemetry=telemetry, loop=loop, letters=self.letters
            )
        self._store: Saving | Committing | None = self._saving or self.committing
        if config.notifier is not None:
            self._notifying = Notifying(
                config=config, boundary=boundary, telemetry=telemetry, loop=loop, letters=self.letters
            )
            if self.committing is not None and has_outbox(config.persistence):
                self._outbox = Outbox(
                    config=config, boundary=boundary, telemetry=telemetry, loop=loop, letters=self.letters
                )
                self.committing.names = self._outbox

    def start(self) -> None:
        """Begin to deliver."""
        for queue in (self._store, self._notifying, self._outbox):
            if queue is not None:
                queue.start()

    @property
    def size(self) -> int:
        """Messages that wait to be saved, or are being saved."""
        return 0 if self._store is None else self._store.size

    @property
    def notifications(self) -> int:
        """Messages that wait for the notifier, or are with it."""
        return sum(queue.size for queue in (self._notifying, self._outbox) if queue is not None)

    @property
    def outbox(self) -> tuple[int, int]:
        """Notifications that the log keeps to be told still, and dead ones, as counted last."""
        return (0, 0) if self._outbox is None else (self._outbox.bound.alive, self._outbox.bound.dead)

    @property
    def delivered(self) -> int:
        """Messages saved and users notified so far."""
        return sum(
            (
                0 if self._store is None else self._store.saved,
                0 if self._notifying is None else self._notifying.delivered,
                0 if self._outbox is None else self._outbox.delivered,
            )
        )

    @property
    def retried(self) -> int:
        """Failed attempts that were followed by another, so far."""
        return sum(queue.retried for queue in (self._store, self._notifying, self._outbox) if queue is not None)

    @property
    def full(self) -> bool:
        """Whether so much waits to be saved that no further message may be sent."""
        store = self._store
        if store is None:
            return False
        return store.size + self._reserved >= self.limit or store.bytes >= SAVING_BYTES

    @property
    def retry_after(self) -> float:
        """About how many seconds it takes until a message may be sent again."""
        return 0.0 if self._store is None else self._store.retry_after

    def reserve(self) -> None:
        """Keep a place for a message that is not published yet; `release` follows, whatever becomes of the message."""
        self._reserved += 1

    def release(self) -> None:
        """Give the place of a message back that `reserve` kept."""
        self._reserved -= 1

    def offer(self, process: RoomProcess, message: Message, scope: bytes | None) -> None:
        """Take a message that was published in a room, and that persistence does not have yet."""
        if self._saving is not None:
            self._saving.unsaved.add(message)
        elif self.committing is not None:
            self.committing.owe(process, message, scope)
        # Not by `notify`: this is on every message's way, and only what is stored has an outbox.
        if self._notifying is not None:
            self._notifying.offer(message, process.members)

    def notify(self, process: RoomProcess, message: Message) -> None:
        """Take a message that was published in a room, and that persistence has already."""
        if self._outbox is not None and message.stored:
            self._outbox.look()
        elif self._notifying is not None:
            self._notifying.offer(message, process.members)

    def saved(self, room_id: str) -> bool:
        """Return whether persistence has every message of this room's life."""
        return self._store is None or self._store.has_all(room_id)

    def waiting(self, room_id: str) -> bool:
        """Return whether a message of this room still waits for persistence."""
        return self._store is not None and self._store.waits(room_id)

    def forget(self, room_id: str) -> None:
        """Forget whether the room's stored history has holes, as its life ends."""
        if self._store is not None:
            self._store.forget(room_id)

    async def drain(self, deadline: float) -> None:
        """Deliver the messages that are left, until the deadline (loop time), or a little earlier. `close` follows.

        Where there is an `on_dead_letter`, a tenth of the time is left for it.
        """
        left = deadline - self._loop.time()
        if self.letters.has_handler:
            left -= left * _TELLING_SHARE
        if self._store is not None:
            self._store.hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, left)):
                if self._store is not None:
                    await self._store.drained.wait()
                if self._notifying is not None:
                    await self._notifying.drained.wait()
                if self._outbox is not None:
                    await self._outbox.drain()

    async def close(self, deadline: float) -> None:
        """End; what was not delivered is a dead letter. Handlers have until the deadline. Twice is harmless."""
        for queue in (self._store, self._notifying):
            if queue is not None:
                await queue.close()
        if self._outbox is not None:
            await self._outbox.close(deadline)
        await self.letters.close(deadline)
