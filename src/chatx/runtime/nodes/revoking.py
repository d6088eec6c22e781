"""Who was revoked is told to every node; one that is away is owed it until it is back.

At most `AWAY_NODES` lives of nodes are remembered, and for each `REVOKED_KEPT` users. Of a node that is away and of
which more is owed the oldest is written to the log instead.
"""

from __future__ import annotations

import asyncio
import logging

from chatx.cluster.rpc import Revoke
from chatx.runtime.nodes.peers import AGAIN_S, Peers, Unreachable
from chatx.runtime.nodes.tasks import Tasks
from chatx.runtime.revocations import REVOKED_KEPT

logger: logging.Logger = logging.getLogger("chatx")

AWAY_NODES = 64
"""Lives of nodes that are away and may come back, at most; the one that went first is forgotten."""


class Revoking:
    """Tells the other nodes who was revoked.

    Args:
        peers: The other nodes.
        tasks: What goes on in the background.
    """

    def __init__(self, peers: Peers, tasks: Tasks) -> None:
        self._peers = peers
        self._tasks = tasks
        self._owed: dict[str, dict[str, None]] = {}  # nodes that are away, and who was revoked meanwhile

    def revoked(self, user_id: str) -> None:
        """Tell all other nodes that a user was revoked; one that is away hears it when it is back."""
        there = self._peers.everybody()
        for boot in there:
            _ = self._tasks.begin(self._tell(boot, user_id))
        for boot in self._owed:
            if boot not in there:
                self._owe(boot, user_id)

    def node_gone(self, boot: str) -> None:
        """Take note that a node is gone, or away: what it holds of users who are revoked meanwhile it holds still."""
        self._owed.setdefault(boot, {})
        while len(self._owed) > AWAY_NODES:
            first = next(iter(self._owed))
            if owed := self._owed.pop(first):
                text = "Node %s is away, and if it comes back it will not hear of %d users who were revoked meanwhile."
                logger.warning(text, first, len(owed), extra={"node": first, "code": "revocation_lost"})

    def node_came(self, boot: str) -> None:
        """Take note that a node is there: it is told who was revoked while it was away."""
        for user_id in self._owed.pop(boot, ()):
            _ = self._tasks.begin(self._tell(boot, user_id))

    async def _tell(self, boot: str, user_id: str) -> None:
        while boot in self._peers.everybody():
            try:
                await self._peers.ask(boot, Revoke(user_id))
                return
            except Unreachable:
                await asyncio.sleep(AGAIN_S)
        self._owe(boot, user_id)

    def _owe(self, boot: str, user_id: str) -> None:
        owed = self._owed.setdefault(boot, {})
        owed[user_id] = None
        if len(owed) > REVOKED_KEPT:
            text = "Node %s is away, and of the users revoked meanwhile it will not hear of %r: there are too many."
            first = next(iter(owed))
            del owed[first]
            logger.warning(text, boot, first, extra={"node": boot, "code": "revocation_lost"})
