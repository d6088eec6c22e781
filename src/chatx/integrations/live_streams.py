"""How many streams of live pages may be open, and what one user may have them read: the bounds that sockets have.

Rules:
1. A stream has a place from before the room is asked for until it has ended. At a bound it is refused before the auth
   adapter, the room or the store is asked anything.
2. At the bound of one user the stream whose client has gone longest without taking anything gives way: a phone that
   lost its network does not lock its user out. Nothing that is alive is ended for a newcomer. Where the server does not
   let it be seen what its clients take, none gives way.
3. What a stream or a page reads from history is charged to its user, whose next one is refused until that is paid off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from chatx.core.message import Message
from chatx.errors import ChatError, RateLimited, RoomOverloaded
from chatx.gateway.entry.admission import TOO_MANY_REQUESTS, UNAVAILABLE, Admission, Full, Place
from chatx.gateway.entry.refusal import RefusalLog, Refused
from chatx.gateway.session.allowances import Allowances
from chatx.gateway.session.progress import untaken
from chatx.gateway.session.reading import Reading
from chatx.runtime.engine import Engine

MAX_STREAMS: Final = 10_000
"""Streams of live pages that are open at a time, over all users of one chat."""

UNTAKEN_S: Final = 10.0
"""Seconds after which a client that has taken nothing of what was written gives way to a newcomer of its user."""


class Streams:
    """The streams of live pages of one engine, and what its users have read for them."""

    def __init__(self, engine: Engine) -> None:
        config = engine.config
        self._loop = engine.loop
        self._admission = Admission(
            per_user=config.max_connections_per_user,
            per_address=config.max_connections_per_address,
            counted="live pages",
        )
        self._allowances = Allowances(config)
        self._reading = Reading(
            config.history_bytes_per_sec, config.message_size_limit, config.mailbox_bytes, engine.loop
        )
        self._refusals = RefusalLog()
        self._open = 0

    def __len__(self) -> int:
        """Return how many are open."""
        return self._open

    def open(self, scope: Mapping[str, Any], user_id: str, transport: asyncio.Transport | None) -> Stream:
        """Return a new stream, which the caller ends.

        Args:
            scope: The request's.
            user_id: Whose stream it is; a valid id.
            transport: What the client takes it from, or None where that cannot be seen.

        Raises:
            RateLimited: The user, or the address, has too many; or the user has opened, begun or read too much.
            RoomOverloaded: There are `MAX_STREAMS`.
        """
        now = self._loop.time()
        try:
            place = self._admitted(scope, user_id)
        except Full as full:
            self._refusals.tell(Refused(full.status, "full", full.reason, user_id=user_id), scope, now)
            raise _refusal(full) from None
        stream = Stream(self, place, user_id, transport)
        try:
            if wait := self._allowances.join(user_id, now):
                raise RateLimited(
                    "Too many live pages, or new rooms, of this user in too short a time.", retry_after=wait
                )
            self.check_reading(user_id)
        except RateLimited:
            stream.end()
            raise
        return stream

    def check_reading(self, user_id: str) -> None:
        """Raise `RateLimited` where the user has had as much read from history as they may."""
        self._reading.check(user_id)

    def read(self, user_id: str, messages: Sequence[Message]) -> None:
        """Charge the user for messages that were read from history."""
        self._reading.charge(user_id, messages)

    def _admitted(self, scope: Mapping[str, Any], user_id: str) -> Place:
        if self._open >= MAX_STREAMS:
            raise Full(UNAVAILABLE, f"{self._open} live pages are open, which is the bound; they come back.")
        client = scope.get("client")
        place = self._admission.begin(client[0] if client else None)
        if not self._admission.has_room(user_id):
            for longest in list(self._admission.ask(user_id))[:1]:
                longest.give_way()
        try:
            place.admit(user_id)
        except Full:
            place.end()
            raise
        self._open += 1
        return place

    def _began(self, user_id: str) -> None:
        self._allowances.began(user_id, self._loop.time())

    def _ended(self) -> None:
        self._open -= 1


class Stream:
    """One stream, as its place knows it: how long its client has taken nothing, and how it is ended."""

    def __init__(self, streams: Streams, place: Place, user_id: str, transport: asyncio.Transport | None) -> None:
        self._streams = streams
        self._place = place
        self._user_id = user_id
        self._transport = transport
        self._time = asyncio.get_running_loop().time
        self._written = 0  # bytes
        self._taken = 0  # bytes, at the last look
        self._at = self._time()  # when the client was last seen to have taken something, or had nothing to take
        self._close: Callable[[], object] | None = None
        self._ended = False
        place.occupy(self)

    def closes(self, close: Callable[[], object]) -> None:
        """Have `close` called where the stream is to give way."""
        self._close = close

    def began_room(self) -> None:
        """Count a room that has begun with this stream."""
        self._streams._began(self._user_id)

    def read(self, messages: Sequence[Message]) -> None:
        """Charge the user for messages that were read from history."""
        self._streams.read(self._user_id, messages)

    def writes(self, size: int) -> None:
        """Note that so many bytes are about to be written."""
        self._look()
        self._written += size

    @property
    def last_seen(self) -> float:
        """When its client was last seen to have taken something, or had nothing to take, by the clock of the loop."""
        return self._at

    def ask(self) -> Callable[[], bool] | None:
        """Look whether its client still takes what is written; None where it may live.

        Returns:
            What tells whether it has taken something since.
        """
        self._look()
        seen = self._at
        return None if self._time() - seen <= UNTAKEN_S else lambda: self.last_seen > seen

    def give_way(self) -> None:
        """End it in favour of a newcomer of the same user."""
        if self._close is not None:
            self._close()

    def end(self) -> None:
        """Give its place back; twice is harmless."""
        if not self._ended:
            self._ended = True
            self._place.end()
            self._streams._ended()

    def _look(self) -> None:
        left = untaken(self._transport) if self._transport is not None else 0
        taken = self._written - left
        if not left or taken > self._taken:
            self._at = self._time()
        self._taken = taken


_STREAMS: WeakKeyDictionary[Engine, Streams] = WeakKeyDictionary()


def streams_of(engine: Engine) -> Streams:
    """Return the streams of an engine."""
    streams = _STREAMS.get(engine)
    if streams is None:
        streams = _STREAMS[engine] = Streams(engine)
    return streams


def _refusal(full: Full) -> ChatError:
    if full.status == TOO_MANY_REQUESTS:
        return RateLimited("Too many live pages are open; close one, or come back later.", retry_after=full.retry_after)
    return RoomOverloaded("Too many live pages are open on this server; come back later.", retry_after=full.retry_after)
