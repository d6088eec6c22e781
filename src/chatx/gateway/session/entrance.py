"""The way in, the same for every shell: what a handshake must show before there is a session.

Rules:
1. `Refused` is raised and nothing else, also where the chat does not run: it is an answer of HTTP. A socket is never
   opened in order to be closed, since one that was open sets the pauses of phoenix.js back to 10 ms. Whoever catches it
   gives it to `tell`. What a place was counted for is given back by whoever holds it.
2. Whoever is let in is known to the engine from the same step on, so that a stop and `Chat.revoke` find it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from chatx.adapters.boundary import check_arguments
from chatx.chat import Chat
from chatx.errors import ChatError, Closed, ConfigError, Problems, WrongLoop
from chatx.gateway.entry.admission import UNAVAILABLE, Full, Place
from chatx.gateway.entry.handshake import (
    Authenticate,
    Handshake,
    Identity,
    check_origin,
    check_request_origin,
)
from chatx.gateway.entry.identify import NotIdentified, check_in_force, identify
from chatx.gateway.entry.origins import origins_of
from chatx.gateway.entry.refusal import RefusalLog, Refused, shortened
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Socket
from chatx.gateway.wire.closes import CLOSE_RESTART, CLOSE_REVOKED
from chatx.gateway.wire.frames import Version, negotiate
from chatx.runtime.polls import Polls

_NOT_RUNNING = (
    "the chat does not run. Start it with the application, FastAPI(lifespan=chat.lifespan) or the like, or where a "
    "server has no lifespan, with its first client: chat.asgi(..., autostart=True)."
)


class Entrance:
    """Lets clients in to one chat.

    Args:
        chat: The chat; it need not run yet.
        authenticate: `authenticate(handshake)` → the user id or an `Identity`, or None to refuse; plain or async.
        origins: Origins besides the page's own that may connect, such as `https://example.org`; `*` is all.
        idle_timeout_s: Seconds of silence after which a socket is closed.

    Raises:
        ConfigError: `authenticate` cannot be called so, an origin is not one, or the silence is not over 0.
    """

    def __init__(self, chat: Chat, authenticate: Authenticate, origins: Iterable[str], idle_timeout_s: float) -> None:
        problems = Problems()
        with problems.gathered():
            if not callable(authenticate):
                raise ConfigError(f"authenticate is {authenticate!r}; give a function of one handshake.")
            check_arguments("authenticate", authenticate, "handshake")
        with problems.gathered():
            _check_idle_timeout(idle_timeout_s)
        with problems.gathered():
            self._origins = origins_of(origins)
        problems.tell()
        self._chat = chat
        self._authenticate = authenticate
        self._refusals = RefusalLog()
        self._idle_timeout_s = idle_timeout_s
        self._gateway: Gateway | None = None

    @property
    def closed(self) -> Mapping[int, int]:
        """How many sockets were closed from this side since the chat was started, by close code."""
        return self._gateway.closed if self._gateway is not None else {}

    @property
    def polls(self) -> Polls | None:
        """The long-polling sessions of all nodes; None where there is one node, or the chat does not run."""
        try:
            elsewhere = self._chat.engine.elsewhere
        except (Closed, WrongLoop):
            return None
        return None if elsewhere is None else elsewhere.polls

    def drain(self) -> None:
        """Refuse joins on the sockets that are open, and tell no presence, until the chat is started anew."""
        if self._gateway is not None:
            self._gateway.drain()

    def flush(self) -> None:
        """Write what was published in this turn, ahead of whatever is to follow it."""
        if self._gateway is not None:
            self._gateway.engine.turn.end()

    def begin(self, address: str | None) -> tuple[Gateway, Place]:
        """Return the gateway of the running chat and the place of a handshake from this address.

        Whoever holds the place ends it when the socket has ended.

        Raises:
            Refused: Too many handshakes or sockets, or the chat is not running.
        """
        try:
            engine = self._chat.engine
        except Closed:
            raise self.closing() from None
        except WrongLoop as error:
            raise Refused(UNAVAILABLE, "wrong_loop", f"the server runs elsewhere than the chat. {error}") from None
        if engine.draining:
            raise self.closing()
        if self._gateway is None or self._gateway.engine is not engine:
            self._gateway = Gateway(engine)
        try:
            return self._gateway, self._gateway.admission.begin(address)
        except Full as full:
            raise Refused(full.status, "full", full.reason) from None

    def closing(self) -> Refused:
        """Return the refusal of a client that comes while the chat stops, or does not run."""
        if self._chat._stopping is not None:  # what ends in a moment is no state for an application to ask about
            return Refused(UNAVAILABLE, "stopping", "the chat is being stopped; they come back.", level=logging.INFO)
        if self._chat.drained:
            return Refused(UNAVAILABLE, "stopping", "an operator had this node drained.", level=logging.INFO)
        return Refused(UNAVAILABLE, "not_running", _NOT_RUNNING)

    def tell(self, refused: Refused, scope: Mapping[str, Any]) -> None:
        """Write a refusal to the log, with whom its ASGI scope is about; each kind once a minute."""
        self._refusals.tell(refused, scope, asyncio.get_running_loop().time())

    async def admit(self, gateway: Gateway, place: Place, handshake: Handshake, path: str) -> tuple[Version, Identity]:
        """Return the protocol version of a handshake and the identity of its client, whose place is then admitted.

        Raises:
            Refused: The chat is not running any more, or the path, the origin, the version, `authenticate` or a bound
                says no.
        """
        # Litestar writes a slash behind the path of what is mounted.
        if not path.rstrip("/").endswith("/websocket"):
            raise Refused(403, "path", f"there is no socket at {shortened(path)!r}; its path ends in /websocket.")
        check_origin(handshake, self._origins)
        return await self.recognise(gateway, place, handshake)

    def check_request(self, handshake: Handshake) -> None:
        """Check the origin of a request that opens no WebSocket.

        Raises:
            Refused: It is not allowed.
        """
        check_request_origin(handshake, self._origins)

    async def recognise(self, gateway: Gateway, place: Place, handshake: Handshake) -> tuple[Version, Identity]:
        """Return what `admit` does, for a handshake whose path and origin are allowed.

        Raises:
            Refused: The chat is not running any more, or the version, `authenticate` or a bound says no.
        """
        try:
            version = negotiate(handshake.params.get("vsn"))
        except ValueError as error:
            raise Refused(403, "version", str(error)) from None
        engine = gateway.engine
        since = engine.revocations.count
        try:
            with _Asking() as asking:
                place.occupy(asking)
                identity = await identify(engine, self._authenticate, handshake)
                await self._take_in(gateway, place, identity.user_id)
            check_in_force(engine, identity, since)  # for it may have waited
        except NotIdentified as error:
            raise Refused(403, error.code, error.reason, user_id=error.user_id) from None
        except Closed:
            raise self.closing() from None
        except TimeoutError:
            raise _gave_way() from None
        if place.ended:
            raise _gave_way()
        return version, identity

    async def _take_in(self, gateway: Gateway, place: Place, user_id: str) -> None:
        if place.ended:  # in the turn in which the answer came
            return
        try:
            await gateway.newcomers.admit(place, user_id)
        except Full as full:
            raise Refused(full.status, "full", full.reason, user_id=user_id, retry_after=full.retry_after) from None

    def open(
        self,
        gateway: Gateway,
        place: Place,
        version: Version,
        identity: Identity,
        handshake: Handshake,
        socket: Socket,
        *,
        idle_timeout_s: float | None = None,
    ) -> Client:
        """Return the client whose session begins on this socket, with an `idle_timeout_s` of its own if given.

        The session is on the place from here on, which is still the caller's to end.
        """
        engine, authenticate = gateway.engine, self._authenticate

        async def ask_again(token: str) -> Identity:
            try:
                return await identify(engine, authenticate, replace(handshake, token=token))
            except NotIdentified as error:
                raise error.error from None

        session = Session(
            gateway,
            identity,
            gateway.protocol(version),
            socket,
            idle_timeout_s=self._idle_timeout_s if idle_timeout_s is None else idle_timeout_s,
            ask_again=ask_again,
        )
        place.occupy(session)
        return Client(session, place)


def _check_idle_timeout(seconds: object) -> None:
    # Not `<= 0`, which NaN is not either.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"idle_timeout_s is {seconds!r}; give seconds over 0, as 60: a number.")


class _Asking:
    """A handshake that waits to be let in, as the occupant of its place; entered by the task that serves it.

    It is what `asyncio.timeout` is, without a time: that costs each handshake more than who it is.

    Raises:
        TimeoutError: On the way out, where it gave way.
    """

    __slots__ = ("_cancelling", "_gave_way", "_task")

    last_seen: float = 0.0
    """Of no matter, since nobody asks it."""

    def __enter__(self) -> _Asking:
        task = asyncio.current_task()
        assert task is not None  # a server serves each handshake in one
        self._task: asyncio.Task[Any] | None = task
        self._cancelling = task.cancelling()
        self._gave_way = False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        task, self._task = self._task, None
        ours = self._gave_way and task is not None and task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def ask(self) -> None:
        """Return None: a handshake that is asked about is not silent."""

    def give_way(self) -> None:
        """Refuse the handshake, which waits no longer."""
        if self._task is not None and not self._gave_way:
            self._gave_way = True
            self._task.cancel()


def _gave_way() -> Refused:
    return Refused(
        UNAVAILABLE,
        "full",
        "there are too many handshakes under way, and its address had most of them; it comes back. The longer "
        "authenticate takes, the more of them there are.",
    )


class Client:
    """A session as the engine knows it: ended when the chat stops, cut when the user is revoked.

    Attributes:
        session: The session.
        place: What its socket is counted as, until whoever serves the socket ends it.
        user_id: The user whose session it is.
    """

    __slots__ = ("_engine", "place", "session", "user_id")

    def __init__(self, session: Session, place: Place) -> None:
        self.place: Place = place
        self.session: Session = session
        self.user_id: str = session.user_id
        self._engine = session.engine
        self._engine.consumers.add(self)

    @property
    def unread(self) -> int:
        """How many writes wait for the client."""
        return self.session.socket.unread

    def end(self, error: ChatError) -> None:
        """Close the socket, since the chat stops; the client comes back to whatever takes the chat's place."""
        self.session.cut(CLOSE_RESTART, "restarting")
        self.forget()

    def cut(self, error: ChatError) -> None:
        """Close the socket of a user who is revoked."""
        self.session.cut(CLOSE_REVOKED, "revoked")
        self.forget()

    def forget(self) -> None:
        """End the session, its socket being closed or about to be; twice is harmless."""
        self.session.end()
        self._engine.consumers.discard(self)
