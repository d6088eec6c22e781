"""How a session comes into a room: the join, the replay of what it missed, and the step from there to what is live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from msgspec import UNSET

from chatx.core.message import Entry, Position, Unrecovered
from chatx.core.validation import valid_id
from chatx.errors import ChatError, RoomUnavailable, Unauthorized
from chatx.gateway.entry.handshake import Identity
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.hub import Hub, encode_events
from chatx.gateway.session.reading import PAGE_MESSAGES
from chatx.gateway.session.socket import Bundle, Socket
from chatx.gateway.wire.actions import Action, Join
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.payloads import Joined, Resume, error_response, parse
from chatx.gateway.wire.phoenix import PhoenixProtocol
from chatx.runtime.catchup import Page
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess


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

    @property
    def pages(self) -> asyncio.Lock:
        """The lock that is held while a page is read for the client."""
        ...

    def carry_out(self, actions: list[Action]) -> None:
        """Do the actions that the protocol returned, in order."""
        ...

    def holds(self, membership: Membership) -> bool:
        """Return whether the session still has this membership."""
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
        """The protocol version of the frames that it gets."""
        return self._session.version

    @property
    def socket(self) -> Socket:
        """The socket that its frames go to."""
        return self._session.socket

    def end(self, error: ChatError) -> None:
        """Take note that the room has ended the membership."""
        self._session.failed(self)


class Joining:
    """One join of a session, from the question to what is live.

    What was missed is read page by page, each when the client has taken the one before it.
    """

    __slots__ = ("_session",)

    def __init__(self, session: Joins) -> None:
        self._session = session

    async def join(self, join: Join) -> None:
        """Take the session into the room that the client asks for, or refuse it."""
        session = self._session
        engine = session.engine
        first: Page | Unrecovered | None = None
        try:
            after = parse(join.payload, Resume).position
            position = Position(after.epoch, after.offset) if after is not None else None
            if not session.identity.may_join(join.room_id):
                valid_id(join.room_id, "room_id")
                raise Unauthorized
            known = engine.rooms.find(join.room_id) is not None
            process = await engine.enter(join.room_id, session.user_id, "join", at_a_place=position is not None)
            if not known:
                session.gateway.allowances.began(session.user_id, engine.loop.time())
            with process.held():
                await engine.authorize(session.user_id, join.room_id, "subscribe")
                if position is None:
                    process.check()
                else:
                    await engine.reach(process, position)
                    first = self._first(process, position) or await self._page(process, position)
            if not session.identity.may_join(join.room_id):  # a new token came meanwhile
                raise Unauthorized
            ref = process.join(session.user_id, time.time_ns() // 1_000_000)
        except ChatError as error:
            session.carry_out(session.protocol.join_error(join, error_response(error)))
            return
        membership = session.memberships[join.topic] = Membership(session, process, join.topic, ref)
        head = process.head
        answer = Joined(head.epoch, head.offset, isinstance(first, Page), first if isinstance(first, str) else UNSET)
        reply, *waited = session.protocol.join_ok(join, answer)
        session.carry_out([reply])
        if not isinstance(first, Page) or position is None:
            self._go_live(membership, head)
            session.carry_out(waited)
        elif first.last:
            self._finish(membership, position, first)
            session.carry_out(waited)
        else:
            session.carry_out(waited)
            await self._replay(membership, position, first)

    def _first(self, process: RoomProcess, position: Position) -> Page | Unrecovered | None:
        """Return the first page of what was missed, or why it cannot be had; None where `_page` has to wait for it."""
        missed = process.offset - position.offset
        if missed > self._session.engine.config.resume_max_messages and position.epoch == process.head.epoch:
            return "too_many"
        return self._page_at_once(process, position)

    async def _replay(self, membership: Membership, reached: Position, page: Page) -> None:
        """Write what was missed, and what is published meanwhile, until there is no more of it."""
        session = self._session
        process = membership.process
        while not page.last:
            if not session.holds(membership):
                return  # it left again before this came
            self._write(membership, page.entries)
            reached = _place_of(page, reached)
            try:
                await session.gateway.reading.wait(session.user_id)
                following = await self._page(process, reached)
            except ChatError:
                session.failed(membership)
                return
            if isinstance(following, str):
                # It fell behind what is kept: it joins again from where it stands, and is told of the gap.
                session.failed(membership)
                return
            page = following
        if session.holds(membership):
            self._finish(membership, reached, page)

    async def _page(self, process: RoomProcess, after: Position) -> Page | Unrecovered:
        """Return a page of what follows a place, once the client has taken what was written; from then on at once."""
        page = self._page_at_once(process, after)
        if page is not None:
            return page
        session = self._session
        reading = session.gateway.reading
        async with session.pages:
            await session.socket.drained()
            page = session.engine.page_in_memory(process, after, reading.at_once)
            if page is None:
                async with reading.turn(session.user_id):
                    page = await session.engine.next_page(process, after, reading.at_once)
        if isinstance(page, Page):
            page = reading.charged(session.user_id, page)
        return page

    def _page_at_once(self, process: RoomProcess, after: Position) -> Page | Unrecovered | None:
        """Return that page where neither the client nor the store has to be waited for, else None."""
        session = self._session
        if session.socket.direct is None:
            return None
        reading = session.gateway.reading
        page = session.engine.page_in_memory(process, after, reading.at_once)
        if isinstance(page, Page):
            page = reading.charged(session.user_id, page)
        return page

    def _finish(self, membership: Membership, reached: Position, page: Page) -> None:
        self._write(membership, page.entries)
        self._go_live(membership, page.entries[-1] if page.entries else reached)

    def _go_live(self, membership: Membership, reached: Position | Entry) -> None:
        session = self._session
        process = membership.process
        if process not in session.gateway:
            # A new hub's first step lets the room tell what is pending, and whoever is told may publish.
            process.settle()
        if not session.holds(membership):
            return  # what it was given was too much for its socket, which closed itself
        late: Sequence[Entry] = ()
        if not process.stands_at(reached):
            found = process.after(Position(reached.epoch, reached.offset), PAGE_MESSAGES)
            if isinstance(found, str):
                session.failed(membership)
                return
            late = found
        try:
            hub = session.gateway.hub(process)
        except RoomUnavailable:  # the room crashed while the hub came in
            session.failed(membership)
            return
        membership.hub = hub
        hub.add(membership)
        if late:
            self._write(membership, late)

    def _write(self, membership: Membership, entries: Sequence[Entry]) -> None:
        session = self._session
        if entries:
            session.socket.write(Bundle(encode_events(session.version, membership.topic, entries)))


def _place_of(page: Page, reached: Position) -> Position:
    """Return the place of a page's last entry."""
    return Position(page.entries[-1].epoch, page.entries[-1].offset) if page.entries else reached
