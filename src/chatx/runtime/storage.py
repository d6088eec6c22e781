"""Persistence as the engine reads it: where a stream stands, and what it holds.

Rules:
1. What cannot be read is not guessed: a failure, a timeout or a wrong answer means no position and no messages.
2. A stream goes on under its epoch only from a position that persistence gave and whose proof could be withdrawn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from chatx.adapters.boundary import AdapterFailure, Boundary, adapter_name
from chatx.core.message import Message, Position
from chatx.errors import AdapterError, ChatError
from chatx.runtime.ids import new_epoch

logger: logging.Logger = logging.getLogger("chatx")


class Storage:
    """The reading side of the persistence adapter, and the marks that prove a clean stop.

    Attributes:
        serves_history: Whether the adapter can be read at all.
    """

    def __init__(self, persistence: Any, boundary: Boundary) -> None:
        self._persistence = persistence
        self._boundary = boundary
        self._name = adapter_name(persistence) if persistence is not None else ""
        self.serves_history: bool = hasattr(persistence, "load_messages")
        self._marks = hasattr(persistence, "mark_open")

    async def open(self, room_id: str) -> Position:
        """Return where the room's stream goes on, which is a new epoch unless the old one's place is proven."""
        position = _position(await self._call("last_position", room_id))
        epoch = position.epoch if position is not None else new_epoch()
        if self._marks and not await self._marked("mark_open", room_id, epoch):
            # The proof stands although the stream would go on: only an epoch of its own is safe.
            return Position(new_epoch(), 0)
        return position or Position(epoch, 0)

    async def close(self, room_id: str, position: Position) -> None:
        """Record that the stream ended here with everything saved."""
        if self._marks and position.offset:
            await self._marked("mark_closed", room_id, position.epoch, position.offset)

    async def load(
        self,
        room_id: str,
        *,
        after: Position | None = None,
        before: Position | None = None,
        limit: int,
        strict: bool = False,
    ) -> list[Message]:
        """Return stored messages in order; none where they cannot be read, or `AdapterError` if `strict`."""
        answer = await self._call("load_messages", room_id, after=after, before=before, limit=limit)
        if isinstance(answer, Sequence) and all(isinstance(each, Message) for each in answer):
            return list(answer[:limit])
        if answer is not None:
            logger.error("The adapter %s answered load_messages with %r, not messages.", self._name, type(answer))
        if strict:
            raise AdapterError(f"The persistence adapter {self._name} could not be read; try again later.")
        return []

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._boundary.call(self._name, getattr(self._persistence, method), *args, **kwargs)
        except (ChatError, AdapterFailure):
            return None

    async def _marked(self, method: str, *args: Any) -> bool:
        try:
            await self._boundary.call(self._name, getattr(self._persistence, method), *args)
        except (ChatError, AdapterFailure):
            return False
        return True


def _position(answer: Any) -> Position | None:
    match answer:
        case (str() as epoch, int() as offset) if epoch and offset >= 0 and not isinstance(offset, bool):
            return Position(epoch, offset)
        case None:
            return None
    logger.error("The persistence adapter answered last_position with %r, not (epoch, offset) or None.", answer)
    return None
