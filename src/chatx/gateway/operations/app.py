"""What an operator asks a running server: whether it lives, whether it is ready, its figures, its rooms.

| path | who may | answer |
|---|---|---|
| `/healthz` | anybody | 200: the process answers |
| `/readyz` | anybody | 200 where new sockets are taken, else 503: it starts, drains, or its chat does not run |
| | | with [nodes](scaling.md), its `nodes` is `ok`, or, and then it is 503, `away` while it reaches none of them |
| | | `deaf` while some of what is said to it does not come, which it finds out by itself and mends |
| | | or, where an operator has it drained, `draining`, and `drained` when that is done |
| | | and its `strategy` the one in effect: [`pg`](scaling.md) also where `horde` has found no log |
| | | with a log, its `store` is `ok`, or `away` while the log cannot be used |
| `/metrics` | anybody | figures in Prometheus' text format; they name no user and no room |
| `/rooms` | the admin token | rooms and their sizes, sorted by id: `limit` of them, behind the id `after` |
| | | with nodes, the rooms of all, each with its owner as `node`; `missing` names the nodes that did not answer |
| `/rooms/{id}` | the admin token | one room with its members, from its owner where there are nodes |

All but the figures are JSON. The admin token comes as `Authorization: Bearer`. Whoever does not have it is answered the
same for every room, whether there is one or not; without a token configured, that is everybody. No answer costs
more for the rooms and members that are not in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

from msgspec import json, to_builtins
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from chatx.chat import Chat
from chatx.cluster.memberships import Membership
from chatx.core.validation import valid_id
from chatx.errors import Closed, InvalidMessage, RoomUnavailable, WrongLoop
from chatx.gateway.operations.bearer import is_shown
from chatx.gateway.operations.metrics import CONTENT_TYPE, Metrics
from chatx.gateway.operations.rooms import ROOMS_AT_ONCE, ListedRooms, listed, rooms_page
from chatx.runtime.engine import Engine
from chatx.runtime.overview import Overview, first_of, summary_of

MEMBERS_AT_ONCE = 1000
"""Memberships in a room that an answer names at most, of those who came first; `members` counts all users."""

NO_ROOM: Final = "There is no room of this id in memory."
"""What whoever asks for such a room is told."""

HEALTH: Final = ("/healthz", "/readyz")
"""What is to be answered however much else is asked, or whoever watches over the server takes it for dead."""


def operations_app(
    chat: Chat,
    metrics: Metrics,
    *,
    ready: Callable[[], bool],
    admin_token: str | None,
    figures: Callable[[], Awaitable[bytes]] | None = None,
) -> Router:
    """Return the ASGI application with these routes.

    Args:
        chat: The chat.
        metrics: Its figures.
        ready: Whether the server takes new sockets; where the chat does not run, none are taken anyway.
        admin_token: What an operator shows to see rooms; None or empty shuts them.
        figures: What to answer in place of the chat's own figures: those of several processes on one port, as text.
    """

    async def healthz(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        engine = _engine(chat)
        states: dict[str, str] = {}
        if isinstance(engine, Engine):
            # A store that is away takes nobody's socket: readers and presence go on, and `sequenced` messages wait.
            if engine.store is not None:
                states["store"] = engine.store
            # A node that does not reach the others has no rooms of its own, and nobody to ask for any.
            if engine.overview is not None:
                states |= {"nodes": engine.overview.readiness, "strategy": engine.config.cluster_strategy}
        elif chat.drained:
            states["nodes"] = "drained"
        if ready() and isinstance(engine, Engine) and states.get("nodes", "ok") == "ok":
            return _json({"status": "ready"} | states)
        return _json({"status": "not ready"} | states, HTTPStatus.SERVICE_UNAVAILABLE)

    async def figures_shown(request: Request) -> Response:
        text = metrics.text() if figures is None else await figures()
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def rooms(request: Request) -> Response:
        if (refused := _refused(request, admin_token)) is not None:
            return refused
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= ROOMS_AT_ONCE):
            return _error(HTTPStatus.BAD_REQUEST, f"limit is a whole number of rooms from 1 to {ROOMS_AT_ONCE}.")
        after = request.query_params.get("after", "")
        if isinstance(engine := _engine(chat), Response):
            return engine
        return _json(await rooms_page(engine, after, int(limit)))

    async def room(request: Request) -> Response:
        if (refused := _refused(request, admin_token)) is not None:
            return refused
        if isinstance(engine := _engine(chat), Response):
            return engine
        room_id = request.path_params["room_id"]
        if engine.overview is not None:
            return await _room_of_node(engine.overview, room_id)
        process = engine.rooms.find(room_id)
        if process is None:
            return _error(HTTPStatus.NOT_FOUND, NO_ROOM)
        shown = first_of(process.first_presences(MEMBERS_AT_ONCE))
        return _json(to_builtins(listed(summary_of(process))) | {"presence": _named(shown)})

    return Router(
        [
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", figures_shown),
            Route("/rooms", rooms),
            Route("/rooms/{room_id:path}", room),
        ],
        redirect_slashes=False,
    )


def _engine(chat: Chat) -> Engine | Response:
    """Return the engine, or the answer where it cannot be asked."""
    try:
        return chat.engine
    except Closed:
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, "The chat is not running. Come back.")
    except WrongLoop as error:
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, f"The server runs elsewhere than the chat. {error.reason}")


async def _room_of_node(overview: Overview, room_id: str) -> Response:
    try:
        found = await overview.room(valid_id(room_id, "room"))
    except InvalidMessage:
        found = None
    except RoomUnavailable as error:
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, error.reason)
    if found is None:
        return _error(HTTPStatus.NOT_FOUND, NO_ROOM)
    return _json(to_builtins(listed(found.room, found.node)) | {"presence": _named(found.present)})


def _named(present: Iterable[Membership]) -> dict[str, list[dict[str, Any]]]:
    """Return memberships by user."""
    named: dict[str, list[dict[str, Any]]] = {}
    for each in present:
        named.setdefault(each.user_id, []).append({"ref": each.ref, "online_at": each.online_at})
    return named


def _refused(request: Request, admin_token: str | None) -> Response | None:
    if not admin_token:
        return _error(HTTPStatus.FORBIDDEN, "The rooms are shut: the server has no admin token. Set CHATX_ADMIN_TOKEN.")
    if is_shown(admin_token, request.headers.get("authorization", "")):
        return None
    response = _error(HTTPStatus.UNAUTHORIZED, "Show the admin token, as Authorization: Bearer.")
    response.headers["www-authenticate"] = "Bearer"
    return response


def _error(status: HTTPStatus, reason: str) -> Response:
    return _json({"error": reason}, status)


def _json(body: dict[str, Any] | ListedRooms, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(json.encode(body), status, {"cache-control": "no-store"}, "application/json")
