"""Repeats of an idempotency key: each is answered with the first message of the key, and none is published.

Rules:
1. While the first send of a key is under way its repeats wait for that one's outcome, which may be a refusal. If it is
   cancelled nobody knows an outcome, and the next in line becomes the first; likewise if it was for another epoch.
2. An answer has the place of the first message. Its content and data are the repeat's own where the hashes say that the
   two are equal, else what memory or persistence still has, else the repeat's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from msgspec.structs import replace

from chatx.core.idempotency import Place, said
from chatx.core.message import Draft, Entry, Message, Position
from chatx.errors import AdapterError, ChatError, EpochChanged, RoomOverloaded
from chatx.runtime.rooms import Rooms
from chatx.runtime.storage import Storage


class Repeats:
    """The sends with a key that are under way in one chat, by `scope_of` the key, and the answers to repeats.

    Args:
        most_waiting: Repeats that wait for one send, at least 1; at the bound a further one is refused.
    """

    def __init__(self, rooms: Rooms, storage: Storage, most_waiting: int, loop: asyncio.AbstractEventLoop) -> None:
        self._rooms = rooms
        self._storage = storage
        self._most_waiting = most_waiting
        self._loop = loop
        self._under_way: dict[bytes, list[asyncio.Future[Message]]] = {}

    async def outcome(self, scope: bytes) -> Message | None:
        """Return what the first send of a key came to, marked as a duplicate, or None where no such send is under way.

        Where it returns None, no send of the key begins before the caller awaits something else.

        Raises:
            ChatError: The first send was refused, or as many repeats wait for it as may.
        """
        while (waiting := self._under_way.get(scope)) is not None:
            if len(waiting) >= self._most_waiting:
                raise RoomOverloaded(
                    f"{len(waiting)} repeats wait for the outcome of this message already; send again later.",
                    retry_after=1.0,
                )
            outcome = self._loop.create_future()
            waiting.append(outcome)
            try:
                message: Message = await outcome
            except (_FirstWasCancelled, EpochChanged):
                continue  # the next in line sends it
            finally:
                del outcome, waiting  # a refusal's traceback has this frame: they would wait for the collector
            return replace(message, duplicate=True)
        return None

    async def send_first(self, scope: bytes, sending: Coroutine[Any, Any, Message]) -> Message:
        """Run the first send of a key, and tell its outcome to the repeats that came meanwhile."""
        waiting = self._under_way[scope] = []
        error: Exception = _FirstWasCancelled()
        try:
            message = await sending
        except ChatError as refusal:
            error = refusal
            raise
        else:
            for outcome in waiting:
                if not outcome.done():
                    outcome.set_result(message)
            return message
        finally:
            del self._under_way[scope]
            _refuse(waiting, error)
            del error, waiting  # its traceback has this frame

    def from_memory(self, draft: Draft, place: Place) -> Message | None:
        """Return the answer to a repeat, or None where only persistence may still know what the first message said."""
        if said(draft.content, draft.data) != place.content_hash:
            process = self._rooms.find(draft.room_id)
            first = None if process is None else process.at(Position(place.epoch, place.offset))
            if first is not None and first.id == place.id:
                return _answer(draft, place, first)
            if self._storage.serves_history:
                return None
        return _answer(draft, place, None)

    async def from_storage(self, draft: Draft, place: Place) -> Message:
        """Return the answer to a repeat whose text is not that of the first message, which memory has no more."""
        try:
            found = await self._storage.load(draft.room_id, after=Position(place.epoch, place.offset - 1), limit=1)
        except AdapterError:
            found = []
        first = next((each for each in found if each.id == place.id), None)
        return _answer(draft, place, first)


def _refuse(waiting: list[asyncio.Future[Message]], error: Exception) -> None:
    for outcome in waiting:
        if not outcome.done():
            # Not a method that an application's own error may have by the same name, and may raise.
            outcome.set_exception(ChatError.again(error) if isinstance(error, ChatError) else error)
            outcome.exception()  # a waiter may be gone by now; then nobody is to be told


class _FirstWasCancelled(Exception):
    """The send that repeats wait for was cancelled and has no outcome."""


def _answer(draft: Draft, place: Place, first: Entry | None) -> Message:
    says = first if isinstance(first, Message) else draft
    return Message(
        place.id,
        draft.room_id,
        draft.user_id,
        says.content,
        place.inserted_at,
        place.epoch,
        place.offset,
        duplicate=True,
        stored=place.stored,
        data=says.data,
    )
