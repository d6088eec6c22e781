"""A room of a client: what it tells, by iterating over it, and what is sent to it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from msgspec import json

from chatx.client.errors import CLOSED, ClientClosed, SendRefused
from chatx.client.events import Event, Gap, Message, NotSent, Sent, State
from chatx.client.line import Line
from chatx.client.membership import Ask, Membership
from chatx.client.outbox import Entry
from chatx.client.presences import Presences
from chatx.client.stream import PAGE, Stream
from chatx.core.data import valid_data
from chatx.core.message import Position
from chatx.errors import ChatError
from chatx.gateway.wire.bounds import MAX_FRAME_BYTES

_ENVELOPE_BYTES: Final = 512
"""What a frame has besides its payload and its room, at most."""


class Room:
    """A room; `Client.room` makes it, and `async with` joins and leaves it.

    `async for event in room` yields what it tells, for one reader at a time, until the room is left; it raises the
    error with which the room ended otherwise. What waits to be taken is bounded, and loses nothing at the bound: the
    client asks the server for the rest when there is place again, and what the server does not keep is a `Gap`.

    Attributes:
        id: The room's id.
    """

    def __init__(self, line: Line, room_id: str, *, history: int, after: Any, presence: bool) -> None:
        """Build it; see `Client.room`."""
        options = line.options
        if not isinstance(room_id, str) or not room_id or not _is_unicode(room_id):
            raise ValueError(f"{room_id!r} is no id of a room; give a text of well-formed Unicode.")
        if isinstance(history, bool) or not isinstance(history, int) or not 0 <= history <= options.queue_events:
            raise ValueError(f"history is {history!r}; give a number from 0 to {options.queue_events}, queue_events.")
        self.id: str = room_id
        self._line = line
        presences = Presences() if presence else None
        self._stream = Stream(
            room_id,
            history=history,
            after=_place(after, "after"),
            most_events=options.queue_events,
            most_bytes=options.queue_bytes,
            presences=presences,
        )
        self._membership = Membership(room_id, self._stream, presences)
        self._entered = False
        self._reader: asyncio.Future[None] | None = None
        self._joiner: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Join the room, and wait until that is done, however often the server has to be asked.

        Raises:
            JoinRefused: It may not be joined.
            ClientClosed: The client is not open.
        """
        if self._entered:
            raise RuntimeError("A room is entered once; ask the client for another one.")
        self._entered = True
        self._line.enter(self, self._membership)
        try:
            while not self._membership.joined:
                if self._membership.error is not None:
                    raise self._membership.error.again()
                self._joiner = asyncio.get_running_loop().create_future()
                await self._joiner
        except BaseException:
            self.leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the room."""
        self.leave()

    def leave(self) -> None:
        """Leave the room at once; twice is harmless. Whoever awaits a send gets an error, as in `Client.close`."""
        self._line.leave(self, self._membership)
        self.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._entered:
            self._check_open()
        stream = self._stream
        while not stream:
            error = self._membership.error
            if error is not None:
                if isinstance(error, ClientClosed) and error.code == CLOSED:
                    raise StopAsyncIteration
                raise error.again()
            if self._reader is not None:
                raise RuntimeError("The room is being iterated already; one reader at a time.")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        event = stream.take()
        if stream.behind:
            self._line.conversation.taken(self._membership, self._line.now())
            self._line.flush()
        return event

    @property
    def state(self) -> State:
        """How the client stands to the room now."""
        return self._membership.state

    @property
    def cursor(self) -> Position | None:
        """The place up to which everything has come; what is iterated may be behind it. None before the first join."""
        return self._stream.cursor

    async def send(self, content: str, data: Mapping[str, Any] | None = None, key: str | None = None) -> Message:
        """Send a message, and return it with its place once the server has acknowledged it.

        It waits in the outbox while the connection is lost or the server says no for a while, and goes again under one
        key. Cancelled while it waits, it is not sent; cancelled while it is on its way, it goes on, and a `Sent` or
        `NotSent` tells of it.

        Args:
            content: Text; may be empty where there is `data`.
            data: A JSON object to travel with it.
            key: Its idempotency key, 1 to 128 bytes; one is drawn where there is none. With a key of your own you may
                send the same message again after a restart.

        Raises:
            SendRefused: It was not published and will not be: the server said no for good, or it could not be sent in
                time.
            OutboxFull: As much waits as may; this was not taken.
            SendUnknown: It may be published or not, since the answer was lost.
            ClientClosed: The room is not open.
        """
        self._check_open()
        return await self._line.send(self._entry(content, data, key))

    async def history(self, *, before: Any = None, after: Any = None, limit: int = 50) -> list[Message]:
        """Return the newest messages, the newest ahead of a place, or the oldest behind one; always oldest first.

        While the connection is lost it waits. Fewer than `limit` are all that there are.

        Args:
            before: A `Message`, a `Gap` or `(epoch, offset)`.
            after: Likewise; not both.
            limit: The most to return.

        Raises:
            HistoryRefused: The server does not serve it: `too_old` and `epoch_changed` where `after` is no longer kept.
            ClientClosed: The room is not open.
        """
        if before is not None and after is not None:
            raise ValueError("Give `before` or `after`, not both.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit is {limit!r}; give a number from 1.")
        forwards = after is not None
        place = _place(after if forwards else before, "after" if forwards else "before")
        found: list[Message] = []
        while True:
            payload: dict[str, Any] = {"limit": min(PAGE, limit - len(found))}
            if place is not None:
                payload["after" if forwards else "before"] = {"epoch": place.epoch, "offset": place.offset}
            ask = await self._asked(payload)
            found = found + ask.messages if forwards else ask.messages + found
            if len(found) >= limit or not ask.more or not ask.messages:
                return found
            last = found[-1] if forwards else found[0]
            place = Position(last.epoch, last.offset)

    async def _asked(self, payload: dict[str, Any]) -> Ask:
        self._check_open()
        membership = self._membership
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ask = Ask(payload, lambda: None if answered.done() else answered.set_result(None))
        self._line.conversation.ask(membership, ask, self._line.now())
        self._line.flush()
        try:
            await answered
        finally:
            if ask in membership.asks:
                membership.asks.remove(ask)
        if ask.error is not None:
            raise ask.error.again()
        return ask

    def _check_open(self) -> None:
        if self._membership.error is not None:
            raise self._membership.error.again()
        if not self._entered:
            raise ClientClosed(CLOSED, "The room is not joined; enter it: `async with`.")
        self._line.check_open()

    # What the client tells.

    def wake(self) -> None:
        """Wake who reads or joins: something has come, or the room has ended."""
        for waiter in (self._reader, self._joiner):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def tell(self, event: Sent | NotSent) -> None:
        """Tell of a send that nobody awaits."""
        self._stream.tell(event)
        self.wake()

    def _entry(self, content: str, data: Mapping[str, Any] | None, key: str | None) -> Entry:
        if not isinstance(content, str):
            raise SendRefused("invalid_message", f"content is of type {type(content).__name__}; give a text.")
        key = str(uuid.uuid4()) if key is None else key
        payload: dict[str, Any] = {"content": content, "key": key}
        try:
            if data is not None:
                payload["data"] = valid_data(data, MAX_FRAME_BYTES)
            encoded = json.encode(payload)
        except ChatError as error:
            raise SendRefused(error.code, error.reason) from error
        except (TypeError, ValueError) as error:
            raise SendRefused("invalid_message", f"It is no text: {error}; give well-formed Unicode.") from error
        if len(encoded) + len(self.id.encode()) + _ENVELOPE_BYTES > MAX_FRAME_BYTES:
            raise SendRefused(
                "message_too_large",
                f"It has {len(encoded)} bytes of JSON, and a frame has {MAX_FRAME_BYTES}; send less.",
            )
        return Entry(self.id, key, content, payload.get("data"), encoded, self._line.now())


def _place(given: Any, name: str) -> Position | None:
    if given is None:
        return None
    if isinstance(given, (Message, Gap)):
        return Position(given.epoch, given.offset)
    match given:
        case (str(epoch), int(offset)) if _is_unicode(epoch) and not isinstance(offset, bool) and offset >= 0:
            return Position(epoch, offset)
    raise ValueError(f"{name} is {given!r:.100}; give a Message, a Gap or (epoch, offset).")


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written: one that cannot would break the connection that all rooms share."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
