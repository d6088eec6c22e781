"""Plain memberships live with a room's owner, so they move where the room moves."""

from __future__ import annotations

import logging

from chatx.cluster.rpc import Join
from chatx.errors import ChatError
from chatx.runtime.nodes.asking_owners import have_owner
from chatx.runtime.nodes.peers import Peers
from chatx.runtime.nodes.tasks import Tasks

logger: logging.Logger = logging.getLogger("chatx")


class MovingMembers:
    """Plain memberships on their way to their rooms' new owners.

    Args:
        peers: The other nodes.
        tasks: What goes on in the background.
    """

    def __init__(self, peers: Peers, tasks: Tasks) -> None:
        self._peers = peers
        self._tasks = tasks
        self._rooms = 0

    def __len__(self) -> int:
        """Return of how many rooms memberships are being moved."""
        return self._rooms

    def move(self, room_id: str, user_ids: list[str]) -> None:
        """Begin to have these users' memberships begin with the room's new owner."""
        self._rooms += 1
        _ = self._tasks.begin(self._move(room_id, user_ids))

    async def _move(self, room_id: str, user_ids: list[str]) -> None:
        try:
            for user_id in user_ids:
                await have_owner(self._peers, room_id, Join(room_id, user_id))
        except ChatError as error:
            text = "Memberships of room %r could not be moved to its new owner, and have ended: %s"
            logger.warning(text, room_id, error, extra={"room": room_id, "code": error.code})
        finally:
            self._rooms -= 1
