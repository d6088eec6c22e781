"""A store behind the nodes' log, as it is handed what the log has: a log of its own, or an adapter that only saves.

What it is given a second time changes nothing: an entry is known by its room and its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from chatx.adapters.boundary import Boundary, adapter_name
from chatx.adapters.room_log import FENCED, Append, Found, Opened, Record, is_log
from chatx.core.message import Entry, Message, Position


class StoreFailed(Exception):
    """The store answered with something else than was asked for."""


class StoreBehind(Protocol):
    """What a store is asked for. Each call raises what the adapter's boundary raises, or `StoreFailed`."""

    name: str
    serves_history: bool

    async def stands(self, room_id: str, epoch: str) -> int:
        """Return the newest offset that it has of an epoch, 0 where it has nothing of it."""
        ...

    async def save(self, room_id: str, after: Position, entries: Sequence[Entry]) -> bool:
        """Save what follows a place; False: another node has the room there."""
        ...

    async def read(self, room_id: str, after: Position | None, before: Position | None, limit: int) -> Found:
        """Return entries as `RoomLog.read` does; an oldest place of None says that nothing is known of it."""
        ...

    def forget(self, room_id: str) -> None:
        """Let go of what is known of a room."""
        ...


def store_behind(store: object, boundary: Boundary) -> StoreBehind:
    """Return a store as it is asked behind the nodes' log."""
    return LogBehind(store, boundary) if is_log(store) else SaverBehind(store, boundary)


class LogBehind:
    """A store that is a log; it is taken over ahead of the first entry that it lacks."""

    serves_history = True

    def __init__(self, store: Any, boundary: Boundary) -> None:
        self.name: str = adapter_name(store)
        self._store = store
        self._call = boundary.call
        self._terms: dict[str, int] = {}  # until `forget`

    async def stands(self, room_id: str, epoch: str) -> int:
        """Return the newest offset that it has of an epoch, 0 where it has nothing of it."""
        self._terms.pop(room_id, None)
        return _offset(await self._opened("look", room_id), epoch)

    async def save(self, room_id: str, after: Position, entries: Sequence[Entry]) -> bool:
        """Save what follows a place; False: another node has the room there."""
        term = self._terms.get(room_id)
        if term is None:
            term = self._terms[room_id] = (await self._opened("take_over", room_id)).term
        append = Append(room_id, term, after, tuple(Record(each) for each in entries), durable=True)
        answers = await self._call(self.name, self._store.append, [append])
        answer = answers[0] if isinstance(answers, Sequence) and len(answers) == 1 else "no answer"
        if answer is not None:
            self._terms.pop(room_id, None)
        if answer not in (None, FENCED):
            raise StoreFailed(f"append answered {answers!r:.200}")
        return answer is None

    async def read(self, room_id: str, after: Position | None, before: Position | None, limit: int) -> Found:
        """Return entries as `RoomLog.read` does."""
        found = await self._call(self.name, self._store.read, room_id, after=after, before=before, limit=limit)
        if not isinstance(found, Found):
            raise StoreFailed(f"read answered {type(found).__name__}")
        return found

    def forget(self, room_id: str) -> None:
        """Let go of what is known of a room."""
        self._terms.pop(room_id, None)

    async def _opened(self, method: str, room_id: str) -> Opened:
        opened = await self._call(self.name, getattr(self._store, method), room_id)
        if not isinstance(opened, Opened):
            raise StoreFailed(f"{method} answered {type(opened).__name__}")
        return opened


class SaverBehind:
    """A persistence adapter that saves messages, and may load them; what is no message is not given to it."""

    def __init__(self, store: Any, boundary: Boundary) -> None:
        self.name: str = adapter_name(store)
        self._store = store
        self._call = boundary.call
        self.serves_history: bool = hasattr(store, "load_messages")

    async def stands(self, room_id: str, epoch: str) -> int:
        """Return the newest offset that it has of an epoch, 0 where it has nothing of it, or cannot say."""
        if not self.serves_history:
            return 0
        newest = (await self.read(room_id, None, None, 1)).entries
        return newest[-1].offset if newest and newest[-1].epoch == epoch else 0

    async def save(self, room_id: str, after: Position, entries: Sequence[Entry]) -> bool:
        """Save what follows a place."""
        messages = [each for each in entries if isinstance(each, Message)]
        if messages and hasattr(self._store, "save_messages"):
            await self._call(self.name, self._store.save_messages, messages)
        else:
            for each in messages:
                await self._call(self.name, self._store.save_message, each)
        return True

    async def read(self, room_id: str, after: Position | None, before: Position | None, limit: int) -> Found:
        """Return messages; of what is kept it knows the oldest that is asked for."""
        if not self.serves_history:
            return Found((), None)
        loaded = await self._call(
            self.name, self._store.load_messages, room_id, after=after, before=before, limit=limit
        )
        if not isinstance(loaded, Sequence) or not all(isinstance(each, Message) for each in loaded):
            raise StoreFailed(f"load_messages answered {type(loaded).__name__}")
        return Found(tuple(loaded[:limit]), None)

    def forget(self, room_id: str) -> None:
        """Do nothing: nothing is known."""


def _offset(opened: Opened, epoch: str) -> int:
    return opened.head.offset if opened.head is not None and opened.head.epoch == epoch else 0
