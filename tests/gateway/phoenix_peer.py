"""A client's end of the protocol for tests: it writes raw frames, and reads what is sent into one shape."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import msgspec

from chatx.gateway.wire.actions import Action, Join, Push, Write
from chatx.gateway.wire.frames import Version
from chatx.gateway.wire.phoenix import PhoenixProtocol


class Received(NamedTuple):
    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any


def raw_frame(version: Version, join_ref: Any, ref: Any, topic: str, event: str, payload: Any = None) -> str:
    """Return what a client writes; version 1 clients of old name no join_ref."""
    body = {} if payload is None else payload
    if version == 2:
        return msgspec.json.encode([join_ref, ref, topic, event, body]).decode()
    fields = {"topic": topic, "event": event, "payload": body, "ref": ref}
    if join_ref is not None:
        fields["join_ref"] = join_ref
    return msgspec.json.encode(fields).decode()


@functools.lru_cache(4096)  # whoever looks for the answers to a flood looks through all of it for each
def read(version: Version, text: str) -> Received:
    """Return a sent frame; a version 1 frame must have its four fields and nothing else."""
    data = msgspec.json.decode(text)
    if version == 2:
        return Received(*data)
    assert set(data) == {"topic", "event", "payload", "ref"}
    return Received(None, data["ref"], data["topic"], data["event"], data["payload"])


class Peer:
    def __init__(self, version: Version, **options: int) -> None:
        self.version = version
        self.protocol = PhoenixProtocol(version, **options)

    def send(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any = None) -> list[Action | Received]:
        """Send one frame and return what comes of it, with each `Write` read."""
        return self.read(self.protocol.receive(raw_frame(self.version, join_ref, ref, topic, event, payload)))

    def read(self, actions: list[Action]) -> list[Action | Received]:
        return [read(self.version, action.text) if isinstance(action, Write) else action for action in actions]

    def ask(self, join_ref: Any, ref: Any, topic: str, payload: Any = None) -> Join:
        """Send a join that reaches the shell."""
        (join,) = self.send(join_ref, ref, topic, "phx_join", payload)
        assert isinstance(join, Join)
        return join

    def join(self, join_ref: Any, ref: Any, topic: str) -> None:
        """Send a join and let the shell accept it."""
        self.protocol.join_ok(self.ask(join_ref, ref, topic), {})

    def pushed(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any = None) -> Push:
        """Send a push that reaches the shell."""
        (push,) = self.send(join_ref, ref, topic, event, payload)
        assert isinstance(push, Push)
        return push

    def expected(self, join_ref: Any, ref: Any, topic: str, event: str, payload: dict[str, Any]) -> Received:
        """Return what a frame reads as in this version, in which version 1 has no join_ref."""
        return Received(join_ref if self.version == 2 else None, ref, topic, event, payload)

    def replied(self, join_ref: Any, ref: Any, topic: str, status: str, response: dict[str, Any]) -> Received:
        return self.expected(join_ref, ref, topic, "phx_reply", {"status": status, "response": response})


UNMATCHED = {"code": "unmatched_topic", "reason": "unmatched topic", "retryable": False}
EXCESS = {"code": "too_many_joins", "reason": "too many channels joined", "retryable": True}
