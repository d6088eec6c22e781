"""One client: one mailbox, the rooms it has joined, the rooms it reads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from chatx.core.fanout import Subscriber
from chatx.core.mailbox import Batch, OverflowPolicy
from chatx.core.message import Message, SubscriptionEnded
from chatx.core.validation import valid_id
from chatx.errors import ChatError, Closed
from chatx.runtime.catchup import position_of
from chatx.runtime.consumer import Consumer
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess


class Connection(Consumer):
    """The counterpart of a BEAM process: what it joined and subscribed to ends with its block, however that ends.

    Use it as `async with chat.connect(user_id) as connection`, and iterate it for the events of every room it is
    subscribed to. Each connection in a room is one meta of its user in the room's presence.
    """

    def __init__(self, engine: Callable[[], Engine], user_id: str, *, overflow: OverflowPolicy) -> None:
        super().__init__(overflow, user_id)
        self._running = engine
        self.user_id: str = user_id
        self._revoked: ChatError | None = None
        self._joined: dict[str, tuple[RoomProcess, str]] = {}
        self._subscribed: dict[str, tuple[RoomProcess, Subscriber]] = {}

    async def __aenter__(self) -> Self:
        """Open the connection.

        Raises:
            InvalidMessage: The user id is not valid.
            Closed: The chat is not running, or this was opened before.
        """
        engine = self._running()
        if self._closed or self._engine is not None:
            raise Closed("A connection is opened once; connect again for another.")
        valid_id(self.user_id, "user_id")
        self._open_mailbox(engine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection. Nothing is awaited, so not even a cancellation leaves a ghost."""
        self.close()

    async def join(self, room_id: str) -> None:
        """Become a member of the room, until `leave` or the end of the block; twice is harmless.

        Where the room closes, or goes on at another node, the membership ends with a `SubscriptionEnded`: join again.

        Raises:
            InvalidMessage: The room id is not valid.
            Unauthorized: The auth adapter said no; `AdapterError`: it failed.
            RoomUnavailable: The room has just failed.
            Closed: This connection, or the chat, is not open.
        """
        engine = self._open_engine()
        process = await engine.enter(room_id, self.user_id, "join")
        self._open_engine()
        joined = self._joined.get(room_id)
        if joined is None or joined[0] is not process:
            now_ms = time.time_ns() // 1_000_000
            ref = process.join(self.user_id, now_ms, lambda error: self._membership_ended(room_id, process, error))
            self._joined[room_id] = (process, ref)

    async def leave(self, room_id: str) -> None:
        """End this connection's membership, if there is one."""
        self._open_engine()
        self._leave(valid_id(room_id, "room_id"))

    async def subscribe(self, room_id: str, *, after: object = None, presence: bool = False) -> None:
        """Read the room's events over this connection too; a subscription to it that is open stays as it is.

        Of an earlier subscription, which the room ended, the unread events are dropped.

        Args:
            room_id: The room.
            after: As in `Chat.subscribe`.
            presence: Whether to get a `PresenceState` and then each `PresenceDiff`.

        Raises:
            InvalidMessage: The room id or `after` is not valid.
            Unauthorized: The auth adapter said no; `AdapterError`: it failed, or what was missed cannot be read now.
            RoomUnavailable: The room has just failed.
            Closed: This connection, or the chat, is not open.
        """
        engine = self._open_engine()
        position = position_of(after)
        await engine.enter(room_id, self.user_id, "subscribe", at_a_place=position is not None)
        process, first = await engine.reader(room_id, position)
        self._open_engine()
        held = self._subscribed.get(room_id)
        if self._mailbox is None or (held is not None and held[0] is process):
            return
        # What is unread of an earlier subscription would come between what was missed and what comes now.
        self._forget(room_id)
        subscriber = Subscriber(presence, on_closed=lambda error: self._ended(room_id, error))
        self._begin(engine, process, subscriber, position, first)
        self._subscribed[room_id] = (process, subscriber)

    async def unsubscribe(self, room_id: str) -> None:
        """Stop reading the room; its unread events are dropped."""
        self._open_engine()
        valid_id(room_id, "room_id")
        self._unsubscribe(room_id)
        self._forget(room_id)

    async def send_message(
        self,
        room_id: str,
        content: str | bytes,
        *,
        idempotency_key: str | None = None,
        trusted: bool = False,
        durability: Literal["sequenced", "stored"] | None = None,
        data: Mapping[str, Any] | None = None,
        epoch: str | None = None,
    ) -> Message:
        """Send a message as this connection's user; errors as `Chat.send_message`."""
        if self._closed or self._engine is None or not self._engine.open:
            await asyncio.sleep(0)  # as in `Chat.send_message`
        return await self._open_engine().send(
            room_id, self.user_id, content, idempotency_key, trusted, durability, data, epoch
        )

    def cut(self, error: ChatError) -> None:
        """End the connection from the engine's side, with this error, and leave every room: the user was revoked."""
        self._revoked = error
        self._leave_all()
        super().cut(error)

    def close(self) -> None:
        """Leave every room and end every subscription, at once; twice is harmless, and it never raises.

        Called from another thread, it closes soon, not at once.
        """
        if self._engine is not None and not self._engine.end_here(self.close):
            return
        self._close_mailbox()
        self._leave_all()

    def _leave_all(self) -> None:
        for room_id in list(self._subscribed):
            self._unsubscribe(room_id)
        for room_id in list(self._joined):
            self._leave(room_id)

    async def aclose(self) -> None:
        """Close the connection; the same as `close`, for code that expects to await."""
        self.close()

    def _open_engine(self) -> Engine:
        engine = self._engine
        if engine is not None:
            engine.check_here()
        if self._revoked is not None:
            raise self._revoked.again()
        if engine is None or self._closed:
            raise Closed("The connection is not open: use it inside `async with chat.connect(...)`.")
        engine.check_open()
        return engine

    def _leave(self, room_id: str) -> None:
        joined = self._joined.pop(room_id, None)
        if joined is not None:
            joined[0].leave(self.user_id, joined[1])

    def _unsubscribe(self, room_id: str) -> None:
        self._behind.pop(room_id, None)
        held = self._subscribed.pop(room_id, None)
        if held is not None:
            held[0].detach(held[1])

    def _watched(self, room_id: str) -> RoomProcess | None:
        process, subscriber = self._subscribed.get(room_id, (None, None))
        return process if subscriber is not None and subscriber.presence else None

    def _forget(self, room_id: str) -> None:
        if self._mailbox is not None:
            self._mailbox.purge(room_id)
        self._taken = iter([event for event in self._taken if event.room_id != room_id])
        self._backlog = deque(event for event in self._backlog if event.room_id != room_id)

    def _membership_ended(self, room_id: str, process: RoomProcess, error: ChatError) -> None:
        joined, read = self._joined.get(room_id), self._subscribed.get(room_id)
        if joined is not None and joined[0] is process:
            del self._joined[room_id]
            if read is None or read[0] is not process:  # who reads the room is told once, behind what it said
                self._tell_ended(room_id, error)

    def _ended(self, room_id: str, error: ChatError) -> None:
        self._subscribed.pop(room_id, None)
        self._behind.pop(room_id, None)
        self._tell_ended(room_id, error)

    def _tell_ended(self, room_id: str, error: ChatError) -> None:
        mailbox = self._mailbox
        if mailbox is None or mailbox.error is not None or self._engine is None:
            return
        mailbox.put(Batch.of([SubscriptionEnded(room_id, error.code, error.reason)]), self._engine.turn.number)
