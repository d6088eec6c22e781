"""What may be asked of the API: by path and method, with its types, and who answers it.

The OpenAPI document is made of this table, and so is what a request that is none of it is told.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from msgspec import UNSET, Struct
from msgspec.structs import asdict

from chatx.chat import Chat
from chatx.core.message import Message
from chatx.gateway.api.bodies import (
    HistoryQuery,
    NewMessage,
    NoQuery,
    PresencePage,
    PresenceQuery,
    RoomsQuery,
    SentMessage,
)
from chatx.gateway.operations.rooms import ListedRooms, rooms_page
from chatx.gateway.session.history import page_of
from chatx.gateway.session.hub import message_payload
from chatx.gateway.session.reading import Reading
from chatx.gateway.wire.payloads import History, HistoryPage, StreamPosition


class Asked(NamedTuple):
    """A request that was understood.

    Attributes:
        chat: The chat that is asked.
        id: The room or the user in the path; empty where the path has none.
        query: An instance of the operation's `query`.
        body: An instance of the operation's `body`; None where it has none.
        key: The idempotency key.
    """

    chat: Chat
    id: str
    query: Any
    body: Any
    key: str | None


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        name: Its name in the OpenAPI document.
        summary: What it does.
        about: What else is to be known of it.
        answer: Answers it; None has no body.
        query: What its query may have.
        body: What its body is; None where it takes none.
        status: The status of an answer.
        answered: The type of its body.
        means: What the answer is.
        key: Whether it takes an `Idempotency-Key`.
    """

    name: str
    summary: str
    about: str
    answer: Callable[[Asked], Coroutine[Any, Any, Struct | None]]
    means: str
    answered: type[Struct] | None
    status: HTTPStatus = HTTPStatus.OK
    query: type[Struct] = NoQuery
    body: type[Struct] | None = None
    key: bool = False


async def _send(asked: Asked) -> SentMessage:
    wanted: NewMessage = asked.body
    message = await asked.chat.send_message(
        asked.id,
        wanted.user_id,
        wanted.content,
        idempotency_key=asked.key,
        trusted=wanted.trusted,
        data=wanted.data,
    )
    return _sent(message)


def _sent(message: Message) -> SentMessage:
    return SentMessage(
        **asdict(message_payload(message)),
        duplicate=True if message.duplicate else UNSET,
        stored=True if message.stored else UNSET,
    )


async def _history(asked: Asked) -> HistoryPage:
    query: HistoryQuery = asked.query
    engine = asked.chat.engine
    config = engine.config
    reading = Reading(config.history_bytes_per_sec, config.message_size_limit, config.mailbox_bytes, engine.loop)
    return await page_of(
        engine, reading, None, asked.id, History(query.limit, _place(query.before), _place(query.after))
    )


def _place(text: object) -> StreamPosition | None:
    if not isinstance(text, str):
        return None
    epoch, _, offset = text.rpartition(":")
    return StreamPosition(epoch, int(offset))


async def _presence(asked: Asked) -> PresencePage:
    query: PresenceQuery = asked.query
    present = await asked.chat.presence(asked.id)
    users = heapq.nsmallest(query.limit + 1, (user for user in present if user > query.after))
    shown = users[: query.limit]
    following = shown[-1] if len(users) > len(shown) else None
    return PresencePage(len(present), {user: present[user] for user in shown}, following)


async def _rooms(asked: Asked) -> ListedRooms:
    query: RoomsQuery = asked.query
    return await rooms_page(asked.chat.engine, query.after, query.limit)


async def _revoke(asked: Asked) -> None:
    await asked.chat.revoke(asked.id)


ROUTES: Final[Mapping[str, Mapping[str, Operation]]] = {
    "/rooms": {
        "GET": Operation(
            "listRooms",
            "List the rooms in memory",
            "With nodes, those of all nodes. A page may have fewer than were asked for and go on all the same.",
            _rooms,
            "A page of rooms.",
            ListedRooms,
            query=RoomsQuery,
        )
    },
    "/rooms/{room}/messages": {
        "GET": Operation(
            "readMessages",
            "Read what was said in a room",
            "Without a place the newest. `more` says whether there are older ones, or, behind `after`, newer ones. A "
            "page may have fewer than were asked for, where they are large.",
            _history,
            "A page of messages, oldest first.",
            HistoryPage,
            query=HistoryQuery,
        ),
        "POST": Operation(
            "sendMessage",
            "Send a message in a user's name",
            "The room is begun if it is not there. A request that was read goes its way also where the client goes "
            "before the answer; send it again with the same key, and it is not said twice.",
            _send,
            "The message. With a key that was used before, the first message, with `duplicate`.",
            SentMessage,
            HTTPStatus.CREATED,
            body=NewMessage,
            key=True,
        ),
    },
    "/rooms/{room}/presence": {
        "GET": Operation(
            "readPresence",
            "See who is in a room",
            "",
            _presence,
            "A page of the users in the room.",
            PresencePage,
            query=PresenceQuery,
        )
    },
    "/users/{user}/sessions": {
        "DELETE": Operation(
            "revokeUser",
            "Cut off all that a user holds",
            "Sockets, polls, live pages and memberships end, on all nodes. Forbid the user first: clients come back, "
            "and what they may then is what `authenticate` and the auth adapter say.",
            _revoke,
            "It is done here; each other node is told, and one that is away when it is back.",
            None,
            HTTPStatus.NO_CONTENT,
        )
    },
}
"""Operations by path and method."""

DESCRIPTION: Final = "/openapi.json"
"""Where the OpenAPI document is, which anybody may see."""


def methods_of(path: str) -> tuple[str, ...]:
    """Return the methods that a path answers to."""
    own = ("GET",) if path == DESCRIPTION else tuple(ROUTES[path])
    return (*own, *(("HEAD",) if "GET" in own else ()), "OPTIONS")


def route_of(parts: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the path of the table that a request leads to, and the id in it, or None."""
    if parts == (DESCRIPTION[1:],):
        return DESCRIPTION, ""
    for path in ROUTES:
        wanted = tuple(path[1:].split("/"))
        if len(wanted) == len(parts) and (parts[:1], parts[2:]) == (wanted[:1], wanted[2:]):
            return path, parts[1] if len(parts) > 1 else ""
    return None
