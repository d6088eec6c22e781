"""What an operator asks a running server: whether it lives, whether it is ready, its figures, its rooms.

| path | who may | answer |
|---|---|---|
| `/healthz` | anybody | 200: the process answers |
| `/readyz` | anybody | 200 where new sockets are taken, else 503: it starts, drains, or its chat does not run |
| | | with [nodes](scaling.md), its `nodes` is `ok`, or, and then it is 503, `away` while it reaches none of them |
| | | with a log, its `store` is `ok`, or `away` while the log cannot be used |
| `/metrics` | anybody | figures in Prometheus' text format; they name no user and no room |
| `/rooms` | the admin token | rooms and their sizes, sorted by id: `limit` of them, behind the id `after` |
| `/rooms/{id}` | the admin token | one room with its members |

All but the figures are JSON. The admin token comes as `Authorization: Bearer`. Whoever does not have it is answered the
same for every room, whether there is one or not; without a token configured, that is everybody. No answer costs
more for the rooms and members that are not in it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from msgspec import json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from chatx.chat import Chat
from chatx.errors import Closed, WrongLoop
from chatx.gateway.operations.metrics import CONTENT_TYPE, Metrics
from chatx.runtime.engine import Engine
from chatx.runtime.process import RoomProcess

ROOMS_AT_ONCE = 1000
"""Rooms in one answer at most; 100 where no limit is given."""

MEMBERS_AT_ONCE = 1000
"""Memberships in a room that an answer names at most, of those who came first; `members` counts all users."""

HEALTH: Final = ("/healthz", "/readyz")
"""What is to be answered however much else is asked, or whoever watches over the server takes it for dead."""

_BEARER = "bearer "


def operations_app(chat: Chat, metrics: Metrics, *, ready: Callable[[], bool], admin_token: str | None) -> Router:
    """Return the ASGI application with these routes.

    Args:
        chat: The chat.
        metrics: Its figures.
        ready: Whether the server takes new sockets; where the chat does not run, none are taken anyway.
        admin_token: What an operator shows to see rooms; None or empty shuts them.
    """

    async def healthz(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if ready() and isinstance(engine := _engine(chat), Engine):
            # A store that is away takes nobody's socket: readers and presence go on, and `sequenced` messages wait.
            states = {} if engine.store is None else {"store": engine.store}
            if engine.elsewhere is None:
                return _json({"status": "ready"} | states)
            # A node that does not reach the others has no rooms of its own, and nobody to ask for any.
            if engine.elsewhere.serving:
                return _json({"status": "ready"} | states | {"nodes": "ok"})
            return _json({"status": "not ready"} | states | {"nodes": "away"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return _json({"status": "not ready"}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def figures(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def rooms(request: Request) -> Response:
        if (refused := _refused(request, admin_token)) is not None:
            return refused
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= ROOMS_AT_ONCE):
            return _error(HTTPStatus.BAD_REQUEST, f"limit is a whole number of rooms from 1 to {ROOMS_AT_ONCE}.")
        after = request.query_params.get("after", "")
        if isinstance(engine := _engine(chat), Response):
            return engine
        page = engine.rooms.after(after, int(limit) + 1)
        shown = page[: int(limit)]
        following = shown[-1].room_id if len(page) > len(shown) else None
        return _json(
            {"total": len(engine.rooms), "rooms": [_summary(process) for process in shown], "after": following}
        )

    async def room(request: Request) -> Response:
        if (refused := _refused(request, admin_token)) is not None:
            return refused
        if isinstance(engine := _engine(chat), Response):
            return engine
        process = engine.rooms.find(request.path_params["room_id"])
        if process is None:
            return _error(HTTPStatus.NOT_FOUND, "There is no room of this id in memory.")
        return _json(_summary(process) | {"presence": _named(process)})

    return Router(
        [
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", figures),
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


def _summary(process: RoomProcess) -> dict[str, Any]:
    head = process.head
    return {
        "id": process.room_id,
        "members": process.members_count,
        "subscriptions": process.subscribers,
        "epoch": head.epoch,
        "offset": head.offset,
        "admitted": process.admitted,
        "crashes": process.crashes,
    }


def _named(process: RoomProcess) -> dict[str, list[dict[str, Any]]]:
    """Return the first members, each with the memberships that there is room for."""
    return {
        user_id: [{"ref": meta.ref, "online_at": meta.online_at} for meta in metas]
        for user_id, metas in process.first_presences(MEMBERS_AT_ONCE).items()
    }


def _refused(request: Request, admin_token: str | None) -> Response | None:
    if not admin_token:
        return _error(HTTPStatus.FORBIDDEN, "The rooms are shut: the server has no admin token. Set CHATX_ADMIN_TOKEN.")
    header = request.headers.get("authorization", "")
    shown = header[len(_BEARER) :].strip() if header[: len(_BEARER)].lower() == _BEARER else ""
    if hmac.compare_digest(shown.encode("latin-1"), admin_token.encode()):
        return None
    response = _error(HTTPStatus.UNAUTHORIZED, "Show the admin token, as Authorization: Bearer.")
    response.headers["www-authenticate"] = "Bearer"
    return response


def _error(status: HTTPStatus, reason: str) -> Response:
    return _json({"error": reason}, status)


def _json(body: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(json.encode(body), status, {"cache-control": "no-store"}, "application/json")
