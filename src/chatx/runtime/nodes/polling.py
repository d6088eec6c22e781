"""Long-polling sessions over the nodes: what reaches this one of others' sessions, and what others ask for of its own.

Rules:
1. Nothing waits in the link: who polls is answered at once, and woken where there is something.
2. A node that polls and is gone without a word has not polled any more after `LEFT_S`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import Final

from chatx.cluster.polling import Poll, Polled, PollEnded, PollsAnswer, PollsAsk, Post, Posted, Woken
from chatx.cluster.rpc import Answer, Done
from chatx.errors import RoomUnavailable
from chatx.runtime.nodes.peers import Peers, Unreachable
from chatx.runtime.nodes.tasks import Tasks
from chatx.runtime.polls import HeldPoll, HoldsPolls, PostStatus

LEFT_S: Final = 20.0
"""Seconds after which a poll of another node has ended, where that node does not say so; one waits half as long."""

POLLS: Final = 20_000
"""Polls of other nodes under way, at most; what comes beyond is answered as if its session were gone."""


class Polling:
    """The sessions of all nodes, as this one reaches them; the `Polls` of its chat.

    Args:
        peers: The nodes.
        tasks: What goes on in the background.

    Attributes:
        boot: What stands for this node in a session's token.
    """

    def __init__(self, peers: Peers, tasks: Tasks, loop: asyncio.AbstractEventLoop) -> None:
        self.boot: str = peers.boot
        self._peers = peers
        self._tasks = tasks
        self._loop = loop
        self._holders: dict[HoldsPolls, None] = {}
        self._numbers = count(1)
        self._waiting: dict[int, OnePoll] = {}  # this node's polls of others' sessions
        self._polled: dict[tuple[str, int], asyncio.TimerHandle] = {}  # others' polls of this one's

    # What reaches this node

    def hold(self, holds: HoldsPolls) -> None:
        """Let the other nodes ask for these sessions too."""
        self._holders[holds] = None

    def begin(self, boot: str, secret: str) -> OnePoll | None:
        """Begin a poll of a session that a node holds; None where there is no such node."""
        if boot not in self._peers.everybody():
            return None
        number = next(self._numbers)
        poll = self._waiting[number] = OnePoll(self, boot, secret, number, self._loop.create_future())
        return poll

    def node_gone(self, boot: str) -> None:
        """Wake the polls of sessions that this node held: they are over, and their clients begin anew."""
        for poll in self._waiting.values():
            if poll.boot == boot:
                poll.wake(fresh=True)

    async def post(self, boot: str, secret: str, content_type: str, body: bytes) -> PostStatus:
        """Have the node that holds a session take what its client pushes.

        Raises:
            RoomUnavailable: It cannot be reached, or has not answered.
        """
        if boot not in self._peers.everybody():
            return 410
        answer = await self._ask(boot, Post(secret, content_type[:255], body))
        return answer.status if isinstance(answer, Posted) else 410

    async def poll(self, boot: str, ask: Poll) -> HeldPoll:
        """Ask the node that holds a session; errors as `post`."""
        answer = await self._ask(boot, ask)
        if isinstance(answer, Polled):
            return HeldPoll(answer.status, answer.number, answer.messages)
        return HeldPoll(410, 0, ())

    def end(self, boot: str, ended: PollEnded) -> None:
        """Take note that a poll of another's session has ended, and tell that node."""
        del self._waiting[ended.number]
        _ = self._tasks.begin(self._tell(boot, ended))

    async def _ask(self, boot: str, ask: PollsAsk) -> Answer:
        try:
            return await self._peers.ask(boot, ask)
        except Unreachable as error:
            raise RoomUnavailable(
                f"The node that has this session cannot be reached: {error}", retry_after=1.0
            ) from error

    async def _tell(self, boot: str, told: PollEnded | Woken) -> None:
        with suppress(Unreachable):  # who does not hear it waits out its time
            await self._peers.ask(boot, told)

    # What others ask

    async def answer(self, ask: PollsAsk) -> PollsAnswer | Done:
        """Return the answer to what another node asks."""
        match ask:
            case Poll():
                return self._answer_poll(ask)
            case PollEnded():
                timer = self._polled.pop((ask.boot, ask.number), None)
                if timer is not None:
                    timer.cancel()
                    self._ended(ask.secret, well=ask.well)
                return Done()
            case Woken():
                poll = self._waiting.get(ask.number)
                if poll is not None:
                    poll.wake(fresh=ask.fresh)
                return Done()
            case Post():
                holder = self._holder(ask.secret)
                status = 410 if holder is None else await holder.post_held(ask.secret, ask.content_type, ask.body)
                return Posted(status)

    def _answer_poll(self, ask: Poll) -> Polled:
        holder = self._holder(ask.secret)
        which = (ask.boot, ask.number)
        if holder is None or (len(self._polled) >= POLLS and which not in self._polled):
            return Polled(410, 0, ())
        again = which in self._polled
        if not again:
            self._polled[which] = self._loop.call_later(LEFT_S, self._left, which, ask.secret)

        def woken(fresh: bool) -> None:
            _ = self._tasks.begin(self._tell(ask.boot, Woken(ask.number, fresh)))

        held = holder.poll_held(ask.secret, ask.acknowledged, again=again, woken=woken)
        return Polled(held.status, held.number, tuple(held.messages))

    def _left(self, which: tuple[str, int], secret: str) -> None:
        del self._polled[which]
        self._ended(secret, well=False)

    def _ended(self, secret: str, *, well: bool) -> None:
        holder = self._holder(secret)
        if holder is not None:
            holder.poll_ended(secret, well=well)

    def _holder(self, secret: str) -> HoldsPolls | None:
        return next((each for each in self._holders if each.held(secret)), None)

    def close(self) -> None:
        """Wait for nobody's end any more."""
        for timer in self._polled.values():
            timer.cancel()
        self._polled.clear()


class OnePoll:
    """One poll of a session that another node holds; see `PollElsewhere`.

    Attributes:
        boot: That node.
        woken: Has a result when to ask again: whether there may be something.
    """

    def __init__(self, polling: Polling, boot: str, secret: str, number: int, woken: asyncio.Future[bool]) -> None:
        self._polling = polling
        self.boot: str = boot
        self._secret = secret
        self._number = number
        self._again = False
        self.woken: asyncio.Future[bool] = woken

    def wake(self, *, fresh: bool) -> None:
        """Have it wait no more."""
        if not self.woken.done():
            self.woken.set_result(fresh)

    async def ask(self, acknowledged: int) -> HeldPoll:
        """Return what the session has; errors as `Polling.post`."""
        again, self._again = self._again, True
        ask = Poll(self._secret, self._polling.boot, self._number, acknowledged, again)
        return await self._polling.poll(self.boot, ask)

    def end(self, *, well: bool) -> None:
        """Take note that it was answered, or broken off."""
        self._polling.end(self.boot, PollEnded(self._secret, self._polling.boot, self._number, well))
