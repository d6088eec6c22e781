"""The store of a running chat: opened where a URL names it, and held where it has one writer; ended with the chat.

Rules:
1. Whoever made a store closes it: what was given as `persistence` is only let go of.
2. A store that another chat writes to is waited for, for up to `drain_timeout_ms`, since that one may be draining; so
   is one that is away. Then the chat does not start.
3. A wait that is given up takes nothing with it: what a thread has opened or taken by then is closed or let go of.
4. Its calls have threads of their own: nobody else's call holds up the start or the end.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from chatx.adapters.boundary import adapter_name
from chatx.adapters.room_log import LogUnavailable, is_log
from chatx.adapters.stores import open_store, shown
from chatx.adapters.threads import AdapterThreads
from chatx.config import ChatConfig
from chatx.errors import AdapterError, ChatError, StoreInUse

logger: logging.Logger = logging.getLogger("chatx")

LOOK_MS: Final = 500
"""How long one call waits for the store, in ms. What runs in a thread cannot be called off, so it is asked again."""

AWAY_S: Final = 0.2
"""How long a store that is away is left alone before it is asked again, in s."""

# Which chat has a store that was given to several: to such an object its own lock says yes each time.
_HOLDERS: weakref.WeakValueDictionary[int, ChatStore] = weakref.WeakValueDictionary()

GIVEN_UP_S: Final = 1.0
"""How long what was begun for a chat that does not start is waited for, in s; more than `LOOK_MS`."""


class ChatStore:
    """What one running chat keeps its messages in, from `begin` to `end`."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._store: Any = config.persistence
        self._name = shown(config.store) if config.store is not None else _name_of(config.persistence)
        self._threads = AdapterThreads()
        self._asked: asyncio.Future[Any] | None = None  # the call that was made last
        self._told = False  # that the store is waited for
        self._ended = False

    @property
    def is_to_begin(self) -> bool:
        """Whether there is a store to open or to hold."""
        return self._config.store is not None or self._has_one_writer

    @property
    def config(self) -> ChatConfig:
        """The options of the chat, with the store that was opened as its persistence."""
        return (
            self._config if self._config.store is None else replace(self._config, persistence=self._store, store=None)
        )

    @property
    def _has_one_writer(self) -> bool:
        return is_log(self._store) and hasattr(self._store, "hold")

    async def begin(self) -> None:
        """Open the store and become its writer.

        Raises:
            ConfigError: The store cannot be used so.
            StoreInUse: Another chat writes to it still.
            AdapterError: It cannot be asked.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.drain_timeout_ms / 1000
        try:
            while self._config.store is not None and self._store is None:
                try:
                    await self._call(None, self._open)
                except StoreInUse:  # it has waited for a while itself, and said so
                    if loop.time() > until:
                        raise
                except LogUnavailable as error:
                    if (left_s := until - loop.time()) <= 0:
                        raise self._refused(error) from error
                    self._tell_of_waiting(error)
                    await asyncio.sleep(min(AWAY_S, left_s))
            if self._has_one_writer:
                await self._hold(until)
        except BaseException as error:
            await self.end(GIVEN_UP_S)
            if isinstance(error, Exception) and not isinstance(error, ChatError):
                logger.exception("The store %s cannot be used.", self._name, extra={"store": self._name})
                raise AdapterError(f"The store {self._name} failed when the chat started; the log says how.") from error
            raise

    async def end(self, timeout_s: float) -> None:
        """Let another chat write, and close the store opened here; what takes longer is left behind, and told."""
        self._ended = True
        until = asyncio.get_running_loop().time() + timeout_s
        if self._asked is not None:  # it may take the lock yet
            await asyncio.wait((self._asked,), timeout=timeout_s)
        if self._has_one_writer and _HOLDERS.get(id(self._store)) in (None, self):
            _HOLDERS.pop(id(self._store), None)
            await self._ending("let_go", until)
        if self._store is not None and self._config.store is not None:
            await self._ending("close", until)
        await self._threads.close(max(0.0, until - asyncio.get_running_loop().time()))

    def _open(self) -> None:
        store: Any = open_store(self._config.store or "", adapter_timeout_ms=self._config.adapter_timeout_ms)
        self._store = store
        if self._ended and not inspect.iscoroutinefunction(store.close):  # nobody waits for it any more
            store.close()

    async def _hold(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        wait_ms = 0
        patience_s = (LOOK_MS + self._config.adapter_timeout_ms) / 1000
        while True:
            away: BaseException | None = None
            try:
                if self._config.cluster_strategy != "local":
                    if await self._call(patience_s, self._store.share, wait_ms) is True:
                        return
                elif id(self._store) in _HOLDERS:
                    await asyncio.sleep(wait_ms / 1000)
                elif (
                    await self._call(patience_s, self._store.hold, wait_ms) is True
                    and _HOLDERS.setdefault(id(self._store), self) is self
                ):
                    return
            except (LogUnavailable, TimeoutError) as error:
                away = error
            left_s = until - loop.time()
            if left_s <= 0:
                raise self._refused(away) from away
            self._tell_of_waiting(away)
            if away:
                await asyncio.sleep(min(AWAY_S, left_s))
            wait_ms = min(LOOK_MS, max(1, int(left_s * 1000)))

    def _tell_of_waiting(self, away: BaseException | None) -> None:
        if self._told:
            return
        self._told = True
        reason = f"it cannot be used ({away})" if away else "another chat writes to it"
        logger.warning(
            "Waiting up to %g s for the store %s: %s.",
            self._config.drain_timeout_ms / 1000,
            self._name,
            reason,
            extra={"store": self._name, "code": AdapterError.code if away else StoreInUse.code},
        )

    def _refused(self, away: BaseException | None) -> ChatError:
        waited = f"within {self._config.drain_timeout_ms / 1000:g} s (drain_timeout_ms)"
        if away is not None:
            return AdapterError(f"The store {self._name} could not be used {waited}: {away}")
        return StoreInUse(
            f"Another chat writes to {self._name} and did not end {waited}. Serve all clients with one chat, in one "
            "process; or stop that one first, or give this one a store of its own."
        )

    async def _ending(self, name: str, until: float) -> None:
        left_s = max(0.01, until - asyncio.get_running_loop().time())
        try:
            await self._call(left_s, getattr(self._store, name))
        except TimeoutError:
            logger.error(
                "%s() of the store %s does not end and is left behind; what it has saved is kept.",
                name,
                self._name,
                extra={"store": self._name, "code": "timeout"},
            )
        except Exception:
            logger.exception("%s() of the store %s failed.", name, self._name, extra={"store": self._name})

    async def _call(self, within_s: float | None, function: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            asked: asyncio.Future[Any] = asyncio.get_running_loop().create_task(function(*args))
        else:
            asked = self._threads.run(function, *args)
        self._asked = asked
        asked.add_done_callback(_looked_at)
        try:
            done, _ = await asyncio.wait((asked,), timeout=within_s)
        except asyncio.CancelledError:
            if isinstance(asked, asyncio.Task):
                asked.cancel()
            raise
        if not done:
            if isinstance(asked, asyncio.Task):
                asked.cancel()
            raise TimeoutError("It did not answer.")
        return asked.result()


def _looked_at(call: asyncio.Future[Any]) -> None:
    """What comes of a call that nobody waits for any more is nobody's failure."""
    if not call.cancelled():
        call.exception()


def _name_of(persistence: object) -> str:
    path = getattr(persistence, "path", None)
    return f"{adapter_name(persistence)} ({path})" if isinstance(path, str) else adapter_name(persistence)
