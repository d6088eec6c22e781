"""A persistence adapter that keeps its contract, to be broken in one way at a time."""

import asyncio
from collections.abc import Sequence

from chatx import Message

Place = tuple[str, int]


class MemoryStore:
    """Keeps the contract, with plain methods."""

    def __init__(self) -> None:
        self.saved: dict[tuple[str, str, int], Message] = {}
        self.epochs: dict[str, list[str]] = {}
        self.closed: dict[tuple[str, str], int] = {}

    def key(self, message: Message) -> tuple[str, str, int]:
        return (message.room_id, message.epoch, message.offset)

    def save_messages(self, messages: Sequence[Message]) -> None:
        for message in messages:
            message.content.encode()
        for message in messages:
            self.see(message.room_id, message.epoch)
            self.saved.setdefault(self.key(message), message)

    def see(self, room_id: str, epoch: str) -> None:
        epochs = self.epochs.setdefault(room_id, [])
        if epoch not in epochs:
            epochs.append(epoch)

    def room(self, room_id: str) -> list[Message]:
        return sorted((each for each in self.saved.values() if each.room_id == room_id), key=self.place)

    def place(self, message: Message) -> tuple[int, int]:
        return self.epochs[message.room_id].index(message.epoch), message.offset

    def after(self, messages: list[Message], after: Place) -> list[Message]:
        return [each for each in messages if each.epoch == after[0] and each.offset > after[1]]

    def before(self, messages: list[Message], room_id: str, before: Place) -> list[Message]:
        epochs = self.epochs[room_id]
        # An epoch that is not known is one of which nothing is saved yet.
        place = (epochs.index(before[0]) if before[0] in epochs else len(epochs), before[1])
        return [each for each in messages if self.place(each) < place]

    def load_messages(
        self, room_id: str, *, after: Place | None = None, before: Place | None = None, limit: int
    ) -> Sequence[Message]:
        messages = self.room(room_id)
        if after is not None:
            return self.after(messages, after)[:limit]
        if before is not None:
            messages = self.before(messages, room_id, before)
        return messages[-limit:]

    def last_position(self, room_id: str) -> Place | None:
        epochs = self.epochs.get(room_id)
        if not epochs or (room_id, epochs[-1]) not in self.closed:
            return None
        return epochs[-1], self.closed[room_id, epochs[-1]]

    def mark_open(self, room_id: str, epoch: str) -> None:
        self.see(room_id, epoch)
        self.closed.pop((room_id, epoch), None)

    def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        self.closed[room_id, epoch] = offset


class AwaitingStore:
    """Keeps the contract, with async methods, and saves one message at a time."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    async def save_message(self, message: Message) -> None:
        await asyncio.sleep(0.01)
        self.store.save_messages([message])

    async def load_messages(
        self, room_id: str, *, after: Place | None = None, before: Place | None = None, limit: int
    ) -> Sequence[Message]:
        await asyncio.sleep(0.01)
        return tuple(self.store.load_messages(room_id, after=after, before=before, limit=limit))

    async def last_position(self, room_id: str) -> Place | None:
        await asyncio.sleep(0.01)
        return self.store.last_position(room_id)

    async def mark_open(self, room_id: str, epoch: str) -> None:
        await asyncio.sleep(0.01)
        self.store.mark_open(room_id, epoch)

    async def mark_closed(self, room_id: str, epoch: str, offset: int) -> None:
        await asyncio.sleep(0.01)
        self.store.mark_closed(room_id, epoch, offset)
