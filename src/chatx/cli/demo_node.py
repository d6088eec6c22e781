"""One node of `chatx demo --nodes`, a process of its own: `python -m chatx.cli.demo_node DESCRIPTOR`.

The descriptor is a socket to whoever started it. What is to be done comes as the first line, JSON; when the other end
is gone, this process ends. It says `ready`, and `kill NAME` where somebody has pressed the button.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chatx.chat import Chat
from chatx.cli.command import fail
from chatx.cli.demo_serving import serve
from chatx.cli.onlooker import Heard, Onlooker, onlooking
from chatx.cli.workers.orphan import end_with
from chatx.cluster.membership import SUSPECT_S
from chatx.demo.app import demo_app
from chatx.errors import ChatError, ConfigError

LINE_BYTES = 65_536
"""The longest line of what is to be done, in bytes."""

PATIENCE_S = 15.0
"""Seconds in which it stops when its keeper is gone; afterwards it ends hard."""


class NodesFromHere:
    """The nodes of the demo by their heartbeats; `Nodes` of the page.

    Args:
        control: The socket to whoever keeps the processes.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._onlooker: Onlooker | None = None
        self._chat: Chat | None = None

    @asynccontextmanager
    async def looking(self, chat: Chat) -> AsyncIterator[None]:
        """Listen to the nodes within the block."""
        self._chat = chat
        async with onlooking(chat.config) as self._onlooker:
            yield

    async def look(self, room_id: str) -> dict[str, Any]:
        """Return the nodes, and who owns the room."""
        newest: dict[str, Heard] = {}
        for each in self._onlooker.nodes() if self._onlooker is not None else []:
            newest[each.heartbeat.node] = each  # the later boot sorts behind
        now = time.monotonic()
        return {
            "owner": await self._owner(room_id),
            "nodes": [
                {
                    "name": name,
                    "boot": each.heartbeat.boot,
                    "state": "silent" if now - each.at > SUSPECT_S else each.heartbeat.state,
                }
                for name, each in sorted(newest.items())
            ],
        }

    async def _owner(self, room_id: str) -> str | None:
        """Return the name of the node that has the room, or None where nobody has it now."""
        try:
            overview = None if self._chat is None else self._chat.engine.overview
            room = None if overview is None else await overview.room(room_id)
        except ChatError:
            return None
        return None if room is None else room.node

    def kill(self, node: str) -> None:
        """Have a node killed."""
        self._say(f"kill {node}")

    def ready(self) -> None:
        """Say that this node serves."""
        self._say("ready")

    def _say(self, line: str) -> None:
        self._control.send(line.encode() + b"\n")  # some bytes, and the keeper reads


def main() -> int:
    """Serve as a node until a signal or the end of the keeper, and return the exit status."""
    control = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(_first_line(control))
    end_with(control, PATIENCE_S)
    nodes = NodesFromHere(control)
    try:
        app = demo_app(nodes=nodes, **told["options"])
        sockets = [socket.socket(fileno=each) for each in told["sockets"]]
        return serve(app, sockets, nodes.ready, nodes.looking(app.state.chat))
    except ConfigError as error:
        return fail(error)
    except ChatError as error:
        return fail(error, 1)


def _first_line(control: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE_BYTES:
        some = control.recv(LINE_BYTES)
        if not some:
            sys.exit(1)
        line += some
    return line


if __name__ == "__main__":
    sys.exit(main())
