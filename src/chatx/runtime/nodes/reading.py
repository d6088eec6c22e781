"""A room of another node as it is read: its owner is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from chatx.adapters.room_log import Found
from chatx.cluster import rpc
from chatx.cluster.entries import ENTRIES_AT_ONCE
from chatx.cluster.fields import Place
from chatx.core.message import Entry, Position
from chatx.errors import AdapterError, ChatError
from chatx.runtime.nodes.asking_owners import ask_owner
from chatx.runtime.nodes.peers import Peers
from chatx.runtime.storage import Storage


class OwnersStorage(Storage):
    """What the owner of a room has of it.

    Args:
        peers: The other nodes.
        opens: Begins the replica of a room, and returns where it begins.
    """

    def __init__(self, peers: Peers, opens: Callable[[str], Awaitable[Position]]) -> None:
        self._peers = peers
        self._opens = opens
        self.serves_history = True
        self.marks = False
        self.is_log = False

    async def last_position(self, room_id: str) -> Position | None:
        """Attach to the room, and return the place at which it begins here.

        Raises:
            RoomUnavailable: The owner cannot be reached, or refuses.
            OwnedHere: The room is this node's by now.
        """
        return await self._opens(room_id)

    async def load(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> list[Entry]:
        """Return entries in order, at most `limit`.

        Raises:
            AdapterError: The owner cannot be reached.
        """
        return list((await self.read(room_id, after=after, before=before, limit=limit)).entries)

    async def read(
        self, room_id: str, *, after: Position | None = None, before: Position | None = None, limit: int
    ) -> Found:
        """Return entries in order, at most `limit`, and the oldest place that is kept; errors as `load`."""
        entries: list[Entry] = []
        oldest = None
        # An answer may be short since no more goes at once: only an empty one says that there is no more.
        while (wanted := limit - len(entries)) > 0:
            found = await self._part(room_id, after, before, min(wanted, ENTRIES_AT_ONCE))
            if oldest is None or (found.oldest is not None and found.oldest.offset < oldest.offset):
                oldest = found.oldest  # that of memory, where the part came from there, is not that of the log
            if not found.entries:
                break
            if after is not None:
                entries += found.entries
                after = Position(entries[-1].epoch, entries[-1].offset)
            else:
                entries[:0] = found.entries
                before = Position(entries[0].epoch, entries[0].offset)
                if before == oldest:
                    break
        return Found(tuple(entries), oldest)

    async def _part(self, room_id: str, after: Position | None, before: Position | None, limit: int) -> Found:
        place = after or before
        ask = rpc.Read(room_id, None if place is None else Place(*place), after is not None, limit)
        try:
            answer = await ask_owner(self._peers, room_id, ask)
        except ChatError as error:  # that of a store, to whoever reads
            raise AdapterError(f"The node that has the room could not be read: {error}") from error
        if not isinstance(answer, rpc.Found):
            raise AdapterError(f"The node that has the room answered with {type(answer).__name__}; try again later.")
        oldest = None if answer.oldest is None else Position(answer.oldest.epoch, answer.oldest.offset)
        entries = tuple(each.entry(room_id) for each in answer.entries)
        if not _in_order(entries, after, before):
            # Who reads on behind what it got would never come to an end.
            raise AdapterError("The node that has the room answered with other entries than were asked for.")
        return Found(entries, oldest)


def _in_order(entries: Sequence[Entry], after: Position | None, before: Position | None) -> bool:
    """Return whether entries are in order, and behind the one place or ahead of the other."""
    reached = after
    for entry in entries:
        if reached is not None and entry.epoch == reached.epoch:
            if entry.offset <= reached.offset:
                return False
        elif after is not None:
            return False
        if before is not None and entry.epoch == before.epoch and entry.offset >= before.offset:
            return False
        reached = Position(entry.epoch, entry.offset)
    return True
