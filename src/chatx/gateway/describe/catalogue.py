"""Every kind of frame that is on the wire, from either side: its event, what is in it, and examples."""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

from chatx.errors import RateLimited
from chatx.gateway.describe.schemas import Schema, constant, ref, reply
from chatx.gateway.wire.frames import Ref
from chatx.gateway.wire.payloads import (
    AccessToken,
    Empty,
    Failed,
    History,
    HistoryPage,
    Joined,
    NewMessage,
    PhxDiff,
    PhxMeta,
    PhxMetas,
    Published,
    Renewed,
    Reply,
    Resume,
    Sent,
    StreamPosition,
    error_response,
)
from chatx.gateway.wire.phoenix import REFUSALS

HEARTBEAT_S: Final = 30
"""Seconds between two heartbeats of a client, as in phoenix.js."""

_EPOCH = "5f3ad2c09b1e6d47"
_MESSAGE = Published("01936a2f-5c1d-7a04-9b1e-2f6c8d3e4a5b", "general", "ada", "Hello", 1732521600000, _EPOCH, 42)
_ADA = {"ada": PhxMetas([PhxMeta("7", 1732521600000)])}


class Example(NamedTuple):
    """What a frame of some kind may hold."""

    join_ref: Ref
    ref: Ref
    payload: Struct | dict[str, PhxMetas]


class Kind(NamedTuple):
    """One kind of frame.

    Attributes:
        title: For a person.
        summary: What it means.
        event: The event in the frame.
        topic: The schema of the topic.
        payload: The schema of the payload.
        examples: One or more.
    """

    title: str
    summary: str
    event: str
    topic: Schema
    payload: Schema
    examples: list[Example]


PHOENIX: Final[Schema] = constant("phoenix")
"""The topic of the socket itself."""

_ROOM = ref("RoomTopic")
_ANY_TOPIC: Schema = {"type": "string"}


def _answer(title: str, summary: str, topic: Schema, response: str, answered: Ref, *examples: Struct) -> Kind:
    answers = [Example(None if topic is PHOENIX else "1", answered, Reply("ok", each)) for each in examples]
    return Kind(title, summary, "phx_reply", topic, reply("ok", ref(response)), answers)


FROM_CLIENTS: Final[dict[str, Kind]] = {
    "join": Kind(
        "Join a room",
        "Makes the user a member of the room, and sends what is published there. With a position, goes on from it.",
        "phx_join",
        _ROOM,
        ref("Resume"),
        [Example("1", "1", Empty()), Example("1", "1", Resume(_EPOCH, 41))],
    ),
    "leave": Kind(
        "Leave a room", "Ends the membership.", "phx_leave", _ROOM, ref("Ignored"), [Example("1", "5", Empty())]
    ),
    "sendMessage": Kind(
        "Send a message",
        "Publishes a message in the room. With a key it can be sent again without being published twice.",
        "new_message",
        _ROOM,
        ref("NewMessage"),
        [Example("1", "2", NewMessage("Hello", "f81d4fae-7dec-4d1b-a765-00a0c91e6bf6"))],
    ),
    "loadHistory": Kind(
        "Load history",
        "Asks for messages that were there before, ahead of a place or behind it.",
        "history",
        _ROOM,
        ref("History"),
        [
            Example("1", "3", History(50, StreamPosition(_EPOCH, 42))),
            Example("1", "3", History(50, after=StreamPosition(_EPOCH, 42))),
        ],
    ),
    "renewToken": Kind(
        "Renew the token",
        "Puts off the end of a socket that expires; on a socket that does not, there is no such event.",
        "access_token",
        _ROOM,
        ref("AccessToken"),
        [Example("1", "4", AccessToken("eyJhbGciOiJIUzI1NiJ9.e30.example"))],
    ),
    "heartbeat": Kind(
        "Heartbeat",
        f"Sent every {HEARTBEAT_S} s, joined or not, or the socket is closed with 1001.",
        "heartbeat",
        PHOENIX,
        ref("Ignored"),
        [Example(None, "6", Empty())],
    ),
}

REPLIES: Final[dict[str, Kind]] = {
    "joined": _answer(
        "Joined",
        "The first frame of a membership. `recovered: true` means that every missed message follows.",
        _ROOM,
        "Joined",
        "1",
        Joined(_EPOCH, 42, recovered=False),
        Joined(_EPOCH, 42, recovered=True),
        Joined(_EPOCH, 42, recovered=False, reason="too_old"),
    ),
    "left": _answer("Left", "The membership has ended; `phx_close` follows.", _ROOM, "Empty", "5", Empty()),
    "sent": _answer(
        "Sent",
        "The message is sequenced: it has its place and is on its way. The message itself may come before this.",
        _ROOM,
        "Sent",
        "2",
        Sent(_MESSAGE.id, _EPOCH, 42, _MESSAGE.inserted_at),
        Sent(_MESSAGE.id, _EPOCH, 42, _MESSAGE.inserted_at, duplicate=True),
        Sent(_MESSAGE.id, _EPOCH, 42, _MESSAGE.inserted_at, stored=True),
    ),
    "historyLoaded": _answer(
        "History", "Messages, oldest first.", _ROOM, "HistoryPage", "3", HistoryPage([_MESSAGE], more=True)
    ),
    "tokenRenewed": _answer(
        "Token renewed", "The new token is in force.", _ROOM, "Renewed", "4", Renewed(1732525200.0)
    ),
    "heartbeatAnswered": _answer("Heartbeat answered", "The server is there.", PHOENIX, "Empty", "6", Empty()),
    "refused": Kind(
        "Refused",
        "What the client asked for was not done. `retryable` says whether to ask again, `retry_after_ms` when.",
        "phx_reply",
        _ANY_TOPIC,
        reply("error", ref("ErrorResponse")),
        [
            *(
                Example(None if code == "unmatched_topic" else "1", "2", Reply("error", refusal))
                for code, refusal in REFUSALS.items()
            ),
            Example("1", "2", Reply("error", error_response(RateLimited(retry_after=0.1)))),
        ],
    ),
}

BROADCASTS: Final[dict[str, Kind]] = {
    "newMessage": Kind(
        "A message",
        "To every member, the sender too.",
        "new_message",
        _ROOM,
        ref("Published"),
        [Example(None, None, _MESSAGE)],
    ),
    "presenceState": Kind(
        "Who is here",
        "Once after each join; it replaces what the client knows.",
        "presence_state",
        _ROOM,
        ref("PresenceState"),
        [Example(None, None, _ADA)],
    ),
    "presenceDiff": Kind(
        "Who came and went",
        "Changes since the last state or diff. Remove the metas in `leaves` by their `phx_ref`, add those in `joins`.",
        "presence_diff",
        _ROOM,
        ref("PhxDiff"),
        [Example(None, None, PhxDiff(joins=_ADA, leaves={}))],
    ),
}

ENDS: Final[dict[str, Kind]] = {
    "membershipClosed": Kind(
        "Membership ended",
        "The client left, or joined anew: do not join again for it. The refs are those of the join.",
        "phx_close",
        _ROOM,
        ref("Empty"),
        [Example("1", "1", Empty())],
    ),
    "membershipFailed": Kind(
        "Membership failed",
        "The room failed, or may not be joined any more: join again, from the last position seen.",
        "phx_error",
        _ROOM,
        ref("Failed"),
        [Example("1", "1", Failed("channel_crash"))],
    ),
}

ANSWERS: Final[dict[str, str]] = {
    "join": "joined",
    "leave": "left",
    "sendMessage": "sent",
    "loadHistory": "historyLoaded",
    "renewToken": "tokenRenewed",
    "heartbeat": "heartbeatAnswered",
}
"""The kind of the ok reply, by the kind of frame that a client sends. All but a heartbeat may be refused."""
