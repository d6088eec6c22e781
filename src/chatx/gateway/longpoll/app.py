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

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace

from chatx.errors import RoomUnavailable
from chatx.gateway.entry.handshake import Handshake, handshake_of
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.entry.shares import Shares
from chatx.gateway.entry.stopping import bounded_when_stopping, told_when_stopping
from chatx.gateway.longpoll.outbox import OutOfStep
from chatx.gateway.longpoll.poller import Poller
from chatx.gateway.session.entrance import Entrance
from chatx.gateway.session.pace import Pace
from chatx.gateway.session.progress import taken_within, transport_of, within
from chatx.gateway.session.session import Session
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY, CLOSE_MALFORMED, CLOSE_TOO_LARGE, CLOSE_TRY_LATER
from chatx.gateway.wire.excess import Excess
from chatx.gateway.wire.posts import MAX_POST_BYTES, MalformedPost, messages_of
from chatx.runtime.polls import HeldPoll, Polls, PostStatus

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATH: Final = "/longpoll"
"""What the path of a request ends in."""

POLL_S: Final = 10.0
"""Seconds that a poll waits for messages; phoenix.js waits for 20 s."""

POST_S: Final = 10.0
"""Seconds in which a post must have come and been taken; of a turn of the loop that takes long a quarter counts."""

WRITE_STALL_S: Final = 10.0
"""Seconds in which a client must take `LEAST_TAKEN` bytes of a response, where that can be seen; else all of it."""

MAX_POSTS: Final = 8
"""Posts of one session under way at a time; phoenix.js has one, its older versions one for each push."""

MAX_SESSIONS: Final = 10_000
"""Sessions of one gateway. No connection of the system's stands for one, so nothing else bounds their number."""

_OK: Final = 200
_NOTHING: Final = 204
_FORBIDDEN: Final = 403
_TIMED_OUT: Final = 408
_GONE: Final = 410
_TOO_LARGE: Final = 413
_TOO_MANY: Final = 429
_FAILED: Final = 500

# No user's own parameter `token` looks like this.
_TOKEN = re.compile(r"chatx-lp\.(?:([0-9a-z]{16,32})\.)?([A-Za-z0-9_-]{43})\.(0|[1-9][0-9]{0,14})")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9, _-]{0,1024}")


class _Polled(Struct, frozen=True):
    status: int
    token: str | None
    messages: list[str]


class _Posted(Struct, frozen=True):
    status: int


class _Token(NamedTuple):
    """What a client shows of its session.

    Attributes:
        boot: The node that holds it; empty where there is one node.
        secret: The session.
        number: That of the last batch that the client has.
    """

    boot: str
    secret: str
    number: int


class _Gone(Exception):
    """The client went away while it was read from."""


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
        exchange = _Exchange(scope, receive, send)
        try:
            self._entrance.check_request(exchange.handshake)
            exchange.cors()
            match scope["method"]:
                case "GET":
                    await self._get(exchange)
                case "POST":
                    await self._post(exchange)
                case "OPTIONS":
                    await exchange.preflight()
                case _:
                    await exchange.respond(405, b"", (b"allow", b"GET, POST, OPTIONS"))
        except Refused as refused:
            self._entrance.tell(refused, scope)
            if refused.status == _FORBIDDEN:
                await exchange.say(_Posted(_FORBIDDEN))
            else:
                await exchange.put_off(refused.status, refused.retry_after)
        except _Gone:
            # Nobody reads this; but a middleware around takes a request without a response for a failure.
            with contextlib.suppress(Exception):  # servers raise what they like once the client is gone
                await exchange.respond(200, b"")
        except (OSError, TimeoutError):
            # The client is gone or takes nothing. What it did not get is kept for a while.
            return

    async def _get(self, exchange: _Exchange) -> None:
        token = exchange.token
        if token is None:
            await self._open(exchange)
            return
        poller = self._pollers.get(token.secret)
        if poller is None:
            await self._get_elsewhere(token, exchange)
            return
        poller.polled()
        well = False
        try:
            try:
                await exchange.say(await self._poll(poller, token.number, exchange))
            except OutOfStep:
                # It is not the client that asks, but an echo of what it asked long ago.
                await exchange.say(_Polled(_GONE, None, []))
            well = True
        finally:
            poller.answered(well=well)

    async def _get_elsewhere(self, token: _Token, exchange: _Exchange) -> None:
        """Answer a poll of a session that another node holds, or that is gone."""
        polls = self._polls(token)
        poll = None if polls is None else polls.begin(token.boot, token.secret)
        if poll is None:
            await exchange.say(_Polled(_GONE, None, []))
            return
        well = False
        try:
            held = await poll.ask(token.number)
            if held.status == _NOTHING and await exchange.wait(poll.woken):
                held = await poll.ask(token.number)
            renewed = None if held.status == _GONE else _token_text(token.boot, token.secret, held.number)
            await exchange.say(_Polled(held.status, renewed, list(held.messages)))
            well = True
        except RoomUnavailable as error:
            raise Refused(503, error.code, error.reason) from error
        finally:
            poll.end(well=well)

    def _polls(self, token: _Token) -> Polls | None:
        polls = self._entrance.polls if token.boot else None
        return None if polls is None or polls.boot == token.boot else polls

    async def _open(self, exchange: _Exchange) -> None:
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
                elsewhere.polls.hold(self)
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
            await exchange.say(_Polled(_GONE, _token_of(poller), []))
        except BaseException:
            # Nobody else knows the token.
            poller.close(CLOSE_GOING_AWAY, "the client went away")
            raise

    async def _poll(self, poller: Poller, acknowledged: int, exchange: _Exchange) -> _Polled:
        messages = poller.take(acknowledged)
        if not messages:
            fresh = await exchange.wait(poller.wait())
            if fresh is not False:
                messages = poller.take(acknowledged)
        if messages:
            return _Polled(_OK, _token_of(poller), messages)
        if poller.closed:
            return _Polled(_GONE, None, [])
        return _Polled(_NOTHING, _token_of(poller), [])

    async def _post(self, exchange: _Exchange) -> None:
        token = exchange.token
        poller = self._pollers.get(token.secret) if token is not None else None
        if poller is None:
            await self._post_elsewhere(token, exchange)
            return
        if poller.posts >= MAX_POSTS:
            raise _too_many_posts()
        poller.posts += 1
        try:
            async with within(POST_S):
                # What has come is taken, however long that takes; a body that comes slowly holds up no server.
                async with bounded_when_stopping(exchange.scope):
                    body = await exchange.body()
                await self._hand_over(poller, messages_of(exchange.handshake.headers.get("content-type", ""), body))
        except TimeoutError:
            # phoenix.js comes back anew at any status but 200, and leaves this session behind.
            poller.close(CLOSE_TRY_LATER, "a post was not taken in time")
            await exchange.say(_Posted(_TIMED_OUT))
        except Excess as excess:
            poller.close(excess.code, excess.reason)
            await exchange.respond(_TOO_LARGE, encode(_Posted(_TOO_LARGE)))
        except MalformedPost as malformed:
            poller.close(CLOSE_MALFORMED, str(malformed))
            await exchange.say(_Posted(_GONE))
        else:
            await exchange.say(_Posted(_GONE if poller.closed else _OK))
        finally:
            poller.posts -= 1

    async def _post_elsewhere(self, token: _Token | None, exchange: _Exchange) -> None:
        """Have another node take what a client of its own pushes here, or say that the session is gone."""
        polls = None if token is None else self._polls(token)
        if token is None or polls is None:
            await exchange.say(_Posted(_GONE))
            return
        try:
            async with within(POST_S), bounded_when_stopping(exchange.scope):
                body = await exchange.body()
            content_type = exchange.handshake.headers.get("content-type", "")
            status = await polls.post(token.boot, token.secret, content_type, body)
        except TimeoutError:
            status = _TIMED_OUT
        except Excess:
            status = _TOO_LARGE
        except RoomUnavailable as error:
            raise Refused(503, error.code, error.reason) from error
        if status == _TOO_MANY:
            raise _too_many_posts()
        if status == _TOO_LARGE:
            await exchange.respond(_TOO_LARGE, encode(_Posted(_TOO_LARGE)))
        else:
            await exchange.say(_Posted(status))

    # What other nodes ask for; see `HoldsPolls`.

    def held(self, secret: str) -> bool:
        """Return whether a session is one of these."""
        return secret in self._pollers

    def poll_held(self, secret: str, acknowledged: int, *, again: bool, woken: Callable[[bool], object]) -> HeldPoll:
        """Return what a session has; where that is nothing yet, `woken` is called when to ask again."""
        poller = self._pollers[secret]
        if not again:
            poller.polled()
        try:
            messages = poller.take(acknowledged)
        except OutOfStep:
            return HeldPoll(_GONE, 0, ())
        if messages:
            return HeldPoll(_OK, poller.outbox.number, messages)
        if poller.closed:
            return HeldPoll(_GONE, 0, ())
        poller.wait().add_done_callback(lambda waiter: woken(not waiter.cancelled() and waiter.result()))
        return HeldPoll(_NOTHING, poller.outbox.number, ())

    def poll_ended(self, secret: str, *, well: bool) -> None:
        """Take note that a poll has ended."""
        self._pollers[secret].answered(well=well)

    async def post_held(self, secret: str, content_type: str, body: bytes) -> PostStatus:
        """Take what a client pushes."""
        poller = self._pollers[secret]
        if poller.posts >= MAX_POSTS:
            return _TOO_MANY
        poller.posts += 1
        try:
            async with within(POST_S):
                await self._hand_over(poller, messages_of(content_type, body))
        except TimeoutError:
            poller.close(CLOSE_TRY_LATER, "a post was not taken in time")
            return _TIMED_OUT
        except Excess as excess:
            poller.close(excess.code, excess.reason)
            return _TOO_LARGE
        except MalformedPost as malformed:
            poller.close(CLOSE_MALFORMED, str(malformed))
            return _GONE
        finally:
            poller.posts -= 1
        return _GONE if poller.closed else _OK

    async def _hand_over(self, poller: Poller, messages: list[str | bytes]) -> None:
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


class _Exchange:
    """One request, and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._cors: list[tuple[bytes, bytes]] = [(b"vary", b"origin")]
        handshake = handshake_of(scope)
        self.handshake: Handshake = replace(handshake, token=_auth_token(handshake))
        self.token: _Token | None = _session_token(handshake)

    @property
    def address(self) -> str | None:
        """The client's address."""
        client = self.scope.get("client")
        return client[0] if client else None

    def cors(self) -> None:
        """Let the page of this origin, which is allowed, read the response."""
        origin = self.handshake.headers.get("origin")
        if origin is not None:
            self._cors.append((b"access-control-allow-origin", origin.encode("latin-1")))

    async def preflight(self) -> None:
        """Say that a page of another origin may send what it asks about; the page's own never asks."""
        # Whatever headers: instrumentation adds some of its own to each request, and none of them decides here.
        wanted = self.handshake.headers.get("access-control-request-headers", "")
        names = wanted if _HEADER_NAMES.fullmatch(wanted) else ""
        await self.respond(
            200,
            b"",
            (b"access-control-allow-headers", names.encode()),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-max-age", b"3600"),
        )

    async def wait(self, waiter: asyncio.Future[bool]) -> bool | None:
        """Wait for a result as long as a poll waits and the server does not stop; return None where there is none.

        Raises:
            _Gone: The client went away.
        """
        gone = asyncio.create_task(self._until_gone(), name="chatx poll")
        try:
            # Whoever cancels it ends the waiting.
            with told_when_stopping(self.scope, waiter.cancel):
                await asyncio.wait((waiter, gone), timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                raise _Gone
            return waiter.result() if waiter.done() and not waiter.cancelled() else None
        finally:
            gone.cancel()
            waiter.cancel()

    async def body(self) -> bytes:
        """Return the body.

        Raises:
            Excess: It is too large.
            _Gone: The client went away.
        """
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            if len(body) > MAX_POST_BYTES:
                raise Excess(CLOSE_TOO_LARGE, f"post of more than {MAX_POST_BYTES} bytes")
            if not message.get("more_body", False):
                return bytes(body)

    async def say(self, answer: _Polled | _Posted) -> None:
        """Respond with a status of the protocol's."""
        await self.respond(200, encode(answer))

    async def put_off(self, status: int, seconds: float) -> None:
        """Respond with a status of HTTP, at which the client is to come back after so many seconds."""
        await self.respond(status, encode(_Posted(_FAILED)), (b"retry-after", b"%d" % math.ceil(seconds)))

    async def respond(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Respond.

        Raises:
            OSError: The client is gone; some servers say so by other exceptions, or not at all.
            TimeoutError: It takes nothing.
        """
        every = [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *self._cors,
            *headers,
        ]
        async with taken_within(WRITE_STALL_S, transport_of(self._receive)):
            await self._send({"type": "http.response.start", "status": status, "headers": every})
            await self._send({"type": "http.response.body", "body": body})

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _token_of(poller: Poller) -> str:
    return _token_text(poller.boot, poller.secret, poller.outbox.number)


def _token_text(boot: str, secret: str, number: int) -> str:
    return f"chatx-lp.{boot}.{secret}.{number}" if boot else f"chatx-lp.{secret}.{number}"


def _too_many_posts() -> Refused:
    return Refused(429, "full", f"{MAX_POSTS} posts of one session are under way, which is the bound.")


def _session_token(handshake: Handshake) -> _Token | None:
    """Return what a client shows of a session, known or not; newer clients send it as a header."""
    said = handshake.headers.get("x-phoenix-longpoll-token", handshake.params.get("token", ""))
    found = _TOKEN.fullmatch(said)
    return _Token(found[1] or "", found[2], int(found[3])) if found is not None else None


def _auth_token(handshake: Handshake) -> str | None:
    """Return the `authToken` of phoenix.js, which travels as a header here."""
    said = handshake.headers.get("x-phoenix-authtoken")
    try:
        return said.encode("latin-1").decode() if said is not None else None
    except UnicodeDecodeError:
        return None
