"""The way in at the bound of one user: sockets that seem dead are asked, and those that do not answer give way.

A phone that lost its network leaves its sockets behind, and nothing tells the server. The user who comes back is not to
wait until each of them has been silent for long enough.

Rules:
1. A newcomer at the bound waits for `ANSWER_S` at most, while the sockets that have been silent for a while are asked.
   What has shown itself by then stays; of what has not, the longest silent gives way. Nothing that answers is ended.
2. A newcomer is refused as soon as too many have answered. No more newcomers of one user wait than there are sockets of
   theirs that have not answered; the next ones are refused at once.
3. The answers are looked for `LOOKS` times, in turns of their own: while one turn of the loop takes long, nobody's
   answer is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from chatx.gateway.entry.admission import COME_BACK_S, Admission, Place
from chatx.gateway.wire.bounds import ANSWER_S

LOOKS: Final = 8
"""How often it is looked for answers within `ANSWER_S`."""


class Newcomers:
    """Lets newcomers in to one gateway.

    Args:
        admission: What counts its sockets.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waiting: dict[str, int] = {}  # by user; at most as many of each as a user may have sockets

    def __len__(self) -> int:
        """Return how many users have newcomers that wait."""
        return len(self._waiting)

    async def admit(self, place: Place, user_id: str) -> None:
        """Admit a handshake's place as a socket of this user, unless the place ends meanwhile.

        Raises:
            Full: The user has too many sockets, and all that could give way to this one are alive.
        """
        if not self._admission.has_room(user_id):
            await self._room(place, user_id)
        if not place.ended:
            place.admit(user_id)

    async def _room(self, place: Place, user_id: str) -> None:
        """Wait until there is room for the place, or make some; where the place ends meanwhile, wait no longer."""
        silent = self._admission.ask(user_id)
        waiting = self._waiting.get(user_id, 0)
        if waiting >= len(silent):
            raise self._admission.full(user_id, retry_after=ANSWER_S if silent else COME_BACK_S)
        self._waiting[user_id] = waiting + 1
        try:
            for _ in range(LOOKS):
                await asyncio.sleep(ANSWER_S / LOOKS)
                if place.ended or self._admission.has_room(user_id):
                    return
                silent = _unanswered(silent)
                if self._waiting[user_id] > len(silent):
                    raise self._admission.full(user_id)
            next(iter(silent)).give_way()
        finally:
            left = self._waiting.pop(user_id) - 1
            if left:
                self._waiting[user_id] = left


def _unanswered(silent: dict[Place, Callable[[], bool]]) -> dict[Place, Callable[[], bool]]:
    return {place: answered for place, answered in silent.items() if not (place.ended or answered())}
