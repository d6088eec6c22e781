"""One client's session: what its frames ask for, done in the chat; the answers, written to its socket.

The shells drive it: bytes in by `receive`, frames out through a `Socket`. A send in which nothing awaits is done and
answered before `receive` returns; what must await runs in a task, one for each push.

Rules:
1. However a session ends, `end` leaves every room at once.
2. Nothing is written to a topic before its join's reply. On a resume the missed messages follow the reply, before
   anything newer; a long resume is written at the pace at which the client reads.
3. At most `PENDING_PUSHES` pushes wait at a time; the shell stops reading while `busy`.
4. A session ends by itself, and closes its socket, when the client is silent for too long or its identity expires.
5. Only what the server would have read is silence: neither the time in which the session is busy counts, nor a turn of
   the loop that took longer than the silence itself. So silence is believed after `DOUBTS` more looks, between which a
   shell reads what came in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from chatx.core.message import Draft, Message
from chatx.errors import ChatError, InvalidMessage, RateLimited, RoomUnavailable, Unauthorized
from chatx.gateway.entry.handshake import Identity
from chatx.gateway.session.expiry import DOUBTS
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.history import page_of
from chatx.gateway.session.joining import Joining, Membership
from chatx.gateway.session.socket import Bundle, Socket
from chatx.gateway.wire.actions import Action, Close, Join, Leave, Push, Superseded, Write
from chatx.gateway.wire.bounds import ANSWER_S, IDLE_TIMEOUT_S, OVERDUE_PERCENT, PENDING_PUSHES
from chatx.gateway.wire.closes import CLOSE_EXPIRED, CLOSE_GOING_AWAY, CLOSE_INTERNAL
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.payloads import (
    AccessToken,
    History,
    NewMessage,
    Renewed,
    Sent,
    error_response,
    parse,
)
from chatx.gateway.wire.phoenix import PhoenixProtocol
from chatx.runtime.engine import Engine

logger: logging.Logger = logging.getLogger("chatx")

AskAgain: TypeAlias = Callable[[str], Awaitable[Identity | None]]
"""Returns who a new token is for, or None to refuse; raises `Closed` where the chat is not running any more."""


class Session:
    """One connected client.

    Attributes:
        identity: Who the client is, until when, and for which rooms.
        user_id: The user's id.
        version: The protocol version of its frames.
        socket: The socket that its frames go to.
        last_seen: When the client last showed itself, in loop time.

    Args:
        gateway: The gateway of the chat.
        identity: Who the client is.
        protocol: The protocol's state of this connection.
        socket: The socket of this connection.
        idle_timeout_s: Seconds of silence after which the session ends.
        ask_again: Called with a new token. Where it is None, or the identity does not expire, there is no event
            `access_token`.
    """

    def __init__(
        self,
        gateway: Gateway,
        identity: Identity,
        protocol: PhoenixProtocol,
        socket: Socket,
        *,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        ask_again: AskAgain | None = None,
    ) -> None:
        self.gateway = gateway
        self.engine: Engine = gateway.engine
        self.identity: Identity = identity
        self.user_id: str = identity.user_id
        self.version: Version = protocol.version
        self.socket = socket
        self.protocol = protocol
        self._number = gateway.number()
        self.memberships: dict[str, Membership] = {}
        self._tasks: set[asyncio.Task[None]] | None = None  # None while there are none, since most sockets are idle
        self._pages: asyncio.Lock | None = None  # from the first page on, since most sockets ask for none
        self._ended = False
        self._allowed = 0  # messages that were taken from its user's allowance already
        self.last_seen: float = self.engine.loop.time()
        self._doubts = 0  # since it has been silent for too long
        self._question: tuple[float, Callable[[], bool]] | None = None  # when it was asked whether it is there
        self._idle_timeout_s = idle_timeout_s
        # It keeps the handshake in memory, which a socket that does not expire has no use for.
        self._ask_again = ask_again if identity.expires_at is not None else None
        self._tokens = 0  # how many came, and which of them is in force
        self._token = 0
        self._expires = self._expiry(identity)
        gateway.wheel.watch(self, self._deadline())

    @property
    def busy(self) -> bool:
        """Whether as many pushes are under way as may be; the shell reads no further meanwhile."""
        return self._tasks is not None and len(self._tasks) >= PENDING_PUSHES

    async def wait_idle(self) -> None:
        """Wait until the session is no longer busy."""
        while self._tasks is not None and self.busy and not self._ended:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def seen(self) -> None:
        """Note that the client is there, though it said nothing to the chat: a ping, for one."""
        self.last_seen = self.engine.loop.time()

    def receive(self, data: str | bytes) -> None:
        """Take one whole WebSocket message: `str` for text, `bytes` for binary. No input raises."""
        self.last_seen = self.engine.loop.time()
        self.carry_out(self.protocol.receive(data))

    def end(self) -> None:
        """Leave every room; the socket is closed, or about to be. Twice is harmless."""
        if self._ended:
            return
        self._ended = True
        self.gateway.wheel.forget(self)
        self.gateway.joins.forget(self._number, "")
        self._question = None  # which has this session
        for task in self._tasks or ():
            task.cancel()
        for topic in list(self.memberships):
            self._leave(topic)

    def due(self, now: float) -> float | None:
        """End the session where its time is over; else return the loop time at which to ask again."""
        if self._ended:
            return None
        if self._expires <= now:
            self.cut(CLOSE_EXPIRED, "the token has expired: come back with a new one")
            return None
        if self.busy:
            # It is the shell that does not read meanwhile.
            self.last_seen = now
        if self.last_seen + self._idle_timeout_s > now:
            self._doubts = 0
        elif self._doubts < DOUBTS:
            self._doubts += 1
            return now
        else:
            self.cut(CLOSE_GOING_AWAY, "silent for too long")
            return None
        return self._deadline()

    def ask(self) -> Callable[[], bool] | None:
        """Ask the client to show itself, where it has been silent for a while; one question at a time.

        Returns:
            What tells whether the client has shown itself since, in any way; never where the session has ended. None
            where the client counts as alive: while the session is busy, as long as an answer may take, and where it
            cannot be asked, as long as live clients ever are silent.
        """
        now = self.engine.loop.time()
        silent_s = now - self.last_seen
        if self._ended:
            return bool  # False: its socket is being closed, which no answer puts off
        if self.busy or silent_s <= ANSWER_S:
            return None
        if self._question is not None and now - self._question[0] < ANSWER_S:
            return self._question[1]
        answered = self.socket.ask()
        if answered is None and silent_s <= self._idle_timeout_s * OVERDUE_PERCENT / 100:
            return None

        def shown() -> bool:
            return self.busy or self.last_seen >= now or (answered is not None and answered())

        self._question = (now, shown)
        return shown

    def give_way(self) -> None:
        """End the session in favour of another socket of its user's."""
        self.cut(CLOSE_GOING_AWAY, "silent, and another socket of the user's came")

    def cut(self, code: int, reason: str) -> None:
        """Close the socket from this side, and end."""
        if not self._ended:
            self.gateway.closed[code] += 1
        self.socket.close(code, reason)
        self.end()

    def _deadline(self) -> float:
        return min(self._expires, self.last_seen + self._idle_timeout_s)

    def _expiry(self, identity: Identity) -> float:
        if identity.expires_at is None:
            return math.inf
        return self.engine.loop.time() + identity.expires_at - time.time()

    def failed(self, membership: Membership) -> None:
        """Tell the client that the room ended its membership; it joins again by itself."""
        if self.holds(membership):
            self._leave(membership.topic)
            self.carry_out(self.protocol.channel_error(membership.topic))

    def holds(self, membership: Membership) -> bool:
        """Return whether the membership is still this session's: whatever was awaited, it may have left meanwhile."""
        return self.memberships.get(membership.topic) is membership

    def carry_out(self, actions: list[Action]) -> None:
        """Do the actions that the protocol returned, in order."""
        for action in actions:
            if self._ended:
                return
            match action:
                case Write():
                    self.socket.write(Bundle([action.text]))
                case Push():
                    self._push(action)
                case Join():
                    self._ask_to_join(action)
                case Leave():
                    self._leave(action.topic)
                    self.carry_out(self.protocol.left(action))
                case Superseded():
                    self._leave(action.topic)
                case Close():
                    self.cut(action.code, action.reason)

    def _push(self, push: Push) -> None:
        handle = _HANDLERS.get(push.event, Session._unknown)
        try:
            handle(self, push)
        except ChatError as error:
            self._refuse(push, error)

    def _unknown(self, push: Push) -> None:
        raise InvalidMessage(
            f"There is no event {push.event[:64]!r} on a room's topic; there are new_message and history."
        )

    def _new_message(self, push: Push) -> None:
        message = parse(push.payload, NewMessage)
        if not self._allowed:
            self._allowed = self.gateway.allowances.messages(self.user_id, self.last_seen)
        self._allowed -= 1
        sent = self.engine.send_at_once(
            push.room_id, self.user_id, message.content, message.key, data=message.data, epoch=message.epoch
        )
        if isinstance(sent, Draft):
            self._start(self._send(push, sent, message.key))
        else:
            self._sent(push, sent)

    def _history(self, push: Push) -> None:
        wanted = parse(push.payload, History)
        self.gateway.reading.check(self.user_id)
        self._start(self._read(push, wanted))

    def _access_token(self, push: Push) -> None:
        ask_again = self._ask_again
        if ask_again is None:
            self._unknown(push)
        else:
            self._new_token(push, parse(push.payload, AccessToken).token, ask_again)

    async def _send(self, push: Push, draft: Draft, key: str | None) -> None:
        try:
            message = await self.engine.send_draft(draft, key)
        except ChatError as error:
            self._refuse(push, error)
        else:
            self._sent(push, message)

    async def _read(self, push: Push, wanted: History) -> None:
        reading = self.gateway.reading
        try:
            async with self.pages:
                await self.socket.drained()
                await self._authorize_to_read(push.room_id)
                async with reading.turn(self.user_id):
                    page = await page_of(self.engine, reading, self.user_id, push.room_id, wanted)
        except ChatError as error:
            self._refuse(push, error)
        else:
            self.carry_out(self.protocol.reply(push, "ok", page))

    async def _authorize_to_read(self, room_id: str) -> None:
        """Raise a `ChatError` where the user may not read the room any more, whatever was allowed when it joined."""
        try:
            await self.engine.authorize(self.user_id, room_id, "subscribe")
            if not self.identity.may_join(room_id):
                raise Unauthorized
        except ChatError:
            # Or whoever is refused could have the adapter asked without end.
            self.gateway.reading.charge(self.user_id, ())
            raise

    @property
    def pages(self) -> asyncio.Lock:
        """The lock that is held while a page is read for the client."""
        if self._pages is None:
            self._pages = asyncio.Lock()
        return self._pages

    def _new_token(self, push: Push, token: str, ask_again: AskAgain) -> None:
        wait = self.gateway.joins.acquire(self._number, "", self.engine.loop.time())
        if wait:
            raise RateLimited("Too many new tokens in too short a time on this connection.", retry_after=wait)
        self._tokens += 1
        self._start(self._renew(push, token, self._tokens, ask_again))

    async def _renew(self, push: Push, token: str, number: int, ask_again: AskAgain) -> None:
        try:
            identity = await ask_again(token)
            if identity is None or identity.user_id != self.user_id:
                raise Unauthorized("The token is not valid, or is not this user's; the present one stays in force.")
        except ChatError as error:
            self._refuse(push, error)
            return
        # An answer that a later token's has overtaken is about a token that is out of force.
        if number > self._token:
            self._token = number
            self.identity = identity
            self._expires = self._expiry(identity)
            self.gateway.wheel.watch(self, self._deadline())
        until = self.identity.expires_at
        # An int may be larger than JSON can hold here; a float never is.
        self.carry_out(self.protocol.reply(push, "ok", Renewed(None if until is None else float(until))))
        for membership in list(self.memberships.values()):
            if not self.identity.may_join(membership.process.room_id):
                self.failed(membership)

    def _sent(self, push: Push, message: Message) -> None:
        response = Sent(
            message.id,
            message.epoch,
            message.offset,
            message.inserted_at,
            True if message.duplicate else UNSET,
            True if message.stored else UNSET,
        )
        self.carry_out(self.protocol.reply(push, "ok", response))

    def _refuse(self, push: Push, error: ChatError) -> None:
        self.carry_out(self.protocol.reply(push, "error", error_response(error)))

    def _ask_to_join(self, join: Join) -> None:
        if self.gateway.draining:
            away = RoomUnavailable("This server is going away; the socket is about to be closed. Come back and join.")
            self.carry_out(self.protocol.join_error(join, error_response(away)))
            return
        now = self.engine.loop.time()
        wait = self.gateway.joins.acquire(self._number, "", now)
        if wait:
            # Before the auth adapter is asked: a flood of joins is not to become one of its queries.
            error = RateLimited("Too many joins in too short a time on this connection.", retry_after=wait)
        elif wait := self.gateway.allowances.join(self.user_id, now):
            error = RateLimited("Too many joins, or new rooms, of this user in too short a time.", retry_after=wait)
        else:
            self._start(Joining(self).join(join))
            return
        self.carry_out(self.protocol.join_error(join, error_response(error)))

    def _leave(self, topic: str) -> None:
        membership = self.memberships.pop(topic, None)
        if membership is None:
            return
        if membership.hub is not None:
            membership.hub.remove(membership)
        membership.process.leave(self.user_id, membership.ref)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.engine.loop.create_task(coroutine, name="chatx session")
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if self.busy:
            self.last_seen = self.engine.loop.time()  # from here on its client is read again
        if self._tasks is not None:
            self._tasks.discard(task)
            if not self._tasks:
                self._tasks = None
        if task.cancelled() or task.exception() is None:
            return
        # A bug of ours; the client is not left waiting for an answer that never comes.
        logger.error(
            "A session failed and is closed.",
            exc_info=task.exception(),
            extra={"user": self.user_id, "code": CLOSE_INTERNAL},
        )
        self.cut(CLOSE_INTERNAL, "internal error")


_HANDLERS: Final[dict[str, Callable[[Session, Push], None]]] = {
    "new_message": Session._new_message,
    "history": Session._history,
    "access_token": Session._access_token,
}
"""What a session does at each event that a client may push to a room."""
