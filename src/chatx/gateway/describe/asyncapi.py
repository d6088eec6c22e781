"""The wire as an AsyncAPI 3.0.0 document, made of the types and tables that the gateway itself runs on.

A channel is a topic, and every channel is on the one socket. A message's payload is a whole frame, of either version.
Operations are the server's: what it receives, with the replies it gives, and what it sends. What AsyncAPI has no place
for is in extensions: `x-close-codes`, `x-error-codes`, `x-limits` and `x-topic-states`.

Source: the AsyncAPI specification 3.0.0 and its WebSockets bindings 0.1.0.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import json

from chatx import __version__
from chatx.config import ChatConfig
from chatx.core.validation import ID_LIMIT
from chatx.errors import (
    ERRORS,
    AlreadyStarted,
    ConfigError,
    Revoked,
    SlowConsumer,
    StoreInUse,
    SubscriberFailed,
    WrongLoop,
)
from chatx.gateway.describe.catalogue import (
    ANSWERS,
    BROADCASTS,
    ENDS,
    FROM_CLIENTS,
    HEARTBEAT_S,
    PHOENIX,
    REPLIES,
    Example,
    Kind,
)
from chatx.gateway.describe.schemas import Schema, client_frame, schemas, server_frame
from chatx.gateway.wire.bounds import (
    CONTROL_FRAMES_PER_S,
    IDLE_TIMEOUT_S,
    JOIN_BURSTS,
    JOIN_SECONDS,
    MAX_FRAGMENTS,
    MAX_FRAME_BYTES,
    MAX_WAITING_FRAMES,
    MESSAGE_ROOMS,
    PENDING_PUSHES,
    ROOM_SECONDS,
)
from chatx.gateway.wire.closes import CLOSES
from chatx.gateway.wire.frames import VSN_PATTERN, Frame
from chatx.gateway.wire.phoenix import BEARER
from chatx.gateway.wire.topics import room_topic
from chatx.gateway.wire.transitions import TRANSITIONS

_KINDS: Final = {**FROM_CLIENTS, **REPLIES, **BROADCASTS, **ENDS}

_NOT_ON_THE_WIRE: Final = {
    error.code
    for error in (AlreadyStarted, ConfigError, Revoked, SlowConsumer, StoreInUse, SubscriberFailed, WrongLoop)
}
"""Errors of the Python interface alone; a socket has close codes instead."""

_ABOUT: Final = f"""\
Phoenix Channels, versions 2.0.0 and 1.0.0, over one WebSocket. Every text message is one frame. In version 2 a frame is
the array `[{", ".join(Frame.__struct_fields__)}]`; in version 1 an object of the same names, which the server writes
without `join_ref`. The version is the query parameter `vsn`, and 1.0.0 without one.

Each topic is a channel here. A client joins a topic, names the join by its ref, and sends that as `join_ref` with all
that belongs to it. Each push gets one reply, with its `ref`. Broadcasts have neither. A payload that cannot be read, as
that of a binary frame of version 2, is answered with `invalid_message`; the socket stays. A payload of `null` is an
empty object.

Unknown fields of what a client sends are ignored; a client should do the same.
"""

_SECURITY: Final[dict[str, dict[str, Any]]] = {
    "subprotocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": f"Offer `phoenix` and `{BEARER}` with the token in base64url, without padding. The second is "
        "never echoed. This is the `authToken` of phoenix.js.",
    },
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The header `Authorization`, where the application reads it, as `chatx serve` does.",
    },
    "cookie": {
        "type": "httpApiKey",
        "in": "cookie",
        "name": "session",
        "description": "A cookie of the application's, under whatever name. A client that sends cookies must send an "
        "Origin that may connect.",
    },
    "query": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": "A parameter of the application's, under whatever name. Query parameters reach logs: prefer the "
        "others.",
    },
}

_BINDING: Final[dict[str, Any]] = {
    "method": "GET",
    "query": {
        "type": "object",
        "description": "Other parameters are the application's.",
        "properties": {
            "vsn": {
                "type": "string",
                "pattern": f"^{VSN_PATTERN}$",
                "default": "1.0.0",
                "examples": ["2.0.0"],
                "description": "The version of the protocol.",
            }
        },
    },
    "headers": {
        "type": "object",
        "properties": {
            "Origin": {
                "type": "string",
                "description": "Browsers send it. It must be the server's own, or one that the application allows.",
            },
            "Sec-WebSocket-Protocol": {
                "type": "string",
                "description": "`phoenix`, and the subprotocol that carries a token. May be left out.",
            },
        },
    },
    "bindingVersion": "0.1.0",
}


def document() -> dict[str, Any]:
    """Return the document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "chatx",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": {
            "room": {
                "address": "room:{room_id}",
                "title": "A room",
                "description": "The topic of a room; a client joins as many as it needs.",
                "parameters": {"room_id": {"description": "The room's id, which is all that follows `room:`."}},
                "messages": _messages("room"),
                "bindings": _ref("components", "channelBindings", "socket"),
            },
            "phoenix": {
                "address": "phoenix",
                "title": "The socket itself",
                "description": "Is there without being joined.",
                "messages": _messages("phoenix"),
                "bindings": _ref("components", "channelBindings", "socket"),
            },
        },
        "operations": _operations(),
        "components": {
            "schemas": schemas(),
            "messages": {name: _message(name, message) for name, message in _KINDS.items()},
            "correlationIds": {
                "ref": {
                    "description": "A reply has the ref of what it answers. In version 1 it is in the field `ref`.",
                    "location": f"$message.payload#/{Frame.__struct_fields__.index('ref')}",
                }
            },
            "securitySchemes": _SECURITY,
            "channelBindings": {"socket": {"ws": _BINDING}},
        },
        "x-close-codes": {str(code): close._asdict() for code, close in CLOSES.items()},
        "x-error-codes": {
            code: {"retryable": error.retryable, "means": error.summary}
            for code, error in ERRORS.items()
            if code not in _NOT_ON_THE_WIRE
        },
        "x-limits": _limits(),
        "x-topic-states": {
            state: {given: {"effect": effect, "state": target} for given, (target, effect) in row.items()}
            for state, row in TRANSITIONS.items()
        },
    }


def text() -> str:
    """Return the document as JSON."""
    return json.format(json.encode(document()), indent=2).decode() + "\n"


def _servers() -> dict[str, Any]:
    refused = (
        "A handshake is refused with 403 for an unknown version, a foreign origin, or by the application; with 429 or "
        "503 at a bound, or 403 where the server can send no other status. Come back after a pause."
    )
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY]
    return {
        "local": {
            "host": "localhost:4000",
            "pathname": "/socket/websocket",
            "protocol": "ws",
            "protocolVersion": "13",
            "description": f"`chatx serve` or `chatx demo` on this machine. {refused}",
            "security": security,
        },
        "public": {
            "host": "{host}",
            "pathname": "{mount}/websocket",
            "protocol": "wss",
            "protocolVersion": "13",
            "description": f"An application of yours. {refused}",
            "variables": {
                "host": {"default": "chat.example.org", "description": "Where the application is."},
                "mount": {"default": "/socket", "description": "Where it has mounted the socket."},
            },
            "security": security,
        },
    }


def _messages(channel: str) -> dict[str, Schema]:
    return {name: _ref("components", "messages", name) for name, kind in _KINDS.items() if _channel(kind) == channel}


def _operations() -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for name, kind in FROM_CLIENTS.items():
        channel = _channel(kind)
        replies = [ANSWERS[name]] if channel == "phoenix" else [ANSWERS[name], "refused"]
        operations[name] = {
            "action": "receive",
            "channel": _ref("channels", channel),
            "title": kind.title,
            "summary": kind.summary,
            "messages": [_ref("channels", channel, "messages", name)],
            "reply": {
                "channel": _ref("channels", channel),
                "messages": [_ref("channels", channel, "messages", each) for each in replies],
            },
        }
    for name, kind in {**BROADCASTS, **ENDS}.items():
        operations[f"tell{name[0].upper()}{name[1:]}"] = {
            "action": "send",
            "channel": _ref("channels", "room"),
            "title": kind.title,
            "summary": kind.summary,
            "messages": [_ref("channels", "room", "messages", name)],
        }
    return operations


def _message(name: str, kind: Kind) -> dict[str, Any]:
    if name in FROM_CLIENTS:
        payload = client_frame(kind.topic, kind.event, kind.payload)
    else:
        payload = server_frame(kind.topic, kind.event, kind.payload, broadcast=name in BROADCASTS)
    message: dict[str, Any] = {
        "name": kind.event,
        "title": kind.title,
        "summary": kind.summary,
        "payload": payload,
        "examples": [each for example in kind.examples for each in _examples(kind, example)],
    }
    if name in FROM_CLIENTS or name in REPLIES:
        message["correlationId"] = _ref("components", "correlationIds", "ref")
    return message


def _examples(kind: Kind, example: Example) -> list[dict[str, Any]]:
    topic = "phoenix" if _channel(kind) == "phoenix" else room_topic("general")
    values = (example.join_ref, example.ref, topic, kind.event, json.decode(json.encode(example.payload)))
    fields = dict(zip(Frame.__struct_fields__, values, strict=True))
    version_1 = {field: value for field, value in fields.items() if field != "join_ref"}
    return [{"name": "version 2", "payload": list(values)}, {"name": "version 1", "payload": version_1}]


def _limits() -> dict[str, Any]:
    config = ChatConfig()
    rate = config.rate_limit
    joins = config.max_joins_per_connection
    rooms = joins * config.max_connections_per_user
    limits: dict[str, tuple[float, str]] = {
        "frame_bytes": (
            MAX_FRAME_BYTES,
            "Bytes of a whole WebSocket message; beyond it the socket is closed with 1009.",
        ),
        "fragments": (MAX_FRAGMENTS, "WebSocket frames of a message, on the native server; 1008."),
        "control_frames_per_s": (CONTROL_FRAMES_PER_S, "Pings and pongs a second, on the native server; 1008."),
        "content_bytes": (config.message_size_limit, "Bytes of UTF-8 in a message's content; `message_too_large`."),
        "id_bytes": (ID_LIMIT, "Bytes of UTF-8 in a room's id and in an idempotency key; `invalid_message`."),
        "joined_rooms": (joins, "Rooms of a socket; `too_many_joins`."),
        "joins_at_once": (JOIN_BURSTS * joins, "Joins and new tokens of a socket, at once; `rate_limited`."),
        "joins_per_s": (joins / JOIN_SECONDS, "Joins and new tokens of a socket, after that; `rate_limited`."),
        "messages_at_once": (rate.burst, "Messages of a user in a room, at once; `rate_limited`."),
        "messages_per_s": (rate.messages_per_sec, "Messages of a user in a room, after that; `rate_limited`."),
        "user_joins_at_once": (JOIN_BURSTS * rooms, "Joins of a user over all sockets, at once; `rate_limited`."),
        "user_joins_per_s": (rooms / JOIN_SECONDS, "Joins of a user over all sockets, after that; `rate_limited`."),
        "user_rooms_at_once": (rooms, "Rooms that begin with a user's joins, at once; `rate_limited`."),
        "user_rooms_per_min": (rooms * 60 / ROOM_SECONDS, "Rooms that begin with them, after that; `rate_limited`."),
        "user_messages_at_once": (
            MESSAGE_ROOMS * rate.burst,
            "Messages of a user over all rooms and sockets, at once; `rate_limited`.",
        ),
        "user_messages_per_s": (
            MESSAGE_ROOMS * rate.messages_per_sec,
            "Messages of a user over all rooms and sockets, after that; `rate_limited`.",
        ),
        "waiting_frames": (MAX_WAITING_FRAMES, "Frames sent to a topic while its join or leave is unanswered; 1008."),
        "unanswered_pushes": (PENDING_PUSHES, "Pushes under way; the server reads no further meanwhile."),
        "unread_bytes": (config.mailbox_bytes, "Bytes that the client has not taken; 1013."),
        "silence_s": (IDLE_TIMEOUT_S, "Seconds without a frame from the client; 1001."),
        "heartbeat_s": (HEARTBEAT_S, "Seconds between two heartbeats, as clients send them."),
    }
    return {name: {"default": value, "means": means} for name, (value, means) in limits.items()}


def _channel(kind: Kind) -> str:
    return "phoenix" if kind.topic is PHOENIX else "room"


def _ref(*path: str) -> Schema:
    return {"$ref": "#/" + "/".join(path)}
