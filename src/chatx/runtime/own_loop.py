"""The thread and the event loop that a chat runs on, and what is asked of it from elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import get_ident

from chatx.errors import WrongLoop


class OwnLoop:
    """Where one running chat is at home: the event loop, and the thread, that it was started on.

    Attributes:
        loop: The event loop.
        thread: The thread, as `get_ident` has it.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.thread: int = get_ident()

    @property
    def here(self) -> bool:
        """Whether this is called on the chat's own event loop, or in its thread while no loop runs there."""
        # What runs in this thread runs on this loop if that runs at all. The rest costs a system call on Python 3.11.
        if get_ident() != self.thread:
            return False
        return self.loop.is_running() or asyncio._get_running_loop() in (None, self.loop)

    def check_here(self) -> None:
        """Raise `WrongLoop` unless this is called where the chat runs: nothing here is locked, nobody would wake up."""
        if not self.here:
            raise WrongLoop(
                "This was called in another thread or event loop than the chat was started on, so nothing was done. "
                "In a plain `def` endpoint call anyio.from_thread.run(chat.send_message, room_id, user_id, content); "
                "in another thread asyncio.run_coroutine_threadsafe(chat.send_message(...), loop).result(), where loop "
                "is the one that the chat was started on."
                + (
                    " That loop is closed, and the chat was not stopped before: make another Chat, and let `async with "
                    "chat` stop it."
                    if self.loop.is_closed()
                    else ""
                )
            )

    def end_here(self, end: Callable[[], object]) -> bool:
        """Return True where the caller is to end something itself; else have the chat's loop call `end` soon."""
        if self.here or not self.loop.is_running():
            return True
        try:
            self.loop.call_soon_threadsafe(end)
        except RuntimeError:  # it was closed meanwhile: nobody is left to tell
            return True
        return False
