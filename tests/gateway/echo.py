"""An echo behind the native server's own greeting, handshake and stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from chatx.chat import Chat
from chatx.gateway.entry.admission import Place
from chatx.gateway.entry.handshake import Handshake, Identity
from chatx.gateway.session.entrance import Client, Entrance
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Bundle, Socket
from chatx.gateway.wire.frames import Version
from chatx.runtime.engine import Engine
from tests.gateway.servers import named


class BinaryBundle(Bundle):
    """A binary message, which a session never writes."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        super().__init__([])
        self._data = data

    @property
    def wire(self) -> bytes:
        size = len(self._data)
        header = Bundle(["x" * size]).wire[: -size or None]
        return bytes((0x82,)) + header[1:] + self._data


class Echo:
    """A session that sends back what it receives."""

    busy = False

    def __init__(self, engine: Engine, socket: Socket) -> None:
        self.engine = engine
        self.socket = socket
        self.user_id = "echo"

    def seen(self) -> None: ...

    def receive(self, data: str | bytes) -> None:
        self.socket.write(Bundle([data]) if isinstance(data, str) else BinaryBundle(data))

    def cut(self, code: int, reason: str) -> None:
        self.socket.close(code, reason)

    def end(self) -> None: ...


class EchoEntrance(Entrance):
    """Lets clients in to an echo, or whatever session is given."""

    def __init__(self, chat: Chat, session: Callable[[Engine, Socket], Echo] = Echo) -> None:
        super().__init__(chat, named, (), 60.0)
        self._session = session

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
        session = cast("Session", self._session(gateway.engine, socket))
        place.occupy(session)
        return Client(session, place)
