"""Reality held against the document: each frame of real sessions is exactly one of the messages that it describes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from chatx import Identity
from chatx.core.rate_limit import RateLimit
from chatx.gateway.entry.handshake import Handshake
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.wire.frames import Version
from chatx.runtime.process import RESTARTS
from tests.faults import CrashingChat
from tests.gateway.described import DOCUMENT, FROM_CLIENTS, FROM_SERVER, matches
from tests.gateway.fakes import Client, crashing_engine, settle
from tests.gateway.phoenix_peer import Received, raw_frame, read
from tests.gateway.servers import SHELLS, served
from tests.virtual import virtual

BURST = 15


class Recorder:
    """A client that keeps every frame of either side.

    Attributes:
        frames: What the server sent, and which message of the document each is.
        sent: Which messages of the document the client sent.
    """

    def __init__(self, connection: ClientConnection, version: Version) -> None:
        self.connection = connection
        self.version: Version = version
        self.frames: list[tuple[str, Received]] = []
        self.sent: set[str] = set()
        self._refs = 0
        self._join_refs: dict[str, str] = {}

    async def push(self, topic: str, event: str, payload: Any = None, *, described: bool = True) -> str:
        """Push, and return the ref; what is not `described` is no message of the document."""
        self._refs += 1
        ref = str(self._refs)
        if event == "phx_join":
            self._join_refs[topic] = ref
        text = raw_frame(self.version, self._join_refs.get(topic), ref, topic, event, payload)
        names = matches(msgspec.json.decode(text), FROM_CLIENTS)
        assert len(names) == described, (names, text)
        self.sent.update(names)
        await self.connection.send(text)
        return ref

    async def ask(self, topic: str, event: str, payload: Any = None, *, described: bool = True) -> Received:
        """Push, and return the reply."""
        ref = await self.push(topic, event, payload, described=described)
        return await self.next("phx_reply", ref=ref)

    async def refused(self, topic: str, event: str, payload: Any = None, *, described: bool = True) -> str:
        """Push, and return the code of the refusal."""
        reply = await self.ask(topic, event, payload, described=described)
        assert self.frames[-1][0] == "refused", reply
        code: str = reply.payload["response"]["code"]
        return code

    async def next(self, event: str, *, ref: str | None = None) -> Received:
        """Read on until there is this event, with this ref if one is given."""
        async with asyncio.timeout(20):
            while True:
                text = await self.connection.recv()
                assert isinstance(text, str)
                (name,) = matches(msgspec.json.decode(text), FROM_SERVER)
                frame = read(self.version, text)
                self.frames.append((name, frame))
                if frame.event == event and (ref is None or frame.ref == ref):
                    return frame

    @property
    def received(self) -> set[str]:
        return {name for name, _ in self.frames}


class Rules:
    """Auth and moderation that refuse, fail and wait on demand."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        return room_id != "secret"

    async def check(self, content: str) -> bool:
        if content == "broken":
            raise ZeroDivisionError
        if content == "wait":
            await self.gate.wait()
        return content != "rude"


def who(handshake: Handshake) -> Identity:
    rooms = ("general",) if handshake.token == "narrow" else None
    return Identity(handshake.params["user_id"], expires_at=time.time() + 3600, rooms=rooms)


@asynccontextmanager
async def recorder(port: int, version: Version, user: str) -> AsyncIterator[Recorder]:
    vsn = f"&vsn={version}.0.0" if version == 2 else ""
    url = f"ws://localhost:{port}/socket/websocket?user_id={user}{vsn}"
    async with connect(url, origin=f"http://localhost:{port}") as connection:  # type: ignore[arg-type]  # a NewType
        yield Recorder(connection, version)


@pytest.mark.process
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shell", SHELLS)
async def test_every_frame_of_a_real_session_is_one_of_the_messages(shell: str, version: Version) -> None:
    rules = Rules()
    chat = CrashingChat(
        auth=rules,
        moderation=rules,
        history_size=5,
        resume_max_messages=8,
        room_queue_limit=1,
        max_joins_per_connection=3,
        rate_limit=RateLimit(messages_per_sec=0.01, burst=BURST),
    )
    async with served(shell, chat, who) as port, recorder(port, version, "ada") as ada:
        await ada.ask("phoenix", "heartbeat", {})
        await ada.ask("room:general", "phx_join", {})
        await ada.next("presence_state")
        await _talk(ada)
        await _meet(ada, port, version)
        codes = await _resume(ada, chat)
        codes |= await _be_refused(ada, rules)
        await _renew(ada)
        for event in ("phx_join", "phx_leave"):  # the join supersedes the present one
            await ada.push("room:general", event, {})
            await ada.next("phx_close")
        codes |= await _see_the_end(ada, chat, rules)

        assert codes == set(DOCUMENT["x-error-codes"])
        assert ada.sent == FROM_CLIENTS
        assert ada.received == FROM_SERVER


async def _talk(ada: Recorder) -> None:
    answers = [await ada.ask("room:general", "new_message", {"content": "Hello", "key": "k1"}) for _ in range(2)]
    assert answers[1].payload["response"]["duplicate"] is True
    await ada.ask("room:general", "new_message", {"content": "héllo \U0001f600\n"})
    page = (await ada.ask("room:general", "history", {"limit": 1})).payload["response"]
    assert page["more"] is True
    before = {name: page["messages"][0][name] for name in ("epoch", "offset")}
    assert (await ada.ask("room:general", "history", {"before": before})).payload["response"]["more"] is False
    onwards = {"after": {**before, "offset": 0}, "limit": 1}
    page = (await ada.ask("room:general", "history", onwards)).payload["response"]
    assert [(each["offset"], page["more"]) for each in page["messages"]] == [(1, True)]


async def _meet(ada: Recorder, port: int, version: Version) -> None:
    async with recorder(port, version, "bob") as bob:
        await bob.ask("room:general", "phx_join", {})
        assert "bob" in (await ada.next("presence_diff")).payload["joins"]
    assert "bob" in (await ada.next("presence_diff")).payload["leaves"]


async def _resume(ada: Recorder, chat: CrashingChat) -> set[str]:
    for number in range(20):
        await chat.send_message("busy", f"server{number}", f"m{number}")
    epoch = (await ada.ask("room:busy", "phx_join", {})).payload["response"]["epoch"]
    outcomes = []
    for position in ({"offset": 0}, {"offset": 13}, {"epoch": "another", "offset": 1}, {"offset": 18}):
        reply = await ada.ask("room:busy", "phx_join", {"epoch": epoch, **position})
        outcomes.append(reply.payload["response"].get("reason", "recovered"))
    assert outcomes == ["too_many", "too_old", "epoch_changed", "recovered"]
    assert [(await ada.next("new_message")).payload["offset"] for _ in range(2)] == [19, 20]
    return {
        await ada.refused("room:busy", "history", {"after": {"epoch": epoch, "offset": 0}}),
        await ada.refused("room:busy", "history", {"after": {"epoch": "another", "offset": 1}}),
    }


async def _be_refused(ada: Recorder, rules: Rules) -> set[str]:
    general = "room:general"
    codes = {
        await ada.refused("room:secret", "phx_join", {}),
        await ada.refused("room:elsewhere", "new_message", {"content": "x"}),
        await ada.refused("lobby", "phx_join", {}, described=False),
        await ada.refused(general, "new_message", {"content": 5}, described=False),
        await ada.refused(general, "dance", {}, described=False),
        await ada.refused(general, "new_message", {"content": "x" * 5000}),
        await ada.refused(general, "new_message", {"content": "rude"}),
        await ada.refused(general, "new_message", {"content": "broken"}),
    }
    await ada.ask("room:third", "phx_join", {})
    codes.add(await ada.refused("room:fourth", "phx_join", {}))
    if ada.version == 2:
        await ada.connection.send(bytes((0, 0, 1, len(general), 3)) + f"9{general}abc".encode() + b"\x00\xff")
        await ada.next("phx_reply", ref="9")
        assert ada.frames[-1][0] == "refused"

    waiting = await ada.push("room:third", "new_message", {"content": "wait"})
    codes.add(await ada.refused("room:third", "new_message", {"content": "too early"}))
    rules.gate.set()
    await ada.next("phx_reply", ref=waiting)

    replies = [await ada.ask("room:third", "new_message", {"content": "quick"}) for _ in range(BURST)]
    assert replies[-1].payload["response"]["retry_after_ms"] > 0
    return codes | {replies[-1].payload["response"]["code"]}


async def _renew(ada: Recorder) -> None:
    assert await ada.refused("room:general", "access_token", {"token": ""}, described=False) == "invalid_message"
    reply = await ada.ask("room:general", "access_token", {"token": "narrow"})
    assert reply.payload["response"]["expires_at"] > time.time()
    assert {(await ada.next("phx_error")).topic for _ in range(2)} == {"room:busy", "room:third"}


async def _see_the_end(ada: Recorder, chat: CrashingChat, rules: Rules) -> set[str]:
    general = "room:general"
    await ada.ask(general, "phx_join", {})
    chat.crash("publish: before", "general")
    codes = {await ada.refused(general, "new_message", {"content": "crash"})}

    rules.gate.clear()
    waiting = await ada.push(general, "new_message", {"content": "wait"})
    await ada.ask("phoenix", "heartbeat", {})
    stopping = asyncio.create_task(chat.stop())
    await asyncio.sleep(0)
    codes.add(await ada.refused(general, "new_message", {"content": "too late"}))
    rules.gate.set()
    await ada.next("phx_reply", ref=waiting)
    await stopping
    with pytest.raises(ConnectionClosedError):
        await ada.next("none, but the end")
    assert ada.connection.close_code == 1012
    await chat.start()
    return codes


@pytest.mark.parametrize("version", [1, 2])
@virtual
async def test_the_frames_of_a_room_that_crashes_are_messages_too(version: Version) -> None:
    engine, room = crashing_engine()
    client = Client(Gateway(engine), "ada", version)
    await client.join("room:a")
    room.crashes = RESTARTS + 1
    refs = [client.say("room:a", f"m{number}") for number in range(RESTARTS + 1)]
    await settle()

    assert client.reply(refs[0])[1]["code"] == "room_unavailable"
    assert client.events("phx_error")
    for text in client.socket.frames:
        assert len(matches(msgspec.json.decode(text), FROM_SERVER)) == 1, text
    client.session.end()
    await engine.stop()


@pytest.mark.parametrize(
    "frame",
    [
        [None, "1", "phoenix", "phx_reply", {"status": "ok"}],
        [None, "1", "phoenix", "phx_reply", {"status": "fine", "response": {}}],
        [None, "1", "phoenix", "phx_reply", {"status": "ok", "response": {}}, "one too many"],
        ["1", "1", "room:a", "phx_reply", {"status": "ok", "response": {"epoch": "e", "offset": 1}}],
        ["1", "1", "room:a", "phx_reply", {"status": "error", "response": {"reason": "no"}}],
        ["1", None, "room:a", "new_message", {"content": "x"}],
        [None, None, "room:a", "presence_state", {"ada": {"metas": []}}],
        [None, None, "room:a", "presence_diff", {"joins": {}}],
        [None, None, "room:a", "dance", {}],
        {"topic": "room:a", "event": "phx_close", "payload": {}, "ref": "1", "join_ref": "1"},
        {"topic": "room:a", "event": "phx_close", "payload": {"reason": "why"}, "ref": "1"},
    ],
)
def test_what_the_server_does_not_send_is_none_of_the_messages(frame: Any) -> None:
    assert matches(frame, FROM_SERVER) == []
