"""Fixtures for tests of applications built on chatx. pytest finds them by itself where chatx is installed.

They need no other plugin: a plain test runs its coroutine on virtual time.

    def test_hello_reaches_bob(chatx_run, chatx_chat):
        async def main():
            async with chatx_chat() as chat, ChatClient(chat, "bob") as bob:
                await bob.join("general")
                await chat.send_message("general", "alice", "hello")
                await bob.expect_message("hello")

        chatx_run(main())
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeAlias, TypeVar

from chatx.chat import Chat
from chatx.extras import needs
from chatx.testing.loop import run_virtual

with needs("testing", "chatx.testing.pytest_plugin"):
    import pytest

T = TypeVar("T")

ChatFactory: TypeAlias = Callable[..., Chat]

# Of the chat itself; those of an open socket belong to the server that serves it.
_TASKS = ("chatx delivery", "chatx room", "chatx stop")


@pytest.fixture
def chatx_run() -> Callable[[Coroutine[Any, Any, T]], T]:
    """A function that runs a coroutine to its end on virtual time: waiting costs nothing; see `run_virtual`.

    For adapters that run in threads, such as `SQLitePersistence`, use `asyncio.run`: the clock does not wait for them.
    """
    return run_virtual


@pytest.fixture
def chatx_chat() -> Iterator[ChatFactory]:
    """A factory of chats, which takes the options of `Chat`.

    The test fails where a chat is not stopped when the test ends, or leaves a task or a thread behind when it stops.
    The factory works in tests on a loop of their own too.
    """
    watched = _Watched()
    yield watched.chat
    watched.check()


class _Watched:
    """The chats of one test, and what they left behind."""

    def __init__(self) -> None:
        self._running: set[Chat] = set()
        self._left: list[str] = []
        # What an earlier test left behind is that one's fault.
        self._threads = set(threading.enumerate())

    def chat(self, **options: Any) -> Chat:
        """Build a chat."""
        return _WatchedChat(self, **options)

    def started(self, chat: Chat) -> None:
        """Note that a chat runs."""
        self._running.add(chat)

    def stopped(self, chat: Chat) -> None:
        """Look for what is left behind once no chat runs any more: before, nobody can tell whose a task is."""
        self._running.discard(chat)
        if self._running:
            return
        # Now, while the loop is there: when it is closed it cancels what was forgotten, and nobody learns of it.
        tasks = (task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task())
        self._left += [f"the task {name!r}" for name in tasks if name.startswith(_TASKS)]
        threads = (thread for thread in threading.enumerate() if thread not in self._threads)
        self._left += [f"the thread {thread.name!r}" for thread in threads if thread.name.startswith("chatx-")]

    def check(self) -> None:
        """Fail the test where a chat still runs, or has left something behind."""
        if self._running:
            pytest.fail(f"{len(self._running)} chat(s) were not stopped; use `async with chat`.", pytrace=False)
        if self._left:
            pytest.fail(f"A chat stopped and left behind: {', '.join(self._left)}.", pytrace=False)


class _WatchedChat(Chat):
    def __init__(self, watched: _Watched, **options: Any) -> None:
        super().__init__(**options)
        self._watched = watched

    async def start(self) -> None:
        await super().start()
        self._watched.started(self)

    async def stop(self, *, drain_timeout_ms: int | None = None) -> None:
        await super().stop(drain_timeout_ms=drain_timeout_ms)
        self._watched.stopped(self)
