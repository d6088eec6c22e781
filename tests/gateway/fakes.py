"""Both ends that a session and the ASGI shell stand between: a socket, a client, a server and a crashing room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

from chatx.config import ChatConfig
from chatx.core.message import Entry
from chatx.core.room import Room
from chatx.gateway.asgi.app import ChatApp
from chatx.gateway.entry.handshake import Handshake, Identity
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.session.session import Session
from chatx.gateway.session.socket import Bundle
from chatx.gateway.wire.frames import Version
from chatx.runtime.engine import Engine
from chatx.telemetry import Telemetry
from tests.gateway.phoenix_peer import Received, raw_frame, read


class FakeSocket:
    """Keeps what is written. While it stalls, `drained` waits; `drains` counts how often it was asked."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.drains = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._stalls_at_write = False

    def stall(self) -> None:
        self._flowing.clear()

    def stall_at_write(self) -> None:
        """Stall as soon as something is written, as a client that takes no more of it."""
        self._stalls_at_write = True

    def flow(self) -> None:
        self._stalls_at_write = False
        self._flowing.set()

    direct: Callable[[bytes], int | None] | None = None
    unread = 0

    def write_rest(self, data: bytes) -> None:
        raise AssertionError("nothing goes past `write`")

    def abandon(self) -> None:
        raise AssertionError("nothing goes past `write`")

    def ask(self) -> None:
        """There is nothing to ask by."""

    def write(self, bundle: Bundle) -> None:
        if self.closed is None:
            self.frames.extend(bundle.texts)
        if self._stalls_at_write:
            self._flowing.clear()

    async def drained(self) -> None:
        self.drains += 1
        await self._flowing.wait()

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)
        self._flowing.set()


class DirectSocket(FakeSocket):
    """One that says whether anything waits, as the native server's: past it the hubs write, which goes nowhere here."""

    def __init__(self) -> None:
        super().__init__()
        self.direct = len

    def flow(self) -> None:
        super().flow()
        self.direct = len

    def write(self, bundle: Bundle) -> None:
        super().write(bundle)
        if self._stalls_at_write:
            self.direct = None


class Client:
    """One client of a session: it writes frames and reads what the socket was given."""

    def __init__(
        self, gateway: Gateway, user: str | Identity, version: Version = 2, socket: FakeSocket | None = None
    ) -> None:
        identity = user if isinstance(user, Identity) else Identity(user)
        self.version: Version = version
        self.user_id = identity.user_id
        self.socket = FakeSocket() if socket is None else socket
        self.session = Session(gateway, identity, gateway.protocol(version), self.socket)
        self._refs = 0
        self._join_refs: dict[str, str] = {}

    def push(self, topic: str, event: str, payload: Any = None) -> str:
        """Push an event and return its ref."""
        self._refs += 1
        ref = str(self._refs)
        if event == "phx_join":
            self._join_refs[topic] = ref
        join_ref = self._join_refs.get(topic)
        self.session.receive(raw_frame(self.version, join_ref, ref, topic, event, payload))
        return ref

    def ask(self, topic: str, **params: Any) -> str:
        """Ask to join and return the ref."""
        return self.push(topic, "phx_join", params)

    async def join(self, topic: str, **params: Any) -> dict[str, Any]:
        """Join, and return the response of the ok reply."""
        ref = self.ask(topic, **params)
        await settle()
        status, response = self.reply(ref)
        assert status == "ok", response
        return response

    async def call(self, topic: str, event: str, payload: Any = None) -> tuple[str, dict[str, Any]]:
        """Push an event and return (status, response) of its reply, which is due at once."""
        ref = self.push(topic, event, payload)
        await settle()
        return self.reply(ref)

    def say(self, topic: str, content: str, **more: Any) -> str:
        """Push a new_message and return its ref."""
        return self.push(topic, "new_message", {"content": content, **more})

    @property
    def received(self) -> list[Received]:
        return [read(self.version, frame) for frame in self.socket.frames]

    def events(self, *names: str, topic: str | None = None) -> list[Received]:
        """Return the frames of these events."""
        return [each for each in self.received if each.event in names and topic in (None, each.topic)]

    def contents(self, topic: str | None = None) -> list[str]:
        return [each.payload["content"] for each in self.events("new_message", topic=topic)]

    def offsets(self, topic: str | None = None) -> list[int]:
        return [each.payload["offset"] for each in self.events("new_message", topic=topic)]

    def replies(self, ref: str) -> list[Any]:
        return [each.payload for each in self.events("phx_reply") if each.ref == ref]

    def reply(self, ref: str) -> tuple[str, dict[str, Any]]:
        """Return (status, response) of the one reply to `ref`."""
        (payload,) = self.replies(ref)
        return payload["status"], payload["response"]

    def forget(self) -> None:
        """Drop what was received so far."""
        self.socket.frames.clear()


class CrashingRoom(Room):
    """A room whose next `crashes` publications and `flush_crashes` flushes raise, before they did anything."""

    crashes = 0
    flush_crashes = 0

    def apply(self, entry: Entry) -> Any:
        if type(self).crashes:
            type(self).crashes -= 1
            raise ZeroDivisionError("injected")
        return super().apply(entry)

    def flush(self, turn: int) -> Any:
        if type(self).flush_crashes:
            type(self).flush_crashes -= 1
            raise ZeroDivisionError("injected")
        return super().flush(turn)


def crashing_engine() -> tuple[Engine, type[CrashingRoom]]:
    """Return an engine whose rooms crash on demand, and the class to demand it from; the caller stops the engine."""

    class Crashing(CrashingRoom):
        pass

    return Engine(ChatConfig(middlewares=()), Telemetry(), deque(), room_class=Crashing), Crashing


class FakeServer:
    """An ASGI server with one connection to `app`, driven by hand.

    Attributes:
        sent: What the application sent.
    """

    def __init__(
        self,
        app: ChatApp,
        *,
        query: str = "vsn=2.0.0&user=ada",
        path: str = "/socket/websocket",
        headers: dict[str, str] | None = None,
        subprotocols: tuple[str, ...] = (),
        kind: str = "websocket",
        client: str | None = None,
    ) -> None:
        self.scope: dict[str, Any] = {
            "type": kind,
            "scheme": "ws",
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
            "subprotocols": list(subprotocols),
            "client": (client, 50_000) if client is not None else None,
        }
        self.sent: list[MutableMapping[str, Any]] = []
        self.send_error: Exception | None = None
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._inbox.put_nowait({"type": f"{kind}.connect"})
        self.task = asyncio.get_running_loop().create_task(self._run(app))
        self._refs = 0

    async def _run(self, app: ChatApp) -> None:
        await app(self.scope, self._inbox.get, self._send)

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        await self._flowing.wait()
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)

    def stall(self) -> None:
        """Let every send of the application wait, as a server does that pushes back."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def text(self, join_ref: Any, topic: str, event: str, payload: Any = None) -> str:
        """Send one frame and return its ref."""
        self._refs += 1
        ref = str(self._refs)
        frame = raw_frame(2, ref if join_ref == "own" else join_ref, ref, topic, event, payload)
        self._inbox.put_nowait({"type": "websocket.receive", "text": frame})
        return ref

    def binary(self, data: bytes) -> None:
        self._inbox.put_nowait({"type": "websocket.receive", "bytes": data})

    def disconnect(self, code: int = 1001) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": code})

    @property
    def received(self) -> list[Received]:
        return [read(2, each["text"]) for each in self.sent if each["type"] == "websocket.send"]

    @property
    def accepted(self) -> bool:
        return any(each["type"] == "websocket.accept" for each in self.sent)

    @property
    def closed(self) -> int | None:
        """The close code, or None while it is open."""
        codes = [each["code"] for each in self.sent if each["type"] == "websocket.close"]
        return codes[0] if codes else None

    def reply(self, ref: str) -> tuple[str, dict[str, Any]]:
        (payload,) = [each.payload for each in self.received if each.event == "phx_reply" and each.ref == ref]
        return payload["status"], payload["response"]


async def settle() -> None:
    """Return when nothing is left to do but to wait for the clock; on virtual time only."""
    await asyncio.sleep(0.001)


def chatx_tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks of a session or a socket that are alive."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(("chatx session", "chatx socket"))]


def by_name(handshake: Handshake) -> str | None:
    """Return the user whom a handshake names by its parameter `user`."""
    return handshake.params.get("user")
