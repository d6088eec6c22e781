"""The connection of a client: opened, lost and made anew; what the conversation collects is done here."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from chatx.client.conversation import MOST_WAIT_S, Conversation
from chatx.client.errors import CLOSED, REVOKED, ClientClosed, ClientError
from chatx.client.events import Message, NotSent, Sent
from chatx.client.keeping import Keeper
from chatx.client.membership import Membership
from chatx.client.options import Options
from chatx.client.outbox import Entry
from chatx.client.storage import OutboxStorage
from chatx.client.wire import Cut, NotOpened, Wire
from chatx.gateway.wire.closes import CLOSE_EXPIRED, CLOSE_MALFORMED, CLOSE_POLICY, CLOSE_REVOKED, CLOSE_TOO_LARGE

_LOG: Final = logging.getLogger("chatx.client")

_POISON: Final = frozenset({CLOSE_MALFORMED, CLOSE_POLICY, CLOSE_TOO_LARGE})
"""The server closes so where it could not take what was written."""

_LASTED_S: Final = 5.0
"""How long a connection has been open whose token was good: shorter, and the next one is not made at once."""


_TELL_AFTER: Final = 3
"""Connections one after the other that end for what cannot be read, after which it is no accident."""


class Listener(Protocol):
    """A room's reader."""

    id: str

    def wake(self) -> None:
        """Take it that something has come, or that the room has ended."""
        ...

    def tell(self, event: Sent | NotSent) -> None:
        """Take the outcome of a send that nobody awaits."""
        ...


class Line:
    """The connection of a client.

    Attributes:
        options: The client's.
        conversation: The protocol, which decides everything.
    """

    def __init__(
        self, options: Options, dial: Callable[[], Awaitable[Wire]], storage: OutboxStorage | None = None
    ) -> None:
        """Build it; nothing is connected yet.

        Args:
            options: The client's.
            dial: Opens a connection, or raises `NotOpened`; what else it raises is logged.
            storage: Keeps what waits to be sent across restarts, where that is wanted.
        """
        self.options: Options = options
        self.conversation: Conversation = Conversation(options, random.random)
        self._dial = dial
        self._listeners: dict[str, Listener] = {}
        self._awaited: dict[Entry, asyncio.Future[Message]] = {}
        self._keeper: Keeper | None = None
        if storage is not None:
            self._keeper = Keeper(storage, kept=self._kept, failed=self._not_kept, now=self.now, wall_s=time.time)
        self._keeps = False  # whether what has no outcome yet stays in the storage
        self._wire: Wire | None = None
        self._to_write = asyncio.Event()
        self._entered = False
        self._told = ""
        self._running: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended: ClientError | None = ClientClosed(CLOSED, "The client is not connected; enter it: `async with`.")

    async def open(self) -> None:
        """Load what was not sent, and begin to connect; errors as the storage's."""
        if self._entered:
            raise RuntimeError("A client is entered once; make another one.")
        self._entered = True
        self._loop = asyncio.get_running_loop()
        if self._keeper is not None:
            self.conversation.sends.marking = []
            for entry in await self._keeper.load():
                self.conversation.outbox.restore(entry)
        self._ended = None
        self._running = self._loop.create_task(self._run())

    async def close(self) -> None:
        """End all rooms, and close the connection and the storage."""
        self._keeps = self._keeper is not None
        self._end(ClientClosed(CLOSED, "The client was closed."))
        if self._running is not None and self._running is not asyncio.current_task():
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._closing is not None:
            await asyncio.wait([self._closing])
        if self._keeper is not None:
            await self._keeper.close()

    def now(self) -> float:
        """Return the clock of the conversation, in seconds."""
        return self._loop.time()

    def enter(self, room: Listener, membership: Membership) -> None:
        """Join a room.

        Raises:
            ClientClosed: The client is not connected.
            ValueError: It is open already.
        """
        self.check_open()
        if room.id in self._listeners:
            raise ValueError(f"This client is in the room {room.id!r} already; share the one there is.")
        self._listeners[room.id] = room
        self.conversation.enter(membership, self.now())
        self.flush()

    def leave(self, room: Listener, membership: Membership) -> None:
        """Leave a room for good."""
        if self._listeners.get(room.id) is room:
            if membership.error is None:
                self.conversation.leave(membership, ClientClosed(CLOSED, "The room was left."))
                self.flush()
            del self._listeners[room.id]

    def check_open(self) -> None:
        """Raise why the client is not open, if it is not, or not on this event loop."""
        if self._ended is not None:
            raise self._ended.again()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("The client was entered on another event loop; use it there, or make one for this loop.")

    async def send(self, entry: Entry) -> Message:
        """Send it, and return its acknowledgement; errors as `Room.send`."""
        self.conversation.outbox.add(entry)
        future = self._awaited[entry] = self._loop.create_future()
        if self._keeper is None:
            self.conversation.send(entry, self.now())
        else:
            self._keeper.put(entry)
        self.flush()
        try:
            message: Message = await future
            return message
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # its outcome came in this very turn
                self._tell(entry, future.exception() or future.result())
            elif self._awaited.pop(entry, None) is not None:
                # What may be published goes on, and its outcome is told as an event.
                withdrawn = self.conversation.withdraw(entry)
                if withdrawn and self._keeper is not None:
                    self._keeper.remove(entry)
            raise

    def flush(self) -> None:
        """Do what the conversation has collected."""
        talk = self.conversation
        if talk.frames:
            self._to_write.set()
        if talk.sends.marking and self._keeper is not None:
            for entry in talk.sends.marking:
                self._keeper.put(entry)
            talk.sends.marking.clear()
        if talk.sends.settled:
            settled, talk.sends.settled = talk.sends.settled, []
            for entry, outcome in settled:
                self._settle(entry, outcome)
        if talk.woken:
            woken, talk.woken = talk.woken, set()
            for room_id in woken:
                room = self._listeners.get(room_id)
                if room is not None:
                    room.wake()
        if talk.broken is not None and self._wire is not None:
            self._wire.abort()
        if self._ended is None and (self._timer is None or self._timer.when() > talk.due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if talk.due == float("inf") else self._loop.call_at(talk.due, self._tick)

    # The connection.

    async def _run(self) -> None:
        while True:
            pause_s = await self._connection()
            if self._ended is not None:
                return
            await asyncio.sleep(pause_s)

    async def _connection(self) -> float:
        """Open a connection, stay on it to its end, and return how long to wait then, in seconds."""
        try:
            self._wire = wire = await self._dial()
        except NotOpened as error:
            return min(error.retry_after or 0.0, MOST_WAIT_S) + self._lost(str(error))
        except Exception as error:  # a token is fetched by the program's own function
            _LOG.exception("A connection could not be prepared.")
            return self._lost(f"it could not be prepared: {error}")
        opened_at = self.now()
        writing = self._loop.create_task(self._write(wire))
        try:
            cut = await self._read(wire)
            self._wire = None
            if cut.code == CLOSE_REVOKED:
                self._end(ClientClosed(REVOKED, f"The server shut this user out: {cut.reason}."))
            pause_s = self._lost(self.conversation.broken or cut.reason, poisoned=cut.code in _POISON)
            return 0.0 if cut.code == CLOSE_EXPIRED and self.now() - opened_at >= _LASTED_S else pause_s
        finally:
            self._wire = None
            writing.cancel()
            # To its end, also where the client is closed meanwhile.
            self._closing = self._loop.create_task(self._close(wire, writing))
            await asyncio.shield(self._closing)

    def _lost(self, why: str, *, poisoned: bool = False) -> float:
        pause_s = self.conversation.lost(why, self.now(), poisoned=poisoned)
        if why != self._told:
            _LOG.warning("Not connected: %s", why)
        if self.conversation.unreadable == _TELL_AFTER:
            _LOG.error(
                "%d connections one after the other ended since this client could not read what the server sent; the "
                "last time: %s. It goes on trying, ever more slowly. Look whether both are of the same version, and "
                "what is between them.",
                _TELL_AFTER,
                why,
            )
        # The same is told once, until it was connected in between.
        self._told = why if self.conversation.failures > 1 else ""
        self.flush()
        return pause_s

    async def _read(self, wire: Wire) -> Cut:
        talk = self.conversation
        try:
            talk.opened(self.now())
            self.flush()
            while True:
                text = await wire.read()
                talk.received(text, self._loop.time())
                self.flush()
        except Cut as cut:
            return cut
        except Exception as error:  # a fault of this client must not leave it deaf
            _LOG.exception("A connection failed.")
            talk.unread(f"it failed: {error}")
            wire.abort()
            return Cut(1006, "it failed")

    async def _close(self, wire: Wire, writing: asyncio.Task[None]) -> None:
        await asyncio.wait([writing])
        await wire.close()

    async def _write(self, wire: Wire) -> None:
        talk = self.conversation
        try:
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                frames, talk.frames = talk.frames, []
                await wire.write(frames)
        except Cut:
            pass  # who reads is told as well
        except Exception:
            _LOG.exception("A connection failed.")
            wire.abort()

    def _tick(self) -> None:
        self._timer = None
        self.conversation.tick(self.now())
        self.flush()

    def _kept(self, entry: Entry) -> None:
        entry.ready = True
        self.conversation.send(entry, self.now())
        self.flush()

    def _not_kept(self, entry: Entry, error: ClientError) -> None:
        self.conversation.give_up(entry, error)
        self.flush()

    def _settle(self, entry: Entry, outcome: Message | ClientError) -> None:
        if self._keeper is not None and not self._keeps:
            self._keeper.remove(entry)
        future = self._awaited.pop(entry, None)
        if future is not None and not future.done():
            if isinstance(outcome, Message):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
                future.exception()  # told, whether its caller is still there or not
        elif not self._keeps:
            self._tell(entry, outcome)

    def _tell(self, entry: Entry, outcome: Message | BaseException) -> None:
        room = self._listeners.get(entry.room)
        if room is None:
            _LOG.warning("A message to the room %r that nobody awaits: %s", entry.room, outcome)
        elif isinstance(outcome, Message):
            room.tell(Sent(entry.room, entry.key, outcome))
        elif isinstance(outcome, ClientError):
            room.tell(NotSent(entry.room, entry.key, entry.content, entry.data, outcome))

    def _end(self, error: ClientError) -> None:
        if self._ended is None:
            self._ended = error
            self.conversation.end(error)
            self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
