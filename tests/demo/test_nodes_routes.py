"""What the demo answers to the button that kills the owner of a room."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI

import chatx.demo.nodes as demo_nodes
from chatx.demo.nodes import KILLS, add_nodes


class Moving:
    """Nodes of which one owns the room only after some looks."""

    def __init__(self, looks: int) -> None:
        self.killed: list[str] = []
        self._looks = looks

    async def look(self, room_id: str) -> dict[str, Any]:
        self._looks -= 1
        return {"nodes": [], "owner": None if self._looks >= 0 else "node-2"}

    def kill(self, node: str) -> None:
        self.killed.append(node)


async def pressed(nodes: Moving) -> tuple[int, Any]:
    app = FastAPI()
    add_nodes(app, nodes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as client:
        response = await client.post("/nodes/kill", params={"room": "general"}, headers={KILLS: "kill"})
    return response.status_code, response.json()


async def test_an_owner_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_nodes, "LOOK_S", 0.0)
    nodes = Moving(3)
    assert await pressed(nodes) == (202, {"killed": "node-2"})
    assert nodes.killed == ["node-2"]


async def test_where_nobody_owns_the_room_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_nodes, "OWNER_WITHIN_S", 0.0)
    nodes = Moving(1_000)
    status, answer = await pressed(nodes)
    assert (status, nodes.killed) == (409, [])
    assert "press again" in answer["reason"]
