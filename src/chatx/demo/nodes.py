"""What the demo shows of its nodes, and the button that kills one: routes beside those of the chat."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from chatx.core.validation import valid_id
from chatx.errors import ChatError

HERE = Path(__file__).parent

KILLS = "x-chatx-demo"
"""The header that a page of the demo's own sends when it kills: a form of another site cannot."""

OWNER_WITHIN_S = 10.0
"""How long a node that is to be killed is waited for until it owns the room, in seconds."""

LOOK_S = 0.2
"""Between two looks at whose a room is, in seconds."""

_PLACE = "<!-- nodes -->"


class Nodes(Protocol):
    """The nodes of the demo, as one of them sees them."""

    async def look(self, room_id: str) -> dict[str, Any]:
        """Return the `nodes`, each with its name, state and boot id, and the `owner` of a room, or None."""
        ...

    def kill(self, node: str) -> None:
        """Have the process of a node killed; one that is not there is not."""
        ...


def add_nodes(app: FastAPI, nodes: Nodes) -> None:
    """Add the routes of the nodes to the demo's application."""

    @app.get("/nodes")
    async def look(room: str = "general") -> Response:
        try:
            valid_id(room, "The room")
        except ChatError as error:
            return JSONResponse({"reason": error.reason}, 400)
        return JSONResponse(await nodes.look(room), headers={"cache-control": "no-store"})

    @app.post("/nodes/kill")
    async def kill(request: Request, room: str = "general") -> Response:
        if KILLS not in request.headers:
            return JSONResponse({"reason": f"Only the demo's own page kills a node: it sends {KILLS}."}, 403)
        owner = await _owner(nodes, room)
        if owner is None:
            return JSONResponse({"reason": "Nobody owns the room now; press again in a moment."}, 409)
        nodes.kill(owner)
        return JSONResponse({"killed": owner}, 202)


async def _owner(nodes: Nodes, room: str) -> str | None:
    """Return who owns a room; while it moves, or its node does not keep up, nobody does, and that is waited for."""
    ends_at = time.monotonic() + OWNER_WITHIN_S
    while True:
        owner: str | None = (await nodes.look(room))["owner"]
        if owner is not None or time.monotonic() >= ends_at:
            return owner
        await asyncio.sleep(LOOK_S)


def page_with_nodes(page: str) -> HTMLResponse:
    """Return the channel page with the nodes on it."""
    return HTMLResponse(page.replace(_PLACE, (HERE / "nodes.html").read_text(encoding="utf-8")))
