"""The wire protocol as an ASGI application, for any ASGI server and any framework that can mount one.

    app.mount("/socket", chat.asgi(authenticate=who_is_it))

A client connects to `/socket/websocket?vsn=2.0.0`, or polls at `/socket/longpoll`; the one for browsers is at
`/socket/chatx.js`. The application that mounts it starts and stops the chat, with `chat.lifespan` or on its own.

Rules:
1. A handshake is refused with 403 for a foreign origin, an unknown version, where `authenticate` says no, fails or
   hangs, and at a bound of one user or address; with 503, where the server can send it, where the chat is not running
   or too many handshakes are under way. No socket is opened in order to be closed.
2. What waits to be written to a socket is bounded by `mailbox_bytes`; over it the socket is closed as slow, with 1013.
   The client comes back and resumes where it stood. `await send()` does not push back on every server, so the bytes
   are counted here.
3. A peer that is silent for `idle_timeout_s` is closed, with 1001; clients send a heartbeat every 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

from chatx.chat import Chat
from chatx.errors import AlreadyStarted, ChatError, ConfigError, WrongLoop
from chatx.gateway.asgi.uvicorn import Uvicorn, uvicorn_of
from chatx.gateway.entry.handshake import NO_WEBSOCKET_ASKED, Authenticate, chosen_subprotocol, handshake_of
from chatx.gateway.entry.refusal import Refused
from chatx.gateway.entry.script import PATH as SCRIPT_PATH
from chatx.gateway.entry.script import script
from chatx.gateway.entry.stopping import bounded_when_stopping, told_when_stopping
from chatx.gateway.longpoll.app import PATH, LongPoll
from chatx.gateway.session.entrance import Client, Entrance
from chatx.gateway.session.pace import Pace
from chatx.gateway.session.progress import LOOKS, Progress, taken_within, transport_of, untaken
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.bounds import CLOSING_S, IDLE_TIMEOUT_S
from chatx.gateway.wire.closes import CLOSE_GOING_AWAY, CLOSE_POLICY, CLOSE_RESTART, CLOSE_TRY_LATER

logger: logging.Logger = logging.getLogger("chatx")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WRITE_STALL_S = 10.0
"""Seconds in which a peer must take `LEAST_TAKEN` bytes of what is written, where that can be seen; else all of one
write."""

TAKEN_LOOK_S = 0.1
"""Seconds between two looks at what a peer has left, whose socket has ended."""

_UNAVAILABLE = 503

OWN_CODES = 3100
"""Added to a close code where the server refuses it: 1012 becomes 4112. Those below 5000 are an application's own."""


class ChatApp:
    """The ASGI application.

    Args:
        chat: The chat; it need not run yet.
        authenticate: `authenticate(handshake)` → the user id or an `Identity`, or None to refuse; plain or async.
        origins: Origins besides the page's own that may connect, such as `https://example.org`; `*` is all.
        idle_timeout_s: Seconds of silence after which a socket is closed.
        autostart: Start the chat with the first client where nobody has started it: for a server that does not tell an
            application when it starts and ends. Then nobody stops the chat either.

    Raises:
        ConfigError: `authenticate` cannot be called so, or an origin is not one.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        authenticate: Authenticate,
        origins: Iterable[str] = (),
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        autostart: bool = False,
    ) -> None:
        self._chat = chat
        self._autostart = autostart
        self._starting: asyncio.Task[None] | None = None
        self._entrance = Entrance(chat, authenticate, origins, idle_timeout_s)
        self._longpoll = LongPoll(self._entrance)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].rstrip("/").endswith(PATH):
            await self._start()
            await self._longpoll(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].endswith(SCRIPT_PATH):
            await script(scope, receive, send)
        elif scope["type"] == "http":
            await _plain(send, 426, NO_WEBSOCKET_ASKED)
        else:
            # A lifespan of its own would start the chat a second time; the application that mounts this has it.
            raise ConfigError("Mount this application; run the chat with chat.lifespan in the outer application.")

    async def _start(self) -> None:
        if not self._autostart:
            return
        if self._starting is None:
            # A client that goes away while the store is waited for takes nothing of the others' with it.
            self._starting = asyncio.create_task(self._chat.start(), name="chatx autostart")
        starting = self._starting
        await asyncio.wait((starting,))
        if self._starting is not starting:
            return
        self._starting = None
        error = None if starting.cancelled() else starting.exception()
        # Where it runs in another loop, the entrance refuses, and the log says why.
        if error is None or isinstance(error, (AlreadyStarted, WrongLoop)):
            self._autostart = False  # once: a chat that was stopped stays so
        else:
            code = error.code if isinstance(error, ChatError) else ChatError.code
            logger.error("The chat is not started, and is tried with the next client: %s", error, extra={"code": code})

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        address = scope.get("client")
        await self._start()
        try:
            gateway, place = self._entrance.begin(address[0] if address else None)
            try:
                handshake = handshake_of(scope)
                version, identity = await self._entrance.admit(gateway, place, handshake, scope["path"])
                most = gateway.engine.config.mailbox_bytes
                fields = {"user": identity.user_id, "address": address[0] if address else None}
                socket = AsgiSocket(send, most, uvicorn_of(receive), transport_of(receive), fields)
                client = self._entrance.open(gateway, place, version, identity, handshake, socket)
                accept = {"type": "websocket.accept", "subprotocol": chosen_subprotocol(handshake)}
                with _restart_of(scope, client, socket):
                    await self._serve(client, socket, accept, receive, send)
            finally:
                place.end()
            await socket.taken(scope)
        except Refused as refused:
            self._entrance.tell(refused, scope)
            await _refuse(scope, receive, send, refused.status)

    async def _serve(
        self, client: Client, socket: AsgiSocket, accept: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await send(accept)
            reader = asyncio.create_task(self._read(client.session, socket, receive), name="chatx socket reader")
            writer = asyncio.create_task(socket.run(), name="chatx socket writer")
            tasks += (reader, writer)
            # Whichever ends first ends both: the client went away, or the socket was closed from here.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        finally:
            client.forget()
            socket.close(CLOSE_GOING_AWAY, "")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, session: Session, socket: AsgiSocket, receive: Receive) -> None:
        """Read until the client goes, a little in each turn of the loop."""
        pace = Pace(session.gateway.rota)
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            data = text if text is not None else message["bytes"]
            session.receive(data)
            if session.busy:
                with socket.while_not_read():
                    await session.wait_idle()
            await pace.taken(len(data))


class AsgiSocket:
    """What is to be written to one socket, in order, bounded in bytes.

    Args:
        send: The server's ASGI `send`.
        limit_bytes: The most bytes that may wait here.
        uvicorn: The way past `send`, where there is one.
        transport: The connection, where the server lets it be seen.
        fields: What a line of the log about this socket has.
    """

    direct: Callable[[bytes], int | None] | None = None
    """ASGI frames the messages itself."""

    def __init__(
        self,
        send: Send,
        limit_bytes: int,
        uvicorn: Uvicorn | None = None,
        transport: asyncio.Transport | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        self._send = send
        self._fields = fields
        self._transport = transport
        self._progress: Progress | None = None  # while something is written
        self._look_at = 0.0  # when it is to be looked next
        self._uvicorn = uvicorn
        self._limit_bytes = limit_bytes
        self._loop = asyncio.get_running_loop()
        self._bundles: list[Bundle] = []
        self._size = 0
        self._wake: asyncio.Future[None] | None = None  # while there is nothing to write
        self._drained = asyncio.Event()
        self._drained.set()
        self._close: tuple[int, str] | None = None
        self._slow = False
        self._writer: asyncio.Task[None] | None = None
        self._began = 0.0  # the write under way, or when the peer last got on with it, in loop time
        self._ends = math.inf  # when all must be written, since it is closed
        self._timer: asyncio.TimerHandle | None = None

    def write(self, bundle: Bundle) -> None:
        """Send these text messages; over the bound close as slow instead."""
        if self._close is not None:
            return
        uvicorn = self._uvicorn
        if uvicorn is not None and not self._size and uvicorn.writable and uvicorn.open:
            uvicorn.write(bundle.wire)
            return
        waiting = self._size
        self._size += bundle.size
        if waiting and self._size > self._limit_bytes:
            # What it has not taken is dropped: it comes back and resumes from the last message it did take.
            self._bundles.clear()
            self._slow = True
            self.close(CLOSE_TRY_LATER, "too slow: resume from the last message")
            return
        self._bundles.append(bundle)
        self._drained.clear()
        self._go()

    def write_rest(self, data: bytes) -> None:
        """Never called: nothing goes past `write`."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Never called: nothing goes past `write`."""
        raise NotImplementedError

    @property
    def closed_by_server(self) -> bool:
        """Whether the server closes the socket by itself when it begins to stop, as uvicorn does."""
        return self._uvicorn is not None

    @property
    def unread(self) -> int:
        """How many messages wait to be written."""
        return sum(len(bundle.texts) for bundle in self._bundles)

    def while_not_read(self) -> AbstractContextManager[None]:
        """Return a block in which the client is not read, and so is not to be taken for dead."""
        return contextlib.nullcontext() if self._uvicorn is None else self._uvicorn.while_not_read()

    def ask(self) -> Callable[[], bool] | None:
        """Ping the client where the server lets it be done, and return what tells of the answer; ASGI has no ping.

        While a write waits for the client, and it can be seen how much is left of it, taking any of it is the answer.
        """
        if self._close is not None or self._writer is None:
            return None
        transport = self._transport
        if self._wake is not None or transport is None:
            return self._uvicorn.ask() if self._uvicorn is not None else None
        before, began = untaken(transport), self._began
        return lambda: self._wake is not None or self._began != began or untaken(transport) < before

    async def drained(self) -> None:
        """Wait until what was written is on its way; returns at once when the socket is closed."""
        await self._drained.wait()

    def close(self, code: int, reason: str) -> None:
        """Close the socket, after what was written; the first call stands."""
        if self._close is None:
            self._close = (code, reason)
            self._ends = self._loop.time() + CLOSING_S
            self._drained.set()
            self._go()

    async def run(self) -> None:
        """Write what comes until the socket is closed."""
        self._writer = asyncio.current_task()
        now = self._loop.time
        try:
            while True:
                if not self._bundles and self._close is None:
                    self._drained.set()
                    self._wake = self._loop.create_future()
                    await self._wake
                self._watch()
                bundles, self._bundles = self._bundles, []
                for bundle in bundles:
                    if self._slow:
                        break
                    if self._uvicorn is not None:
                        self._began = now()
                        await self._write_past(self._uvicorn, bundle)
                    else:
                        await self._write_each(bundle)
                if self._bundles:
                    continue
                if self._close is not None:
                    code, reason = self._close
                    self._began = now()
                    await _close(self._send, code, reason)
                    return
        except (OSError, RuntimeError):
            # The peer is gone; servers say so in different ways. The session ends.
            return
        except Exception:
            logger.exception(
                "The server failed to write to a socket in a way of its own; the connection ends.", extra=self._fields
            )
        finally:
            self._writer = None  # a task that was cancelled keeps its frame, which has this socket
            self.close(CLOSE_GOING_AWAY, "")
            if self._timer is not None:
                self._timer.cancel()

    async def _write_each(self, bundle: Bundle) -> None:
        now = self._loop.time
        for text in bundle.texts:
            if self._slow:
                return
            self._began = now()
            await self._send({"type": "websocket.send", "text": text})
            self._size -= _bytes(text)

    async def _write_past(self, uvicorn: Uvicorn, bundle: Bundle) -> None:
        await uvicorn.wait_writable()
        if self._slow:
            return
        if not uvicorn.open:
            raise OSError("the client is gone")
        uvicorn.write(bundle.wire)
        self._size -= bundle.size

    def _go(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            self._began = self._loop.time()
            wake.set_result(None)

    def _watch(self) -> None:
        """See to it that a write which takes too long is given up: one timer for many writes, not one for each."""
        if self._timer is None:
            if self._transport is not None:
                self._progress = Progress(self._transport)
            self._look_in(WRITE_STALL_S / LOOKS)

    def _look_in(self, seconds: float) -> None:
        self._look_at = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._look_at, self._check_writing)

    def _check_writing(self) -> None:
        self._timer = None
        if self._wake is not None or self._writer is None:
            return  # nothing is being written
        now = self._loop.time()
        if now - self._look_at > WRITE_STALL_S / LOOKS:
            self._began += now - self._look_at  # it was the loop that took so long
        if self._progress is not None and self._progress.look():
            self._began = now  # slowly, but it gets on
        left = min(self._began + WRITE_STALL_S, self._ends) - now
        if left > 0:
            self._look_in(min(left, WRITE_STALL_S / LOOKS))
        else:
            self._writer.cancel()
            if self._uvicorn is not None:
                self._uvicorn.abort()

    async def taken(self, scope: Scope) -> None:
        """Wait until the peer has taken what was written, or cut it off: uvicorn closes behind that, without a bound.

        It has as long as it gets on, within `CLOSING_S`, and `GRACE_S` from when the server begins to stop.
        """
        uvicorn, transport = self._uvicorn, self._transport
        if uvicorn is None or transport is None or not transport.get_write_buffer_size():
            return
        try:
            async with (
                asyncio.timeout(CLOSING_S),
                bounded_when_stopping(scope),
                taken_within(WRITE_STALL_S, transport),
            ):
                while transport.get_write_buffer_size():  # noqa: ASYNC110  # there is no event for it
                    await asyncio.sleep(TAKEN_LOOK_S)
        except TimeoutError:
            uvicorn.abort()


def _restart_of(scope: Scope, client: Client, socket: AsgiSocket) -> AbstractContextManager[None]:
    """Return a block in which the client is sent away when the server begins to stop, where that can be known.

    uvicorn does so by itself; others wait for the client, and then break off whatever is amid it.
    """
    if socket.closed_by_server:
        return contextlib.nullcontext()
    return told_when_stopping(scope, partial(client.session.cut, CLOSE_RESTART, "restarting"))


def _bytes(frame: str) -> int:
    return len(frame) if frame.isascii() else len(frame.encode())


async def _close(send: Send, code: int, reason: str) -> None:
    try:
        await send({"type": "websocket.close", "code": code, "reason": reason})
    except (OSError, RuntimeError):
        raise
    except Exception:
        # A server that takes no codes of the protocol itself, as daphne: one of those that are free for all.
        await send({"type": "websocket.close", "code": code + OWN_CODES, "reason": reason})


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int) -> None:
    uvicorn = uvicorn_of(receive)
    # Where uvicorn cannot be told so, it would log an error at each: a flood of handshakes would be one of its log.
    quiet = uvicorn is not None or "uvicorn" not in sys.modules
    # Where the chat is there, a refusal is a refusal; where it is not, monitors and proxies are to know.
    if status != _UNAVAILABLE or "websocket.http.response" not in scope.get("extensions", {}) or not quiet:
        await send({"type": "websocket.close", "code": CLOSE_POLICY, "reason": "refused"})  # before the accept: a 403
        return
    body = b"refused\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", b"5")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
    if uvicorn is not None:
        uvicorn.refused()


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"upgrade", b"websocket")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
