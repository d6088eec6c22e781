"""A client that polls, as its session sees it: a socket whose frames wait for the next poll.

Rules:
1. One poll waits at a time. A newer one supersedes it: the client asks only once, so the older one has nobody left to
   read its answer.
2. What is not acknowledged is bounded by `mailbox_bytes`, and by what one turn of the loop writes where nothing older
   waits; over it the client is closed as slow, and resumes.
3. Without a poll it ends by itself: `ABANDONED_S` after the last answer, `CUT_OFF_S` after a poll that its client broke
   off, and `DOUBTS` ticks later, in which a poll that came in time is taken. phoenix.js breaks one off only to go, or
   to come back anew; what may still come is a repetition by the browser.
4. However it ends, its place is given back at once, and its session has left its rooms a step of the loop later.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from chatx.gateway.longpoll.outbox import MAX_REPEATS, Outbox
from chatx.gateway.session.entrance import Client
from chatx.gateway.session.expiry import DOUBTS, Wheel
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY, CLOSE_TRY_LATER

ABANDONED_S: Final = 15.0
"""Seconds without a poll after which a client is gone."""

CUT_OFF_S: Final = 3.0
"""Seconds without one after a poll that the client broke off."""


class Poller:
    """One client that polls. A session writes to it as to any socket.

    Attributes:
        boot: The node that holds it; empty where there is one node.
        secret: Half of the client's token; the other half is a batch's number. A client shows it instead of
            authenticating, so it is never logged.
        user_id: The user whose client it is, from `begin` on.
        outbox: What the client has not acknowledged.
        posts: How many posts of the client are under way.

    Args:
        limit_bytes: The most bytes that may be unacknowledged.
        on_closed: Called once, when it is closed.
        boot: The node that holds it; empty where there is one node.
    """

    direct: Callable[[bytes], int | None] | None = None
    """What is written waits for a poll."""

    def __init__(self, limit_bytes: int, on_closed: Callable[[Poller], object], boot: str = "") -> None:
        self.boot: Final = boot
        self.secret: Final = secrets.token_urlsafe(32)
        self.outbox: Final = Outbox(limit_bytes)
        self.user_id: str = ""
        self.posts: int = 0
        self._loop = asyncio.get_running_loop()
        self._on_closed = on_closed
        self._closed = False
        self._fresh = False
        self._client: Client | None = None
        self._wheel: Wheel | None = None
        self._polls = 0
        self._ends = 0.0
        self._doubts = 0  # since it should have polled
        self._waiter: asyncio.Future[bool] | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    def begin(self, client: Client, wheel: Wheel) -> None:
        """Serve a client until it is closed, which ends its place."""
        self._client, self._wheel = client, wheel
        self.user_id = client.user_id
        self._ends = self._loop.time() + ABANDONED_S
        wheel.watch(self, self._ends)

    @property
    def client(self) -> Client:
        """The client, from `begin` on until it is closed."""
        assert self._client is not None
        return self._client

    @property
    def closed(self) -> bool:
        """Whether the poller was closed."""
        return self._closed

    # What the session and the hubs ask.

    @property
    def unread(self) -> int:
        """How many messages the client has not acknowledged."""
        return len(self.outbox)

    def write_rest(self, data: bytes) -> None:
        """Never called: nothing goes past `write`."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Never called: nothing goes past `write`."""
        raise NotImplementedError

    def write(self, bundle: Bundle) -> None:
        """Keep these messages for the next poll; over the bound close as slow instead."""
        if self._closed:
            return
        if not self.outbox:
            # A resume writes many messages at once, and nobody is slow who could not have polled yet.
            self._fresh = True
            self._loop.call_soon(self._judge)
        if not self.outbox.add(bundle.texts, bundle.size, bounded=not self._fresh):
            # What it has not taken is dropped: it comes back and resumes from the last message it did take.
            self.outbox.clear()
            self.close(CLOSE_TRY_LATER, "too slow: resume from the last message")
            return
        self._drained.clear()
        self._wake(fresh=True)

    def ask(self) -> Callable[[], bool] | None:
        """Answer a poll that waits, with nothing: who is there polls again at once, of which the session hears."""
        self._wake(fresh=False)
        return bool  # False: there is no other answer

    async def drained(self) -> None:
        """Wait until the client has acknowledged everything; returns at once when it is closed."""
        await self._drained.wait()

    def close(self, code: int, reason: str) -> None:
        """End the session. A poll that waits gets what was written; the next is told to begin anew, with no code."""
        if self._closed:
            return
        self._closed = True
        if self._wheel is not None:
            self._wheel.forget(self)
        if self._client is not None:
            self._client.place.end()
            # Not now: whoever closes it may be in the middle of writing to its rooms.
            self._loop.call_soon(self._end, self._client, code, reason)
            self._client = None  # whose session has this for its socket: together they would wait for the collector
        self._drained.set()
        self._wake(fresh=True)
        self._on_closed(self)

    # What the transport asks.

    def take(self, acknowledged: int) -> list[str]:
        """Return the messages that a poll gets.

        Raises:
            OutOfStep: See `Outbox.take`.
        """
        taken = self.outbox.take(acknowledged)
        if self.outbox.repeats > MAX_REPEATS:
            self.outbox.clear()
            self.close(CLOSE_TRY_LATER, "it acknowledges nothing: resume from the last message")
            return []
        if not taken:
            self._drained.set()
        return taken

    def wait(self) -> asyncio.Future[bool]:
        """Return a poll's future: true when there is something to take or all is over, false when superseded."""
        self._wake(fresh=False)
        self._waiter = self._loop.create_future()
        return self._waiter

    def polled(self) -> None:
        """Count a poll that begins."""
        self._polls += 1
        self._doubts = 0
        if self._client is not None:
            self._client.session.seen()

    def answered(self, *, well: bool) -> None:
        """Count a poll that has ended; `well` is false where the client broke it off."""
        self._polls -= 1
        if self._polls or self._closed:
            return
        self._ends = self._loop.time() + (ABANDONED_S if well else CUT_OFF_S)
        if not well and self._wheel is not None:
            # It would be asked in time for the later deadline only.
            self._wheel.watch(self, self._ends)

    def due(self, now: float) -> float | None:
        """End the session where nobody polls any more; else return the loop time at which to ask again."""
        if self._closed:
            return None
        if self._polls:
            return now + ABANDONED_S
        if self._ends <= now:
            if self._doubts < DOUBTS:
                self._doubts += 1
                return now
            self.close(CLOSE_GOING_AWAY, "it polls no more")
            return None
        return self._ends

    def _end(self, client: Client, code: int, reason: str) -> None:
        client.session.cut(code, reason)
        client.forget()

    def _judge(self) -> None:
        self._fresh = False

    def _wake(self, *, fresh: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(fresh)
