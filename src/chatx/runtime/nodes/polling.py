"""Long-polling sessions over the nodes: what reaches this one of others' sessions, and what others ask for of its own.

Rules:
1. Nothing waits in the link: who polls is answered at once, and woken where there is something.
2. A node that polls and is gone without a word has not polled any more after `LEFT_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Final

from chatx.cluster.polling import Poll, Polled, PollEnded, PollsAnswer, PollsAsk, Post, Posted, Woken
from chatx.cluster.rpc import Answer, Done
from chatx.errors import RoomUnavailable
from chatx.runtime.nodes.peers import Peers, Unreachable
from chatx.runtime.nodes.tasks import Tasks
from chatx.runtime.polls import HeldPoll, PolledSession, PollOfSession, PostStatus

LEFT_S: Final = 20.0
"""Seconds after which a poll of another node has ended, where that node does not say so; one waits half as long."""

POLLS: Final = 20_000
"""Polls of other nodes under way, at most; what comes beyond is answered as if its session were gone."""


class Polling:
    """The sessions of all nodes, as this one reaches them; the `Polls` of its chat.

    Args:
        peers: The nodes.
        tasks: What goes on in the background.
        loop: The chat's loop.

    Attributes:
        boot: What stands for this node in a session's token.
    """

    def __init__(self, peers: Peers, tasks: Tasks, loop: asyncio.AbstractEventLoop) -> None:
        self.boot: str = peers.boot
        self._peers = peers
        self._tasks = tasks
        self._loop = loop
        self._finds: dict[Callable[[str], PolledSession | None], None] = {}
        self._numbers = count(1)
        self._waiting: dict[int, _Poll] = {}  # this node's polls of others' sessions
        self._polled: dict[tuple[str, int], tuple[PollOfSession, asyncio.TimerHandle]] = {}  # others' of this one's

    def hold(self, find: Callable[[str], PolledSession | None]) -> None:
        """Let the other nodes ask for sessions that this finds by their secrets."""
        self._finds[find] = None

    # Others' sessions

    def session(self, boot: str, secret: str) -> _Session | None:
        """Return a session that another node holds, if it does; None where there is no such node."""
        return _Session(self, boot, secret) if boot in self._peers.everybody() else None

    def node_gone(self, boot: str) -> None:
        """Wake the polls of sessions that this node held: they are over, and their clients begin anew."""
        for poll in self._waiting.values():
            if poll.boot == boot:
                poll.wake(fresh=True)

    def begin(self, boot: str, secret: str) -> _Poll:
        """Begin a poll of another's session."""
        number = next(self._numbers)
        poll = self._waiting[number] = _Poll(self, boot, secret, number, self._loop.create_future())
        return poll

    def end(self, boot: str, ended: PollEnded) -> None:
        """Take note that a poll of another's session has ended, and tell that node."""
        del self._waiting[ended.number]
        self._tell(boot, ended)

    async def ask(self, boot: str, ask: PollsAsk) -> Answer:
        """Ask the node that holds a session.

        Raises:
            RoomUnavailable: It cannot be reached, or has not answered.
        """
        try:
            return await self._peers.ask(boot, ask)
        except Unreachable as error:
            raise RoomUnavailable(
                f"The node that has this session cannot be reached: {error}", retry_after=1.0
            ) from error

    def _tell(self, boot: str, told: PollEnded | Woken) -> None:
        async def tell() -> None:
            with suppress(Unreachable):  # who does not hear it waits out its time
                await self._peers.ask(boot, told)

        _ = self._tasks.begin(tell())

    # What others ask

    async def answer(self, ask: PollsAsk) -> PollsAnswer | Done:
        """Return the answer to what another node asks."""
        match ask:
            case Poll():
                return await self._answer_poll(ask)
            case PollEnded():
                self._ended((ask.boot, ask.number), well=ask.well)
            case Woken():
                poll = self._waiting.get(ask.number)
                if poll is not None:
                    poll.wake(fresh=ask.fresh)
            case Post():
                session = self._find(ask.secret)
                return Posted(410 if session is None else await session.post(ask.content_type, lambda: _come(ask.body)))
        return Done()

    async def _answer_poll(self, ask: Poll) -> Polled:
        which = (ask.boot, ask.number)
        poll, _ = self._polled.get(which, (None, None))
        first = poll is None
        if poll is None:
            session = self._find(ask.secret) if len(self._polled) < POLLS else None
            if session is None:
                return Polled(410, 0, ())
            poll = session.begin_poll()
            self._polled[which] = poll, self._loop.call_later(LEFT_S, lambda: self._ended(which, well=False))
        held = await poll.ask(ask.acknowledged)
        if first and held.status == 204:
            # Also where the session ends: what was written before that is there still.
            poll.woken.add_done_callback(
                lambda woken: self._tell(ask.boot, Woken(ask.number, not woken.cancelled() and woken.result()))
            )
        return Polled(held.status, held.number, tuple(held.messages))

    def _ended(self, which: tuple[str, int], *, well: bool) -> None:
        poll, timer = self._polled.pop(which, (None, None))
        if poll is not None and timer is not None:
            timer.cancel()
            poll.end(well=well)

    def _find(self, secret: str) -> PolledSession | None:
        return next((found for find in self._finds if (found := find(secret)) is not None), None)

    def close(self) -> None:
        """Wait for nobody's end any more."""
        for _, timer in self._polled.values():
            timer.cancel()
        self._polled.clear()


class _Session:
    """A session that another node holds; a `PolledSession`."""

    def __init__(self, polling: Polling, boot: str, secret: str) -> None:
        self._polling = polling
        self._boot = boot
        self._secret = secret

    def begin_poll(self) -> _Poll:
        """Begin a poll."""
        return self._polling.begin(self._boot, self._secret)

    async def post(self, content_type: str, body: Callable[[], Awaitable[bytes]]) -> PostStatus:
        """Have its node take what the client pushes; errors as `Polling.ask`, and those of `body`."""
        # Asked first with nothing: who only pretends to have a session brings no bodies into the link.
        status = await self._posted(content_type, b"")
        return status if status != 200 else await self._posted(content_type, await body())

    async def _posted(self, content_type: str, body: bytes) -> PostStatus:
        answer = await self._polling.ask(self._boot, Post(self._secret, content_type[:255], body))
        return answer.status if isinstance(answer, Posted) else 410


class _Poll:
    """One poll of a session that another node holds; a `PollOfSession`.

    Attributes:
        boot: That node.
        woken: Has a result when to ask again.
    """

    def __init__(self, polling: Polling, boot: str, secret: str, number: int, woken: asyncio.Future[bool]) -> None:
        self._polling = polling
        self.boot: str = boot
        self._secret = secret
        self._number = number
        self.woken: asyncio.Future[bool] = woken

    def wake(self, *, fresh: bool) -> None:
        """Have it wait no more."""
        if not self.woken.done():
            self.woken.set_result(fresh)

    async def ask(self, acknowledged: int) -> HeldPoll:
        """Return what the session has; errors as `Polling.ask`."""
        ask = Poll(self._secret, self._polling.boot, self._number, acknowledged)
        answer = await self._polling.ask(self.boot, ask)
        if isinstance(answer, Polled):
            return HeldPoll(answer.status, answer.number, answer.messages)
        return HeldPoll(410, 0, ())

    def end(self, *, well: bool) -> None:
        """Take note that it was answered, or broken off."""
        self._polling.end(self.boot, PollEnded(self._secret, self._polling.boot, self._number, well))


async def _come(body: bytes) -> bytes:
    return body
