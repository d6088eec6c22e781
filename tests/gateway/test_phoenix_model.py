"""The protocol against a model as simple as Phoenix: one topic is one process that takes frames in turn.

The machine speaks raw frames with a shell that answers late, at once, or in any order. In the end the frames
of each topic are run through the model, which knows only their order and the verdicts of the shell; it must
give the same wire.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any, ClassVar, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatx.gateway.wire.actions import Action, Close, Join, Leave, Push, Superseded, Write
from chatx.gateway.wire.frames import Version, encode_broadcast
from chatx.gateway.wire.phoenix import PhoenixProtocol
from chatx.gateway.wire.topics import room_topic
from tests.gateway.phoenix_peer import EXCESS, UNMATCHED, Received, raw_frame, read

ROOMS = ["room:a", "room:b", "room:c"]
TOPICS = [*ROOMS, "lobby"]
MAX_JOINS = 2
UNREADABLE = {
    "code": "invalid_message",
    "reason": "The payload cannot be read: a text holds half a surrogate pair, as cutting within an emoji leaves it. "
    "Send a JSON object.",
    "retryable": False,
}


class Sent(NamedTuple):
    """A frame of the client, or (with event `closed` or `failed`) an end from the server."""

    event: str
    join_ref: str | None
    ref: str
    excess: bool = False
    readable: bool = True


class Conversation(RuleBasedStateMachine):
    version: ClassVar[Version]

    def __init__(self) -> None:
        super().__init__()
        self.protocol = PhoenixProtocol(self.version, max_joins=MAX_JOINS)
        self.sent: dict[str, list[Sent]] = defaultdict(list)
        self.wire: dict[str, list[Received]] = defaultdict(list)
        self.verdicts: dict[str, bool] = {}
        self.owed: dict[str, Join | Leave] = {}
        self.pushes: list[Push] = []
        self.memberships: dict[str, Any] = {}
        self.actions: deque[Action] = deque()
        self.at_once = False
        self.refs = 0

    @initialize(at_once=st.booleans())
    def choose_a_shell(self, at_once: bool) -> None:
        self.at_once = at_once

    # The client

    def next_ref(self) -> str:
        self.refs += 1
        return str(self.refs)

    def send(self, topic: str, event: str, join_ref: str | None, ref: str, readable: bool = True) -> None:
        occupied = self.memberships.keys() | self.owed.keys()
        excess = event == "phx_join" and topic not in occupied and len(occupied) >= MAX_JOINS
        self.sent[topic].append(Sent(event, join_ref, ref, excess, readable))
        text = raw_frame(self.version, join_ref, ref, topic, event, {"content": "x"})
        self.carry_out(self.protocol.receive(text if readable else text.replace('"x"', '"\\ud83d"')))

    @rule(topic=st.sampled_from(TOPICS), named=st.booleans(), verdict=st.booleans(), readable=st.booleans())
    def join(self, topic: str, named: bool, verdict: bool, readable: bool) -> None:
        ref = self.next_ref()
        self.verdicts[ref] = verdict
        self.send(topic, "phx_join", ref if named else None, ref, readable)

    @rule(
        topic=st.sampled_from(TOPICS),
        event=st.sampled_from(["phx_leave", "new_message"]),
        age=st.integers(0, 2),
        readable=st.booleans(),
    )
    def push_or_leave(self, topic: str, event: str, age: int, readable: bool) -> None:
        joins = [frame.ref for frame in self.sent[topic] if frame.event == "phx_join"]
        join_ref = None if age == 0 else (joins[-age] if age <= len(joins) else "none")
        self.send(topic, event, join_ref, self.next_ref(), readable)

    @rule()
    def heartbeat(self) -> None:
        ref = self.next_ref()
        (send,) = self.protocol.receive(raw_frame(self.version, None, ref, "phoenix", "heartbeat"))
        assert isinstance(send, Write)
        assert read(self.version, send.text) == Received(
            None, ref, "phoenix", "phx_reply", {"status": "ok", "response": {}}
        )

    # The shell

    def carry_out(self, actions: list[Action]) -> None:
        """Do all of it, and what the answers given meanwhile add behind it."""
        self.actions += actions
        while self.actions:
            self.do(self.actions.popleft())

    def do(self, action: Action) -> None:
        if isinstance(action, Write):
            frame = read(self.version, action.text)
            self.wire[frame.topic].append(frame)
            return
        assert not isinstance(action, Close)
        assert action.topic == room_topic(action.room_id)
        if isinstance(action, Superseded):
            assert self.memberships.pop(action.topic) == action.join_ref
        elif isinstance(action, Push):
            assert self.memberships[action.topic] == action.join_ref
            self.pushes.append(action)
            if self.at_once:
                self.actions += self.answer_push(self.pushes.pop())
        else:
            assert action.topic not in self.owed
            assert (action.topic in self.memberships) is isinstance(action, Leave)
            self.owed[action.topic] = action
            if self.at_once:
                self.actions += self.answer(action.topic)

    def answer(self, topic: str) -> list[Action]:
        owed = self.owed.pop(topic)
        if isinstance(owed, Leave):
            assert self.memberships.pop(topic) == owed.join_ref
            return self.protocol.left(owed)
        if not self.verdicts[str(owed.ref)]:
            return self.protocol.join_error(owed, {"code": "unauthorized"})
        actions = self.protocol.join_ok(owed, {"epoch": "e"})
        # The duty of `join_ok`: the reply is written first, then the shell subscribes, then it does the rest.
        self.do(actions[0])
        self.memberships[topic] = owed.join_ref
        return actions[1:]

    def answer_push(self, push: Push) -> list[Action]:
        return self.protocol.reply(push, "ok", {"event": push.event})

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def answer_a_join_or_leave(self, data: st.DataObject) -> None:
        self.carry_out(self.answer(data.draw(st.sampled_from(sorted(self.owed)))))

    @precondition(lambda self: self.pushes)
    @rule(data=st.data())
    def answer_some_push(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.pushes) - 1))
        self.carry_out(self.answer_push(self.pushes.pop(index)))

    @rule(topic=st.sampled_from(ROOMS), event=st.sampled_from(["closed", "failed"]))
    def end(self, topic: str, event: str) -> None:
        if topic in self.memberships and topic not in self.owed:
            del self.memberships[topic]
            self.sent[topic].append(Sent(event, None, ""))
        call = self.protocol.channel_closed if event == "closed" else self.protocol.channel_error
        self.carry_out(call(topic))

    @rule(topic=st.sampled_from(ROOMS))
    def broadcast(self, topic: str) -> None:
        if topic in self.memberships and not isinstance(self.owed.get(topic), Leave):
            self.do(Write(encode_broadcast(self.version, topic, "new_message", {"content": "hi"})))

    @invariant()
    def no_more_than_max_joins(self) -> None:
        assert len(self.memberships.keys() | self.owed.keys()) <= MAX_JOINS

    # The model

    def named(self, join_ref: str | None) -> str | None:
        return join_ref if self.version == 2 else None

    def replied(self, topic: str, join_ref: str | None, ref: str, status: str, response: Any) -> Received:
        payload = {"status": status, "response": response}
        return Received(self.named(join_ref), ref, topic, "phx_reply", payload)

    def ended(self, topic: str, join_ref: str, event: str, payload: Any) -> Received:
        return Received(self.named(join_ref), join_ref, topic, event, payload)

    def model(self, topic: str) -> tuple[list[Received], list[Received]]:
        """Return what the wire must have in this order, and the replies to pushes, which come in any."""
        ordered: list[Received] = []
        answers: list[Received] = []
        joined: str | None = None
        for frame in self.sent[topic]:
            stale = joined is not None and frame.join_ref not in (None, joined)
            if frame.event == "phx_join":
                if topic not in ROOMS:
                    ordered.append(self.replied(topic, None, frame.ref, "error", UNMATCHED))
                    continue
                if frame.excess:
                    ordered.append(self.replied(topic, frame.join_ref, frame.ref, "error", EXCESS))
                    continue
                if not frame.readable:
                    ordered.append(self.replied(topic, frame.join_ref, frame.ref, "error", UNREADABLE))
                    continue
                if joined is not None:
                    ordered.append(self.ended(topic, joined, "phx_close", {}))
                accepted = self.verdicts[frame.ref]
                joined = frame.ref if accepted else None
                response = {"epoch": "e"} if accepted else {"code": "unauthorized"}
                status = "ok" if accepted else "error"
                ordered.append(self.replied(topic, frame.ref, frame.ref, status, response))
            elif frame.event == "closed":
                assert joined is not None
                ordered.append(self.ended(topic, joined, "phx_close", {}))
                joined = None
            elif frame.event == "failed":
                assert joined is not None
                ordered.append(self.ended(topic, joined, "phx_error", {"reason": "channel_crash"}))
                joined = None
            elif stale:
                continue
            elif not frame.readable and (joined is not None or frame.event == "phx_leave"):
                ordered.append(self.replied(topic, frame.join_ref, frame.ref, "error", UNREADABLE))
            elif frame.event == "phx_leave":
                ordered.append(self.replied(topic, joined or frame.join_ref, frame.ref, "ok", {}))
                if joined is not None:
                    ordered.append(self.ended(topic, joined, "phx_close", {}))
                joined = None
            elif joined is None:
                ordered.append(self.replied(topic, None, frame.ref, "error", UNMATCHED))
            else:
                answers.append(self.replied(topic, joined, frame.ref, "ok", {"event": "new_message"}))
        return ordered, answers

    def teardown(self) -> None:
        while self.owed:
            self.carry_out(self.answer(min(self.owed)))
        while self.pushes:
            self.carry_out(self.answer_push(self.pushes.pop()))
        for topic in TOPICS:
            ordered, answers = self.model(topic)
            received = [frame for frame in self.wire[topic] if frame.event != "new_message"]
            assert [frame for frame in received if frame not in answers] == ordered
            assert sorted(str(frame) for frame in received if frame in answers) == sorted(map(str, answers))
            self.check_broadcasts(topic)

    def check_broadcasts(self, topic: str) -> None:
        """Check that on the wire each broadcast stands between a join's ok reply and the membership's end."""
        joins = {frame.ref for frame in self.sent[topic] if frame.event == "phx_join" and frame.readable}
        joined = False
        for frame in self.wire[topic]:
            if frame.event == "new_message":
                assert joined
            elif frame.event in ("phx_close", "phx_error"):
                joined = False
            elif frame.ref in joins:
                joined = frame.payload["status"] == "ok"


class ConversationV1(Conversation):
    version = 1


class ConversationV2(Conversation):
    version = 2


TestVersion1 = ConversationV1.TestCase
TestVersion2 = ConversationV2.TestCase
