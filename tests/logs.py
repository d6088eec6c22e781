"""Logs that do what a test wants of them, and chats over them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from chatx import Chat, Message
from chatx.adapters.memory_log import MemoryLog
from chatx.adapters.room_log import Answer, Append, LogUnavailable


def chat_on(log: Any, **options: Any) -> Chat:
    """Return a chat over a log whose sends pass no middleware."""
    return Chat(persistence=log, middlewares=(), **options)


def stored_on(log: Any, **options: Any) -> Chat:
    """Return such a chat whose messages are to be stored, if the options do not say otherwise."""
    return chat_on(log, **{"durability": "stored"} | options)


async def sent(chat: Chat, count: int, room_id: str = "room", **options: Any) -> list[Message]:
    """Send so many messages, one after another, and return them; the options go to each send."""
    return [await chat.send_message(room_id, "ada", str(number), **options) for number in range(count)]


class Bare:
    """A log in memory without an outbox, which keeps everything."""

    def __init__(self, log: MemoryLog) -> None:
        for name in ("look", "take_over", "unproven", "append", "read", "close_rooms", "find"):
            setattr(self, name, getattr(log, name))


class Gated(MemoryLog):
    """A log whose appends wait for a gate, and fail then where they are told to.

    Attributes:
        gate: What they wait for; it is open.
        fails: Whether they fail.
        appended: What was asked of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.appended: list[Append] = []

    async def append(self, appends: Sequence[Append], /) -> Sequence[Answer]:
        self.appended += appends
        await self.gate.wait()
        if self.fails:
            raise LogUnavailable("away")
        return await super().append(appends)
