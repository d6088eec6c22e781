"""Subscriptions to one room: an async iterator, or a callback."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self

from chatx.adapters.boundary import is_async
from chatx.core.fanout import Callback, Subscriber
from chatx.core.mailbox import OverflowPolicy
from chatx.core.message import Event, Position
from chatx.core.validation import valid_id
from chatx.errors import ChatError, Closed, ConfigError
from chatx.runtime.catchup import Behind, Missed, position_of
from chatx.runtime.consumer import Consumer
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess

logger: logging.Logger = logging.getLogger("chatx")


class Subscription(Consumer):
    """A room's events, as an async iterator; open it with `async with`, or with `await` and `close`."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        room_id: str,
        *,
        after: object,
        presence: bool,
        user_id: str | None,
        overflow: OverflowPolicy,
    ) -> None:
        super().__init__(overflow, user_id)
        self._running = engine
        self._room_id = room_id
        self._after = after
        self._presence = presence
        self._process: RoomProcess | None = None
        self._subscriber: Subscriber | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the subscription; the caller closes it."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Open the subscription; errors as `Chat.subscribe`."""
        engine = self._running()
        if self._closed or self._subscriber is not None:
            raise Closed("A subscription is opened once; subscribe again for another.")
        position = position_of(self._after)
        process, first = await _reader(engine, self._room_id, position, self.user_id)
        if self._closed or self._subscriber is not None:
            raise Closed("The subscription was closed, or opened elsewhere, while it was being opened.")
        self._open_mailbox(engine)
        self._process = process
        self._subscriber = Subscriber(self._presence, on_closed=self.end)
        try:
            self._begin(engine, process, self._subscriber, position, first)
        except ChatError:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the subscription. Nothing is awaited, so not even a cancellation can come between."""
        self.close()

    def close(self) -> None:
        """End the subscription at once; twice is harmless, and it never raises. A pending iteration ends.

        Called from another thread, it ends soon, not at once.
        """
        if self._engine is not None and not self._engine.end_here(self.close):
            return
        if self._process is not None and self._subscriber is not None:
            self._process.detach(self._subscriber)
        self._close_mailbox()

    async def aclose(self) -> None:
        """End the subscription; the same as `close`, for code that expects to await."""
        self.close()

    def cut(self, error: ChatError) -> None:
        """End the subscription from the engine's side with this error, and leave the room: the user was revoked."""
        if self._process is not None and self._subscriber is not None:
            self._process.expel(self._subscriber, error)
        super().cut(error)

    def _watched(self, room_id: str) -> RoomProcess | None:
        return self._process


class CallbackSubscription:
    """A room's events, each given to a plain function at once; opened and closed like a `Subscription`."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        room_id: str,
        callback: Callback,
        *,
        after: object,
        presence: bool,
        user_id: str | None,
        on_closed: Callable[[ChatError], object] | None,
    ) -> None:
        if not callable(callback) or is_async(callback):
            raise ConfigError(f"callback is {callback!r}; give a plain function of one event.")
        self._running = engine
        self._room_id = room_id
        self._callback = callback
        self._after = after
        self._presence = presence
        self.user_id: str | None = user_id
        self._on_closed = on_closed
        self._engine: Engine | None = None
        self._process: RoomProcess | None = None
        self._subscriber: Subscriber | None = None
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the subscription; the caller closes it."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Open the subscription; errors as `Chat.subscribe`.

        What was missed is given to the callback before this returns, page by page, with a turn of the loop for others
        between two pages. Where the catch-up fails midway, the opening raises, and what was given stays given.
        """
        engine = self._running()
        if self._closed or self._subscriber is not None:
            raise Closed("A subscription is opened once; subscribe again for another.")
        process, page = await _reader(engine, self._room_id, position_of(self._after), self.user_id)
        if self._closed or self._subscriber is not None:
            raise Closed("The subscription was closed, or opened elsewhere, while it was being opened.")
        self._engine = engine
        self._process = process
        subscriber = self._subscriber = Subscriber(self._presence, on_closed=self._ended)
        process.attach(subscriber)
        if self.user_id is not None and not self._closed:
            engine.callbacks[self] = None
        present = process.presences() if self._presence and not page.last else None
        behind = Behind(process, subscriber, page.reached, present)
        events: deque[Event] = deque([process.state()] if self._presence else [])
        try:
            while not page.last:
                events.extend(page.events)
                process.replay(subscriber, self._callback, events)
                await asyncio.sleep(0)
                if not process.holds(subscriber):
                    return self
                page = await engine.missed(process, page.reached)
            if not process.holds(subscriber):
                return self
            events.extend(page.events)
            events.extend(behind.presence_changed())
            # What is published meanwhile, by the callback itself, comes after what was missed.
            subscriber.callback = events.append
            process.attach(subscriber)
            process.replay(subscriber, self._callback, events)
        except BaseException:
            self.close()
            raise
        if process.holds(subscriber):
            subscriber.callback = self._callback
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the subscription. Nothing is awaited, so not even a cancellation can come between."""
        self.close()

    def close(self) -> None:
        """End the subscription at once, or soon from another thread; twice is harmless, and it never raises."""
        if self._engine is not None and not self._engine.end_here(self.close):
            return
        self._closed = True
        self._unregister()
        if self._process is not None and self._subscriber is not None:
            self._process.detach(self._subscriber)

    async def aclose(self) -> None:
        """End the subscription; the same as `close`, for code that expects to await."""
        self.close()

    def cut(self, error: ChatError) -> None:
        """End the subscription from the engine's side with this error: the user was revoked."""
        if self._process is not None and self._subscriber is not None:
            self._process.expel(self._subscriber, error)

    def _unregister(self) -> None:
        if self._engine is not None:
            self._engine.callbacks.pop(self, None)

    def _ended(self, error: ChatError) -> None:
        self._unregister()
        if not self._closed and self._on_closed is not None:
            self._on_closed(error)
        self._closed = True


async def _reader(
    engine: Engine, room_id: str, position: Position | None, user_id: str | None
) -> tuple[RoomProcess, Missed]:
    valid_id(room_id, "room_id")
    if user_id is None:
        return await engine.reader(room_id, position)
    valid_id(user_id, "user_id")
    since = engine.revocations.count
    await engine.authorize(user_id, room_id, "subscribe")
    reader = await engine.reader(room_id, position)
    engine.revocations.check(user_id, since)
    return reader
