"""The reading end of a mailbox: an async iterator over what rooms put in."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from operator import length_hint
from threading import get_ident
from typing import Self

from chatx.core.fanout import Subscriber
from chatx.core.mailbox import Mailbox, OverflowPolicy
from chatx.core.message import Event, Position
from chatx.errors import ChatError, Closed, ConfigError, RoomUnavailable
from chatx.runtime.catchup import Behind, Missed
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess
from chatx.runtime.wakeup import Wakeup

logger: logging.Logger = logging.getLogger("chatx")

POLICIES = ("disconnect", "drop_oldest")

# What a consumer has that is behind in no room, as most are: one for all of them, never written to.
_NOBODY: dict[str, Behind] = {}


class Consumer:
    """What `Subscription` and `Connection` share: one mailbox and its one reader.

    Iterating drains what is there without yielding; it waits only when there is nothing. Cancelling a pending `anext`
    loses nothing: an event is taken only when it is returned.

    What was missed is read page by page, the next one when all of the one before it was taken, and what is live goes
    first: a room that is read from its beginning does not make its reader a slow consumer of the others. Two pages are
    held at most, one that memory had and one that was read from persistence meanwhile.

    Attributes:
        user_id: The user who reads, or None: trusted code does.
    """

    def __init__(self, overflow: OverflowPolicy, user_id: str | None) -> None:
        if overflow not in POLICIES:
            raise ConfigError(f"overflow is {overflow!r}; it must be one of {', '.join(POLICIES)}.")
        self.user_id: str | None = user_id
        self._overflow: OverflowPolicy = overflow
        self._engine: Engine | None = None
        self._mailbox: Mailbox | None = None
        # Read before the mailbox: a page of what was missed, and the first state of presence.
        self._backlog: deque[Event] = deque()
        # Subscriptions that are not live yet, by room; who has waited longest for a page is first.
        self._behind: dict[str, Behind] = _NOBODY
        self._reading: asyncio.Task[None] | None = None
        # The rest of the batch that is being read.
        self._taken: Iterator[Event] = iter(())
        self._wakeup: Wakeup | None = None
        self._wake: Callable[[], None] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        """Return the consumer itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            StopAsyncIteration: The reader has closed the consumer.
            SlowConsumer: The mailbox overflowed; what it held has been read.
            RoomUnavailable: The room failed for good.
            AdapterError: More of what was missed is in persistence, which cannot be read now.
            Closed: The chat was stopped, or the consumer is not open yet.
            WrongLoop: The consumer is read in another thread or loop than the chat runs on.
        """
        for event in self._taken:
            return event
        mailbox, wakeup = self._mailbox, self._wakeup
        # Once a batch, and not where it has to wait: asyncio looks there.
        if self._backlog or self._behind or (mailbox is not None and mailbox.unread):
            self._check_here()
        while True:
            if self._closed:
                raise StopAsyncIteration
            if mailbox is None or wakeup is None:
                raise Closed("This is not open: use it as `async with ...`.")
            if self._backlog:
                return self._backlog.popleft()
            # Where nothing is there, which is so each time before a reader waits, the call is left out.
            if (mailbox.unread or mailbox.first) and (taken := mailbox.take()):
                self._taken = iter(taken)
                return next(self._taken)
            if mailbox.error is not None:
                self._check_here()
                raise mailbox.error.again()
            if mailbox.lost_presence:
                self._check_here()
                if self._recover_presence(mailbox):
                    continue
            if self._behind and self._read_on():
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
        """Put the present state of a room whose presence events were dropped into the backlog; return True."""
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

    def _begin(
        self, engine: Engine, process: RoomProcess, subscriber: Subscriber, after: Position | None, first: Missed
    ) -> None:
        """Put a subscriber into its room, live where the first page of what it missed is the last.

        Errors as `RoomProcess.attach`.
        """
        fits = not self._backlog or len(self._backlog) + len(first.events) <= engine.page_messages
        if first.last and fits:
            subscriber.mailbox = self._mailbox
        process.attach(subscriber)
        if subscriber.presence:
            self._backlog.append(process.state())
        if fits:
            self._backlog.extend(first.events)
        if subscriber.mailbox is None:
            # A page that does not fit is read again when there is room: many rooms hold no more than one does.
            reached = first.reached if fits or after is None else after
            present = process.presences() if subscriber.presence else None
            if self._behind is _NOBODY:
                self._behind = {}
            self._behind[process.room_id] = Behind(process, subscriber, reached, present)
        self._wake_reader()

    def _read_on(self) -> bool:
        """Put the next page of a subscription that is behind into the backlog; return whether it is there."""
        engine = self._engine
        if engine is None:
            return False
        for behind in list(self._behind.values()):
            try:
                page = engine.missed_in_memory(behind.process, behind.reached)
            except ChatError as error:
                self._fail(behind, error)
                return True
            # Looking at memory tells others what is pending, and they may end this one.
            if not self._is_behind(behind):
                return True
            if page is not None:
                self._take_page(behind, page)
                return True
        if self._reading is None:
            # In a task of its own: the reader gets what is live meanwhile, and cancelling it loses no page.
            behind = next(iter(self._behind.values()))
            self._reading = engine.loop.create_task(self._read_stored(engine, behind), name="chatx catch-up")
        return False

    async def _read_stored(self, engine: Engine, behind: Behind) -> None:
        room_id = behind.process.room_id
        page: Missed | ChatError
        try:
            page = await engine.missed(behind.process, behind.reached)
        except ChatError as error:
            page = error
        except Exception:  # a mistake of the engine's, which must not leave the reader waiting
            page = RoomUnavailable("What was missed could not be read; subscribe again after the last position read.")
            logger.exception("A catch-up in room %r failed.", room_id, extra={"room": room_id, "code": page.code})
        self._reading = None
        if not self._is_behind(behind):
            pass
        elif isinstance(page, Missed):
            self._take_page(behind, page)
        else:
            self._fail(behind, page)
        self._wake_reader()

    def _is_behind(self, behind: Behind) -> bool:
        """Return whether this subscription is still behind: it may have ended, or been opened anew, since."""
        mailbox = self._mailbox
        return mailbox is not None and mailbox.error is None and self._behind.get(behind.process.room_id) is behind

    def _take_page(self, behind: Behind, page: Missed) -> None:
        room_id = behind.process.room_id
        if page.last:
            behind.subscriber.mailbox = self._mailbox
            try:
                behind.process.attach(behind.subscriber)
            except ChatError as error:
                self._fail(behind, error)
                return
        del self._behind[room_id]
        self._backlog.extend(page.events)
        if page.last:
            self._backlog.extend(behind.presence_changed())
        else:
            behind.reached = page.reached
            self._behind[room_id] = behind  # the others first

    def _fail(self, behind: Behind, error: ChatError) -> None:
        """End a subscription that is behind; its reader was given everything up to the place where it stands."""
        if behind.process.holds(behind.subscriber):
            behind.process.expel(behind.subscriber, error)
        self._behind.pop(behind.process.room_id, None)

    def _wake_reader(self) -> None:
        mailbox = self._mailbox
        if mailbox is not None and mailbox.wake is not None:
            wake, mailbox.wake = mailbox.wake, None
            wake()

    def _watched(self, room_id: str) -> RoomProcess | None:
        """Return the room where its presence is read here, else None: the subscription may have ended since."""
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
        """End the consumer from the engine's side: its reader gets the error behind the unread events."""
        self._behind.clear()
        reading, self._reading = self._reading, None
        if reading is not None and not reading.get_loop().is_closed():
            reading.cancel()
        if self._mailbox is not None:
            self._mailbox.close(error)
        if self._engine is not None:
            self._engine.consumers.discard(self)

    def cut(self, error: ChatError) -> None:
        """End the consumer from the engine's side with this error, without the unread events: the user was revoked."""
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
