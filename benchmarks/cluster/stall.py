"""How long one who chats on one node waits when the node that owns the room goes, by `kill -9` or after a drain."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

TOPIC = "room:"
AGAIN_S = 0.02
"""Between two attempts, in seconds."""

ANSWERED_S = 10.0
"""The longest wait for one answer, in seconds."""


async def stall(port: int, room_id: str, strike: Callable[[], object], seconds: float) -> dict[str, float]:
    """Send one message after the other through a node, and have its room's owner go after a second.

    Returns:
        `stall_s`, the longest from a first attempt to its acknowledgement; how many were `acknowledged`; of those how
        many were not seen by the end (`lost`), and how many were seen twice (`doubled`).
    """
    talker = Talker(port, room_id)
    longest, number, struck = 0.0, 0, False
    run = secrets.token_hex(4)  # a key of a run before would be answered with that one's message
    began = time.monotonic()
    async with connect(talker.url) as talker.socket:
        await talker.join()
        while (now := time.monotonic()) < began + seconds:
            if not struck and now > began + 1:
                struck = True
                strike()
            number += 1
            await talker.say(f"{run} {number}")
            longest = max(longest, time.monotonic() - now)
        await talker.read_on(1.0)
    return {
        "stall_s": longest,
        "acknowledged": len(talker.acknowledged),
        "lost": talker.lost,
        "doubled": talker.doubled,
    }


class Talker:
    """One client in one room, which joins again whenever it is told that it fell out."""

    def __init__(self, port: int, room_id: str) -> None:
        self.url = f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&user_id=talker"
        self.socket: ClientConnection
        self.acknowledged: set[str] = set()
        self.doubled = 0
        self._topic = TOPIC + room_id
        self._seen: set[str] = set()
        self._place: dict[str, object] = {}
        self._refs = 0
        self._join_ref = ""

    @property
    def lost(self) -> int:
        """How many were acknowledged and not seen."""
        return len(self.acknowledged - self._seen)

    async def join(self) -> None:
        """Join, again and again until it is let in."""
        while True:
            self._join_ref = str(self._refs + 1)
            reply = await self._ask("phx_join", self._place)
            if reply.get("status") == "ok":
                answer = reply["response"]
                if not answer.get("recovered"):
                    self._place = {"epoch": answer["epoch"], "offset": answer["offset"]}
                return
            await asyncio.sleep(AGAIN_S)

    async def say(self, number: str) -> None:
        """Send a message, again and again under one key until it is acknowledged."""
        while True:
            reply = await self._ask("new_message", {"content": number, "key": number})
            if reply.get("status") == "ok":
                self.acknowledged.add(reply["response"]["id"])
                return
            if not reply or reply["response"].get("reason") == "unmatched topic":
                await self.join()
            else:
                await asyncio.sleep(AGAIN_S)

    async def read_on(self, seconds: float) -> None:
        """Take what still comes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self._take(await self.socket.recv())

    async def _ask(self, event: str, payload: dict[str, object]) -> dict[str, Any]:
        """Return the reply; nothing where the room went before it came."""
        self._refs += 1
        ref = str(self._refs)
        await self.socket.send(json.dumps([self._join_ref, ref, self._topic, event, payload]))
        async with asyncio.timeout(ANSWERED_S):
            while True:
                told, replied_to, reply = self._take(await self.socket.recv())
                if told == "phx_error" and event != "phx_join":
                    return {}
                if told == "phx_reply" and replied_to == ref:
                    return reply

    def _take(self, text: str | bytes) -> tuple[str, str | None, dict[str, Any]]:
        _, ref, _, event, payload = json.loads(text)
        if event == "new_message":
            self.doubled += payload["id"] in self._seen
            self._seen.add(payload["id"])
            self._place = {"epoch": payload["epoch"], "offset": payload["offset"]}
        return event, ref, payload
