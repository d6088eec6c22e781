"""A session of this node as requests reach it, whichever node they came to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from chatx.gateway.longpoll.outbox import OutOfStep
from chatx.gateway.longpoll.poller import Poller
from chatx.gateway.session.pace import Pace
from chatx.gateway.session.progress import within
from chatx.gateway.wire.closes import CLOSE_MALFORMED, CLOSE_TRY_LATER
from chatx.gateway.wire.excess import Excess
from chatx.gateway.wire.posts import MalformedPost, messages_of
from chatx.runtime.polls import HeldPoll, PostStatus

POST_S: Final = 10.0
"""Seconds in which a post must have come and been taken; of a turn of the loop that takes long a quarter counts."""

MAX_POSTS: Final = 8
"""Posts of one session under way at a time; phoenix.js has one, its older versions one for each push."""


class HeldSession:
    """A `PolledSession` of this node.

    Args:
        poller: What its session writes to.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    def begin_poll(self) -> OnePoll:
        """Begin a poll."""
        return OnePoll(self._poller)

    async def post(self, content_type: str, body: Callable[[], Awaitable[bytes]]) -> PostStatus:
        """Take what the client pushes; raises what `body` raises for a client that has gone."""
        poller = self._poller
        if poller.posts >= MAX_POSTS:
            return 429
        poller.posts += 1
        try:
            async with within(POST_S):
                await self._hand_over(messages_of(content_type, await body()))
        except TimeoutError:
            # phoenix.js comes back anew at any status but 200, and leaves this session behind.
            poller.close(CLOSE_TRY_LATER, "a post was not taken in time")
            return 408
        except Excess as excess:
            poller.close(excess.code, excess.reason)
            return 413
        except MalformedPost as malformed:
            poller.close(CLOSE_MALFORMED, str(malformed))
            return 410
        finally:
            poller.posts -= 1
        return 410 if poller.closed else 200

    async def _hand_over(self, messages: list[str | bytes]) -> None:
        poller = self._poller
        if poller.closed:
            return  # while its body came
        session = poller.client.session
        pace = Pace(session.gateway.rota)
        for message in messages:
            if session.busy:
                await session.wait_idle()
            if poller.closed:
                return
            session.receive(message)
            await pace.taken(len(message))


class OnePoll:
    """A `PollOfSession` of this node.

    Args:
        poller: What its session writes to.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._woken: asyncio.Future[bool] | None = None
        poller.polled()

    @property
    def woken(self) -> asyncio.Future[bool]:
        """Has a result when to ask again, from when it has asked."""
        assert self._woken is not None
        return self._woken

    async def ask(self, acknowledged: int) -> HeldPoll:
        """Return what the session has."""
        poller = self._poller
        try:
            messages = poller.take(acknowledged)
        except OutOfStep:
            # It is not the client that asks, but an echo of what it asked long ago.
            return HeldPoll(410, 0, ())
        if messages:
            return HeldPoll(200, poller.outbox.number, messages)
        if poller.closed:
            return HeldPoll(410, 0, ())
        if self._woken is None:
            self._woken = poller.wait()
        return HeldPoll(204, poller.outbox.number, ())

    def end(self, *, well: bool) -> None:
        """Take note that it was answered, or that its client broke it off."""
        self._poller.answered(well=well)
