"""The sends of one room that await something: those of one user go one at a time, in the order of their calls."""

from __future__ import annotations

import asyncio
from collections import deque


class Lanes(dict[str, deque[asyncio.Future[None]]]):
    """By user, the sends that wait for the one under way; a user without a lane has none under way.

    The sends that a room admits are bounded, so the lanes are too. A dict, so that to look whether a user has a lane
    costs no call.
    """

    __slots__ = ()

    async def enter(self, user_id: str) -> None:
        """Wait until the user's earlier sends are through; `leave` follows unless this raises."""
        lane = self.get(user_id)
        if lane is None:
            self[user_id] = deque()
            return
        turn = asyncio.get_running_loop().create_future()
        lane.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(user_id)
            raise

    def leave(self, user_id: str) -> None:
        """Let the user's next send go."""
        lane = self[user_id]
        while lane:
            turn = lane.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self[user_id]
