"""What one user may do over all of their sockets: joins, rooms that begin with them, messages.

What is counted for each socket, or for each room, begins anew with the next one. These totals do not.

Rules:
1. A total is what a user may do who uses as many sockets, each for as many rooms, as they may have. So nobody who keeps
   to the other bounds meets it at ordinary use.
2. A look says how long to wait, whatever room is asked for: a refusal does not tell which rooms there are.
3. A socket takes the messages of its user in portions, since looking each one up would be felt where messages are many;
   what it has left at its end is gone. A portion is so small a part of the total that all sockets get some.
4. Where the sockets of a user are not bounded, `user_id` does not stand for one person, and there are no totals.
"""

from __future__ import annotations

from typing import Final

from chatx.config import ChatConfig
from chatx.core.rate_limit import RateLimit, TokenBuckets
from chatx.errors import RateLimited
from chatx.gateway.wire.bounds import JOIN_BURSTS, JOIN_SECONDS, MAX_JOINS, MESSAGE_ROOMS, ROOM_SECONDS

PORTION: Final = 64
"""Messages that a socket takes of its user's at a time, at most."""


class Allowances:
    """The totals of every user of one gateway, kept while they are not whole. Times are seconds of one clock.

    Args:
        config: The bounds of a socket and of a room, of which the totals are made.
    """

    __slots__ = ("_joins", "_messages", "_portion", "_rooms")

    def __init__(self, config: ChatConfig) -> None:
        self._joins: TokenBuckets | None = None
        self._rooms: TokenBuckets | None = None
        self._messages: TokenBuckets | None = None
        self._portion = PORTION
        most = max(config.max_joins_per_connection, MAX_JOINS) * config.max_connections_per_user
        if not most:
            return
        self._joins = TokenBuckets(RateLimit(most / JOIN_SECONDS, JOIN_BURSTS * most))
        self._rooms = TokenBuckets(RateLimit(most / ROOM_SECONDS, most))
        if "rate_limit" in config.middlewares:
            limit = config.rate_limit
            burst = MESSAGE_ROOMS * limit.burst
            self._messages = TokenBuckets(RateLimit(MESSAGE_ROOMS * limit.messages_per_sec, burst))
            self._portion = max(1, min(PORTION, burst // 32))

    def __len__(self) -> int:
        """Return how many totals are in memory."""
        return sum(len(each) for each in (self._joins, self._rooms, self._messages) if each is not None)

    def join(self, user_id: str, now: float) -> float:
        """Count a join of the user and return 0.0; or count nothing and return the seconds until the user may join."""
        if self._joins is None or self._rooms is None:
            return 0.0
        return self._rooms.wait("", user_id, now) or self._joins.acquire("", user_id, now)

    def began(self, user_id: str, now: float) -> None:
        """Count a room that a join of the user has begun."""
        if self._rooms is not None:
            self._rooms.acquire("", user_id, now)

    def messages(self, user_id: str, now: float) -> int:
        """Take a portion of the user's messages for one socket, and return how many messages that is.

        Raises:
            RateLimited: The user may send none now.
        """
        if self._messages is None:
            return self._portion
        taken = self._messages.take("", user_id, now, self._portion)
        if not taken:
            wait = self._messages.wait("", user_id, now)
            raise RateLimited("Too many messages of this user, over all rooms, in too short a time.", retry_after=wait)
        return taken
