"""How a session comes into a room: the join, the replay of what it missed, and the step from there to what is live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from msgspec import UNSET

from chatx.core.message import Event, Position
from chatx.core.validation import valid_id
from chatx.errors import ChatError, RoomUnavailable, Unauthorized
from chatx.gateway.entry.handshake import Identity
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.hub import Hub, encode_event
from chatx.gateway.session.socket import Batch, Socket
from chatx.gateway.wire.actions import Action, Join
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.payloads import Joined, Resume, error_response, parse
from chatx.gateway.wire.phoenix import PhoenixProtocol
from chatx.runtime.catchup import CatchUp
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess

REPLAYED_AT_ONCE = 64
"""Missed messages written before the client must have taken them."""


class Joins(Protocol):
    """A session, as far as its joins know it.

    Attributes:
        memberships: Its part in each room that it has joined, by topic.
    """

    engine: Engine
    gateway: Gateway
    identity: Identity
    memberships: dict[str, Membership]
    protocol: PhoenixProtocol
    socket: Socket
    user_id: str
    version: Version

    def carry_out(self, actions: list[Action]) -> None:
        """Do what the protocol says."""
        ...

    def holds(self, membership: Membership) -> bool:
        """Return whether it has not left meanwhile."""
        ...

    def failed(self, membership: Membership) -> None:
        """Tell the client that its membership has ended; it joins again by itself."""
        ...


class Membership:
    """A session's part in one room: a member of its hub and one meta of its presence."""

    __slots__ = ("_session", "hub", "process", "ref", "topic")

    def __init__(self, session: Joins, process: RoomProcess, topic: str, ref: str) -> None:
        self._session = session
        self.process: RoomProcess = process
        self.topic: str = topic
        self.ref: str = ref
        self.hub: Hub | None = None  # until it has caught up

    @property
    def version(self) -> Version:
        """The version its frames are in."""
        return self._session.version

    @property
    def socket(self) -> Socket:
        """Where its frames go."""
        return self._session.socket

    def end(self, error: ChatError) -> None:
        """The room ended it."""
        self._session.failed(self)


class Joining:
    """One join of a session, from the question to what is live."""

    __slots__ = ("_session",)

    def __init__(self, session: Joins) -> None:
        self._session = session

    async def join(self, join: Join) -> None:
        """Take the session into the room that the client asks for, or refuse it."""
        session = self._session
        try:
            after = parse(join.payload, Resume).position
            position = Position(after.epoch, after.offset) if after is not None else None
            if not session.identity.may_join(valid_id(join.room_id, "room_id")):
                raise Unauthorized
            known = session.engine.rooms.find(join.room_id) is not None
            await session.engine.enter(join.room_id, session.user_id, "join", at_a_place=position is not None)
            if not known:
                session.gateway.allowances.began(session.user_id, session.engine.loop.time())
            await session.engine.authorize(session.user_id, join.room_id, "subscribe")
            process, caught_up = await session.engine.reader(join.room_id, position, settle=False)
            if not session.identity.may_join(join.room_id):  # a new token came meanwhile
                raise Unauthorized
            ref = process.join(session.user_id, time.time_ns() // 1_000_000)
        except ChatError as error:
            session.carry_out(session.protocol.join_error(join, error_response(error)))
            return
        membership = session.memberships[join.topic] = Membership(session, process, join.topic, ref)
        actions = session.protocol.join_ok(join, _join_response(position, caught_up))
        session.carry_out(actions[:1])
        if caught_up.reason is not None or position is None:
            caught_up.events.clear()
        if len(caught_up.events) <= REPLAYED_AT_ONCE:
            self._go_live(membership, caught_up)
            session.carry_out(actions[1:])
        else:
            session.carry_out(actions[1:])
            await self._replay(membership, caught_up)

    async def _replay(self, membership: Membership, caught_up: CatchUp) -> None:
        """Write what was missed at the client's pace, and what was published meanwhile, until it has caught up."""
        session = self._session
        room_id = membership.process.room_id
        while len(caught_up.events) > REPLAYED_AT_ONCE:
            for start in range(0, len(caught_up.events), REPLAYED_AT_ONCE):
                if not session.holds(membership):
                    return
                self._write_events(membership, caught_up.events[start : start + REPLAYED_AT_ONCE])
                await session.socket.drained()
            try:
                process, caught_up = await session.engine.reader(room_id, caught_up.head, settle=False)
            except ChatError:
                session.failed(membership)
                return
            if process is not membership.process or caught_up.reason is not None:
                # It fell behind what is kept: it joins again from where it stands, and is told of the gap.
                session.failed(membership)
                return
        if session.holds(membership):
            self._go_live(membership, caught_up)

    def _go_live(self, membership: Membership, caught_up: CatchUp) -> None:
        session = self._session
        self._write_events(membership, caught_up.events)
        process = membership.process
        if process not in session.gateway:
            # A new hub's first step lets the room tell what is pending, and whoever is told may publish.
            process.settle()
        if not session.holds(membership):
            return  # what it was given was too much for its socket, which closed itself
        late = process.after(caught_up.head, REPLAYED_AT_ONCE)
        if isinstance(late, str):
            session.failed(membership)
            return
        try:
            hub = session.gateway.hub(process)
        except RoomUnavailable:  # the room crashed while the hub came in
            session.failed(membership)
            return
        membership.hub = hub
        hub.add(membership)
        self._write_events(membership, late)

    def _write_events(self, membership: Membership, events: Sequence[Event]) -> None:
        session = self._session
        if events:
            session.socket.write(Batch([encode_event(session.version, membership.topic, event) for event in events]))


def _join_response(position: Position | None, caught_up: CatchUp) -> Joined:
    reason = caught_up.reason if position is not None else None
    return Joined(
        caught_up.head.epoch,
        caught_up.head.offset,
        position is not None and reason is None,
        UNSET if reason is None else reason,
    )
