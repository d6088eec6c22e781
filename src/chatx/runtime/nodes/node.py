"""One node among the others: it says that it is there, hears who else is, asks them and answers.

Rules:
1. A node serves from when it has heard the others for two heartbeats; before that it owns nothing.
2. One that does not hear itself owns nothing until that has healed: the others may have its rooms by now. It closes
   those, and takes them over from the others.
3. Each change of the view closes the rooms here that are owned elsewhere now, a part of them in each turn of the loop;
   one that its new owner asks for is given up at once.
4. A node that stops says so, keeps what it has of its rooms until their new owners have asked for it, or nobody has for
   `HANDED_OVER_S`, and goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import re
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Literal

from chatx.cluster import rpc
from chatx.cluster.backplane import (
    Backplane,
    BackplaneAway,
    BackplaneError,
    BackplaneFull,
    LinkState,
    NobodyThere,
    NodeBusy,
    PayloadTooLarge,
)
from chatx.cluster.membership import BEAT_S, TICK_S, Membership
from chatx.cluster.operating import Look, OperatorsAsk
from chatx.cluster.peers import Change, Me
from chatx.cluster.placement import Placement, Seat, View
from chatx.cluster.polling import PollsAsk
from chatx.cluster.records import BadRecord, Heartbeat, Records, UnknownVersion
from chatx.cluster.rpc import Answer, Ask, Told
from chatx.cluster.tokens import room_token
from chatx.config import ChatConfig
from chatx.errors import AdapterError, ConfigError
from chatx.runtime.engine import Engine
from chatx.runtime.nodes.abroad import Abroad
from chatx.runtime.nodes.answering import Answering
from chatx.runtime.nodes.at_once import AT_ONCE, LANES, AtOnce, Lane, lane_of
from chatx.runtime.nodes.counts import Counts
from chatx.runtime.nodes.left_rooms import LEFT_S
from chatx.runtime.nodes.node_log import NodeLog
from chatx.runtime.nodes.operating import Operating
from chatx.runtime.nodes.owned import Owned
from chatx.runtime.nodes.peers import Unreachable
from chatx.runtime.nodes.probe import Probe

logger: logging.Logger = logging.getLogger("chatx")

ANSWERED_S = 2.0
"""Seconds in which a node answers what awaits nothing but itself."""

START_S = 15.0
"""Seconds within which a node is one of the others, or its start fails."""

LOOKED_BACK_S = LEFT_S
"""Seconds after a change of the view for which a room that begins may be on another node: it is kept there so long."""

BACK_S = 2.0
"""Seconds after the link has come for which nobody who is not there is taken for gone."""

BEFORE = 3
"""Nodes that are asked what they had of such a room, at most."""

SWEPT_AT_ONCE = 200
"""Rooms looked at in one turn of the loop after a change of the view."""

LOOK_S = 1.0
"""Between two looks at whether replicas have what was told last, in seconds."""

HEARS_ITSELF_S = 5.0
"""Seconds after which a node that starts, and does not hear itself, gives up."""

HANDED_OVER_S = 2.0
"""Seconds for which a node that stops waits for the next of its rooms to be taken over, at most."""

HEARTBEATS = "hb"
"""The topic of heartbeats."""

# What all nodes must have alike, or a message is treated as the owner of its room happens to be configured.
_MUST_AGREE = (
    "middlewares",
    "message_size_limit",
    "message_data_limit",
    "room_queue_limit",
    "rate_limit",
    "durability",
    "history_size",
)


class Node:
    """This process among the nodes of its chat; it is the `Peers` of its rooms.

    Args:
        config: The chat's options.
        backplane: The link to the other nodes, which is connected.

    Attributes:
        boot: The id of this life of the node.
        name: Its name.
        abroad: What the engine reaches of the other nodes.
    """

    def __init__(self, config: ChatConfig, backplane: Backplane) -> None:
        self._config = config
        self._backplane = backplane
        self._loop = asyncio.get_running_loop()
        self._records = Records()
        self.boot: str = backplane.boot
        self.name: str = config.node_name or default_name()
        strategy: Literal["pg", "horde"] = "horde" if config.cluster_strategy == "horde" else "pg"
        self._membership = Membership(Me(self.name, self.boot, strategy, configuration_hash(config)), self._loop.time())
        self._placement = Placement(View.of(()))
        self._others = Placement(View.of(()))  # with those that drain, without this one
        self._changed_at = self._loop.time()
        self._linked_at = -math.inf  # when the link came, but for the first time
        self.abroad: Abroad = Abroad(
            self, history_size=config.history_size, queue_limit=config.room_queue_limit, loop=self._loop
        )
        self._owned: Owned | None = None
        self._answering: Answering | None = None
        self._at_once = AtOnce()
        self._operating: Operating | None = None
        self._engine: Engine | None = None
        self._counts = Counts()
        self._waits: dict[str, set[asyncio.Timeout]] = {}  # by boot, what waits for an answer
        self._log = NodeLog()
        look = self._records.encode(Look(), self._membership.hails)
        self._probe = Probe(backplane, look, lambda: self._membership.isolated)
        self._up = asyncio.Event()  # it serves, or was refused
        self._view_changed = asyncio.Event()
        self._slow_s = config.adapter_timeout_ms / 1000 + 1
        self._jitter = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    # Its life

    async def join(self, engine: Engine, drain: Callable[[], object]) -> None:
        """Be one of the nodes: returns when this one serves.

        Args:
            engine: This node's engine.
            drain: Called once, where an operator asks that this node drains.

        Raises:
            AdapterError: The broker does not bring what this node says within `START_S`.
            ConfigError: The others and this one do not fit together.
            AdapterError: The broker is away, or does not let this node hear the others.
        """
        self._backplane.watch(self._linked, self._missed)  # of its state the link itself writes to the log
        self._engine = engine
        self._owned = owned = Owned(self, engine.turn)
        self._answering = Answering(engine, self.abroad, owned)
        self._operating = engine.overview = Operating(
            self, self._membership, engine, self.abroad, self._backplane, self._probe, self._counts, drain
        )
        self.abroad.begin(
            owned, engine.rooms.moved, engine.sending.window, engine.settle if engine.storage.is_log else None
        )
        await self._backplane.serve(self._answer, at_once=AT_ONCE * len(LANES))
        await self._backplane.subscribe(HEARTBEATS, self._heard)
        self._spawn(self._beat())
        self._spawn(self._tick())
        self._spawn(self._look())
        self._spawn(self._sweep())
        while not self._up.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARS_ITSELF_S):
                    await self._up.wait()
            if not self._up.is_set() and (self._backplane.state == "away" or self._membership.isolated):
                # Also where the broker lets a user in who may neither subscribe nor publish here.
                raise AdapterError(
                    f"This node has not heard itself for {HEARS_ITSELF_S} s, so it does not hear the others; the log "
                    "says what the broker refuses. Look at whether it is reached, and at its permissions for "
                    f"cx.{self._config.cluster_name}.>"
                )
        if self._membership.refused is not None:
            raise ConfigError(f"This node cannot be one of the others. {self._membership.refused}")
        self._spawn(self._probe.run())

    async def drain(self) -> None:
        """Let the other nodes take over what is here."""
        if self._membership.state != "up":
            return
        self._done(self._membership.drain())
        self._publish_heartbeat()
        self.abroad.nodes_changed(list(self._engine.rooms) if self._engine is not None else [])
        least, until = self.abroad.left_behind, self._loop.time() + HANDED_OVER_S
        while (left := self.abroad.left_behind) and self.everybody() and self._loop.time() < until:
            if left < least:
                least, until = left, self._loop.time() + HANDED_OVER_S
            self.abroad.handing_over.offer()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """Be gone; twice is harmless."""
        self._done(self._membership.leave())
        self._publish_heartbeat()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.abroad.close()
        await self._backplane.close()

    # Peers

    @property
    def serving(self) -> bool:
        """Whether this node is one of the others now."""
        return self._membership.serves(self._loop.time())

    def owner(self, room_id: str) -> str:
        """Return the boot id of the node whose room it is; empty where that cannot be known now."""
        seat = self._placement.owner(room_id)
        if seat is None or (seat.boot == self.boot and not self.serving):
            return ""
        return seat.boot

    def before(self, room_id: str) -> list[str]:
        """Return which nodes may have had the room a moment ago, likeliest first; none where no node changed."""
        if self._loop.time() - self._changed_at > LOOKED_BACK_S:
            return []
        return [each.boot for each in self._others.ranked(room_id, BEFORE)]

    async def ask(self, boot: str, ask: Ask) -> Answer:
        """Ask a node, this one included; errors as `Peers.ask`."""
        if boot == self.boot:
            return await self._answered(ask)
        if not boot:
            raise Unreachable("no node has it now", surely=True)
        self._counts.asking += 1
        within_s = ANSWERED_S if lane_of(ask) == "now" else self._slow_s
        try:
            payload = self._records.encode(ask, self._membership.speaks)
            async with asyncio.timeout(None) as waits:
                of_boot = self._waits.setdefault(boot, set())
                of_boot.add(waits)
                try:
                    reply = await self._backplane.request(boot, payload, within_s)
                finally:
                    of_boot.discard(waits)
                    if not of_boot and self._waits.get(boot) is of_boot:
                        del self._waits[boot]
            answer = self._records.decode(reply)
        except TimeoutError:
            raise Unreachable("it was taken for gone before it answered", surely=False) from None
        except NobodyThere as error:
            # Where the broker was away, the others come back one after the other, as this one did.
            if self._loop.time() - self._linked_at > BACK_S:
                self._done(self._membership.no_responders(boot, self._loop.time()))
            raise Unreachable(str(error), surely=True) from error
        except (BackplaneAway, BackplaneFull, NodeBusy, PayloadTooLarge) as error:
            raise Unreachable(str(error), surely=True, busy=isinstance(error, NodeBusy)) from error
        except (BackplaneError, BadRecord) as error:
            raise Unreachable(str(error), surely=False) from error
        finally:
            self._counts.asking -= 1
        if not isinstance(answer, Answer):
            raise Unreachable(f"it answered with {type(answer).__name__}", surely=False)
        return answer

    def tell(self, told: Told) -> bool:
        """Tell the replicas of a room what was placed there; return whether it is on its way."""
        try:
            payload = self._records.encode(told, self._membership.speaks)
            self._backplane.publish(_topic(told.room_id), payload)
        except (BackplaneError, BadRecord) as error:
            # Each replica notices by the number of what comes next, or when it asks.
            self._log.unsent(told.room_id, error)
            return False
        return True

    async def listen(self, room_id: str, heard: Callable[[Told | None], object]) -> Callable[[], object]:
        """Have what is told of a room given to `heard`, None for what cannot be read; call the answer to end that."""

        def receive(payload: bytes) -> None:
            told = self._read(payload, f"what is told of room {room_id!r}")
            heard(told if isinstance(told, Told) else None)

        subscribed = await self._backplane.subscribe(_topic(room_id), receive)
        return subscribed.end

    def everybody(self) -> list[str]:
        """Return the boot ids of the other nodes that are there."""
        return [each.heartbeat.boot for each in self._membership.peers() if each.ignored is None]

    # What comes in

    def _heard(self, payload: bytes) -> None:
        try:
            record = self._records.decode(payload)
        except UnknownVersion as error:
            self._counts.records_refused += 1
            self._done(self._membership.cannot_read(str(error)))
            return
        except BadRecord as error:
            self._counts.records_refused += 1
            self._log.unread("a heartbeat", error)
            return
        if isinstance(record, Heartbeat):
            self._done(self._membership.heard(record, self._loop.time()))

    def _answer(self, payload: bytes) -> Coroutine[Any, Any, bytes]:
        ask = self._read(payload, "what another node asks")
        lane = lane_of(ask)
        self._at_once.enter(lane)  # before anything is begun for it
        return self._answer_in(lane, ask)

    async def _answer_in(self, lane: Lane, ask: object) -> bytes:
        self._counts.answering += 1
        try:
            answer = await self._answered(ask)
        finally:
            self._counts.answering -= 1
            self._at_once.leave(lane)
        try:
            return self._records.encode(answer, self._membership.speaks)
        except BadRecord as error:
            return self._records.encode(rpc.Refused("message_too_large", str(error)), self._membership.speaks)

    async def _answered(self, ask: object) -> Answer:
        if self._answering is None or self._operating is None or not isinstance(ask, Ask):
            return rpc.Refused("invalid_message", "This node does not understand what it was asked.")
        if isinstance(ask, OperatorsAsk):
            return self._operating.answer(ask)
        if isinstance(ask, PollsAsk):
            return await self.abroad.polls.answer(ask)
        return await self._answering.answer(ask)

    def _read(self, payload: bytes, what: str) -> object:
        try:
            return self._records.decode(payload)
        except BadRecord as error:
            self._counts.records_refused += 1
            self._log.unread(what, error)
            return None

    def _linked(self, state: LinkState) -> None:
        self._counts.links_lost += state == "away"

    def _missed(self, topic: str | None) -> None:
        if topic is None:  # the link is there again
            self._linked_at = self._loop.time()
            if self._engine is not None and self._engine.delivery.committing is not None:
                self._engine.delivery.committing.try_at_once()  # the log may be the same broker's
        if topic != HEARTBEATS:
            self.abroad.missed()

    # What goes on

    async def _beat(self) -> None:
        while True:
            self._publish_heartbeat()
            await asyncio.sleep(BEAT_S * self._jitter.uniform(0.9, 1.1))

    def _publish_heartbeat(self) -> None:
        rooms = 0 if self._operating is None else self._operating.owned
        self._done(self._membership.tick(self._loop.time()))  # after a stall it is to know of that before it speaks
        beat = self._membership.beat(self._loop.time(), rooms=rooms)
        try:
            self._backplane.publish(HEARTBEATS, self._records.encode(beat, self._membership.hails))
        except (BackplaneError, BadRecord):
            pass  # who does not hear itself is isolated

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._done(self._membership.tick(self._loop.time()))

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._owned is not None:
                    self._owned.look(self._loop.time())
            except Exception:
                logger.exception("A look at what the nodes follow failed; it goes on.", extra={"code": "internal"})
            self._spawn(self._follow())  # which may wait for a node that does not answer

    async def _follow(self) -> None:
        try:
            await self.abroad.follow()
        except Exception:
            logger.exception("A look at what this node follows failed; it goes on.", extra={"code": "internal"})

    async def _sweep(self) -> None:
        """Close what is owned elsewhere after each change of the view, a part of the rooms at a time."""
        while True:
            await self._view_changed.wait()
            self._view_changed.clear()
            processes = [] if self._engine is None else list(self._engine.rooms)
            for first in range(0, len(processes), SWEPT_AT_ONCE):
                try:
                    self.abroad.nodes_changed(processes[first : first + SWEPT_AT_ONCE])
                except Exception:
                    logger.exception("Rooms that have moved could not be closed.", extra={"code": "internal"})
                await asyncio.sleep(0)
                if self._view_changed.is_set():
                    break

    def _done(self, changes: Sequence[Change]) -> None:
        """Do what a change of the nodes asks for, and write it to the log."""
        for change in changes:
            self._counts.isolations += change.kind == "isolated"
            self._log.changed(change)
            if change.kind == "left" and self._owned is not None:
                self._owned.node_gone(change.boot)
            if change.kind == "left" and change.boot != self.boot:
                self.abroad.revoking.node_gone(change.boot)
                self.abroad.polls.node_gone(change.boot)
                self.abroad.credits.gone(change.boot)
                self._wait_no_more(change.boot)
            elif change.kind == "joined":
                self.abroad.revoking.node_came(change.boot)
        if any(each.kind in ("joined", "left", "isolated", "healed", "refused") for each in changes):
            self._placement = Placement(self._membership.view)
            others = {
                peer.heartbeat.node: Seat(peer.heartbeat.node, peer.heartbeat.boot, peer.heartbeat.weight)
                for peer in self._membership.peers()
                if peer.ignored is None and peer.heartbeat.state in ("up", "draining")
            }
            self._others = Placement(View.of(others.values()))
            self._changed_at = self._loop.time()
            self._view_changed.set()
        if not self._up.is_set() and (self._membership.serving or self._membership.refused is not None):
            self._up.set()
            self._publish_heartbeat()  # the others are not to think for half a second that it is not up yet

    def _wait_no_more(self, boot: str) -> None:
        """Have nobody wait for the answers of a node that is gone; one that drains answers still."""
        if all(each.heartbeat.boot != boot for each in self._membership.peers()):
            for each in self._waits.pop(boot, set()):
                each.reschedule(self._loop.time())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine, name="chatx node")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def new_boot() -> str:
    """Return the id of one life of a node; a later one sorts behind."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"


def default_name() -> str:
    """Return a node's name where it was given none: its host's and its process's."""
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname()).strip(".-")[:48] or "node"
    return f"{host}-{os.getpid()}"


def configuration_hash(config: ChatConfig) -> str:
    """Return a hash of the options that all nodes must have alike."""
    values = config.effective()
    return blake2b(repr([values[name] for name in _MUST_AGREE]).encode(), digest_size=8).hexdigest()


def _topic(room_id: str) -> str:
    return f"live.{room_token(room_id)}"
