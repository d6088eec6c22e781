"""Persistence as the engine reads it: where a stream stands, what it holds, and the marks that prove a clean stop.

Rules:
1. What cannot be read is not guessed: a failure, a timeout or a wrong answer is an `AdapterError`. Only an answer says
   that something is not there.
2. A stream goes on under its epoch only from a position that persistence gave and whose proof could be withdrawn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.adapters.room_log import Found
from chatx.core.message import Entry, Message, Position
from chatx.errors import AdapterError, ChatError

logger: logging.Logger = logging.getLogger("chatx")

CLOSED_AT_ONCE = 500
"""Ends of streams in one call of `mark_all_closed`."""

CLOSING = 32
"""Calls of `mark_closed` under way at a time, where the adapter takes one end a call."""


class Lost(Exception):
    """Somebody else has taken the room over."""


class Storage:
    """The reading side of the persistence adapter, and the marks.

    Attributes:
        serves_history: Whether the adapter can be read at all.
        marks: Whether the adapter is told when a stream opens and closes.
        is_log: Whether it is a log, which is asked for a room's term and keeps what is `stored`.
    """

    def __init__(self, persistence: Any, boundary: Boundary) -> None:
        self._persistence = persistence
        self._boundary = boundary
        self._name = adapter_name(persistence) if persistence is not None else ""
        self.serves_history: bool = hasattr(persistence, "load_messages")
        self.marks: bool = self.serves_history and hasattr(persistence, "mark_open")
        self.is_log: bool = False

    async def last_position(self, room_id: str) -> Position | None:
        """Return the place from which the room's stream goes on, or None where a new one begins.

        Raises:
            AdapterError: The adapter failed, hung or gave a wrong answer.
        """
        answer = await self._read("last_position", room_id)
        match answer:
            case None:
                return None
            case (str() as epoch, int() as offset) if epoch and offset >= 0 and not isinstance(offset, bool):
                return Position(epoch, offset)
        raise self._wrong("last_position", f"{answer!r}, not (epoch, offset) or None")

    async def load(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> list[Entry]:
        """Return stored entries in order, at most `limit`.

        Raises:
            AdapterError: The adapter failed, hung or gave a wrong answer.
        """
        answer = await self._read("load_messages", room_id, after=after, before=before, limit=limit)
        if not isinstance(answer, Sequence) or not all(isinstance(each, Message) for each in answer):
            raise self._wrong("load_messages", f"{type(answer).__name__}, not a sequence of messages")
        messages = list(answer[:limit])
        self._check_order("load_messages", messages, room_id, after, before)
        return messages

    async def read(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Return entries in order, at most `limit`, and the oldest place that is kept; errors as `load`.

        What is no log does not say which place that is: None.
        """
        return Found(tuple(await self.load(room_id, after=after, before=before, limit=limit)), None)

    def _check_order(
        self, method: str, entries: Sequence[Entry], room_id: str, after: Position | None, before: Position | None
    ) -> None:
        """Raise `AdapterError` where entries are not those that were asked for."""
        reached = after.offset if after is not None else 0
        for entry in entries:
            if entry.room_id != room_id:
                raise self._wrong(method, f"an entry of room {entry.room_id!r} for room {room_id!r}")
            if after is not None:
                if entry.epoch != after.epoch or entry.offset <= reached:
                    raise self._wrong(method, f"{_place(entry)} where what follows {reached} was due")
                reached = entry.offset
            elif before is not None and entry.epoch == before.epoch and entry.offset >= before.offset:
                # Who reads backwards page by page would never come to an end.
                raise self._wrong(method, f"{_place(entry)}, which is not before {before.offset}")

    async def mark_open(self, room_id: str, head: Position) -> bool:
        """Withdraw the proof of where the room's stream ended; return False where the store failed to.

        Raises:
            Lost: Somebody else has the room, which only a log can tell.
        """
        return await self._marked("mark_open", room_id, head.epoch)

    async def mark_closed(self, ends: Sequence[tuple[str, Position]]) -> None:
        """Record the ends (room id, place) of streams that are saved whole; one that cannot be recorded is left out."""
        if hasattr(self._persistence, "mark_all_closed"):
            for first in range(0, len(ends), CLOSED_AT_ONCE):
                some = ends[first : first + CLOSED_AT_ONCE]
                if not await self._marked("mark_all_closed", [(room_id, *position) for room_id, position in some]):
                    # One of them may be at fault: the others do not lose their proof for it.
                    await self._close_each(some)
        else:
            await self._close_each(ends)

    def forget(self, room_id: str) -> None:
        """Take note that the room's life is over without an end to be recorded."""

    async def _close_each(self, ends: Sequence[tuple[str, Position]]) -> None:
        rest: Iterator[tuple[str, Position]] = iter(ends)

        async def close() -> None:
            for room_id, position in rest:
                await self._marked("mark_closed", room_id, position.epoch, position.offset)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(CLOSING, len(ends))):
                group.create_task(close())

    async def _read(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._boundary.call(self._name, getattr(self._persistence, method), *args, **kwargs)
        except (ChatError, AdapterFailure):
            raise self._unreadable() from None

    async def _marked(self, method: str, *args: Any) -> bool:
        try:
            await self._boundary.call(self._name, getattr(self._persistence, method), *args)
        except (ChatError, AdapterFailure):
            return False
        return True

    def _wrong(self, method: str, answer: str) -> AdapterError:
        try:
            self._boundary.failed(self._name, "wrong_answer", f"{method} answered {answer}")
        except AdapterFailure:
            return self._unreadable()

    def _unreadable(self) -> AdapterError:
        return AdapterError(f"The persistence adapter {self._name} could not be read; try again later.")


def _place(entry: Entry) -> str:
    return f"offset {entry.offset} of epoch {entry.epoch!r}"
