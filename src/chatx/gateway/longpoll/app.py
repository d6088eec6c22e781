"""Phoenix's long-polling, as an ASGI application for both shells: for clients whose WebSockets do not come through.

A client asks with GET and gets 410 with a token, which stands for its session. Each further GET with the token of the
last response waits until there are messages, at most `POLL_S`. A POST carries what the client pushes.

Rules:
1. The protocol's status is in the JSON of the body: `{"status": 200, "token": ..., "messages": [...]}`. The status of
   HTTP is 200 wherever phoenix.js has an answer to the former. A bound is told by a status of HTTP, and by 500 in the
   body, at which phoenix.js comes back more and more slowly; a status that it does not know would stop it for good.
2. A session comes into being as a WebSocket does: through the `Entrance`, and it holds a `Place` until its end. The
   origin of each request is looked at; who it is, only where a session begins.
3. A response that is lost loses nothing; see `Outbox`.
4. With nodes a token names the one that holds its session, and a request that reaches another is answered by that one
   through it: a poll is woken there where there is something. What a node may be asked is what a client may ask.
5. A token that is no longer known is answered with 410 and no session. phoenix.js drops a session that it is given
   then, and asks once more; it would hold two places.

Source: `Phoenix.Transports.LongPoll` and `longpoll.js` of phoenix.js.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Final

from msgspec.json import encode

from chatx.errors import RoomUnavailable
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.entry.shares import Shares
from chatx.gateway.longpoll.exchange import Exchange, Gone, Polled, Posted, Receive, Scope, Send, Token
from chatx.gateway.longpoll.held import MAX_POSTS, POST_S, HeldSession
from chatx.gateway.longpoll.poller import Poller
from chatx.gateway.session.entrance import Entrance
from chatx.gateway.session.progress import within
from chatx.gateway.session.session import Session
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY, CLOSE_TRY_LATER
from chatx.gateway.wire.excess import Excess
from chatx.runtime.polls import PolledSession

PATH: Final = "/longpoll"
"""What the path of a request ends in."""

POLL_S: Final = 10.0
"""Seconds that a poll waits for messages; phoenix.js waits for 20 s."""

MAX_SESSIONS: Final = 10_000
"""Sessions of one gateway. No connection of the system's stands for one, so nothing else bounds their number."""

_NOTHING: Final = 204
_FORBIDDEN: Final = 403
_TIMED_OUT: Final = 408
_GONE: Final = 410
_TOO_LARGE: Final = 413
_TOO_MANY: Final = 429


class LongPoll:
    """The application; its sessions are those of one gateway.

    Args:
        entrance: The way in.

    Attributes:
        draining: Whether new sessions are refused.
    """

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._pollers: dict[str, Poller] = {}
        self._shares: Shares[Poller] = Shares()
        self.draining: bool = False

    def __len__(self) -> int:
        """Return how many sessions there are."""
        return len(self._pollers)

    @property
    def sessions(self) -> list[Session]:
        """The sessions; closing one takes it away."""
        return [poller.client.session for poller in self._pollers.values()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of HTTP."""
        exchange = Exchange(scope, receive, send)
        try:
            self._entrance.check_request(exchange.handshake)
            exchange.cors()
            try:
                await self._answer(scope["method"], exchange)
            except RoomUnavailable as error:  # the node that holds the session is not reached
                raise Refused(503, error.code, error.reason) from error
        except Refused as refused:
            self._entrance.tell(refused, scope)
            if refused.status == _FORBIDDEN:
                await exchange.say(Posted(_FORBIDDEN))
            else:
                await exchange.put_off(refused.status, refused.retry_after)
        except Gone:
            # Nobody reads this; but a middleware around takes a request without a response for a failure.
            with contextlib.suppress(Exception):  # servers raise what they like once the client is gone
                await exchange.respond(200, b"")
        except (OSError, TimeoutError):
            # The client is gone or takes nothing. What it did not get is kept for a while.
            return

    async def _answer(self, method: str, exchange: Exchange) -> None:
        match method:
            case "GET":
                await self._get(exchange)
            case "POST":
                await self._post(exchange)
            case "OPTIONS":
                await exchange.preflight()
            case _:
                await exchange.respond(405, b"", (b"allow", b"GET, POST, OPTIONS"))

    async def _get(self, exchange: Exchange) -> None:
        token = exchange.token
        if token is None:
            await self._open(exchange)
            return
        session = self._session(token)
        if session is None:
            await exchange.say(Polled(_GONE, None, []))
            return
        poll = session.begin_poll()
        well = False
        try:
            held = await poll.ask(token.number)
            if held.status == _NOTHING and await exchange.wait(poll.woken, POLL_S):
                held = await poll.ask(token.number)
            renewed = None if held.status == _GONE else token._replace(number=held.number).text
            await exchange.say(Polled(held.status, renewed, list(held.messages)))
            well = True
        finally:
            poll.end(well=well)

    async def _open(self, exchange: Exchange) -> None:
        if self.draining:
            raise Refused(503, "stopping", "the server is going away; they come back.", level=logging.INFO)
        self._check_room(exchange.address)
        handshake = exchange.handshake
        gateway, place = self._entrance.begin(exchange.address)
        try:
            version, identity = await self._entrance.recognise(gateway, place, handshake)
            self._make_room(exchange.address)  # only for who is known: nobody else ends a session
            elsewhere = gateway.engine.elsewhere
            if elsewhere is not None:
                elsewhere.polls.hold(self._held)
            boot = "" if elsewhere is None else elsewhere.polls.boot
            poller = Poller(gateway.engine.config.mailbox_bytes, self._forget, boot)
            # Its silence is that of its polls, which the poller knows.
            client = self._entrance.open(gateway, place, version, identity, handshake, poller, idle_timeout_s=math.inf)
            self._pollers[poller.secret] = poller
            self._shares.add(poller, exchange.address)
            poller.begin(client, gateway.wheel)
        except BaseException:
            place.end()
            raise
        try:
            await exchange.say(Polled(_GONE, Token(poller.boot, poller.secret, poller.outbox.number).text, []))
        except BaseException:
            # Nobody else knows the token.
            poller.close(CLOSE_GOING_AWAY, "the client went away")
            raise

    async def _post(self, exchange: Exchange) -> None:
        session = None if exchange.token is None else self._session(exchange.token)
        status = _GONE if session is None else await self._posted(session, exchange)
        if status == _TOO_MANY:
            raise Refused(_TOO_MANY, "full", f"{MAX_POSTS} posts of one session are under way, which is the bound.")
        if status == _TOO_LARGE:
            await exchange.respond(_TOO_LARGE, encode(Posted(_TOO_LARGE)))
        else:
            await exchange.say(Posted(status))

    async def _posted(self, session: PolledSession, exchange: Exchange) -> int:
        async def body() -> bytes:
            async with within(POST_S):
                return await exchange.body()

        try:
            return await session.post(exchange.handshake.headers.get("content-type", ""), body)
        except TimeoutError:
            return _TIMED_OUT
        except Excess:
            return _TOO_LARGE

    def _session(self, token: Token) -> PolledSession | None:
        """Return the session that a token stands for, whichever node holds it; None where it is gone."""
        held = self._held(token.secret)
        if held is not None or not token.boot:
            return held
        polls = self._entrance.polls
        return None if polls is None else polls.session(token.boot, token.secret)

    def _held(self, secret: str) -> HeldSession | None:
        poller = self._pollers.get(secret)
        return None if poller is None else HeldSession(poller)

    def _check_room(self, address: str | None) -> None:
        """Refuse one more session where there are too many, and no address has more than this one would have."""
        if len(self._pollers) >= MAX_SESSIONS and self._shares.share(address) + 1 >= self._shares.largest:
            raise Refused(
                503, "full", f"there are {MAX_SESSIONS} long-polling sessions, which is the bound; they come back."
            )

    def _make_room(self, address: str | None) -> None:
        """End the oldest session of the address that has most, where there are too many."""
        self._check_room(address)
        oldest = self._shares.first_to_go()
        if len(self._pollers) >= MAX_SESSIONS and oldest is not None:
            oldest.close(CLOSE_TRY_LATER, "its address has most of the sessions, of which there are too many")

    def _forget(self, poller: Poller) -> None:
        self._shares.discard(poller)
        self._pollers.pop(poller.secret, None)
