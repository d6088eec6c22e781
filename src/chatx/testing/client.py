"""A user of a `Chat` in a test: joins, sends, and says what must arrive.

    async with ChatClient(chat, "alice") as alice, ChatClient(chat, "bob") as bob:
        await alice.join("general")
        await bob.send("general", "hello")
        await alice.expect_message(content="hello", user_id="bob")

Waiting is bounded in seconds of the loop's time, so on virtual time it costs nothing. A failure shows what did arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self, TypeVar

from chatx.chat import Chat
from chatx.core.mailbox import OverflowPolicy
from chatx.core.message import Event, Message, PresenceDiff, PresenceState
from chatx.errors import ChatError
from chatx.runtime.connection import Connection

E = TypeVar("E", bound=Event)

WITHIN_S = 1.0
"""How long an expectation waits unless told, in seconds of the loop's time."""


class ChatClient:
    """One client of one user, connected in process; the name does not begin with `Test`, so pytest does not collect it.

    What arrives waits until an expectation takes it: each takes the first event that fits and leaves the others, so
    the order of expectations needs not be the order of events. It reads only while it expects, as a slow consumer
    would: `mailbox_size` applies.

    Attributes:
        connection: The connection behind it, for what this has no method for.
    """

    def __init__(self, chat: Chat, user_id: str, *, overflow: OverflowPolicy = "disconnect") -> None:
        """Build a client; `async with` connects it.

        Args:
            chat: A chat that is running when the block is entered.
            user_id: Who it is.
            overflow: As in `Chat.connect`.
        """
        self.connection: Connection = chat.connect(user_id, overflow=overflow)
        self._arrived: list[Event] = []
        self._present: dict[str, dict[str, set[str]]] = {}  # room id -> user id -> refs
        self._ended: ChatError | None = None

    async def __aenter__(self) -> Self:
        """Connect the client; errors as `Connection`."""
        await self.connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect, which leaves every room."""
        self.disconnect()

    async def join(self, room_id: str, *, after: object = None, presence: bool = False) -> None:
        """Join a room and subscribe to it, as a client on the wire does; errors as `Connection.join`.

        Args:
            room_id: The room.
            after: The place to resume from, as in `Chat.subscribe`.
            presence: Whether the client is told who is there; `expect_presence` needs that.
        """
        await self.connection.join(room_id)
        await self.connection.subscribe(room_id, after=after, presence=presence)

    async def leave(self, room_id: str) -> None:
        """Unsubscribe from a room and leave it. What has arrived from it and was not taken is dropped."""
        await self.connection.unsubscribe(room_id)
        await self.connection.leave(room_id)
        self._arrived = [event for event in self._arrived if event.room_id != room_id]
        self._present.pop(room_id, None)

    async def send(self, room_id: str, content: str | bytes, *, idempotency_key: str | None = None) -> Message:
        """Send a message; errors as `Chat.send_message`."""
        return await self.connection.send_message(room_id, content, idempotency_key=idempotency_key)

    def disconnect(self) -> None:
        """Disconnect at once; twice is harmless."""
        self.connection.close()

    async def expect(self, kind: type[E], *, within: float = WITHIN_S, **fields: object) -> E:
        """Wait for an event of a kind with these fields, take it and return it.

        Args:
            kind: `Message`, `Gap`, `PresenceState`, `PresenceDiff` or `SubscriptionEnded`.
            within: The longest wait, in seconds.
            fields: What its attributes must equal.

        Raises:
            AssertionError: No such event arrived in time.
        """
        unknown = set(fields) - set(kind.__struct_fields__)
        if unknown:
            raise TypeError(
                f"{kind.__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(kind.__struct_fields__)}."
            )
        deadline = asyncio.get_running_loop().time() + within
        seen = 0
        while True:
            for place, event in enumerate(self._arrived[seen:], seen):
                if isinstance(event, kind) and all(getattr(event, name) == fields[name] for name in fields):
                    del self._arrived[place]
                    return event
            seen = len(self._arrived)
            if not await self._next(deadline):
                wanted = ", ".join(f"{name}={value!r}" for name, value in fields.items())
                raise self._failure(f"expected {kind.__name__}({wanted}) within {within:g} s")

    async def expect_message(
        self, content: str | None = None, *, within: float = WITHIN_S, **fields: object
    ) -> Message:
        """Wait for a message, take it and return it; `expect(Message, ...)`."""
        if content is not None:
            fields["content"] = content
        return await self.expect(Message, within=within, **fields)

    async def expect_presence(self, room_id: str, users: Iterable[str], *, within: float = WITHIN_S) -> None:
        """Wait until exactly these users are in a room, as told by its presence events, which this takes.

        Raises:
            AssertionError: The wait is over, and the users in the room are others.
        """
        expected = set(users)
        deadline = asyncio.get_running_loop().time() + within
        while (present := self._present.get(room_id)) is None or set(present) != expected:
            if await self._next(deadline):
                continue
            there = self._present.get(room_id)
            raise self._failure(
                f"expected {sorted(expected)} in {room_id!r} within {within:g} s, but "
                + ("was told nothing; join it with presence=True" if there is None else f"there are {sorted(there)}")
            )
        self._arrived = [
            event
            for event in self._arrived
            if not (isinstance(event, (PresenceState, PresenceDiff)) and event.room_id == room_id)
        ]

    async def expect_nothing(self, *, within: float = WITHIN_S) -> None:
        """Wait, and see that nothing arrives and nothing that arrived before is left.

        Raises:
            AssertionError: An event arrived, or one that had arrived was not taken yet, or the connection ended.
        """
        await self._read(within)
        if self._arrived or self._ended is not None:
            raise self._failure(f"expected nothing for {within:g} s")

    async def expect_end(self, code: str, *, within: float = WITHIN_S) -> ChatError:
        """Wait until the engine ends the connection and return why; what arrived before stays to be expected.

        Args:
            code: The code of the error, such as `slow_consumer` or `closed`.
            within: The longest wait, in seconds.

        Raises:
            AssertionError: The connection did not end in time, or ended for another reason.
        """
        await self._read(within)
        if self._ended is None or self._ended.code != code:
            raise self._failure(f"expected the connection to end with {code!r} within {within:g} s")
        return self._ended

    async def arrived(self, *, within: float = 0.0) -> list[Event]:
        """Take and return everything that has arrived, and what arrives within so many seconds, in order."""
        await self._read(within)
        events, self._arrived = self._arrived, []
        return events

    async def _read(self, within: float) -> None:
        deadline = asyncio.get_running_loop().time() + within
        while await self._next(deadline):
            pass

    async def _next(self, deadline: float) -> bool:
        """Let one event arrive; return whether one did before the deadline and the connection's end."""
        if self._ended is not None:
            return False
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(self.connection)
            except TimeoutError:
                # What was published in the very turn of the deadline is there all the same.
                if not self.connection.unread:
                    return False
                event = await anext(self.connection)
        except StopAsyncIteration:
            return False
        except ChatError as error:
            self._ended = error
            return False
        self._arrived.append(event)
        self._note_presence(event)
        return True

    def _note_presence(self, event: Event) -> None:
        if isinstance(event, PresenceState):
            self._present[event.room_id] = {
                user: {meta.ref for meta in metas} for user, metas in event.presences.items()
            }
        elif isinstance(event, PresenceDiff):
            room = self._present[event.room_id]
            for user, metas in event.joins.items():
                room.setdefault(user, set()).update(meta.ref for meta in metas)
            for user, metas in event.leaves.items():
                left = room.get(user, set()) - {meta.ref for meta in metas}
                if left:
                    room[user] = left
                else:
                    room.pop(user, None)

    def _failure(self, what: str) -> AssertionError:
        lines = [f"{self.connection.user_id}: {what}."]
        if self._ended is not None:
            lines.append(f"The connection ended with {self._ended.code}: {self._ended.reason}")
        if self._arrived:
            lines.append(f"What did arrive and was not taken ({len(self._arrived)}):")
            lines += [f"  {event!r}" for event in self._arrived]
        else:
            lines.append("Nothing else arrived.")
        return AssertionError("\n".join(lines))
