"""The rooms that other nodes own, as the engine of this one reaches them; nothing at all where there is one node."""

from __future__ import annotations

from typing import Protocol

from chatx.core.message import Draft, Message, Position, Presences
from chatx.errors import ChatError
from chatx.runtime.polls import Polls
from chatx.runtime.process import Neighbours, RoomProcess
from chatx.runtime.storage import Storage


class OwnedHere(Exception):
    """A room that was to be opened as another node's is this node's by now."""


class Elsewhere(Neighbours, Protocol):
    """The other nodes of one chat.

    A room has one owner, who places what is said in it. Every other node that somebody reads or has joined it on has a
    replica: a `RoomProcess` that places nothing, and is given what the owner has placed.
    """

    @property
    def serving(self) -> bool:
        """Whether this node is one of the others now, and has the rooms that are its own."""
        ...

    @property
    def polls(self) -> Polls:
        """The long-polling sessions of all nodes."""
        ...

    def owns(self, room_id: str) -> bool:
        """Return whether the room is this node's."""
        ...

    def storage_of(self, room_id: str) -> Storage | None:
        """Return what a room that another node owns is read from, or None where it is this node's.

        Its `last_position` raises `OwnedHere` where that changes while the owner is asked.
        """
        ...

    async def send(self, draft: Draft, key: str | None, trusted: bool, stored: bool) -> Message | ChatError:
        """Have the owner of its room send a draft, and return the message, or the owner's refusal.

        Raises:
            RoomOverloaded: As much waits for the owner as may wait.
            RoomUnavailable: It cannot be reached.
        """
        ...

    async def join(self, room_id: str, user_id: str) -> None:
        """Have the owner begin a user's plain membership, unless there is one.

        Raises:
            RoomUnavailable: The owner cannot be reached.
        """
        ...

    async def leave(self, room_id: str, user_id: str) -> None:
        """Have the owner end a user's plain membership, if there is one; errors as `join`."""
        ...

    async def presences(self, room_id: str) -> Presences:
        """Return who is in a room that another node owns; errors as `join`."""
        ...

    def revoked(self, user_id: str) -> None:
        """Tell all other nodes that a user was revoked."""
        ...

    async def reach(self, process: RoomProcess) -> None:
        """Bring a replica up to what its owner has placed by now; errors as `join`."""
        ...

    async def inherit(self, room_id: str) -> Position | None:
        """Return the place at which a room of this node goes on that another had a moment ago, or None."""
        ...

    def unwanted(self, room_id: str) -> None:
        """Take note that a room has not begun here after all, though it was to."""
        ...

    def began(self, process: RoomProcess) -> None:
        """Take note that a room has begun here, owned or as a replica."""
        ...

    def gone(self, process: RoomProcess) -> None:
        """Take note that a room is here no longer."""
        ...
