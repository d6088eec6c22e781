"""Raw frames through whole sessions, over the real engine, against a model: one topic of one socket takes its frames in
turn, and whoever is joined has an unbroken stretch of the room's stream.

Several sockets of both versions join, join again, leave, send, resume and are cut, with join_refs of now, of before and
none, while the auth adapter takes its time or does not. In the end each socket's wire is read once, from left to right.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from chatx.chat import Chat
from chatx.core.message import Event, Message
from chatx.gateway.session.gateway import Gateway
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.transitions import State
from chatx.testing import VirtualLoop
from tests.gateway.fakes import Client, chatx_tasks
from tests.gateway.phoenix_peer import Received, raw_frame
from tests.limits import UNLIMITED

ROOMS = ["a", "b"]
TOPICS = [*(f"room:{room}" for room in ROOMS), "lobby"]
WIRES: list[tuple[str, Version]] = [("ada", 2), ("eve", 2), ("ada", 1)]
HISTORY = 8
# Most of what can go wrong needs several frames to the same topic on the same socket.
topics = st.sampled_from(["room:a", "room:a", "room:a", *TOPICS])
wires = st.sampled_from([0, 0, 0, *range(len(WIRES))])
few = st.sampled_from([0, 0, 1, 2])


class Doorkeeper:
    """Lets everybody in everywhere, but eve into room b; how long it takes is up to the test."""

    delay = 0.0

    async def authorize(self, user_id: str, room_id: str, action: str) -> bool:
        await asyncio.sleep(self.delay)
        return not forbidden(user_id, f"room:{room_id}")


def forbidden(user_id: str, topic: str) -> bool:
    return (user_id, topic) == ("eve", "room:b")


class Sent(NamedTuple):
    """A frame of a client; `seen` is how many messages the room had where the topic was joined then."""

    event: str
    join_ref: str | None
    ref: str
    payload: Any
    seen: int | None = None


class Shape(NamedTuple):
    """What the model says of a frame on the wire; a close has no status, and only an error has a code."""

    event: str
    join_ref: str | None
    ref: str | None
    status: str = ""
    code: str = ""


class Ordered(NamedTuple):
    """A frame on the wire, and what the client sent that it comes of."""

    shape: Shape
    cause: Sent


class Wire:
    """One socket: what was sent on it, by topic."""

    def __init__(self, gateway: Gateway, user: str, version: Version) -> None:
        self.client = Client(gateway, user, version)
        self.sent: dict[str, list[Sent]] = defaultdict(list)

    def joined(self, topic: str) -> bool:
        return self.client.session.protocol.state(topic) is State.JOINED


class Conversations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.door = Doorkeeper()
        self.log: dict[str, list[Message]] = {f"room:{room}": [] for room in ROOMS}
        self.wires: list[Wire] = []
        self.cut: list[Wire] = []
        self.talking: set[asyncio.Task[None]] = set()
        self.refs = 0

    @initialize(middlewares=st.sampled_from([(), ("auth",)]))
    def begin(self, middlewares: tuple[str, ...]) -> None:
        """Start the chat; without a middleware a send is done at once, with this one it awaits."""
        self.chat = Chat(rate_limit=UNLIMITED, history_size=HISTORY, auth=self.door, middlewares=middlewares)
        self.runner.run(self.start())

    async def start(self) -> None:
        await self.chat.start()
        self.gateway = Gateway(self.chat.engine)
        self.listening = AsyncExitStack()
        for room in ROOMS:
            listener: Any = self.chat.subscribe_callback(room, self.note)
            await self.listening.enter_async_context(listener)
            await self.say(room, 1)
        self.wires = [Wire(self.gateway, user, version) for user, version in WIRES]

    def note(self, event: Event) -> None:
        assert isinstance(event, Message)
        log = self.log[f"room:{event.room_id}"]
        log.append(event)
        assert event.offset == len(log)

    async def say(self, room: str, count: int, pause: float | None = None) -> None:
        for _ in range(count):
            await self.chat.send_message(room, "server", f"news {self.next_ref()}")
            if pause is not None:
                await asyncio.sleep(pause)

    # The clients

    def send(self, wire: Wire, topic: str, frame: Sent, before: int, after: int) -> None:
        """Send a frame, between news that the room has in the same turn of the loop."""
        room = topic.removeprefix("room:") if topic in self.log else "b"
        text = raw_frame(wire.client.version, frame.join_ref, frame.ref, topic, frame.event, frame.payload)

        async def run() -> None:
            await self.say(room, before)
            seen = len(self.log[topic]) if wire.joined(topic) else None
            wire.sent[topic].append(frame._replace(seen=seen))
            wire.client.session.receive(text)
            await self.say(room, after)

        self.runner.run(run())

    def next_ref(self) -> str:
        self.refs += 1
        return str(self.refs)

    @rule(
        who=wires,
        topic=topics,
        named=st.booleans(),
        place=st.sampled_from(["none", "half", "other epoch", "here", "here"]),
        back=st.integers(-1, HISTORY + 2),
        before=few,
        after=few,
    )
    def join(self, who: int, topic: str, named: bool, place: str, back: int, before: int, after: int) -> None:
        log = self.log.get(topic)
        payload: dict[str, Any] = {}
        if log and place != "none":
            payload["epoch"] = "of another time" if place == "other epoch" else log[0].epoch
            if place != "half":
                payload["offset"] = max(0, len(log) - back)
        ref = self.next_ref()
        self.send(self.wires[who], topic, Sent("phx_join", ref if named else None, ref, payload), before, after)

    @rule(
        who=wires,
        topic=topics,
        event=st.sampled_from(["phx_leave", "new_message", "no such event"]),
        age=st.integers(0, 2),
        before=few,
        after=few,
    )
    def push_or_leave(self, who: int, topic: str, event: str, age: int, before: int, after: int) -> None:
        wire = self.wires[who]
        joins = [frame.ref for frame in wire.sent[topic] if frame.event == "phx_join"]
        join_ref = None if age == 0 else (joins[-age] if age <= len(joins) else "none")
        ref = self.next_ref()
        payload = {"content": f"said {ref}"} if event == "new_message" else {}
        self.send(wire, topic, Sent(event, join_ref, ref, payload), before, after)

    @rule(who=wires)
    def cut_and_come_back(self, who: int) -> None:
        async def run() -> None:
            wire = self.wires[who]
            wire.client.session.end()
            self.cut.append(wire)
            self.wires[who] = Wire(self.gateway, *WIRES[who])

        self.runner.run(run())

    # The server

    @rule(room=st.sampled_from(ROOMS), count=st.integers(1, HISTORY + 1))
    def publish(self, room: str, count: int) -> None:
        self.runner.run(self.say(room, count))

    @rule(room=st.sampled_from(ROOMS), count=st.integers(1, 20), pause=st.sampled_from([0.0, 0.004]))
    def go_on_publishing_meanwhile(self, room: str, count: int, pause: float) -> None:
        async def run() -> None:
            self.talking.add(asyncio.create_task(self.say(room, count, pause)))

        self.runner.run(run())

    @rule(delay=st.sampled_from([0.0, 0.01]))
    def let_the_doorkeeper_take(self, delay: float) -> None:
        self.door.delay = delay

    @rule(seconds=st.sampled_from([0.0, 0.015, 0.05]))
    def let_time_pass(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    # The judge

    def teardown(self) -> None:
        self.runner.run(asyncio.sleep(10))
        assert all(task.done() and task.exception() is None for task in self.talking)
        for wire in [*self.wires, *self.cut]:
            for topic in TOPICS:
                self.judge(wire, topic)
        self.runner.run(self.end())
        self.runner.close()

    async def end(self) -> None:
        for wire in self.wires:
            wire.client.session.end()
        for room in ROOMS:
            assert await self.chat.presence(room) == {}
        assert chatx_tasks() == []
        await self.listening.aclose()
        await self.chat.stop()

    def judge(self, wire: Wire, topic: str) -> None:
        expected, answers = model(wire, topic)
        membership: Membership | None = None
        at = 0
        for frame in wire.client.received:
            if frame.topic != topic:
                continue
            if frame.event in ("new_message", "presence_state", "presence_diff"):
                assert membership is not None, frame
                membership.take(frame)
            elif (sent := answers.pop(frame.ref, None)) is not None:
                self.check_answer(wire, topic, sent, frame)
            else:
                expectation, cause = expected[at]
                at += 1
                assert shape(frame) == expectation
                if membership is not None and (frame.event == "phx_close" or cause.event == "phx_leave"):
                    # What was published before is in front of the end.
                    assert cause.seen is None or membership.seen >= cause.seen
                    membership = None
                if cause.event == "phx_join" and frame.event == "phx_reply" and frame.payload["status"] == "ok":
                    membership = Membership(self.log[topic], cause.payload, frame.payload["response"])
        if wire in self.cut:
            return
        assert at == len(expected)
        assert answers == {}
        assert (membership is not None) == wire.joined(topic)
        if membership is not None:
            assert membership.seen == len(self.log[topic])
            room = topic.removeprefix("room:")
            snapshot = self.runner.run(self.chat.presence(room))
            assert membership.here == {user: {meta.ref for meta in metas} for user, metas in snapshot.items()}

    def check_answer(self, wire: Wire, topic: str, sent: Sent, frame: Received) -> None:
        assert frame.event == "phx_reply"
        status, response = frame.payload["status"], frame.payload["response"]
        if sent.event == "no such event":
            assert (status, response["code"]) == ("error", "invalid_message")
            return
        assert status == "ok"
        message = self.log[topic][response["offset"] - 1]
        assert (message.id, message.user_id, message.content) == (
            response["id"],
            wire.client.user_id,
            sent.payload["content"],
        )


class Membership:
    """What a client knows from one join on: where it stands in the stream, and who is here."""

    def __init__(self, log: list[Message], asked: dict[str, Any], head: dict[str, Any]) -> None:
        self.log = log
        self.here: dict[str, set[str]] | None = None
        epoch = log[0].epoch
        offset: int | None = asked.get("offset")
        assert (head["epoch"], head["offset"]) == (epoch, min(head["offset"], len(log)))
        reason = None
        if offset is not None:
            if asked["epoch"] != epoch or offset > head["offset"]:
                reason = "epoch_changed"
            elif head["offset"] - offset > HISTORY:
                reason = "too_old"
        assert head.get("reason") == reason
        assert head["recovered"] == (offset is not None and reason is None)
        self.seen: int = head["offset"] if offset is None or reason is not None else offset

    def take(self, frame: Received) -> None:
        if frame.event == "new_message":
            message = self.log[self.seen]
            assert {name: frame.payload[name] for name in ("id", "user_id", "content", "epoch", "offset")} == {
                "id": message.id,
                "user_id": message.user_id,
                "content": message.content,
                "epoch": message.epoch,
                "offset": self.seen + 1,
            }
            self.seen += 1
        elif frame.event == "presence_state":
            assert self.here is None
            self.here = metas(frame.payload)
        else:
            assert self.here is not None
            for user, refs in metas(frame.payload["joins"]).items():
                assert not refs & self.here.get(user, set())
                self.here.setdefault(user, set()).update(refs)
            for user, refs in metas(frame.payload["leaves"]).items():
                assert refs <= self.here[user]
                self.here[user] -= refs
                if not self.here[user]:
                    del self.here[user]


def metas(presences: dict[str, Any]) -> dict[str, set[str]]:
    return {user: {meta["phx_ref"] for meta in each["metas"]} for user, each in presences.items()}


def shape(frame: Received) -> Shape:
    if frame.event == "phx_close":
        return Shape("phx_close", frame.join_ref, frame.ref)
    status, response = frame.payload["status"], frame.payload["response"]
    return Shape(frame.event, frame.join_ref, frame.ref, status, response["code"] if status == "error" else "")


def model(wire: Wire, topic: str) -> tuple[list[Ordered], dict[str, Sent]]:
    """Return what the wire must have in this order, and the pushes whose answers come in any."""
    ordered: list[Ordered] = []
    answers: dict[str, Sent] = {}
    joined: str | None = None
    cause: Sent

    def named(join_ref: str | None) -> str | None:
        return join_ref if wire.client.version == 2 else None

    def reply(join_ref: str | None, status: str, code: str = "") -> None:
        ordered.append(Ordered(Shape("phx_reply", named(join_ref), cause.ref, status, code), cause))

    def close(join_ref: str | None) -> None:
        if join_ref is not None:
            ordered.append(Ordered(Shape("phx_close", named(join_ref), join_ref), cause))

    for cause in wire.sent[topic]:
        if cause.event == "phx_join":
            if topic == "lobby":
                reply(None, "error", "unmatched_topic")
                continue
            close(joined)
            joined = None
            if set(cause.payload) == {"epoch"}:
                reply(cause.ref, "error", "invalid_message")
            elif forbidden(wire.client.user_id, topic):
                reply(cause.ref, "error", "unauthorized")
            else:
                reply(cause.ref, "ok")
                joined = cause.ref
        elif joined is not None and cause.join_ref not in (None, joined):
            continue
        elif cause.event == "phx_leave":
            reply(joined or cause.join_ref, "ok")
            close(joined)
            joined = None
        elif joined is None:
            reply(None, "error", "unmatched_topic")
        else:
            answers[cause.ref] = cause
    return ordered, answers


Conversations.TestCase.settings = settings(stateful_step_count=60)
TestConversations = Conversations.TestCase
