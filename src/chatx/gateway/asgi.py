"""The wire protocol as an ASGI application, for any ASGI server and any framework that can mount one.

    app.mount("/socket", chat.asgi(authenticate=who_is_it))

A client connects to `/socket/websocket?vsn=2.0.0`. The application that mounts it starts and stops the chat, with
`chat.lifespan` or on its own.

Rules:
1. A handshake is refused with 403 for a foreign origin, an unknown version, at a bound of `Admission`, or where
   `authenticate` says no, fails or hangs; and closed with 1013, to come back later, where the chat is not running.
2. What waits to be written to a socket is bounded by `mailbox_bytes`; over it the socket is closed as slow, with 1013.
   The client comes back and resumes where it stood. `await send()` does not push back on every server, so the bytes
   are counted here.
3. A peer that is silent for `idle_timeout_s` is closed, with 1001; clients send a heartbeat every 30 s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec.structs import replace

from chatx.adapters.boundary import check_arguments
from chatx.errors import ChatError, Closed, ConfigError
from chatx.gateway.admission import Full, Place
from chatx.gateway.frames import negotiate
from chatx.gateway.handshake import (
    Authenticate,
    Handshake,
    chosen_subprotocol,
    handshake_of,
    origin_allowed,
)
from chatx.gateway.identify import identify
from chatx.gateway.session import CLOSE_GOING_AWAY, CLOSE_REVOKED, IDLE_TIMEOUT_S, AskAgain, Hubs, Session
from chatx.runtime.engine import Engine

if TYPE_CHECKING:
    from chatx.chat import Chat

logger: logging.Logger = logging.getLogger("chatx")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CLOSE_TRY_LATER = 1013
CLOSE_RESTART = 1012
"""Codes that tell phoenix.js to come back; 1000 would stop it for good."""

WRITE_STALL_S = 10.0
"""How long one write may take before the socket is given up."""


class ChatApp:
    """The ASGI application.

    Args:
        chat: The chat; it need not run yet.
        authenticate: `authenticate(handshake)` → the user id or an `Identity`, or None to refuse; plain or async.
        origins: Origins besides the page's own that may connect, such as `https://example.org`; `*` is all.
        idle_timeout_s: Seconds of silence after which a socket is closed.

    Raises:
        ConfigError: `authenticate` cannot be called so, or an origin is not one.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        authenticate: Authenticate,
        origins: tuple[str, ...] = (),
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
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
        self._hubs: Hubs | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await _plain(send, 426, b"This is a WebSocket endpoint: connect to .../websocket?vsn=2.0.0\n")
        else:
            # A lifespan of its own would start the chat a second time; the application that mounts this has it.
            raise ConfigError("Mount this application; run the chat with chat.lifespan in the outer application.")

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            engine = self._chat.engine
        except Closed:
            await _later(scope, send)
            return
        hubs = self._hubs_of(engine)
        address = scope.get("client")
        try:
            place = hubs.admission.begin(address[0] if address else None)
        except Full as full:
            await _refuse(send, full.reason)
            return
        try:
            await self._handshake(scope, receive, send, hubs, place)
        except Full as full:
            await _refuse(send, full.reason)
        finally:
            place.end()

    async def _handshake(self, scope: Scope, receive: Receive, send: Send, hubs: Hubs, place: Place) -> None:
        handshake = handshake_of(scope)
        if not scope["path"].endswith("/websocket"):
            await _refuse(send, "there is no socket at this path; it ends in /websocket")
            return
        if not origin_allowed(handshake, self._origins):
            await _refuse(send, f"origin {handshake.headers.get('origin')!r} is not allowed")
            return
        try:
            version = negotiate(handshake.params.get("vsn"))
        except ValueError as error:
            await _refuse(send, str(error))
            return
        try:
            identity = await identify(hubs.engine, self._authenticate, handshake)
        except Closed:
            await _later(scope, send)
            return
        if identity is None:
            await _refuse(send, "authenticate said no")
            return
        place.admit(identity.user_id)
        socket = AsgiSocket(send, hubs.engine.config.mailbox_bytes)
        session = Session(
            hubs,
            identity,
            hubs.protocol(version),
            socket,
            idle_timeout_s=self._idle_timeout_s,
            ask_again=self._asking_again(hubs.engine, handshake),
        )
        accept = {"type": "websocket.accept", "subprotocol": chosen_subprotocol(handshake)}
        await self._serve(session, _Client(hubs.engine, socket, session), accept, receive, send)

    def _asking_again(self, engine: Engine, handshake: Handshake) -> AskAgain:
        return lambda token: identify(engine, self._authenticate, replace(handshake, token=token))

    def _hubs_of(self, engine: Engine) -> Hubs:
        if self._hubs is None or self._hubs.engine is not engine:
            self._hubs = Hubs(engine)
        return self._hubs

    async def _serve(
        self, session: Session, client: _Client, accept: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        engine, socket = client.engine, client.socket
        # Before anything is awaited: whoever is let in is found by a stop and by `Chat.revoke`.
        engine.consumers[client] = None
        tasks: list[asyncio.Task[None]] = []
        try:
            await send(accept)
            reader = asyncio.create_task(self._read(session, receive), name="chatx socket reader")
            writer = asyncio.create_task(socket.run(), name="chatx socket writer")
            tasks += (reader, writer)
            # Whichever ends first ends both: the client went away, or the socket was closed from here.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        finally:
            session.end()
            engine.consumers.pop(client, None)
            socket.close(CLOSE_GOING_AWAY, "")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, session: Session, receive: Receive) -> None:
        """Read until the client goes."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            session.receive(text if text is not None else message["bytes"])
            if session.busy:
                await session.wait_idle()


class AsgiSocket:
    """What is to be written to one socket, in order, bounded in bytes."""

    def __init__(self, send: Send, limit_bytes: int) -> None:
        self._send = send
        self._limit_bytes = limit_bytes
        self._frames: list[str] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._close: tuple[int, str] | None = None
        self._slow = False

    def write(self, frames: list[str]) -> None:
        """Send these text messages; over the bound close as slow instead."""
        if self._close is not None:
            return
        waiting = self._size
        self._size += sum(map(_bytes, frames))
        if waiting and self._size > self._limit_bytes:
            # What it has not taken is dropped: it comes back and resumes from the last message it did take.
            self._frames.clear()
            self._slow = True
            self.close(CLOSE_TRY_LATER, "too slow: resume from the last message")
            return
        self._frames.extend(frames)
        self._drained.clear()
        self._wake.set()

    async def drained(self) -> None:
        """Wait until what was written is on its way; returns at once when the socket is closed."""
        await self._drained.wait()

    def close(self, code: int, reason: str) -> None:
        """Close it, after what was written; the first call stands."""
        if self._close is None:
            self._close = (code, reason)
            self._wake.set()
            self._drained.set()

    async def run(self) -> None:
        """Write until it is closed."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                frames, self._frames = self._frames, []
                for frame in frames:
                    if self._slow:
                        break
                    async with asyncio.timeout(WRITE_STALL_S):
                        await self._send({"type": "websocket.send", "text": frame})
                    self._size -= _bytes(frame)
                if self._frames:
                    continue
                if self._close is not None:
                    code, reason = self._close
                    async with asyncio.timeout(WRITE_STALL_S):
                        await self._send({"type": "websocket.close", "code": code, "reason": reason})
                    return
                self._drained.set()
        except (OSError, TimeoutError, RuntimeError):
            # The peer is gone or takes nothing; servers say so in different ways. The session ends.
            return
        except Exception:
            logger.exception("The server failed to write to a socket in a way of its own; the connection ends.")
        finally:
            self.close(CLOSE_GOING_AWAY, "")


class _Client:
    """A session as the engine sees it when it stops, or when the user is revoked."""

    def __init__(self, engine: Engine, socket: AsgiSocket, session: Session) -> None:
        self.engine = engine
        self.socket = socket
        self.user_id = session.user_id
        self._session = session

    @property
    def unread(self) -> int:
        """How many frames wait to be written."""
        return len(self.socket._frames)

    def end(self, error: ChatError) -> None:
        """The chat stops: the client comes back, to whatever takes its place."""
        self._cut(CLOSE_RESTART, "restarting")

    def cut(self, error: ChatError) -> None:
        """The user is revoked."""
        self._cut(CLOSE_REVOKED, "revoked")

    def _cut(self, code: int, reason: str) -> None:
        self._session.cut(code, reason)
        self.engine.consumers.pop(self, None)


def _bytes(frame: str) -> int:
    return len(frame) if frame.isascii() else len(frame.encode())


async def _refuse(send: Send, reason: str) -> None:
    logger.info("A handshake was refused: %s", reason)
    # A close before the accept is an HTTP 403. Another status would need an extension, at whose every use uvicorn 0.54
    # logs an error: a flood of handshakes would be one of the log.
    await send({"type": "websocket.close", "code": 1008, "reason": "refused"})


async def _later(scope: Scope, send: Send) -> None:
    await send({"type": "websocket.accept", "subprotocol": chosen_subprotocol(handshake_of(scope))})
    await send({"type": "websocket.close", "code": CLOSE_TRY_LATER, "reason": "not running"})


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"upgrade", b"websocket")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
