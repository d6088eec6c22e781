"""The reading end of a mailbox: an async iterator over what rooms put in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from operator import length_hint
from threading import get_ident
from typing import Self

from chatx.core.mailbox import Mailbox, OverflowPolicy
from chatx.core.message import Event
from chatx.errors import ChatError, Closed, ConfigError
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess
from chatx.runtime.wakeup import Wakeup

POLICIES = ("disconnect", "drop_oldest")


class Consumer:
    """What `Subscription` and `Connection` share: one mailbox and its one reader.

    Iterating drains what is there without yielding; it waits only when there is nothing. Cancelling a pending `anext`
    loses nothing: an event is taken only when it is returned.

    Attributes:
        user_id: Whose it is, or None: trusted code's.
    """

    def __init__(self, overflow: OverflowPolicy, user_id: str | None) -> None:
        if overflow not in POLICIES:
            raise ConfigError(f"overflow is {overflow!r}; it must be one of {', '.join(POLICIES)}.")
        self.user_id: str | None = user_id
        self._overflow: OverflowPolicy = overflow
        self._engine: Engine | None = None
        self._mailbox: Mailbox | None = None
        # Read before the mailbox: what was missed, and the first state of presence.
        self._backlog: deque[Event] = deque()
        # The rest of the batch that is being read.
        self._taken: Iterator[Event] = iter(())
        self._wakeup: Wakeup | None = None
        self._wake: Callable[[], None] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            StopAsyncIteration: It was closed by its owner.
            SlowConsumer: The mailbox overflowed; what it held has been read.
            RoomUnavailable: The room failed for good.
            Closed: The chat was stopped, or this is not open yet.
            WrongLoop: It is read in another thread or loop than the chat runs on.
        """
        for event in self._taken:
            return event
        mailbox, wakeup = self._mailbox, self._wakeup
        # Once a batch, and not where it has to wait: asyncio looks there.
        if self._backlog or (mailbox is not None and mailbox.unread):
            self._check_here()
        while True:
            if self._closed:
                raise StopAsyncIteration
            if mailbox is None or wakeup is None:
                raise Closed("This is not open: use it as `async with ...`.")
            if self._backlog:
                return self._backlog.popleft()
            taken = mailbox.take()
            if taken:
                self._taken = iter(taken)
                return next(self._taken)
            if mailbox.error is not None:
                self._check_here()
                raise mailbox.error.again()
            if mailbox.lost_presence:
                self._check_here()
            if mailbox.lost_presence and self._recover_presence(mailbox):
                continue
            mailbox.wake = self._wake
            try:
                await wakeup
            except (RuntimeError, Closed):  # a task of another loop cannot wait for this, nor one beside another
                self._check_here()
                raise

    def _check_here(self) -> None:
        engine = self._engine
        if engine is not None and (get_ident() != engine.thread or not engine.loop.is_running()):
            engine.check_here()

    @property
    def unread(self) -> int:
        """How many events wait for the reader."""
        mailbox = self._mailbox
        return len(self._backlog) + length_hint(self._taken) + (mailbox.unread if mailbox is not None else 0)

    def _recover_presence(self, mailbox: Mailbox) -> bool:
        """Put a fresh state for each room whose presence events were dropped; return whether to look again."""
        room_id = next(iter(mailbox.lost_presence))
        process = self._watched(room_id)
        if process is not None:
            process.settle()
            # What the flush brought is told before the state, but for the presence that the state tells.
            for events in iter(mailbox.take, ()):
                self._backlog.extend(events)
            self._backlog.append(process.state())
        mailbox.lost_presence.discard(room_id)
        return True

    def _watched(self, room_id: str) -> RoomProcess | None:
        """Return the room if its presence is read here, else None: it may have ended since."""
        raise NotImplementedError

    def _open_mailbox(self, engine: Engine) -> Mailbox:
        config = engine.config
        self._engine = engine
        self._wakeup = Wakeup(engine.turn)
        self._wake = self._wakeup.wake
        self._mailbox = Mailbox(config.mailbox_size, config.mailbox_bytes, self._overflow)
        engine.consumers.add(self)
        return self._mailbox

    def end(self, error: ChatError) -> None:
        """End it from the engine's side: its reader gets the error after what is there."""
        if self._mailbox is not None:
            self._mailbox.close(error)
        if self._engine is not None:
            self._engine.consumers.discard(self)

    def cut(self, error: ChatError) -> None:
        """End it from the engine's side with this error, and without what is unread: the user was revoked."""
        self._taken = iter(())
        self._backlog.clear()
        if self._mailbox is not None:
            for _ in iter(self._mailbox.take, ()):
                pass
        self.end(error)

    def _close_mailbox(self) -> None:
        self._closed = True
        self._taken = iter(())
        self.end(Closed("It was closed."))
