"""Everything one running chat is made of, put together; from start to stop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from threading import get_ident
from typing import Literal

from chatx.adapters.boundary import Boundary
from chatx.adapters.protocols import Action
from chatx.adapters.room_log import is_log
from chatx.config import ChatConfig
from chatx.config_checks import DURABILITIES
from chatx.core.message import Draft, Message, Position, Presences, Unrecovered
from chatx.core.room import Room
from chatx.core.validation import valid_id
from chatx.errors import AdapterError, ChatError, Closed, ConfigError, InvalidMessage, Revoked
from chatx.runtime.catchup import (
    PAGE_MESSAGES,
    Missed,
    Page,
    missed,
    missed_in_memory,
    next_page,
    page_in_memory,
)
from chatx.runtime.dead_letters import DeadLetter
from chatx.runtime.delivery import Delivery
from chatx.runtime.elsewhere import Elsewhere
from chatx.runtime.history import checked_places, messages_after, messages_before
from chatx.runtime.log_storage import LogStorage
from chatx.runtime.overview import Overview
from chatx.runtime.own_loop import OwnLoop
from chatx.runtime.process import RoomProcess
from chatx.runtime.readers import Readers, Revocable
from chatx.runtime.revocations import Revocations
from chatx.runtime.rooms import Rooms
from chatx.runtime.sending import Sending
from chatx.runtime.sending_away import send_away
from chatx.runtime.steps import guard_of
from chatx.runtime.storage import Storage
from chatx.runtime.trimming import Trimming
from chatx.runtime.turn import BURST, Turn
from chatx.telemetry import Telemetry

logger: logging.Logger = logging.getLogger("chatx")

EXPIRED_AT_ONCE = 20_000
"""Token buckets and idempotency keys let go of in one sweep, at most; the rest go in the next."""

GRACE_S = 0.1
"""Seconds for what ends quickly, where the time of a drain is over."""


class Engine(OwnLoop):
    """One running chat on one event loop. Built by `Chat.start`, never used again after `stop`.

    Attributes:
        open: Whether the chat takes new work.
        consumers: The readers of mailboxes and sockets; told when the chat stops.
        callbacks: Subscriptions of users that have no mailbox.
        page_messages: Messages in one page of what a reader missed: in content, at most what its mailbox holds.
        trimming: The worker that keeps the log within its retention.
        revocations: Who was revoked just now.
        overview: All nodes as an operator sees them; None where there is one.
        draining: Whether no new client is let in, since those that are here are being sent away.
    """

    def __init__(
        self,
        config: ChatConfig,
        telemetry: Telemetry,
        dead_letters: deque[DeadLetter],
        *,
        room_class: type[Room] = Room,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        super().__init__()
        self.elsewhere: Elsewhere | None = elsewhere
        self.overview: Overview | None = None
        self.draining: bool = False
        self.config = config
        self.telemetry = telemetry
        self.turn: Turn = Turn(self.loop)
        self.boundary: Boundary = Boundary(config.adapter_timeout_ms, telemetry)
        self.storage: Storage = (LogStorage if is_log(config.persistence) else Storage)(
            config.persistence, self.boundary
        )
        self.delivery: Delivery = Delivery(
            config=config,
            boundary=self.boundary,
            telemetry=telemetry,
            loop=self.loop,
            dead_letters=dead_letters,
            storage=self.storage,
        )
        self.rooms: Rooms = Rooms(
            loop=self.loop,
            turn=self.turn,
            telemetry=telemetry,
            storage=self.storage,
            history_size=config.history_size,
            idle_s=config.room_idle_ms / 1000,
            limit=config.idle_rooms_limit,
            delivery=self.delivery,
            room_class=room_class,
            elsewhere=elsewhere,
        )
        self.sending: Sending = Sending(
            config=config,
            boundary=self.boundary,
            telemetry=telemetry,
            rooms=self.rooms,
            delivery=self.delivery,
            storage=self.storage,
            loop=self.loop,
            elsewhere=elsewhere,
        )
        # Under horde an acknowledgement is always the log's.
        self._always_stored = config.cluster_strategy == "horde"
        self._by_default_stored = self._always_stored or config.durability == "stored"
        self._connect_log()
        self.trimming: Trimming = Trimming(config, self.boundary, self.loop, lambda: self.store == "away")
        self._auth = guard_of(config, self.boundary, "auth")
        self.consumers: Readers = Readers()
        self.callbacks: dict[Revocable, None] = {}
        self.page_messages: int = max(1, min(PAGE_MESSAGES, config.mailbox_bytes // config.message_size_limit))
        self.revocations: Revocations = Revocations()
        self.open: bool = True
        self._sweep_s = min(1.0, max(0.01, config.room_idle_ms / 4000))
        self._sweeper = self.loop.call_later(self._sweep_s, self._sweep)
        self.delivery.start()
        self.trimming.start()

    @property
    def store(self) -> Literal["ok", "away"] | None:
        """Whether the log could be used when it was tried last; None where there is no log."""
        committing = self.delivery.committing
        return None if committing is None else "away" if committing.away else "ok"

    def storage_of(self, room_id: str) -> Storage:
        """Return what a room is read from, where memory does not have it."""
        return (None if self.elsewhere is None else self.elsewhere.storage_of(room_id)) or self.storage

    def check_open(self) -> None:
        """Raise `Closed` unless the chat takes work."""
        if not self.open:
            raise Closed("The chat is stopping; start it again before using it.")

    def _connect_log(self) -> None:
        """Let the way to the log and what is on either side of it know each other."""
        committing, storage = self.delivery.committing, self.storage
        if committing is None or not isinstance(storage, LogStorage):
            return
        committing.publisher = self.sending
        committing.on_fenced = self.rooms.fenced
        storage.before_opening = committing.written
        storage.on_keyed = self.sending.remember

    def stored(self, durability: object) -> bool:
        """Return whether a message is to be stored before anybody sees it; under `horde` each is.

        Args:
            durability: What was asked for, or None for the option.

        Raises:
            InvalidMessage: There is no such durability.
            ConfigError: It is `stored`, and persistence is no log.
        """
        if durability is None:
            return self._by_default_stored
        if durability not in DURABILITIES:
            raise InvalidMessage(f"durability is {durability!r:.100}; give one of {', '.join(DURABILITIES)}.")
        if durability == "stored" and not self.storage.is_log:
            raise ConfigError(
                "durability is 'stored', and persistence is no log that could say so; give one, such as "
                "SQLitePersistence('chat.db')."
            )
        return self._always_stored or durability == "stored"

    async def send(
        self,
        room_id: str,
        user_id: str,
        content: str | bytes,
        key: str | None,
        trusted: bool = False,
        durability: object = None,
        data: object = None,
        epoch: object = None,
    ) -> Message:
        """Send a message; errors as `Chat.send_message`."""
        # As `here`, for less: where this turn has published already, the loop runs.
        if get_ident() != self.thread or not (self.turn.published or self.loop.is_running()):
            self.check_here()
        try:
            if not self.open:
                self.check_open()
            stored = self._by_default_stored if durability is None else self.stored(durability)
            message = self.sending.send_at_once(room_id, user_id, content, key, trusted, stored, data, epoch)
            if type(message) is Draft:  # told apart in a third of the time that isinstance takes
                message = await self.sending.send_draft(message, key, trusted, stored)
        except ChatError:
            self.turn.count()
            if self.turn.published >= BURST:
                await asyncio.sleep(0)
            raise
        if message.duplicate:
            self.turn.count()
        if self.turn.published >= BURST:
            await asyncio.sleep(0)
        return message

    def send_at_once(
        self,
        room_id: str,
        user_id: str,
        content: str | bytes,
        key: str | None,
        trusted: bool = False,
        data: object = None,
        epoch: object = None,
    ) -> Message | Draft:
        """Send a message if nothing has to be awaited; else return its draft for `send_draft`. Errors as `send`."""
        if not self.open:
            self.check_open()
        stored = self._by_default_stored
        return self.sending.send_at_once(room_id, user_id, content, key, trusted, stored, data, epoch)

    async def send_draft(self, draft: Draft, key: str | None) -> Message:
        """Send a draft that `send_at_once` returned; errors as `Chat.send_message`."""
        return await self.sending.send_draft(draft, key, stored=self._by_default_stored)

    async def authorize(self, user_id: str, room_id: str, action: Action) -> None:
        """Ask the auth adapter whether the user may; errors as `Guard.ask`."""
        if self._auth is None:
            return
        if self._auth.awaits:
            await self._auth.ask_awaiting(user_id, room_id, action)
            self.check_open()
        else:
            self._auth.ask(user_id, room_id, action)

    async def enter(self, room_id: str, user_id: str, action: Action, *, at_a_place: bool = False) -> RoomProcess:
        """Return the room, where the user may do the action in it; `at_a_place` is that of `Rooms.opened`.

        Raises:
            InvalidMessage: An id is not valid.
            Unauthorized: The user may not.
            Revoked: The user was revoked meanwhile.
            AdapterError: The auth adapter failed, or the store cannot say where the stream stood.
            RoomOverloaded: There are too many rooms that nobody is in.
            RoomUnavailable: The room has crashed too often just now.
            Closed: The chat is not running.
        """
        self.check_open()
        valid_id(room_id, "room_id")
        valid_id(user_id, "user_id")
        since = self.revocations.count
        if self._auth is not None:
            await self.authorize(user_id, room_id, action)
        process = self.rooms.at_once(room_id) or await self.room(room_id, at_a_place=at_a_place)
        self.revocations.check(user_id, since)
        return process

    def revoke(self, user_id: str) -> int:
        """Cut everything that this user holds, on all nodes, and return how many things were cut on this one.

        It looks at every reader, subscription and room, and takes that much time.
        """
        self.check_open()
        valid_id(user_id, "user_id")
        if self.elsewhere is not None:
            self.elsewhere.revoked(user_id)
        return self.cut_off(user_id)

    def cut_off(self, user_id: str) -> int:
        """Cut everything that a user holds on this node, and return how many things were cut."""
        self.revocations.add(user_id)
        error = Revoked()
        held = [each for each in (*self.consumers, *self.callbacks) if each.user_id == user_id]
        for each in held:
            each.cut(error)
        return len(held) + sum(process.leave_plain(user_id) for process in self.rooms)

    async def settle(self, process: RoomProcess) -> None:
        """Bring to the log what was said in a room that goes on elsewhere, and prove where it ends.

        Its next owner goes on in its stream then. Where that fails it begins another one.
        """
        committing = self.delivery.committing
        if committing is None:
            return
        try:
            await committing.written(process.room_id)
        except AdapterError:
            return
        head = process.head
        if head.offset and process.stored_to == head and (not process.proven or process.doubted):
            await self.storage.mark_closed([(process.room_id, head)])

    async def presences(self, room_id: str) -> Presences:
        """Return who is in a room; errors as `Chat.presence`."""
        process = self.rooms.find(valid_id(room_id, "room_id"))
        if process is not None:
            return process.presences()
        if self.elsewhere is not None and not self.elsewhere.owns(room_id):
            return await self.elsewhere.presences(room_id)
        return {}

    async def room(self, room_id: str, *, at_a_place: bool = False) -> RoomProcess:
        """Return the room, begun if need be; the caller holds on to it before it awaits anything.

        Errors and `at_a_place` are those of `Rooms.opened`.
        """
        process = self.rooms.at_once(room_id) or await self.rooms.opened(
            # Where everything is to be stored, a new stream begun for a log that is away would be a gap for everybody.
            room_id,
            at_a_place=at_a_place or self._by_default_stored,
        )
        self.check_open()
        return process

    async def reader(self, room_id: str, after: Position | None) -> tuple[RoomProcess, Missed]:
        """Return the room and the first page of what a reader of it missed; errors and duties as `missed`."""
        try:
            process = await self.room(room_id, at_a_place=after is not None)
        except AdapterError:
            self.check_open()  # a read that the stop cut short is no fault of the adapter
            raise
        if after is not None:
            await self.reach(process, after)
        return process, await self.missed(process, after)

    async def reach(self, process: RoomProcess, place: Position) -> None:
        """Bring a room up to a place at which somebody stands already, since they have it from another node.

        A replica asks its owner. A room of this node in whose log somebody else has written is theirs by now, or was
        for a while: it is closed, and goes on from what the log has when it is opened again.

        Raises:
            RoomUnavailable: The room's owner cannot be reached, or the room has moved meanwhile.
            AdapterError: The log cannot be read now.
        """
        head = process.head
        if self.elsewhere is None or place.epoch != head.epoch or place.offset <= head.offset:
            return
        with process.held():
            if process.replica:
                await self.elsewhere.reach(process)
                if self.storage.is_log and place.epoch == process.head.epoch and place.offset > process.head.offset:
                    # The owner may be the one who does not know: it is shown the place, and looks into the log.
                    await self.storage_of(process.room_id).read(process.room_id, after=place, limit=1)
                    await self.elsewhere.reach(process)
            elif isinstance(self.storage, LogStorage) and await self.storage.is_ahead(process.room_id, process.head):
                self.rooms.moved(process)
        process.check()
        self.check_open()

    def missed_in_memory(self, process: RoomProcess, after: Position) -> Missed | None:
        """Return a page of what a reader of the room missed, or None where only `missed` can read it."""
        storage = self.storage_of(process.room_id)
        return missed_in_memory(process, storage, after, self.page_messages, self.config.resume_max_messages)

    async def missed(self, process: RoomProcess, after: Position | None) -> Missed:
        """Return a page of what a reader of the room missed; errors as `catchup.missed`.

        Where the page is the last, the caller subscribes before it awaits anything.
        """
        try:
            # Reading from persistence takes time, in which an idle room would be forgotten.
            with process.held():
                storage = self.storage_of(process.room_id)
                page = await missed(process, storage, after, self.page_messages, self.config.resume_max_messages)
        except AdapterError:
            self.check_open()  # a read that the stop cut short is no fault of the adapter
            raise
        self.check_open()
        return page

    def page_in_memory(self, process: RoomProcess, after: Position, most: int) -> Page | Unrecovered | None:
        """Return the next page of a reader of the room, or None where only `next_page` can read it."""
        return page_in_memory(process, self.storage_of(process.room_id), after, most)

    async def next_page(self, process: RoomProcess, after: Position, most: int) -> Page | Unrecovered:
        """Return the next page of a reader of the room; errors as `catchup.next_page`."""
        try:
            with process.held():
                page = await next_page(process, self.storage_of(process.room_id), after, most)
        except AdapterError:
            self.check_open()  # a read that the stop cut short is no fault of the adapter
            raise
        self.check_open()
        return page

    async def history(self, room_id: str, before: object, after: object, limit: int) -> list[Message]:
        """Return messages ahead of a place or behind it; errors as `Chat.history`."""
        self.check_open()
        valid_id(room_id, "room_id")
        ahead, behind = checked_places(before, after, limit)
        committing, storage = self.delivery.committing, self.storage_of(room_id)

        place, process = behind or ahead, self.rooms.find(room_id)
        if place is not None and process is not None:
            await self.reach(process, place)

        def find() -> RoomProcess | None:
            process = self.rooms.find(room_id)
            # A room that crashed too often is gone, while its log does not have all that was said there.
            return committing.latest(room_id) if process is None and committing is not None else process

        try:
            if behind is not None:
                messages = await messages_after(find, storage, room_id, behind, limit)
            else:
                messages = await messages_before(find, storage, room_id, ahead, limit)
        except AdapterError:
            self.check_open()  # a read that the stop cut short is no fault of the adapter
            raise
        self.check_open()
        return messages

    async def send_away(self, within_s: float) -> None:
        """Let no new client in, and end the readers that are here, some at a time, within so many seconds."""
        self.draining = True
        await send_away(self.consumers, Closed("The chat was stopped."), within_s)

    async def stop(self, drain_timeout_ms: int | None = None) -> None:
        """Drain and end the chat, within this timeout or the configured one: sends, deliveries, then all the rest."""
        self.open = False
        timeout = self.config.drain_timeout_ms if drain_timeout_ms is None else drain_timeout_ms
        deadline = self.loop.time() + timeout / 1000
        grace_s = GRACE_S
        try:
            await self._wait_quiet(deadline)
            # What comes out of its middlewares from here on is refused: nobody would deliver it.
            self.sending.close()
            self.turn.end()
            await self.delivery.drain(deadline)
            await self.delivery.close(max(deadline, self.loop.time() + grace_s))
            await self._conclude(deadline)
        except asyncio.CancelledError:
            # As when a loop is shut down: nothing is waited for any more.
            deadline, grace_s = self.loop.time(), 0.0
            raise
        finally:
            self.sending.close()
            await self.delivery.close(max(deadline, self.loop.time() + grace_s))
            self._end()
            await self.trimming.close()
            await self.rooms.close()
            await self.boundary.close(max(grace_s, min(1.0, deadline - self.loop.time())))

    async def _wait_quiet(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.sending.quiet()
        except TimeoutError:
            logger.error(
                "%d sends were still in their middlewares when the drain timeout passed.",
                self.sending.under_way,
                extra={"code": "timeout", "sends": self.sending.under_way},
            )

    async def _conclude(self, deadline: float) -> None:
        if not self.storage.serves_history:
            return
        try:
            async with asyncio.timeout_at(max(deadline, self.loop.time() + GRACE_S)):
                await self.rooms.conclude()
        except TimeoutError:
            logger.error(
                "Not every room's end could be recorded in time; those begin a new epoch.", extra={"code": "timeout"}
            )

    def _end(self) -> None:
        self._sweeper.cancel()
        self.turn.end()
        error: ChatError = Closed("The chat was stopped.")
        # The readers first: no end of a single subscription is to be told where everything ends.
        for consumer in self.consumers:
            consumer.end(error)
        for process in self.rooms:
            process.close(error)
        self.turn.end()

    def _sweep(self) -> None:
        # First of all, so that nothing that raises here is the last sweep.
        self._sweeper = self.loop.call_later(self._sweep_s, self._sweep)
        now = self.loop.time()
        self.consumers.look()  # for whoever asks from another thread
        self.rooms.sweep()
        self.sending.buckets.expire(now, EXPIRED_AT_ONCE)
        self.sending.window.expire(now, EXPIRED_AT_ONCE)
