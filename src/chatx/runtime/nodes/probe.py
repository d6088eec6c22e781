"""The words by which a node finds out whether it hears: on each way on which others' words come, through the broker.

| way | the word |
|---|---|
| heartbeats | its own heartbeat, which `Membership` listens for anyway |
| topics | one on a topic of its own, which is subscribed to as those of rooms are |
| questions | a question to itself, which comes as those of others do, and whose answer comes as theirs |

A single room's topic is not among them: there would be as many words as rooms. Its replica finds out by what its owner
has placed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from chatx.cluster.backplane import (
    Backplane,
    BackplaneAway,
    BackplaneError,
    BackplaneFull,
    NodeBusy,
    RequestFailed,
)
from chatx.cluster.hearing import Hearing

logger: logging.Logger = logging.getLogger("chatx")

PROBE_S: Final = 1.0
"""Seconds between two words."""

ANSWERED_S: Final = 2.0
"""Seconds for which the answer of this node to itself is waited for."""

HEARTBEATS: Final = "heartbeats"
TOPICS: Final = "topics"
QUESTIONS: Final = "questions"


class Probe:
    """Speaks to this node itself through the broker, and has the link made anew where that does not come back.

    Args:
        link: The link.
        question: Something that this node answers, as bytes.
        isolated: Returns whether the node's heartbeats do not come back.

    Attributes:
        found: How often the node has found out that it is deaf.
    """

    def __init__(self, link: Backplane, question: bytes, isolated: Callable[[], bool]) -> None:
        self._link = link
        self._question = question
        self._isolated = isolated
        self._topic = f"live.{link.boot}"  # no room's, whose tokens begin with a letter that no boot id begins with
        self._hearing = Hearing((HEARTBEATS, TOPICS, QUESTIONS))
        self._asking: asyncio.Task[None] | None = None
        self.found: int = 0

    @property
    def deaf(self) -> bool:
        """Whether the node does not hear all that is said to it."""
        return bool(self._hearing.deaf)

    async def run(self) -> None:
        """Speak and listen, until this is cancelled."""
        await self._link.subscribe(self._topic, lambda _: self._hearing.heard(TOPICS))
        try:
            while True:
                self._turn()
                await asyncio.sleep(PROBE_S)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    def _turn(self) -> None:
        if self._link.state == "away":
            self._hearing.pause()  # of which the link itself knows
            return
        was_deaf = self.deaf
        again = self._hearing.turn()
        if self.deaf and not was_deaf:
            self.found += 1
        if again:
            ways = ", ".join(self._hearing.deaf)
            reason = f"what this node says to itself does not come back ({ways})"
            logger.error("This node is deaf: %s. Its link is made anew.", reason, extra={"code": "deaf"})
            self._link.renew(reason)
            self._hearing.pause()
            return
        if not self._isolated():
            self._hearing.heard(HEARTBEATS)
        try:
            self._link.publish(self._topic, b"")
        except BackplaneFull:
            self._hearing.heard(TOPICS)  # what waits is to go first: another link would lose it
        except BackplaneError:
            pass
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="chatx probe")

    async def _ask(self) -> None:
        try:
            await self._link.request(self._link.boot, self._question, ANSWERED_S)
        except BackplaneAway:
            return
        except (BackplaneFull, NodeBusy, RequestFailed):
            pass  # the question came, or there is too much to say
        except BackplaneError:
            return
        self._hearing.heard(QUESTIONS)
