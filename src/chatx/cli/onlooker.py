"""Somebody at the broker who hears the nodes and asks them, and is none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from chatx.cluster.backplane import Backplane, BackplaneError, RequestFailed
from chatx.cluster.records import VERSION, BadRecord, Heartbeat, Records
from chatx.cluster.rpc import Answer, Ask
from chatx.config import ChatConfig
from chatx.runtime.nodes.link import link_of
from chatx.runtime.nodes.node import HEARTBEATS, new_boot

LISTENED_S = 1.2
"""How long it is listened, in seconds: two heartbeats."""

FORGOTTEN_S = 10.0
"""Seconds of silence after which a node is shown no more."""

ANSWERED_S = 2.0
"""Seconds in which a node answers."""

HEARD = 1_024
"""Nodes that are listened to, at most; others are passed over."""


class Heard(Struct):
    """A node.

    Attributes:
        heartbeat: Its newest heartbeat.
        at: When that came, by `time.monotonic`.
    """

    heartbeat: Heartbeat
    at: float


class Onlooker:
    """Hears the nodes of one chat, and asks them.

    Args:
        link: A link to their broker, which is connected.

    Attributes:
        link: The link.
    """

    def __init__(self, link: Backplane) -> None:
        self.link: Backplane = link
        self._records = Records()
        self._heard: dict[str, Heard] = {}

    async def listen(self, seconds: float = LISTENED_S) -> None:
        """Go on listening for so long."""
        await asyncio.sleep(seconds)

    def nodes(self) -> list[Heard]:
        """Return the nodes that are there, or that were a moment ago, by name."""
        now = time.monotonic()
        found = (
            each for each in self._heard.values() if each.heartbeat.state != "gone" and now - each.at < FORGOTTEN_S
        )
        return sorted(found, key=lambda each: (each.heartbeat.node, each.heartbeat.boot))

    def gone(self, boot: str) -> bool:
        """Return whether a node has said its last word."""
        heard = self._heard.get(boot)
        return heard is not None and heard.heartbeat.state == "gone"

    async def ask(self, heartbeat: Heartbeat, ask: Ask) -> Answer:
        """Ask a node.

        Raises:
            BackplaneError: It cannot be asked, or does not answer.
        """
        payload = self._records.encode(ask, max(1, min(VERSION, heartbeat.version)))
        try:
            answer = self._records.decode(await self.link.request(heartbeat.boot, payload, ANSWERED_S))
        except BadRecord as error:
            raise RequestFailed(str(error)) from error
        if not isinstance(answer, Answer):
            raise RequestFailed(f"It answered with {type(answer).__name__}.")
        return answer

    async def try_asking(self, heartbeat: Heartbeat, ask: Ask) -> Answer | None:
        """Return what a node answers, or None where it cannot be asked."""
        try:
            return await self.ask(heartbeat, ask)
        except BackplaneError:
            return None

    def receive(self, payload: bytes) -> None:
        """Take a heartbeat; what is none, or of a version that is not read here, the nodes themselves tell."""
        try:
            record = self._records.decode(payload)
        except BadRecord:
            return
        if isinstance(record, Heartbeat) and (record.boot in self._heard or len(self._heard) < HEARD):
            self._heard[record.boot] = Heard(record, time.monotonic())


@asynccontextmanager
async def onlooking(config: ChatConfig) -> AsyncIterator[Onlooker]:
    """Listen to the nodes of a chat within the block.

    Raises:
        BackplaneAway: The broker cannot be reached.
        ConfigError: The options do not fit together.
    """
    link = link_of(config, new_boot())
    await link.connect()
    try:
        onlooker = Onlooker(link)
        await link.subscribe(HEARTBEATS, onlooker.receive)
        yield onlooker
    finally:
        await link.close()
