"""The way in, the same for every shell: what a handshake must show before there is a session.

Rules:
1. `Refused` is an answer of HTTP, `Closed` says that the chat is not running; nothing else is raised, and what a place
   was counted for is given back by whoever holds it.
2. Whoever is let in is known to the engine from the same step on, so that a stop and `Chat.revoke` find it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec.structs import replace

from chatx.adapters.boundary import check_arguments
from chatx.chat import Chat
from chatx.errors import ChatError, ConfigError
from chatx.gateway.entry.admission import Full, Place
from chatx.gateway.entry.handshake import Authenticate, Handshake, Identity, origin_allowed, request_allowed
from chatx.gateway.entry.identify import identify
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Socket
from chatx.gateway.wire.closes import CLOSE_RESTART, CLOSE_REVOKED
from chatx.gateway.wire.frames import Version, negotiate

logger: logging.Logger = logging.getLogger("chatx")


class Refused(Exception):
    """A handshake is refused.

    Attributes:
        status: The HTTP status of the answer.
        reason: For the log; the client is not told.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Entrance:
    """Lets clients in to one chat.

    Args:
        chat: The chat; it need not run yet.
        authenticate: `authenticate(handshake)` → the user id or an `Identity`, or None to refuse; plain or async.
        origins: Origins besides the page's own that may connect, such as `https://example.org`; `*` is all.
        idle_timeout_s: Seconds of silence after which a socket is closed.

    Raises:
        ConfigError: `authenticate` cannot be called so, or an origin is not one.
    """

    def __init__(self, chat: Chat, authenticate: Authenticate, origins: tuple[str, ...], idle_timeout_s: float) -> None:
        if not callable(authenticate):
            raise ConfigError(f"authenticate is {authenticate!r}; give a function of one handshake.")
        check_arguments("authenticate", authenticate, "handshake")
        for origin in origins:
            if origin != "*" and "://" not in origin:
                raise ConfigError(f"The origin {origin!r} is none; write it as 'https://example.org', or '*' for all.")
        self._chat = chat
        self._authenticate = authenticate
        self._origins = tuple(origins)
        self._idle_timeout_s = idle_timeout_s
        self._gateway: Gateway | None = None

    @property
    def closed(self) -> Mapping[int, int]:
        """How many sockets were closed from this side since the chat was started, by close code."""
        return self._gateway.closed if self._gateway is not None else {}

    def drain(self) -> None:
        """Refuse joins on the sockets that are open, and tell no presence, until the chat is started anew."""
        if self._gateway is not None:
            self._gateway.drain()

    def flush(self) -> None:
        """Write what was published in this turn, ahead of whatever is to follow it."""
        if self._gateway is not None:
            self._gateway.engine.turn.end()

    def begin(self, address: str | None) -> tuple[Gateway, Place]:
        """Count a handshake from this address; end the place when its socket has ended.

        Raises:
            Closed: The chat is not running.
            Refused: Too many handshakes or sockets.
        """
        engine = self._chat.engine
        if self._gateway is None or self._gateway.engine is not engine:
            self._gateway = Gateway(engine)
        try:
            return self._gateway, self._gateway.admission.begin(address)
        except Full as full:
            raise Refused(full.status, full.reason) from full

    async def admit(self, gateway: Gateway, place: Place, handshake: Handshake, path: str) -> tuple[Version, Identity]:
        """Return the protocol version and who it is.

        Raises:
            Closed: The chat is not running any more.
            Refused: The path, the origin, the version, `authenticate` or a bound says no.
        """
        # Litestar writes a slash behind the path of what is mounted.
        if not path.rstrip("/").endswith("/websocket"):
            raise Refused(403, "there is no socket at this path; it ends in /websocket")
        if not origin_allowed(handshake, self._origins):
            raise Refused(403, f"origin {handshake.headers.get('origin')!r} is not allowed")
        return await self.recognise(gateway, place, handshake)

    def check_request(self, handshake: Handshake) -> None:
        """Check the origin of a request that opens no WebSocket.

        Raises:
            Refused: It is not allowed.
        """
        if not request_allowed(handshake, self._origins):
            raise Refused(403, f"a request of origin {handshake.headers.get('origin')!r} is not allowed")

    async def recognise(self, gateway: Gateway, place: Place, handshake: Handshake) -> tuple[Version, Identity]:
        """Return the protocol version and who it is, of a handshake whose origin is allowed.

        Raises:
            Closed: The chat is not running any more.
            Refused: The version, `authenticate` or a bound says no.
        """
        try:
            version = negotiate(handshake.params.get("vsn"))
        except ValueError as error:
            raise Refused(403, str(error)) from error
        identity = await identify(gateway.engine, self._authenticate, handshake)
        if identity is None:
            raise Refused(403, "authenticate said no")
        try:
            place.admit(identity.user_id)
        except Full as full:
            raise Refused(full.status, full.reason) from full
        return version, identity

    def open(
        self,
        gateway: Gateway,
        version: Version,
        identity: Identity,
        handshake: Handshake,
        socket: Socket,
        *,
        idle_timeout_s: float | None = None,
    ) -> Client:
        """Return the client that begins on this socket; `idle_timeout_s` is where it differs from the others'."""
        engine = gateway.engine
        session = Session(
            gateway,
            identity,
            gateway.protocol(version),
            socket,
            idle_timeout_s=self._idle_timeout_s if idle_timeout_s is None else idle_timeout_s,
            ask_again=lambda token: identify(engine, self._authenticate, replace(handshake, token=token)),
        )
        return Client(session)


class Client:
    """A session as the engine knows it: ended when the chat stops, cut when the user is revoked.

    Attributes:
        session: The session.
        user_id: Whose it is.
    """

    __slots__ = ("_engine", "session", "user_id")

    def __init__(self, session: Session) -> None:
        self.session: Session = session
        self.user_id: str = session.user_id
        self._engine = session.engine
        self._engine.consumers.add(self)

    @property
    def unread(self) -> int:
        """How many writes wait for the client."""
        return self.session.socket.unread

    def end(self, error: ChatError) -> None:
        """The chat stops: the client comes back, to whatever takes its place."""
        self.session.cut(CLOSE_RESTART, "restarting")
        self.forget()

    def cut(self, error: ChatError) -> None:
        """The user is revoked."""
        self.session.cut(CLOSE_REVOKED, "revoked")
        self.forget()

    def forget(self) -> None:
        """End the session, its socket being closed or about to be; twice is harmless."""
        self.session.end()
        self._engine.consumers.discard(self)
